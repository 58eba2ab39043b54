"""Which known mistakes give the bytes of wrong tensors; what was found, or sought in vain, is kept between layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from shardproof.experts import Field
from shardproof.formats import ExpertModel
from shardproof.mistakes import Mistake, Owners, Scene, Slot, Views, explain, find_mistake, museum
from shardproof.mistakes.extent import telling_experts, wrong_experts
from shardproof.mxfp4 import Bytes
from shardproof.pack.matrices import read_cut
from shardproof.pack.unpack import unpack
from shardproof.packed import PackedLayer
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

_SMALL = 1 << 20  # bytes of a tensor up to which three mistakes at once are looked for
_IN_VAIN = 2  # unexplained tensors of a field after which only single mistakes, and those found before, are looked for


@dataclass
class Causes:
    """What explained the tensors so far, to be tried first, and how many of each field nothing explained."""

    found: list[tuple[Mistake, ...]] = field(default_factory=list)
    in_vain: Counter[Slot] = field(default_factory=Counter)

    def most(self, slot: Slot, size: int) -> int:
        """How many mistakes at once to look for in a tensor of `size` bytes: a search in vain is not repeated."""
        return 1 if self.in_vain[slot] >= _IN_VAIN else 3 if size < _SMALL else 2


def scene_of(model: ExpertModel, plan: Plan, key: str, rank: Rank, owners: Owners | None = None) -> Scene:
    """A layer of a rank over the checkpoint's bytes, in which mistakes can be done again."""

    def read(layer: str, cut: Cut, name: Field, expert: int) -> Bytes:
        return read_cut(model, model.layer(layer), cut, name, expert, plan)

    return Scene(plan, key, rank, read, owners)


def causes_of(
    model: ExpertModel, layer: PackedLayer, bad: Mapping[Slot, np.ndarray], causes: Causes
) -> dict[Slot, tuple[Mistake, ...]]:
    """For each wrong tensor the known mistakes - one, or two or three at once - that give exactly its bytes."""
    found: dict[Slot, tuple[Mistake, ...]] = {}
    for slot, mask in bad.items():
        views = Views(layer.tensors[slot], layer.placed(*slot).shape, unpack)
        loaded = loaded_experts(layer, slot, views)
        scene = scene_of(model, layer.plan, layer.key, layer.rank)
        if None in loaded and any(e is not None for e in loaded):
            found[slot] = (find_mistake("zero_experts"),)
            scene = scene_of(model, layer.plan, layer.key, layer.rank, loaded)
        sample = telling_experts(wrong_experts(layer.placed(*slot), mask), loaded)
        if not sample:
            continue
        most = causes.most(slot, views.kernel.size)
        cause = explain(scene, slot, views, museum(), most=most, sample=sample, first=causes.found, exact=True)
        if cause is None:
            causes.in_vain[slot] += 1
            continue
        found[slot] = (*found.get(slot, ()), *cause.mistakes)
        causes.found[:] = [cause.mistakes, *(combo for combo in causes.found if combo != cause.mistakes)]
    return found


def loaded_experts(layer: PackedLayer, slot: Slot, views: Views) -> Owners:
    """The layer's experts, None for those whose matrix is all zero."""
    identity = layer.plan.recipe.layouts[slot]
    found = [views.expert(local, identity) for local in range(len(layer.experts))]
    zero = [matrix is not None and not matrix.any() for matrix in found]
    return tuple(None if empty else e for e, empty in zip(layer.experts, zero, strict=True))
