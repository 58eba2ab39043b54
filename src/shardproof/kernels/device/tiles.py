"""Tiles: a layout cut for a GPU into blocks, tiles in shared memory, and the pieces that one thread writes.

A placed layout is a permutation of digits, each with a stride in the source and one in the kernel's order, so every
address is arithmetic on small constants; nothing is indexed through memory. Three levels of digits:

    piece    one thread: whole 16 bytes of the kernel's order, and as many of them as 4 bytes of the source reach
    tile     one block: long enough runs on both sides that memory moves whole lines each way
    blocks   the rest

Source bytes are canonical with the layout's own padding. All strides are in bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from shardproof.kernels.device.axes import (
    Axis,
    axes_of,
    covered,
    divisors,
    merged,
    source_run,
    take,
    target_run,
    whole_bytes,
)  # fmt: skip
from shardproof.layouts import Placed
from shardproof.layouts.moves import BITS

_VECTOR, _WORD = 128, 32  # bits that a thread stores, and loads, at once
_PIECE = 64 * 8  # the longest piece
_TILE = 16384 * 8
_GOALS = (
    32,
    64,
    128,
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    16384,
)  # bytes of a run, tried in turn for source and target


@dataclass(frozen=True)
class Tiling:
    """The digits of one placed layout by level, innermost first; `origin` is the constant part of the address."""

    placed: Placed
    piece: tuple[Axis, ...]
    tile: tuple[Axis, ...]
    blocks: tuple[Axis, ...]
    origin: int

    @property
    def bits(self) -> int:
        """Bits of a unit."""
        return BITS[self.placed.unit]

    @property
    def inside(self) -> tuple[Axis, ...]:
        """All digits of a tile."""
        return (*self.piece, *self.tile)

    @cached_property
    def run(self) -> int:
        """Bits that follow one another in the source of a tile."""
        return source_run(self.inside, self.bits)

    @property
    def holes(self) -> bool:
        """Whether the kernel's order has places that no unit fills."""
        return self.placed.units != math.prod(self.placed.padded)

    @cached_property
    def span(self) -> int:
        """Bits of the kernel's order that one tile owns, holes included, where tiles share it evenly; else 0."""
        count = math.prod(a.size for a in self.blocks)
        span, odd = divmod(self.placed.nbytes * 8, count)
        lowest = all(a.target >= 0 for a in self.inside) and all(a.target % span == 0 for a in self.blocks)
        reach = sum((a.size - 1) * a.target for a in self.inside) + self._table_reach + self.bits + self.origin
        return span if not odd and lowest and reach <= span and not span % 8 else 0

    @property
    def _table_reach(self) -> int:
        return sum((len(g.table) - 1) * g.stride * self.bits for g in self.placed.strides.groups)

    def units(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Every unit of a piece: the value of each of its digits, and its address in bits."""
        groups = self.placed.strides.groups
        counts = [a.size for a in self.piece]
        for number in range(math.prod(counts)):
            rest, values = number, []
            for size in counts:
                rest, value = divmod(rest, size)
                values.append(value)
            target = sum(v * a.target for v, a in zip(values, self.piece, strict=True)) + self.origin % 8
            for group in groups:
                joined = 0
                for step in group.steps:
                    size = self.placed.strides.steps[step].size
                    joined = joined * size + next(v for v, a in zip(values, self.piece, strict=True) if a.step == step)
                target += group.table[joined] * group.stride * self.bits
            yield tuple(values), target


def tiling_of(placed: Placed) -> Tiling | None:
    """Cut a layout; None where its units fill bytes only in part, or where holes cannot be written with the rest."""
    bits = BITS[placed.unit]
    piece, free = whole_bytes(merged(axes_of(placed, bits)))
    if placed.units * bits % 8 or math.prod(placed.padded) * bits % 8:
        return None
    holes = placed.units != math.prod(placed.padded)
    piece, free = _piece(piece, free, bits)
    tile, free = _grow(placed, piece, free, bits)
    made = Tiling(
        placed, tuple(piece), tuple(sorted(tile, key=lambda a: abs(a.target))),
        tuple(sorted(free, key=lambda a: abs(a.target))), placed.strides.offset * bits,
    )  # fmt: skip
    return None if holes and not made.span else made


def _piece(piece: list[Axis], free: list[Axis], bits: int) -> tuple[list[Axis], list[Axis]]:
    """Fill 16 bytes of the kernel's order, then take along what else the same words of the source hold.

    Not where that stands next to those 16 bytes: threads side by side then fill lines together, from the same words.
    """
    for axis in sorted(free, key=lambda a: abs(a.target)):
        fits = [f for f in divisors(axis.size) if abs(axis.target) * f <= _VECTOR]
        free = take(axis, max(fits, default=1), piece, free)
    beside = covered(piece, bits)
    for axis in sorted(free, key=lambda a: a.source):
        if abs(axis.target) == beside:
            continue
        room = _PIECE // covered(piece, bits)
        fits = [f for f in divisors(axis.size) if axis.source * f <= _WORD and f <= room and f & (f - 1) == 0]
        free = take(axis, max(fits, default=1), piece, free)
    return piece, free


def _grow(placed: Placed, piece: list[Axis], free: list[Axis], bits: int) -> tuple[list[Axis], list[Axis]]:
    """Add digits to the tile until runs are long on both sides or the tile is full.

    Where there are holes, only the lowest digits of the kernel's order are taken: a tile then owns its part of it.
    """
    tile: list[Axis] = []
    holes = placed.units != math.prod(placed.padded)
    full = _TILE * math.prod(placed.padded) // placed.units
    for goal in _GOALS:
        for side in ("target",) if holes else ("source", "target"):
            while True:
                taken = [*piece, *tile]
                run, following = _next(placed, taken, free, bits, side, holes=holes)
                room = full // covered(taken, bits)
                if following is None or run >= goal * 8 or room < 2:
                    break
                part = _part(following.size, -(-goal * 8 // run), room)
                if part == 1:
                    break
                free = take(following, part, tile, free)
    return tile, free


def _next(
    placed: Placed, taken: list[Axis], free: list[Axis], bits: int, side: str, *, holes: bool
) -> tuple[int, Axis | None]:
    """The length of the run so far and the digit that goes on with it."""
    if holes:
        return covered(taken, bits), min(free, key=lambda a: a.target, default=None)
    if side == "source":
        run = source_run(taken, bits)
        return run, next((a for a in free if a.source == run), None)
    run = target_run(placed, taken, bits)
    return run, next((a for a in free if abs(a.target) == run), None)


def _part(size: int, wanted: int, room: int) -> int:
    """The divisor to take: the smallest that reaches what is wanted, powers of two first; else the largest there is."""
    fits = [f for f in divisors(size) if f <= room]
    enough = [f for f in fits if f >= wanted]
    return min(enough, key=lambda f: (f & (f - 1) != 0 and f > wanted * 2, f)) if enough else max(fits)
