"""One field of one layer, laid out by NumPy: without a compiler, for biases, and for mistakes put back on purpose."""

from __future__ import annotations

import numpy as np

from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel
from shardproof.layouts import Placed, find
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import Bytes
from shardproof.pack.matrices import canonical_expert, slot_digest
from shardproof.partition import Rank
from shardproof.plan import Plan

_AT_ONCE = 64 << 20


def pack_slot(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, slot: tuple[Stack, Field], out: Bytes,
    *, mistake: Mistake | None = None,
) -> Digest:  # fmt: skip
    """Write one tensor of one layer (every byte of `out`) and return its digest; memory is a few experts."""
    stack, name = slot
    if mistake is not None and mistake.beyond_packing:
        raise PackError(
            "pack.mistake", "packing cannot make this mistake", found=f"{mistake.name}: {mistake.beyond_packing}",
            needed="a mistake of cuts, canonical matrices or layouts", next_step="use shardproof.diagnose.put_back",
        )  # fmt: skip
    experts = plan.experts(key, rank)
    placed = _placed(plan, key, rank, slot, mistake)
    placed.fill(out)
    each = experts_together(placed)
    for first in range(0, len(experts), each):
        part = [
            canonical_expert(model, plan, key, rank, stack, name, e, mistake=mistake)
            for e in experts[first : first + each]
        ]
        placed.write(np.stack(part), out, first)
    return slot_digest(model, plan, key, rank, stack, name)


def experts_together(placed: Placed, most: int = _AT_ONCE) -> int:
    """How many experts are written at once, of `most` bytes or a single one: all where tiles may hold several."""
    experts, rows, width = placed.shape
    if placed.pattern.axes[0] != "e":
        return experts
    return max(1, most // max(rows * width, 1))


def _placed(plan: Plan, key: str, rank: Rank, slot: tuple[Stack, Field], mistake: Mistake | None) -> Placed:
    if mistake is None or mistake.layout is None:
        return plan.placed(key, rank, *slot)
    layout, parameters = find(mistake.layout(plan, *slot))
    return layout.place(plan.canonical_shape(key, rank, *slot), parameters)
