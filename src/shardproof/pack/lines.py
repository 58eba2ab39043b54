"""Moves of a tile for AVX-512: pieces of rows are gathered in a block, and whole lines are put together from it.

A register of 64 bytes is one line. A *term* brings any bytes of 128 bytes of the block to any places of the line; for
units below a byte it also takes, for each byte, 8 bits from any bit of its 64 on, of which a mask keeps some.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shardproof.pack.digits import LINE
from shardproof.pack.moves import Moves
from shardproof.pack.native import structs as s
from shardproof.pack.tile import Tile

_WINDOW = 128
_MOST_BLOCK = 2048  # as engine.h says
_MOST_TERMS = 256  # so that their tables stay in the first-level cache

Line = dict[int, dict[tuple[int, int], int]]
"""Of each byte of a line: (byte of the block, shift to the left in bits) -> bits of the line's byte."""


def lines(tile: Tile) -> Moves | None:
    """Pieces and terms; None where a byte is filled only in part, or where the tables would be too large."""
    size, cut = tile.pieces()
    block = -(-len(cut) * size // _WINDOW) * _WINDOW
    if block > _MOST_BLOCK:
        return None
    pieces = [(number * size, row, column, size, 0, 0, 0) for number, (row, column) in enumerate(cut)]
    place = {(row, column + i): number * size + i for number, (row, column) in enumerate(cut) for i in range(size)}
    vectors: dict[bytes, int] = {bytes(LINE): 0}
    terms, whole = [], True
    for at, line in _cut_in_lines(tile, place):
        if any(_sum(sources.values()) != 255 for sources in line.values()):
            return None
        store = _sum(1 << byte for byte in line)
        whole &= len(line) == LINE and at % LINE == 0
        terms += [(at, *term, store) for term in _terms(line, vectors, plain=tile.bits == 8)]
    if len(terms) > _MOST_TERMS:
        return None
    return Moves(
        s.LINES, masks=np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(-1, LINE),
        pieces=np.array(pieces, dtype=s.PART), terms=np.array(terms, dtype=s.TERM), word=size, block=block,
        whole_lines=whole,
    )  # fmt: skip


def _sum(numbers: object) -> int:
    return sum(numbers)  # type: ignore[call-overload, no-any-return]


def _cut_in_lines(tile: Tile, place: dict[tuple[int, int], int]) -> list[tuple[int, Line]]:
    """The tile's bytes in lines of 64, each starting at the first byte that no earlier line holds."""
    per_byte, bits = 8 // tile.bits, tile.bits
    found: list[tuple[int, Line]] = []
    for row, source, target in zip(tile.of_row.tolist(), tile.source.tolist(), tile.target.tolist(), strict=True):
        byte = target // per_byte
        if not found or byte >= found[-1][0] + LINE:
            found.append((byte, {}))
        at, line = found[-1]
        shift = (target % per_byte - source % per_byte) * bits
        sources = line.setdefault(byte - at, {})
        key = (place[row, source // per_byte], shift)
        sources[key] = sources.get(key, 0) + ((1 << bits) - 1 << target % per_byte * bits)
    return found


def _terms(line: Line, vectors: dict[bytes, int], *, plain: bool) -> list[tuple[int, int, int, int, int, int]]:
    """(window, wide, index, control, keep, in) of every term; vectors are numbered as they are met."""
    slots: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for byte, sources in sorted(line.items()):
        met: dict[int, int] = {}
        for (at, shift), bits in sorted(sources.items()):
            window = at // _WINDOW * _WINDOW
            turn = met[window] = met.get(window, -1) + 1
            slots.setdefault((window, turn), []).append((byte, at - window, shift, bits))
    return [_term(window, slot, vectors, plain=plain) for (window, _), slot in sorted(slots.items())]


def _term(
    window: int, slot: Sequence[tuple[int, int, int, int]], vectors: dict[bytes, int], *, plain: bool
) -> tuple[int, int, int, int, int, int]:
    lowest, highest = min(at for _, at, _, _ in slot), max(at for _, at, _, _ in slot)
    wide = lowest < LINE <= highest
    skip = LINE if lowest >= LINE else 0
    index, keep = np.zeros(LINE, dtype=np.uint8), np.zeros(LINE, dtype=np.uint8)
    control = np.ones(LINE, dtype=np.uint8)  # never all zero: vector 0 means none
    inside = 0
    for byte, at, shift, bits in slot:
        index[byte], keep[byte] = at - skip, bits
        control[byte] = (byte % 8 * 8 - shift) % 64
        inside |= 1 << byte
    number, taken, kept = (_number(vectors, v) for v in (index, control, keep))
    return window + skip, int(wide), number, 0 if plain else taken, 0 if plain else kept, inside


def _number(vectors: dict[bytes, int], vector: npt.NDArray[np.uint8]) -> int:
    return vectors.setdefault(vector.tobytes(), len(vectors))
