"""Moves of a tile in plain C: runs of bytes, and table look-ups for what is smaller than a byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardproof.pack.moves import Moves
from shardproof.pack.native import structs as s
from shardproof.pack.tile import Tile


def copies(tile: Tile) -> Moves:
    """Runs of bytes."""
    order = np.lexsort((tile.target,))
    row, source, target = tile.of_row[order], tile.source[order], tile.target[order]
    breaks = (np.diff(row) != 0) | (np.diff(source) != 1) | (np.diff(target) != 1)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    sizes = np.diff(np.concatenate((starts, [len(row)])))
    parts = [(target[i], row[i], source[i], size, 0, 0, 0) for i, size in zip(starts, sizes, strict=True)]
    return Moves(s.COPY, np.array(parts, dtype=s.PART))


def words(tile: Tile, *, wide: bool = True) -> Moves | None:
    """Table look-ups, one for every source byte that a word takes bits from; words of 4 bytes if `wide`."""
    per_byte = 8 // tile.bits
    touched = np.bincount(tile.target // per_byte)
    if ((touched != 0) & (touched != per_byte)).any():
        return None
    whole = not (touched == 0).any() and len(touched) % 4 == 0
    word = 4 if wide and whole and tile.start % 4 == 0 else 1
    shares: dict[int, dict[tuple[int, int], list[tuple[int, int]]]] = {}
    for row, at, to in zip(tile.of_row.tolist(), tile.source.tolist(), tile.target.tolist(), strict=True):
        first = to // per_byte // word * word
        share = shares.setdefault(first, {}).setdefault((row, at // per_byte), [])
        share.append((at % per_byte * tile.bits, to * tile.bits - first * 8))
    tables: dict[tuple[tuple[int, int], ...], int] = {}
    parts = []
    for first, sources in sorted(shares.items()):
        for last, ((row, column), moved) in enumerate(sources.items(), 1 - len(sources)):
            index = tables.setdefault(tuple(sorted(moved)), len(tables))
            parts.append((first, row, column, 1, index, int(last == 0), 0))
    filled = np.stack([_table(moved, tile.bits) for moved in tables])
    return Moves(s.WORDS, np.array(parts, dtype=s.PART), tables=filled, word=word)


def _table(moved: tuple[tuple[int, int], ...], bits: int) -> npt.NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    table = np.zeros(256, dtype=np.uint32)
    for at, to in moved:
        table |= (values >> np.uint32(at) & np.uint32((1 << bits) - 1)) << np.uint32(to)
    return table
