"""Spread: whole words of a kernel buffer, permuted inside by tables of 65,536 entries, to scattered bytes.

The way back from layouts that permute nibbles or bits inside words: a word of the buffer holds the units of as many
canonical bytes as it has bytes. Each half word is looked up once, which gives all of its units in their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pairs = Mapping[tuple[int, int], Sequence[tuple[int, int]]]
"""(source byte, target byte) -> pairs of (bit in the source byte, bit in the target byte)."""


@dataclass(frozen=True)
class Spread:
    """A source word at byte `source`: one table for each two bytes, and the target byte of each result byte."""

    source: int
    tables: tuple[npt.NDArray[np.unsignedinteger], ...]
    targets: tuple[int, ...]


def spreads(pairs: Pairs, bits: int) -> list[Spread] | None:
    """The words that make up a permutation of units of `bits` bits, or None where it does not fall into words.

    It does where the source bytes fill aligned words of 2 or 4 bytes, and each word alone fills as many target bytes.
    """
    sources = {source for source, _ in pairs}
    for width in (4, 2):
        if {s // width * width + i for s in sources for i in range(width)} == sources:
            return _words(pairs, bits, width)
    return None


def _words(pairs: Pairs, bits: int, width: int) -> list[Spread] | None:
    found = []
    for base in sorted({source // width * width for source, _ in pairs}):
        own = {key: shifts for key, shifts in pairs.items() if key[0] // width * width == base}
        targets = sorted({target for _, target in own})
        moved = sum(len(shifts) for shifts in own.values()) * bits
        if len(targets) != width or moved != 8 * width:
            return None
        shifts = [
            (8 * (source - base) + at, 8 * targets.index(target) + to)
            for (source, target), listed in own.items()
            for at, to in listed
        ]
        tables = tuple(_table(shifts, bits, width, half) for half in range(width // 2))
        found.append(Spread(base, tables, tuple(targets)))
    return found


def _table(shifts: Sequence[tuple[int, int]], bits: int, width: int, half: int) -> npt.NDArray[np.unsignedinteger]:
    """What each value of one half word contributes to the result word."""
    values = np.arange(1 << 16, dtype=np.uint64)
    table = np.zeros(1 << 16, dtype=np.uint64)
    for at, to in shifts:
        if at // 16 == half:
            table |= (values >> np.uint64(at % 16) & np.uint64((1 << bits) - 1)) << np.uint64(to)
    return table.astype(f"u{width}")
