"""Tensors whose bytes do not stand in files - a packed folder read as a model: put together, then moved by the engine.

Experts are gathered a few at a time, so that memory does not grow with the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from shardproof.digest import Digest
from shardproof.experts import Field
from shardproof.formats import ExpertModel, LayerExperts, Source
from shardproof.mxfp4 import Bytes
from shardproof.pack.jobs import Ints, Slot, run_tensors, tensor_of
from shardproof.pack.native.run import default_threads
from shardproof.pack.reference import experts_together
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan


class _Here:
    """Offsets that are addresses."""

    def find(self, file: Ints, offset: Ints) -> Ints:  # noqa: ARG002
        return offset


def pack_gathered(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: Slot, out: Bytes, threads: int | None
) -> Digest:
    """Write one tensor of one layer, but for holes of its layout; returns its digest. Raises what `pack_ranks` does."""
    experts = plan.experts(key, rank)
    each = experts_together(plan.placed(key, rank, *slot))
    cuts, digest = plan.cuts(key, rank, *slot), Digest()
    for first in range(0, len(experts), each):
        part = experts[first : first + each]
        layer, held = _gathered(model, model.layer(key), slot[1], part, cuts, threads)
        tensor = tensor_of(plan, layer, rank, slot, out, 0, _Here())
        inside = np.isin(tensor.experts, part)
        tensor = replace(tensor, jobs=np.ascontiguousarray(tensor.jobs[inside]), experts=tensor.experts[inside])
        digest += run_tensors(model, plan, key, {rank: {slot: out}}, [tensor], threads)[0]
        del held
    return digest


def _gathered(
    model: ExpertModel, layer: LayerExperts, name: Field, experts: Sequence[int], cuts: Sequence[Cut],
    threads: int | None,
) -> tuple[LayerExperts, list[Bytes]]:  # fmt: skip
    """The layer as if `experts` stood in memory at `Source.start`, and that memory."""
    starts = {cut.projection: np.zeros(layer.spec.experts, dtype=np.int64) for cut in cuts}
    assert len(starts) == len(cuts)  # a rank takes one contiguous run of each projection
    held = []

    def gather(expert: int) -> None:  # each expert by one thread, which keeps what w1 and w3 share
        for cut in cuts:
            source = layer.sources[cut.projection, name]
            matrix = np.ascontiguousarray(source.window(model.checkpoint, expert, cut.rows, cut.columns))
            starts[cut.projection][expert] = matrix.ctypes.data
            held.append(matrix)

    with ThreadPoolExecutor(threads or default_threads(), "shardproof-unpack") as pool:
        list(pool.map(gather, experts))
    sources = dict(layer.sources)
    for projection, start in starts.items():
        source = sources[projection, name]
        sources[projection, name] = Source(
            0 * start, start, source.rows, source.row_bytes, source.row_bytes, source.dtype, source.name
        )
    return LayerExperts(layer.key, layer.spec, sources), held
