"""Staged: where the bytes of a tile stand in shared memory, and how many turns the banks make each thread wait.

Runs of the source become rows of shared memory. The gap between rows is chosen by counting: for the loads of one warp
and the stores that fill the tile, how often two lanes want different words of one bank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from shardproof.kernels.device.axes import Axis
from shardproof.kernels.device.tiles import Tiling

_BANKS, _LANES = 32, 32
_GAPS = tuple(range(0, 68, 4))
_WIDEST = 16


def power_of_two(*values: int, most: int = _WIDEST) -> int:
    """The largest power of two that divides all values, at most `most`."""
    common = math.gcd(most, *(abs(v) for v in values))
    return common & -common


def decode(number: int, sizes: Sequence[int]) -> list[int]:
    """The digits of a number, innermost first."""
    found = []
    for size in sizes:
        number, digit = divmod(number, size)
        found.append(digit)
    return found


@dataclass(frozen=True)
class Staged:
    """A tile in shared memory, all in bytes but `place`, which is in bits.

    rows    digits that choose a row, innermost first; a row holds `run` bytes and the next begins `pitch` further
    fill    bytes that are loaded from the source at once
    words   bytes that may be loaded from shared memory at once
    """

    tiling: Tiling
    pitch: int

    @property
    def run(self) -> int:
        """Bytes of a row."""
        return self.tiling.run // 8

    @cached_property
    def rows(self) -> tuple[Axis, ...]:
        """Digits that choose a row."""
        above = [a for a in self.tiling.inside if a.source >= self.tiling.run]
        return tuple(sorted(above, key=lambda a: a.source))

    @property
    def count(self) -> int:
        """Rows of a tile."""
        return math.prod(a.size for a in self.rows)

    @property
    def bytes(self) -> int:
        """Shared memory of a tile."""
        return self.count * self.pitch

    @property
    def fill(self) -> int:
        """Bytes that are loaded from the source at once: as many as every run is aligned to."""
        return power_of_two(self.run, *(a.source // 8 for a in (*self.rows, *self.tiling.blocks)))

    def place(self, axis: Axis) -> int:
        """Bits that a step of a digit of the tile is apart in shared memory."""
        if axis.source < self.tiling.run:
            return axis.source
        below = self.rows[: self.rows.index(axis)]
        return self.pitch * 8 * math.prod(a.size for a in below)

    @cached_property
    def words(self) -> int:
        """Bytes that may be loaded from shared memory at once."""
        return power_of_two(*(self.place(a) // 8 for a in self.tiling.tile))

    @cached_property
    def units(self) -> tuple[tuple[int, int], ...]:
        """Every unit of a piece: its bits in shared memory and in the kernel's order."""
        steps = [self.place(a) for a in self.tiling.piece]
        return tuple(
            (sum(v * s for v, s in zip(values, steps, strict=True)), target) for values, target in self.tiling.units()
        )

    @cached_property
    def loads(self) -> tuple[tuple[int, int], ...]:
        """(place, width) in bytes of what a piece loads: the widest words of which every 4 bytes are used."""
        used = {place // 8 for place, _ in self.units}
        narrow = min(self.words, 4)
        small = sorted({byte // narrow * narrow for byte in used})
        found: list[tuple[int, int]] = []
        for at in small:
            width = narrow
            while width < self.words and all(
                at // (2 * width) * 2 * width + i in small for i in range(0, 2 * width, narrow)
            ):
                width *= 2
            if (at // width * width, width) not in found:
                found.append((at // width * width, width))
        return tuple(found)

    def cost(self) -> int:
        """Turns that the banks take for a whole tile, as far as one warp tells."""
        sizes = [a.size for a in self.tiling.tile]
        places = [self.place(a) // 8 for a in self.tiling.tile]
        pieces = math.prod(sizes)
        lanes = [sum(d * p for d, p in zip(decode(i, sizes), places, strict=True)) for i in range(min(_LANES, pieces))]
        loads = self.loads[:: max(1, len(self.loads) // 4)]
        read = sum(_turns([at + lane for lane in lanes], width) for at, width in loads) * len(self.loads) // len(loads)
        vectors = self.run // self.fill
        width = power_of_two(self.fill, self.pitch)
        filled = [i // vectors * self.pitch + i % vectors * self.fill for i in range(_LANES)]
        write = _turns(filled, width) * (self.fill // width)
        return read * -(-pieces // _LANES) + write * -(-vectors * self.count // _LANES)


def _turns(places: list[int], width: int) -> int:
    """Turns for one access of a warp: lanes go together as far as 128 bytes reach."""
    together = max(1, _LANES * 4 // max(width, 4))
    total = 0
    for first in range(0, len(places), together):
        banks: dict[int, set[int]] = {}
        for place in places[first : first + together]:
            for word in range(place // 4, (place + max(width, 1) - 1) // 4 + 1):
                banks.setdefault(word % _BANKS, set()).add(word)
        total += max((len(words) for words in banks.values()), default=0)
    return total


def staged(tiling: Tiling) -> Staged:
    """The tile with the gap between rows that costs least."""
    run = tiling.run // 8
    if tiling.run >= 8 * math.prod(a.size for a in tiling.inside) * tiling.bits // 8:
        return Staged(tiling, run)
    step = -(-run // 4) * 4 if run % 4 else run
    return min((Staged(tiling, step + gap) for gap in _GAPS), key=lambda s: (s.cost(), s.pitch))
