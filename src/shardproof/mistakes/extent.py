"""Extent: which bytes and which experts of a tensor a mistake changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardproof.errors import ShardproofError
from shardproof.layouts import Layout, Placed, find
from shardproof.layouts.notation import Place
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mistakes.mistake import Mistake, Owners
from shardproof.mistakes.scene import Scene, Slot
from shardproof.mxfp4 import Bytes

UNDONE = 8  # two mistakes together change at least an eighth of what each of them changes, or nothing
_SMALL = 1 << 22
_PLACES = 1 << 16


def changes(scene: Scene, slot: Slot, mistake: Mistake, sample: Sequence[int] = (0,)) -> bool:
    """Whether a mistake changes one tensor at all."""
    if slot[1] not in mistake.fields:
        return False
    try:
        if mistake.write is not None:
            size = len(scene.experts()) * scene.matrix(0, *slot).nbytes
            return size > _SMALL or not np.array_equal(scene.kernel(*slot, (mistake,)), scene.kernel(*slot))
        if scene.layout(*slot, (mistake,)) != scene.layout(*slot):
            return True
        return any(not np.array_equal(scene.matrix(e, *slot, (mistake,)), scene.matrix(e, *slot)) for e in sample)
    except (ShardproofError, ValueError, IndexError):
        return False


def stands_alone(layout: Layout) -> bool:
    """Whether each expert has a run of the buffer to itself, so that it can be read without the others."""
    pattern = layout.parsed
    first = pattern.places[0]
    return (
        len(pattern.axes) > 2 and isinstance(first, Place) and not first.reverse and first.table is None
        and first.digits == (pattern.digits[0][0].name,)
    )  # fmt: skip


def changed_bytes(scene: Scene, slot: Slot, mistake: Mistake, local: int) -> int | None:
    """How many bytes of one expert a mistake changes; None where only the whole tensor would show it."""
    right = scene.matrix(local, *slot)
    if mistake.write is not None:
        if len(scene.experts()) * right.nbytes > _SMALL:
            return None
        return int((scene.kernel(*slot, (mistake,)) != scene.kernel(*slot)).sum())
    wrong = scene.matrix(local, *slot, (mistake,))
    if mistake.layout is not None:
        placed = [_one_expert(i, wrong) for i in (scene.layout(*slot), scene.layout(*slot, (mistake,)))]
        if placed[0] is None or placed[1] is None or placed[0].nbytes != placed[1].nbytes:
            return None
        wrong = placed[0].unpack(placed[1].pack(wrong[None]))[0]
    return int((wrong != right).sum())


def _one_expert(identity: str, matrix: Bytes) -> Placed | None:
    layout, parameters = find(identity)
    return layout.place((1, *matrix.shape), parameters) if stands_alone(layout) else None


def wrong_experts(placed: Placed, wrong: np.ndarray) -> list[int]:
    """Local places of experts with a wrong byte: `wrong` is bool [nbytes], of which up to 65536 are looked at."""
    at = np.flatnonzero(wrong)
    at = at[np.linspace(0, len(at) - 1, min(len(at), _PLACES)).astype(np.int64)]
    experts, _, _ = placed.element(at * UNITS_PER_BYTE[placed.unit])
    return [int(e) for e in np.unique(experts) if e >= 0]


def telling_experts(wrong: Sequence[int], owners: Owners) -> list[int]:
    """Up to six local places to hold mistakes against, wrong ones first; none where no expert's byte is wrong."""
    held = [i for i, e in enumerate(owners) if e is not None] or [0]
    first = [i for i in wrong if i in held] or (held if wrong else [])
    return list(dict.fromkeys(e[i] for e in (first, held) if first for i in (0, len(e) // 2, -1)))
