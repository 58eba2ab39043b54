"""Packing into GPU memory: raw slices go up in large pinned transfers and are permuted there.

Two pinned buffers and two device buffers of `scratch` bytes each take turns: while the GPU permutes one batch of
experts, the next is copied up and the one after is cut from the checkpoint, digested and checked on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardproof.checkpoint import MappedReader
from shardproof.checkpoint.reader import Addresses
from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.formats import ExpertModel
from shardproof.kernels.device.gather import device_gather
from shardproof.layouts import Placed, find
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.layer import Slot, cuts_of, engine_can, layer_spans, raise_fault
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.program import staging_program
from shardproof.pack.reference import pack_slot
from shardproof.partition import Rank
from shardproof.plan import Plan

if TYPE_CHECKING:
    import torch

SCRATCH = 256 << 20


def pack_layer_on_device(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, out: Mapping[Slot, torch.Tensor],
    *, scratch: int = SCRATCH, threads: int | None = None,
) -> Digest:  # fmt: skip
    """Pack one layer of one rank into tensors on a device (flat uint8, every byte is written); returns the digest.

    Scratch is at most 2 * `scratch` bytes of pinned host memory and as many on the device, or two experts where one
    is larger. Works on any torch device; on CUDA the permutation is one Triton kernel.
    Raises what `pack_layer` raises.
    """
    digest = Digest()
    spans = layer_spans(model, plan, key, [rank])
    reader = MappedReader(model.checkpoint, ())
    where = Addresses(spans, reader.take(spans))
    stage = None
    for slot in plan.fields(key):
        target = out[slot]
        placed = plan.placed(key, rank, *slot)
        _check(placed, target, key, rank, slot)
        if not engine_can(model, key, slot) or device_gather(placed, str(target.device)) is None:
            host = np.empty(placed.nbytes, dtype=np.uint8)
            digest += pack_slot(model, plan, key, rank, slot, host)
            target.copy_(_tensor(host))
            continue
        stage = stage or _Stage(str(target.device), scratch, threads)
        digest += _pack_slot(model, plan, key, rank, slot, target, where, stage)
    if stage is not None:
        stage.finish()
    reader.done(spans)
    return digest


def _check(placed: Placed, target: torch.Tensor, key: str, rank: Rank, slot: Slot) -> None:
    found = f"{target.dtype} {tuple(target.shape)}"
    if found != f"torch.uint8 ({placed.nbytes},)" or not target.is_contiguous():
        raise PackError(
            "pack.buffer", "a destination is not what this tensor needs", layer=key, rank=rank, tensor=".".join(slot),
            found=found, needed=f"torch.uint8 ({placed.nbytes},), contiguous",
        )  # fmt: skip


def _tensor(data: Bytes) -> torch.Tensor:
    import torch

    return torch.from_numpy(data)


@dataclass(frozen=True)
class _Batch:
    """Experts [first, first + count) of a tensor: their layout and the bytes that they take in it."""

    first: int
    count: int
    placed: Placed
    start: int


def _batches(plan: Plan, slot: Slot, placed: Placed, scratch: int) -> Iterator[_Batch]:
    """Batches whose staged bytes fit in `scratch`; all experts at once where tiles would be cut."""
    layout, parameters = find(plan.recipe.layouts[slot])
    experts, rows, width = placed.shape
    single = layout.place((1, rows, width), parameters)
    count = max(1, min(experts, scratch // max(staged_bytes(single), 1)))
    if single.nbytes * experts != placed.nbytes:
        count = experts
    for first in range(0, experts, count):
        held = min(count, experts - first)
        yield _Batch(first, held, layout.place((held, rows, width), parameters), first * single.nbytes)


def staged_bytes(placed: Placed) -> int:
    """Bytes of a batch in canonical order with the layout's own padding."""
    total = 1
    for size in placed.padded:
        total *= size
    return total * {"byte": 8, "nibble": 4, "bit": 1}[placed.unit] // 8


def _pack_slot(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, target: torch.Tensor, where: Addresses,
    stage: _Stage,
) -> Digest:  # fmt: skip
    placed = plan.placed(key, rank, *slot)
    if placed.has_padding:
        target.fill_(placed.pad_value)
    cuts = cuts_of(plan, model.layer(key), rank, slot, where)
    total = Digest()
    for batch in _batches(plan, slot, placed, stage.scratch):
        pinned = stage.next(staged_bytes(batch.placed))
        made = staging_program(batch.placed, plan.recipe.layouts[slot], slot[1])
        jobs = np.zeros(max(1, min(made.groups, 64)), dtype=native.JOB)
        bounds = np.linspace(0, made.groups, len(jobs) + 1).astype(np.int64)
        part = np.ascontiguousarray(cuts[batch.first : batch.first + batch.count])
        jobs["program"], jobs["cuts"], jobs["dst"] = made.address, part.ctypes.data, pinned.ctypes.data
        jobs["begin"], jobs["end"] = bounds[:-1], bounds[1:]
        jobs["cuts_each"], jobs["field"] = part.shape[1], FIELDS[slot[1]]
        spec = plan.shape(key).spec
        result = native.run(
            jobs, totals=1, columns=max(spec.hidden, spec.intermediate) // 32, scratch=made.scratch,
            threads=stage.threads, keep=[part, made, where],
        )  # fmt: skip
        if result.fault is not None:
            host = np.empty(placed.nbytes, dtype=np.uint8)
            raise_fault(model, plan, key, rank, slot, host, result.fault)
        total += result.totals[0]
        gather = device_gather(batch.placed, str(target.device))
        assert gather is not None
        stage.up(gather, pinned.nbytes, target[batch.start : batch.start + batch.placed.nbytes])
    return total


class _Stage:
    """Two pinned buffers, two device buffers, and one stream on which transfers and permutations follow each other."""

    def __init__(self, device: str, scratch: int, threads: int | None) -> None:
        import torch

        self.scratch, self.threads, self._device = scratch, threads, device
        self._cuda = torch.device(device).type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._host: list[torch.Tensor | None] = [None, None]
        self._there: list[torch.Tensor | None] = [None, None]
        self._events: list[Any] = [None, None]
        self._turn = 1

    def next(self, size: int) -> Bytes:
        """A pinned buffer of `size` bytes that the GPU no longer reads."""
        import torch

        self._turn = turn = 1 - self._turn
        if self._events[turn] is not None:
            self._events[turn].synchronize()
        held = self._host[turn]
        if held is None or held.numel() < size:
            room = max(size, self.scratch if self._cuda else size)
            self._host[turn] = held = torch.empty(room, dtype=torch.uint8, pin_memory=self._cuda)
            self._there[turn] = torch.empty(room, dtype=torch.uint8, device=self._device) if self._cuda else held
        data: Bytes = held.numpy()[:size]
        return data

    def up(self, gather: Any, size: int, target: torch.Tensor) -> None:
        """Copy the current pinned buffer up and permute it into `target`."""
        import torch

        host, there = self._host[self._turn], self._there[self._turn]
        assert host is not None
        assert there is not None
        if self._stream is None:
            gather.run(there[:size], target)
            return
        with torch.cuda.stream(self._stream):
            there[:size].copy_(host[:size], non_blocking=True)
            gather.run(there[:size], target)
            self._events[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._events[self._turn].record(self._stream)

    def finish(self) -> None:
        """Let the caller's stream wait for all that was started."""
        import torch

        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._stream.synchronize()
