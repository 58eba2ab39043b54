"""Scene: one layer of one rank, packed as it should be or with mistakes put back in, expert by expert.

The scene is given a reader for the checkpoint's bytes, so that this room stays below those that read and pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.layouts import find
from shardproof.mistakes.mistake import Mistake, Owners
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT, Bytes
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan

ReadCut: TypeAlias = "Callable[[str, Cut, Field, int], Bytes]"
"""(layer key, cut, field, global expert) to the bytes of the cut, uint8 [rows, bytes]."""
Mistakes: TypeAlias = Sequence[Mistake]
Slot: TypeAlias = tuple[Stack, Field]
UNWRITTEN = -1
_PROBES = (127, 128)  # two fills that differ in every nibble: what differs between them is padding


def declared_fill(name: Field) -> int:
    """The padding byte that a plan declares."""
    return PAD_SCALE if name == "scale" else PAD_WEIGHT


@dataclass(frozen=True)
class Scene:
    """A layer of a rank under a plan. `owners` replaces the plan's experts (as recognised in a dump)."""

    plan: Plan
    key: str
    rank: Rank
    read: ReadCut
    owners: Owners | None = None

    def experts(self, mistakes: Mistakes = ()) -> Owners:
        """The global expert at each local place."""
        owners: Owners = self.owners or self.plan.experts(self.key, self._rank(mistakes))
        for mistake in mistakes:
            if mistake.experts is not None:
                owners = mistake.experts(self.plan, self.key, self.rank)
        return owners

    def matrix(
        self, local: int, stack: Stack, name: Field, mistakes: Mistakes = (), *, fill: int | None = None
    ) -> Bytes:
        """One expert's padded canonical matrix uint8 [N, bytes a row]; `fill` overrides what padding holds."""
        rank = self._rank(mistakes)
        expert = self.experts(mistakes)[local]
        zeroed = {f for m in mistakes if m.experts is not None for f in m.zeroed} or {
            "weight",
            "scale",
            "bias",
        }
        shape = self.plan.shape(self.key).matrix_shape(stack, name, self.plan.bias_item)
        if expert is None:
            if name in zeroed:
                return np.zeros(shape, dtype=np.uint8)
            expert = self.plan.experts(self.key, rank)[local]
        matrix = self._cut(expert, rank, stack, name, mistakes, fill)
        for mistake in mistakes:
            if mistake.canonical is not None:
                matrix = mistake.canonical(matrix, stack, name)
            if mistake.valued is not None and name in mistake.fields:
                scale = self._cut(expert, rank, stack, "scale", mistakes, fill)
                matrix = mistake.valued(matrix, scale, name)
        return matrix

    def content(self, local: int, stack: Stack, name: Field, mistakes: Mistakes = ()) -> np.ndarray:
        """Where the matrix holds checkpoint bytes and not padding: bool [N, bytes a row]."""
        one, other = (self.matrix(local, stack, name, mistakes, fill=probe) for probe in _PROBES)
        return np.asarray(one == other)

    def layout(self, stack: Stack, name: Field, mistakes: Mistakes = ()) -> str:
        """The layout id in which the bytes are written."""
        identity = self.plan.recipe.layouts[stack, name]
        for mistake in mistakes:
            if mistake.layout is not None:
                identity = mistake.layout(self.plan, stack, name)
        layout, parameters = find(identity)
        return layout.identity(parameters)

    def kernel(self, stack: Stack, name: Field, mistakes: Mistakes = ()) -> Bytes:
        """All experts in kernel order, flat uint8."""
        canonical = np.stack([self.matrix(e, stack, name, mistakes) for e in range(len(self.experts(mistakes)))])
        identity = self.layout(stack, name, mistakes)
        writers = [m.write for m in mistakes if m.write is not None and name in m.fields]
        if writers:
            try:
                return writers[0](canonical, identity)
            except ValueError:
                pass  # the writer's fault cannot happen on this shape
        layout, parameters = find(identity)
        return layout.place((canonical.shape[0], canonical.shape[1], canonical.shape[2]), parameters).pack(canonical)

    def _rank(self, mistakes: Mistakes) -> Rank:
        rank = self.rank
        for mistake in mistakes:
            if mistake.rank is not None:
                rank = mistake.rank(self.plan, self.key, rank)
        return rank

    def _cut(self, expert: int, rank: Rank, stack: Stack, name: Field, mistakes: Mistakes, fill: int | None) -> Bytes:
        shape = self.plan.shape(self.key).matrix_shape(stack, name, self.plan.bias_item)
        cuts = self.plan.cuts(self.key, rank, stack, name)
        key = self.key
        value: int | None = declared_fill(name)
        for mistake in mistakes:
            if mistake.cuts is not None:
                cuts = mistake.cuts(self.plan, self.key, rank, stack, name)
            if mistake.layer is not None:
                key = mistake.layer(self.plan, key)
            if mistake.fill is not None and mistake.fill(name) is not None:
                value = mistake.fill(name)
        value = value if fill is None else fill
        if value == UNWRITTEN:
            seed = [expert, "w13w2".index(stack), len(name)]
            matrix = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
        else:
            matrix = np.full(shape, value, dtype=np.uint8)
        for cut in cuts:
            rows = self.read(key, cut, name, expert)
            target = matrix[cut.at_row : cut.at_row + len(rows), cut.at_column : cut.at_column + rows.shape[1]]
            target[...] = rows[: target.shape[0], : target.shape[1]]
        return matrix
