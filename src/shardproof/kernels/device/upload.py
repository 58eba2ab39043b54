"""Packing into GPU memory: raw slices go up in large pinned transfers and are permuted there.

Experts go in batches that fit a quarter of `scratch` (`stage.py`): while the GPU permutes one batch, the next is copied
up and the one after is cut from the checkpoint, digested and checked on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shardproof.checkpoint import MappedReader
from shardproof.checkpoint.reader import Addresses
from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.formats import ExpertModel
from shardproof.kernels.device.permute import device_permuter
from shardproof.kernels.device.stage import BUFFERS, Piece, Stage
from shardproof.layouts import Placed, find
from shardproof.layouts.sizing import number
from shardproof.pack import native
from shardproof.pack.biases import pack_biases
from shardproof.pack.jobs import Slot, cuts_of, raise_fault
from shardproof.pack.layer import layer_spans, stand_in_files
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.pack import checked_rank
from shardproof.pack.program import Program, staging_program
from shardproof.pack.reference import pack_slot
from shardproof.partition import Rank
from shardproof.plan import Plan

if TYPE_CHECKING:
    import torch

SCRATCH = 128 << 20
_JOB_BYTES = 256 << 10


def pack_layer_on_device(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, out: Mapping[Slot, torch.Tensor],
    *, scratch: int = SCRATCH, threads: int | None = None,
) -> Digest:  # fmt: skip
    """Pack one layer of one rank into tensors on a device (flat uint8, every byte is written); returns the digest.

    Scratch is at most `scratch` bytes of pinned host memory and as many on the device, or four experts where one is
    larger than a quarter of it. Works on any torch device; `permute.py` says what permutes where.
    Raises what `pack_layer` raises.
    """
    threads = checked_rank(model, plan, rank, threads, key)
    digest = Digest()
    spans = layer_spans(model, plan, key, [rank])
    reader = MappedReader(model.checkpoint, ())
    where = Addresses(spans, reader.take(spans))
    staged: dict[str, list[_Batch]] = {}
    for slot in plan.fields(key):
        target, placed = out[slot], plan.placed(key, rank, *slot)
        _check(placed, target, key, rank, slot)
        permuter = device_permuter(placed, str(target.device))
        if permuter is None or slot[1] == "bias" or native.library() is None or not stand_in_files(model, key, slot):
            digest += _through_host(model, plan, key, rank, slot, target)
            continue
        if placed.has_padding and not permuter.writes_holes:
            target.fill_(placed.pad_value)
        cuts = cuts_of(plan, model.layer(key), rank, slot, where)
        batches = _batches(plan, slot, placed, cuts, target, max(1, scratch // BUFFERS))
        staged.setdefault(str(target.device), []).extend(batches)
    for device, all_ in staged.items():
        digest += _pack_batches(model, plan, key, rank, device, all_, threads, where)
    reader.done(spans)
    return digest


def _through_host(model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, target: torch.Tensor) -> Digest:
    """A tensor that is packed on the CPU and goes up as it is: biases, and all of them without the native engine."""
    import torch

    host = np.empty(target.numel(), dtype=np.uint8)
    if slot[1] == "bias" and stand_in_files(model, key, slot):
        digest = pack_biases(model, plan, key, rank, slot[0], host)
    else:
        digest = pack_slot(model, plan, key, rank, slot, host)
    target.copy_(torch.from_numpy(host))
    return digest


def _check(placed: Placed, target: torch.Tensor, key: str, rank: Rank, slot: Slot) -> None:
    found = f"{target.dtype} {tuple(target.shape)}"
    if found != f"torch.uint8 ({placed.nbytes},)" or not target.is_contiguous():
        raise PackError(
            "pack.buffer", "a destination is not what this tensor needs", layer=key, rank=rank, tensor=".".join(slot),
            found=found, needed=f"torch.uint8 ({placed.nbytes},), contiguous",
            next_step=f"torch.empty({placed.nbytes}, dtype=torch.uint8, device=DEVICE)",
        )  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """Some experts of a tensor: their layout, where they come from and the bytes that they take."""

    slot: Slot
    layout: str
    placed: Placed
    cuts: npt.NDArray[np.void]
    target: torch.Tensor


def _batches(
    plan: Plan, slot: Slot, placed: Placed, cuts: npt.NDArray[np.void], target: torch.Tensor, most: int
) -> Iterator[_Batch]:
    """Batches of at most `most` staged bytes, cut where no tile of the layout holds experts of two."""
    identity = plan.recipe.layouts[slot]
    layout, parameters = find(identity)
    experts, rows, width = placed.shape
    together = 1
    if placed.pattern.axes[0] == "m":
        tile = math.lcm(placed.strides.steps[0].weight, number(layout.pad.get("m", 1), parameters))
        together = min(experts, tile // math.gcd(tile, rows))
    single = layout.place((together, rows, width), parameters)
    count = together * max(1, most // max(staged_bytes(single), 1))
    for first in range(0, experts, count):
        held = layout.place((min(count, experts - first), rows, width), parameters)
        start = first // together * single.nbytes
        part = np.ascontiguousarray(cuts[first : first + count])
        yield _Batch(slot, identity, held, part, target[start : start + held.nbytes])


def staged_bytes(placed: Placed) -> int:
    """Bytes of a batch in canonical order with the layout's own padding."""
    total = 1
    for size in placed.padded:
        total *= size
    return total * {"byte": 8, "nibble": 4, "bit": 1}[placed.unit] // 8


def _pack_batches(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, device: str, batches: Sequence[_Batch], threads: int | None,
    where: Addresses,
) -> Digest:  # fmt: skip
    """Stage all batches in one run of the native engine; each goes up as soon as its bytes are there."""
    pieces, programs = [], []
    for batch in batches:
        permuter = device_permuter(batch.placed, device)
        assert permuter is not None
        pieces.append(Piece(permuter, staged_bytes(batch.placed), batch.target))
        programs.append(staging_program(batch.placed, batch.layout, batch.slot[1]))
    stage = Stage(device, pieces)
    jobs = np.concatenate([
        _jobs(part, batch, program, stage.address(part))
        for part, (batch, program) in enumerate(zip(batches, programs, strict=True))
    ])  # fmt: skip
    spec = plan.shape(key).spec
    try:
        result = native.run(
            jobs, totals=1, columns=max(spec.hidden, spec.intermediate) // 32,
            scratch=(max(p.scratch[0] for p in programs), max(p.scratch[1] for p in programs)),
            threads=threads, keep=[batches, programs, where], parts=stage,
        )  # fmt: skip
    finally:
        stage.finish()
    if result.fault is not None:
        slot = batches[int(jobs["part"][result.fault.job])].slot
        host = np.empty(plan.placed(key, rank, *slot).nbytes, dtype=np.uint8)
        raise_fault(model, plan, key, rank, slot, host, result.fault)
    return result.totals[0]


def _jobs(part: int, batch: _Batch, program: Program, address: int) -> npt.NDArray[np.void]:
    """Jobs of about equal size that stage one batch."""
    count = max(1, min(program.groups, -(-program.groups * program.group_bytes // _JOB_BYTES)))
    bounds = np.linspace(0, program.groups, count + 1).astype(np.int64)
    jobs = np.zeros(count, dtype=native.JOB)
    jobs["program"], jobs["cuts"], jobs["dst"] = program.address, batch.cuts.ctypes.data, address
    jobs["begin"], jobs["end"], jobs["part"] = bounds[:-1], bounds[1:], part
    jobs["cuts_each"], jobs["field"] = batch.cuts.shape[1], FIELDS[batch.slot[1]]
    return jobs
