"""Tensors whose bytes do not stand in files - a packed folder read as a model: put together, then moved by the engine.

Experts are gathered a few at a time into the same memory, which stays in the caches and does not grow with the layer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shardproof.digest import Digest
from shardproof.experts import Projection
from shardproof.formats import ExpertModel, LayerExperts, Source, Window
from shardproof.mxfp4 import Bytes
from shardproof.pack.jobs import Ints, Slot, run_tensors, tensor_of
from shardproof.pack.reference import experts_together
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

_AT_ONCE = 16 << 20


class _Here:
    """Offsets that are addresses."""

    def find(self, file: Ints, offset: Ints) -> Ints:  # noqa: ARG002
        return offset


def pack_gathered(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes, threads: int | None
) -> Digest:
    """Write one tensor of one layer, but for holes of its layout; returns its digest. Raises what `pack_ranks` does."""
    layer, experts, cuts = model.layer(key), plan.experts(key, rank), plan.cuts(key, rank, *slot)
    each = experts_together(plan.placed(key, rank, *slot), _AT_ONCE)
    windows = {cut.projection: _window(cut, min(each, len(experts))) for cut in cuts}
    assert len(windows) == len(cuts)  # a rank takes one contiguous run of each projection
    here = _in_memory(layer, slot, windows, experts, each)
    tensor, digest = tensor_of(plan, here, rank, slot, out, 0, _Here()), Digest()
    for first in range(0, len(experts), each):
        part = experts[first : first + each]
        few = {p: Window(w.rows, w.columns, w.out[: len(part)]) for p, w in windows.items()}
        layer.fill(model.checkpoint, slot[1], few, part, threads)
        inside = np.isin(tensor.experts, part)
        now = replace(tensor, jobs=np.ascontiguousarray(tensor.jobs[inside]), experts=tensor.experts[inside])
        digest += run_tensors(model, plan, key, {rank: {slot: out}}, [now], threads)[0]
    return digest


def _window(cut: Cut, experts: int) -> Window:
    rows, columns = cut.rows[1] - cut.rows[0], cut.columns[1] - cut.columns[0]
    return Window(cut.rows, cut.columns, np.empty((experts, rows, columns), dtype=np.uint8))


def _in_memory(
    layer: LayerExperts, slot: Slot, windows: dict[Projection, Window], experts: tuple[int, ...], each: int
) -> LayerExperts:
    """The layer as if each expert stood in its turn of the windows' memory."""
    sources = dict(layer.sources)
    turn = np.zeros(layer.spec.experts, dtype=np.int64)
    turn[list(experts)] = np.arange(len(experts)) % each
    for (projection, name), source in layer.sources.items():
        if name != slot[1] or projection not in windows:
            continue
        window = windows[projection]
        _, rows, width = window.out.shape
        start = window.out.ctypes.data - window.rows[0] * width - window.columns[0] + turn * (rows * width)
        sources[projection, name] = Source(
            0 * start, start, source.rows, source.row_bytes, width, source.dtype, source.name
        )
    return LayerExperts(layer.key, layer.spec, sources)
