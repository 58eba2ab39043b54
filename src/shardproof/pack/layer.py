"""One layer, for all ranks that are packed here: plan and layouts become jobs of the native engine.

Jobs are ordered by expert, then by rank, so that each page of the checkpoint is met once whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shardproof.checkpoint import MappedReader, Reader, Span
from shardproof.checkpoint.reader import Addresses, merge
from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.experts import Projection
from shardproof.formats import ExpertModel
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.biases import pack_biases
from shardproof.pack.gathered import pack_gathered
from shardproof.pack.jobs import Buffers, Slot, Tensor, program_of, programs_made, run_tensors, tensor_of
from shardproof.pack.matrices import in_files
from shardproof.pack.reference import pack_slot
from shardproof.partition import Rank
from shardproof.plan import Plan


def layer_spans(model: ExpertModel, plan: Plan, key: str, ranks: Sequence[Rank]) -> list[Span]:
    """The bytes of one layer that some ranks need, weights and scales, joined where they are close."""
    experts = np.array(sorted({e for rank in ranks for e in plan.experts(key, rank)}), dtype=np.int64)
    files, starts, stops = [], [], []
    for (_, name), source in model.layer(key).sources.items():
        if name == "bias" or not in_files(source):
            continue
        files.append(source.file[experts])
        starts.append(source.start[experts])
        stops.append(starts[-1] + (source.rows - 1) * source.row_stride + source.row_bytes)
    return merge(np.concatenate(files), np.concatenate(starts), np.concatenate(stops)) if files else []


def check_plan(model: ExpertModel, plan: Plan, key: str | None = None) -> None:
    """Raise PackError `pack.plan` for a plan of another checkpoint, whose record would lie.

    With a layer, it may be a copy in another format, as long as the layer is the same: else cuts may lie outside.
    """
    if plan.identity == model.checkpoint.identity or (key and plan.shape(key).spec == model.layer(key).spec):
        return
    raise PackError(
        "pack.plan", "the plan was made for another checkpoint", file=model.checkpoint.root, layer=key,
        found=f"a plan for {plan.source} ({plan.identity})", needed=f"one for {model.checkpoint.identity}",
        next_step="make a plan from this model: shardproof.make_plan(model, recipe, ...)",
    )  # fmt: skip


def pack_ranks(
    model: ExpertModel, plan: Plan, key: str, outs: Mapping[Rank, Buffers], *, reader: Reader | None = None,
    threads: int | None = None, mistake: Mistake | None = None, fresh: bool = False,
) -> dict[Rank, Digest]:  # fmt: skip
    """Write one layer of several ranks into buffers (flat uint8 each, every byte is written).

    `fresh`: their pages were not touched yet. Returns each rank's digest. Raises PackError `pack.plan`,
    `pack.scale_nan` or `pack.io`, CheckpointError `checkpoint.changed`, LayoutError `layout.value`.
    """
    check_plan(model, plan, key)
    work = _Work(model, plan, key, outs, threads, mistake)
    spans = layer_spans(model, plan, key, work.ranks) if work.native_here else []
    reader = reader or MappedReader(model.checkpoint, ())
    work.run(Addresses(spans, reader.take(spans)), fresh)
    reader.done(spans)
    return work.digests


class _Work:
    """The tensors of a layer that wait, those that the engine can move, and the digests of those that are written."""

    def __init__(
        self, model: ExpertModel, plan: Plan, key: str, outs: Mapping[Rank, Buffers], threads: int | None,
        mistake: Mistake | None,
    ) -> None:  # fmt: skip
        self._model, self._plan, self._key, self._outs = model, plan, key, outs
        self._threads, self._mistake = threads, mistake
        self.native_here = mistake is None and native.library() is not None
        self.ranks = list(outs)
        self.digests = dict.fromkeys(self.ranks, Digest())
        self._waiting = [(rank, slot) for rank in self.ranks for slot in plan.fields(key)]
        self._tensors: list[Tensor] = []
        self._biases: list[tuple[Rank, Slot]] = []

    def run(self, where: Addresses, fresh: bool) -> None:
        """Write everything. Where a layout is new to this process, the others are compiled while the engine runs."""
        for rank, slot in self._waiting:
            _check_buffer(self._plan, self._key, rank, slot, self._outs[rank][slot])
        known = programs_made()
        while self._waiting and not (self._tensors and programs_made() > known):
            self._prepare(where)
        while self._tensors:
            ready, self._tensors = self._tensors, []
            found = run_tensors(
                self._model, self._plan, self._key, self._outs, ready, self._threads,
                lambda: self._rest(where), fresh,
            )  # fmt: skip
            for rank, digest in zip(self.ranks, found, strict=True):
                self.digests[rank] += digest
        self._rest(where)

    def _prepare(self, where: Addresses) -> None:
        """Make the next tensor ready for the engine, or write it."""
        model, plan, key = self._model, self._plan, self._key
        rank, slot = self._waiting.pop(0)
        out = self._outs[rank][slot]
        made = program_of(plan, key, rank, slot) if self.native_here else None
        if made is not None and made.holes:
            plan.placed(key, rank, *slot).fill(out)
        if made is not None and stand_in_files(model, key, slot):
            total = self.ranks.index(rank)
            self._tensors.append(tensor_of(plan, model.layer(key), rank, slot, out, total, where))
        elif made is not None:
            self.digests[rank] += pack_gathered(model, plan, key, rank, slot, out, self._threads)
        elif self.native_here and slot[1] == "bias" and stand_in_files(model, key, slot):
            self._biases.append((rank, slot))
        else:
            self.digests[rank] += pack_slot(model, plan, key, rank, slot, out, mistake=self._mistake)

    def _rest(self, where: Addresses) -> None:
        """What the calling thread does while the engine runs."""
        while self._waiting:
            self._prepare(where)
        for rank, slot in self._biases:
            out = self._outs[rank][slot]
            self.digests[rank] += pack_biases(self._model, self._plan, self._key, rank, slot[0], out)
        self._biases = []


def _check_buffer(plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes) -> None:
    needed = plan.placed(key, rank, *slot).nbytes
    if out.dtype != np.uint8 or out.shape != (needed,) or not out.flags.c_contiguous or not out.flags.writeable:
        raise PackError(
            "pack.buffer", "a destination is not what this tensor needs", layer=key, rank=rank,
            tensor=".".join(slot), found=f"{out.dtype} {out.shape}", needed=f"uint8 ({needed},), contiguous, writable",
            next_step=f"np.empty({needed}, dtype=np.uint8)",
        )  # fmt: skip


def stand_in_files(model: ExpertModel, key: str, slot: Slot) -> bool:
    """Whether the bytes of a tensor stand in the checkpoint's files as the model says."""
    stack, name = slot
    projections: tuple[Projection, ...] = ("w2",) if stack == "w2" else ("w1", "w3")
    return all(in_files(model.layer(key).sources[p, name]) for p in projections)
