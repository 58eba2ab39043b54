"""Jobs: one tensor of a layer as the native engine moves it, and the run of many of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from shardproof.digest import Digest, place
from shardproof.errors import PackError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel, LayerExperts
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.matrices import first_held, pad_value
from shardproof.pack.native.library import isa
from shardproof.pack.native.run import BUS_ERROR
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.program import Program, program
from shardproof.pack.reference import pack_slot
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

Slot = tuple[Stack, Field]
Buffers = Mapping[Slot, Bytes]
Ints = npt.NDArray[np.int64]
_JOB_BYTES = 2 << 20
_LAST, _PIECES = 6, 4  # this many jobs at the end are cut into pieces, so that no thread waits long for another


class Where(Protocol):
    """Says where bytes are."""

    def find(self, file: Ints, offset: Ints) -> Ints:
        """Addresses of many (file, offset) pairs, which all lie in memory."""


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written by the engine: its program, the cuts of every expert, and its jobs."""

    rank: Rank
    slot: Slot
    program: Program
    cuts: npt.NDArray[np.void]
    jobs: npt.NDArray[np.void]
    experts: Ints


def tensor_of(plan: Plan, layer: LayerExperts, rank: Rank, slot: Slot, out: Bytes, total: int, where: Where) -> Tensor:
    """The jobs that write one tensor and count in digest `total`; holes of the layout are left as they are."""
    made = program_of(plan, layer.key, rank, slot)
    assert made is not None
    cuts = cuts_of(plan, layer, rank, slot, where)
    experts = np.array(plan.experts(layer.key, rank), dtype=np.int64)
    starts = _starts(made, len(experts))
    jobs = np.zeros(len(starts) - 1, dtype=native.JOB)
    jobs["program"], jobs["cuts"], jobs["dst"] = made.address, cuts.ctypes.data, out.ctypes.data
    jobs["begin"], jobs["end"] = starts[:-1], starts[1:]
    jobs["cuts_each"], jobs["field"], jobs["total"] = cuts.shape[1], FIELDS[slot[1]], total
    return Tensor(rank, slot, made, cuts, jobs, experts[starts[:-1] * len(experts) // made.groups])


def program_of(plan: Plan, key: str, rank: Rank, slot: Slot) -> Program | None:
    """The native program of a tensor; None where there is none: no engine, a bias, or a layout it cannot move."""
    if slot[1] == "bias" or native.library() is None:
        return None
    shape = plan.canonical_shape(key, rank, *slot)
    return program(plan.recipe.layouts[slot], shape, pad_value(slot[1]), isa=isa())


def programs_made() -> int:
    """How many layouts this process has compiled, each on one shape."""
    return program.cache_info().misses


def _starts(made: Program, experts: int) -> npt.NDArray[np.int64]:
    """Where jobs begin: near the bounds of experts, and often enough to keep every thread busy to the end."""
    a_job = max(1, _JOB_BYTES // max(made.group_bytes, 1))
    bounds = np.arange(experts + 1, dtype=np.int64) * made.groups // experts
    within = np.arange(0, made.groups, a_job, dtype=np.int64) if a_job < made.groups // experts else bounds[:0]
    return np.array(sorted({*bounds.tolist(), *within.tolist()}), dtype=np.int64)


def cuts_of(plan: Plan, layer: LayerExperts, rank: Rank, slot: Slot, where: Where) -> npt.NDArray[np.void]:
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


def run_tensors(
    model: ExpertModel,
    plan: Plan,
    key: str,
    outs: Mapping[Rank, Buffers],
    tensors: list[Tensor],
    threads: int | None,
    meanwhile: Callable[[], None] | None = None,
    fresh: bool = False,
) -> tuple[Digest, ...]:
    """Run the jobs of several tensors, by expert, then by tensor; one digest for each of `outs`.

    `meanwhile` is called while they run; `fresh`: as in `native.run`.
    """
    jobs = np.concatenate([t.jobs for t in tensors])
    owner = np.repeat(np.arange(len(tensors)), [len(t.jobs) for t in tensors])
    jobs, which = _small_at_the_end(jobs, np.lexsort((owner, np.concatenate([t.experts for t in tensors]))))
    scratch = tuple(max(t.program.scratch[i] for t in tensors) for i in range(2))
    spec = plan.shape(key).spec
    blocks = max(spec.hidden, spec.intermediate) // 32
    keep: list[Any] = [tensors, outs]
    result = native.run(
        jobs, totals=len(outs), columns=blocks, scratch=(scratch[0], scratch[1]), threads=threads, keep=keep,
        meanwhile=meanwhile, fresh=fresh,
    )  # fmt: skip
    if result.fault is not None:
        faulty = tensors[int(owner[which[result.fault.job]])]
        raise_fault(model, plan, key, faulty.rank, faulty.slot, outs[faulty.rank][faulty.slot], result.fault)
    return result.totals


def _small_at_the_end(jobs: npt.NDArray[np.void], order: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.void], Ints]:
    """Jobs in order, the last ones in pieces (some perhaps of no group), and of each the number that it had."""
    which = np.concatenate((order[:-_LAST], np.repeat(order[-_LAST:], _PIECES)))
    found = np.ascontiguousarray(jobs[which])
    pieces = found[-min(_LAST, len(order)) * _PIECES :]
    turn, length = np.arange(len(pieces)) % _PIECES, pieces["end"] - pieces["begin"]
    pieces["end"] = pieces["begin"] + (turn + 1) * length // _PIECES
    pieces["begin"] += turn * length // _PIECES
    return found, which


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
