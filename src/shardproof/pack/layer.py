"""One layer, for all ranks that are packed here: plan and layouts become jobs of the native engine.

Jobs are ordered by expert, then by rank, so that each page of the checkpoint is met once whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from shardproof.checkpoint import MappedReader, Reader, Span
from shardproof.checkpoint.reader import Addresses, merge
from shardproof.digest import Digest, place
from shardproof.errors import PackError
from shardproof.experts import Field, Projection, Stack
from shardproof.formats import ExpertModel, LayerExperts
from shardproof.layouts import find
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.biases import biases_stand_in_files, pack_biases
from shardproof.pack.matrices import first_held, in_files, pad_value
from shardproof.pack.native.library import isa
from shardproof.pack.native.run import BUS_ERROR
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.program import Program, program
from shardproof.pack.reference import pack_slot
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

Slot = tuple[Stack, Field]
Buffers = Mapping[Slot, Bytes]
_JOB_BYTES = 2 << 20


@dataclass(frozen=True)
class _Tensor:
    """One tensor to be written by the engine: its program, the cuts of every expert, and its jobs."""

    rank: Rank
    slot: Slot
    program: Program
    cuts: npt.NDArray[np.void]
    jobs: npt.NDArray[np.void]
    experts: npt.NDArray[np.int64]


def layer_spans(model: ExpertModel, plan: Plan, key: str, ranks: Sequence[Rank]) -> list[Span]:
    """The bytes of one layer that some ranks need, weights and scales, joined where they are close."""
    experts = np.array(sorted({e for rank in ranks for e in plan.experts(key, rank)}), dtype=np.int64)
    spans: list[Span] = []
    for (_, name), source in model.layer(key).sources.items():
        if name == "bias" or not in_files(source):
            continue
        length = (source.rows - 1) * source.row_stride + source.row_bytes
        pairs = zip(source.file[experts].tolist(), source.start[experts].tolist(), strict=True)
        spans += [Span(file, start, start + length) for file, start in pairs]
    return merge(spans)


def pack_ranks(
    model: ExpertModel, plan: Plan, key: str, outs: Mapping[Rank, Buffers], *, reader: Reader | None = None,
    threads: int | None = None, mistake: Mistake | None = None,
) -> dict[Rank, Digest]:  # fmt: skip
    """Write one layer of several ranks into buffers (flat uint8 each, every byte is written).

    Returns each rank's digest. Raises PackError `pack.scale_nan` or `pack.io`, CheckpointError `checkpoint.changed`,
    LayoutError `layout.value`.
    """
    ranks = list(outs)
    digests = dict.fromkeys(ranks, Digest())
    tensors: list[_Tensor] = []
    native_here = mistake is None and native.library() is not None
    spans = layer_spans(model, plan, key, ranks) if native_here else []
    reader = reader or MappedReader(model.checkpoint, ())
    where = Addresses(spans, reader.take(spans))
    for number, rank in enumerate(ranks):
        for slot in plan.fields(key):
            out = outs[rank][slot]
            _check_buffer(plan, key, rank, slot, out)
            tensor = _tensor(model, plan, key, rank, slot, out, number, where) if native_here else None
            if tensor is None and native_here and slot[1] == "bias" and biases_stand_in_files(model, key, slot[0]):
                digests[rank] += pack_biases(model, plan, key, rank, slot[0], out)
            elif tensor is None:
                digests[rank] += pack_slot(model, plan, key, rank, slot, out, mistake=mistake)
            else:
                tensors.append(tensor)
    if tensors:
        for rank, digest in zip(ranks, _run(model, plan, key, outs, tensors, threads), strict=True):
            digests[rank] += digest
    reader.done(spans)
    return digests


def _check_buffer(plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes) -> None:
    needed = plan.placed(key, rank, *slot).nbytes
    if out.dtype != np.uint8 or out.shape != (needed,) or not out.flags.c_contiguous or not out.flags.writeable:
        raise PackError(
            "pack.buffer", "a destination is not what this tensor needs", layer=key, rank=rank,
            tensor=".".join(slot), found=f"{out.dtype} {out.shape}", needed=f"uint8 ({needed},), contiguous, writable",
        )  # fmt: skip


def engine_can(model: ExpertModel, key: str, slot: Slot) -> bool:
    """Whether the native engine can move a tensor: it is here, the bytes stand in files, and are no biases."""
    stack, name = slot
    projections: tuple[Projection, ...] = ("w2",) if stack == "w2" else ("w1", "w3")
    if name == "bias" or native.library() is None:
        return False
    return all(in_files(model.layer(key).sources[p, name]) for p in projections)


def _tensor(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes, total: int, where: Addresses
) -> _Tensor | None:
    stack, name = slot
    if not engine_can(model, key, slot):
        return None
    shape = plan.canonical_shape(key, rank, stack, name)
    made = program(plan.recipe.layouts[slot], shape, pad_value(name), isa=isa())
    if made is None:
        return None
    if made.holes:
        layout, parameters = find(plan.recipe.layouts[slot])
        layout.place(shape, parameters).fill(out)
    layer = model.layer(key)
    cuts = cuts_of(plan, layer, rank, slot, where)
    experts = np.array(plan.experts(key, rank), dtype=np.int64)
    starts = _starts(made, len(experts))
    jobs = np.zeros(len(starts) - 1, dtype=native.JOB)
    jobs["program"], jobs["cuts"], jobs["dst"] = made.address, cuts.ctypes.data, out.ctypes.data
    jobs["begin"], jobs["end"] = starts[:-1], starts[1:]
    jobs["cuts_each"], jobs["field"], jobs["total"] = cuts.shape[1], FIELDS[name], total
    return _Tensor(rank, slot, made, cuts, jobs, experts[starts[:-1] * len(experts) // made.groups])


def _starts(made: Program, experts: int) -> npt.NDArray[np.int64]:
    """Where jobs begin: near the bounds of experts, and often enough to keep every thread busy to the end."""
    a_job = max(1, _JOB_BYTES // max(made.group_bytes, 1))
    bounds = np.arange(experts + 1, dtype=np.int64) * made.groups // experts
    within = np.arange(0, made.groups, a_job, dtype=np.int64) if a_job < made.groups // experts else bounds[:0]
    return np.unique(np.concatenate((bounds, within)))


def cuts_of(plan: Plan, layer: LayerExperts, rank: Rank, slot: Slot, where: Addresses) -> npt.NDArray[np.void]:
    """The cuts of every expert, records [E, cuts an expert]; at least one each, of no rows where there is nothing."""
    stack, name = slot
    experts = np.array(plan.experts(layer.key, rank), dtype=np.int64)
    rectangles = plan.cuts(layer.key, rank, stack, name)
    records = np.zeros((len(experts), max(1, len(rectangles))), dtype=native.CUT)
    counted = np.array(first_held(plan, layer.key, rank), dtype=np.int64)
    for number, cut in enumerate(rectangles):
        column = records[:, number]
        source = layer.sources[cut.projection, name]
        at = source.start[experts] + cut.rows[0] * source.row_stride + cut.columns[0]
        column["src"] = where.find(source.file[experts], at)
        column["stride"] = source.row_stride
        _fill(column, cut)
        column["digested"] = counted
        column["place"] = [place(layer.key, int(e), cut.projection, name) for e in experts]
    return records


def _fill(column: npt.NDArray[np.void], cut: Cut) -> None:
    column["rows"], column["bytes"] = cut.rows[1] - cut.rows[0], cut.columns[1] - cut.columns[0]
    column["at_row"], column["at_column"] = cut.at_row, cut.at_column
    column["first_row"], column["first_column"] = cut.rows[0], cut.columns[0]


def _run(
    model: ExpertModel,
    plan: Plan,
    key: str,
    outs: Mapping[Rank, Buffers],
    tensors: list[_Tensor],
    threads: int | None,
) -> tuple[Digest, ...]:
    jobs = np.concatenate([t.jobs for t in tensors])
    owner = np.repeat(np.arange(len(tensors)), [len(t.jobs) for t in tensors])
    order = np.lexsort((owner, np.concatenate([t.experts for t in tensors])))
    jobs, owner = np.ascontiguousarray(jobs[order]), owner[order]
    scratch = tuple(max(t.program.scratch[i] for t in tensors) for i in range(2))
    spec = plan.shape(key).spec
    blocks = max(spec.hidden, spec.intermediate) // 32
    keep: list[Any] = [tensors, outs]
    result = native.run(
        jobs, totals=len(outs), columns=blocks, scratch=(scratch[0], scratch[1]), threads=threads, keep=keep
    )
    if result.fault is not None:
        faulty = tensors[int(owner[result.fault.job])]
        raise_fault(model, plan, key, faulty.rank, faulty.slot, outs[faulty.rank][faulty.slot], result.fault)
    return result.totals


def raise_fault(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes, fault: native.Fault
) -> NoReturn:
    """Raise what went wrong: the plain path meets the same bytes again and names them."""
    layer = model.layer(key)
    for file in {int(f) for s in layer.sources.values() for f in np.unique(s.file)}:
        model.checkpoint.check_unchanged(file)
    if fault.kind != BUS_ERROR:
        pack_slot(model, plan, key, rank, slot, out)
    raise PackError(
        "pack.io", "a page of the checkpoint or of the output could not be read or written", layer=key,
        rank=rank, tensor=".".join(slot), found=f"bus error at {fault.address:#x}",
        needed="files that stay whole while they are used", next_step="look at the disk, then run again",
    )  # fmt: skip
