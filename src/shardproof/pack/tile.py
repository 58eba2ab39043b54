"""Tile: the digits that are moved together, enumerated unit by unit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shardproof.layouts import Placed
from shardproof.pack.digits import Digit

Ints = npt.NDArray[np.int64]
_PIECES = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Tile:
    """An enumerated tile: row `row[i]`, `base[i]` of its group, and for every unit its row, source and address.

    `source` and `target` count units from the tile's first column and lowest address; `start` is that address in bytes.
    With `span` the tile is that many bytes from `start` on, holes among them (`with_holes`).
    """

    row: Ints
    base: Ints
    of_row: Ints
    source: Ints
    target: Ints
    start: int
    bits: int
    padded_bytes: int
    span: int = 0

    @cached_property
    def size(self) -> int:
        """From the first byte that the tile writes to the last."""
        return int(self.target.max()) * self.bits // 8 + 1

    def with_holes(self, outer: Sequence[Digit], placed: Placed) -> Tile:
        """The tile with the holes around its bytes, where such tiles are all of the buffer; else the tile."""
        inside = placed.nbytes // math.prod(d.size for d in outer)
        lead = placed.strides.offset * self.bits // 8 + self.start
        following = inside
        for digit in sorted(outer, key=lambda d: d.stride):
            if digit.stride * self.bits != following * 8:
                return self
            following *= digit.size
        if following != placed.nbytes or not 0 <= lead <= inside - self.size:
            return self
        return replace(self, start=self.start - lead, target=self.target + lead * 8 // self.bits, span=inside)

    def runs(self) -> list[tuple[int, int, int]]:
        """What the tile takes of its rows: (row, first byte, bytes), every byte once, row by row."""
        per_byte = 8 // self.bits
        taken = np.array(sorted(set(((self.of_row << 32) + self.source // per_byte).tolist())))
        first = np.flatnonzero(np.diff(taken, prepend=-2) != 1)
        sizes = np.diff(np.concatenate((first, [len(taken)])))
        return [(at >> 32, at & 0xFFFFFFFF, n) for at, n in zip(taken[first].tolist(), sizes.tolist(), strict=True)]

    def pieces(self) -> tuple[int, list[tuple[int, int]]]:
        """`runs` in pieces of one length, a power of two: that length, and of each (row, first byte)."""
        runs = self.runs()
        size = next(n for n in _PIECES if all(length % n == 0 for _, _, length in runs))
        return size, [(row, first + at) for row, first, length in runs for at in range(0, length, size)]

    def backwards(self) -> Tile:
        """The inverse: the tile's bytes as the only row, and `pieces` side by side as what is written."""
        per_byte = 8 // self.bits
        size, pieces = self.pieces()
        place = {
            (row, column + i): number * size + i for number, (row, column) in enumerate(pieces) for i in range(size)
        }
        into = [
            place[row, unit // per_byte] * per_byte + unit % per_byte
            for row, unit in zip(self.of_row.tolist(), self.source.tolist(), strict=True)
        ]
        target = np.array(into, dtype=np.int64)
        order, nothing = np.argsort(target, kind="stable"), np.zeros(1, dtype=np.int64)
        return Tile(
            nothing, nothing, 0 * self.of_row, self.target[order], target[order], 0, self.bits, self.size
        )  # fmt: skip


def enumerate_tile(digits: Sequence[Digit], placed: Placed, bits: int) -> Tile:
    """List every unit of a tile."""
    row, base, k, target = (np.zeros(1, dtype=np.int64) for _ in range(4))
    values: dict[int, Ints] = {}
    for digit in digits:
        count = np.arange(digit.size, dtype=np.int64)
        row, base, k, target = (
            (old[:, None] + count * step).reshape(-1)
            for old, step in ((row, digit.row), (base, digit.base), (k, digit.k), (target, digit.stride))
        )
        values = {n: np.repeat(v, digit.size) for n, v in values.items()}
        values[digit.number] = np.tile(count, len(row) // digit.size)
    for group in placed.strides.groups:
        joined = np.zeros(len(row), dtype=np.int64)
        for number in group.steps:
            joined = joined * placed.strides.steps[number].size + values[number]
        target = target + np.asarray(group.table, dtype=np.int64)[joined] * group.stride
    target = target + placed.strides.offset % (8 // bits)
    start = int(target.min()) * bits // 8
    target = target - start * 8 // bits
    places = {pair: i for i, pair in enumerate(_rows_in_order(row, base, target))}
    of_row = np.array([places[pair] for pair in zip(row.tolist(), base.tolist(), strict=True)], dtype=np.int64)
    pairs = np.array(list(places), dtype=np.int64).reshape(-1, 2)
    order = np.argsort(target, kind="stable")
    return Tile(
        np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), of_row[order], k[order], target[order],
        start, bits, placed.padded[-1] * bits // 8,
    )  # fmt: skip


def _rows_in_order(row: Ints, base: Ints, target: Ints) -> list[tuple[int, int]]:
    """The tile's rows in the order in which the kernel's bytes meet them."""
    order = np.argsort(target, kind="stable")
    pairs = zip(row[order].tolist(), base[order].tolist(), strict=True)
    return list(dict.fromkeys(itertools.chain(pairs)))
