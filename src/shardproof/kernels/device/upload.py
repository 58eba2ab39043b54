"""Packing into GPU memory: raw slices go up in large pinned transfers and are permuted there.

Experts go in batches that fit a quarter of `scratch` (`stage.py`): while the GPU permutes one batch, the next is copied
up and the one after is cut from the checkpoint, digested and checked on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardproof.checkpoint import MappedReader
from shardproof.checkpoint.reader import Addresses
from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.formats import ExpertModel
from shardproof.kernels.device.permute import device_permuter
from shardproof.kernels.device.stage import Stage
from shardproof.layouts import Placed, find
from shardproof.layouts.sizing import number
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

SCRATCH = 128 << 20


def pack_layer_on_device(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, out: Mapping[Slot, torch.Tensor],
    *, scratch: int = SCRATCH, threads: int | None = None,
) -> Digest:  # fmt: skip
    """Pack one layer of one rank into tensors on a device (flat uint8, every byte is written); returns the digest.

    Scratch is at most `scratch` bytes of pinned host memory and as many on the device, or four experts where one is
    larger than a quarter of it. Works on any torch device; `permute.py` says what permutes where.
    Raises what `pack_layer` raises.
    """
    digest = Digest()
    spans = layer_spans(model, plan, key, [rank])
    reader = MappedReader(model.checkpoint, ())
    where = Addresses(spans, reader.take(spans))
    stages: dict[str, Stage] = {}
    try:
        for slot in plan.fields(key):
            target, placed = out[slot], plan.placed(key, rank, *slot)
            _check(placed, target, key, rank, slot)
            device = str(target.device)
            if not engine_can(model, key, slot) or device_permuter(placed, device) is None:
                host = np.empty(placed.nbytes, dtype=np.uint8)
                digest += pack_slot(model, plan, key, rank, slot, host)
                target.copy_(_tensor(host))
                continue
            if device not in stages:
                stages[device] = Stage(device, scratch, threads)
            digest += _pack_slot(model, plan, key, rank, slot, target, where, stages[device])
    finally:
        for stage in stages.values():
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
    """Batches whose staged bytes fit in `scratch`, cut where no tile of the layout holds experts of two."""
    layout, parameters = find(plan.recipe.layouts[slot])
    experts, rows, width = placed.shape
    together = 1
    if placed.pattern.axes[0] == "m":
        tile = math.lcm(placed.strides.steps[0].weight, number(layout.pad.get("m", 1), parameters))
        together = min(experts, tile // math.gcd(tile, rows))
    single = layout.place((together, rows, width), parameters)
    count = together * max(1, scratch // max(staged_bytes(single), 1))
    for first in range(0, experts, count):
        held = min(count, experts - first)
        yield _Batch(
            first, held, layout.place((held, rows, width), parameters), first // together * single.nbytes
        )


def staged_bytes(placed: Placed) -> int:
    """Bytes of a batch in canonical order with the layout's own padding."""
    total = 1
    for size in placed.padded:
        total *= size
    return total * {"byte": 8, "nibble": 4, "bit": 1}[placed.unit] // 8


def _pack_slot(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, target: torch.Tensor, where: Addresses,
    stage: Stage,
) -> Digest:  # fmt: skip
    placed = plan.placed(key, rank, *slot)
    device = str(target.device)
    permuter = device_permuter(placed, device)
    if placed.has_padding and permuter is not None and not permuter.writes_holes:
        stage.fill(target, placed.pad_value)
    cuts = cuts_of(plan, model.layer(key), rank, slot, where)
    total = Digest()
    for batch in _batches(plan, slot, placed, stage.each):
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
            threads=stage.threads, keep=[part, made, where], pool=stage.pool,
        )  # fmt: skip
        if result.fault is not None:
            host = np.empty(placed.nbytes, dtype=np.uint8)
            raise_fault(model, plan, key, rank, slot, host, result.fault)
        total += result.totals[0]
        permuter = device_permuter(batch.placed, device)
        assert permuter is not None
        stage.up(permuter, pinned.nbytes, target[batch.start : batch.start + batch.placed.nbytes])
    return total
