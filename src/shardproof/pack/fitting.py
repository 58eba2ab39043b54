"""Which kernel of the engine moves a layout's tile on an instruction set, and what is left as loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shardproof.layouts import Placed
from shardproof.layouts.moves import BITS
from shardproof.pack.digits import Digit, choose, choose_wide
from shardproof.pack.lines import lines
from shardproof.pack.moves import Back, Moves
from shardproof.pack.native import structs as s
from shardproof.pack.plain import copies, words
from shardproof.pack.shuffles import shuffles
from shardproof.pack.tile import Tile, enumerate_tile

_MOST_ROWS, _MOST_BLOCK = 256, 2048  # of a group, and of a tile on its way back, as engine.h has room for
_LONG_PIECE = 16  # bytes that a plain copy moves as fast as anything


def fit(digits: Sequence[Digit], placed: Placed, isa: int) -> tuple[Tile, Moves, list[Digit]] | None:
    """Tile, moves and outer digits; None where the engine has no kernel for the layout."""
    bits = BITS[placed.unit]
    inner, outer = choose(digits, placed, bits)
    tile = enumerate_tile(inner, placed, bits)
    moves = _simple(tile, [d for d in outer if d.along_k], isa)
    if moves is None and isa == s.AVX512:
        holes = has_holes(placed)
        more, rest = choose_wide(digits, placed, bits, few_rows=not holes)
        wide = enumerate_tile(more, placed, bits)
        if holes and placed.pad_value == 0:
            wide = wide.with_holes(rest, placed)
        if len(wide.row) <= _MOST_ROWS and (found := lines(wide)) is not None:
            return wide, found, rest
    if moves is None and isa != s.PORTABLE:
        moves = shuffles(tile)
    if moves is None:
        moves = copies(tile) if bits == 8 else words(tile)
    return None if moves is None or len(tile.row) > _MOST_ROWS else (tile, moves, outer)


def has_holes(placed: Placed) -> bool:
    """Whether the kernel's buffer has bytes between those of the layout, besides padding."""
    return placed.units != math.prod(placed.padded)


def fit_back(digits: Sequence[Digit], placed: Placed, isa: int) -> tuple[Tile, Back, list[Digit]] | None:
    """As `fit`, for the way from a tile to its rows."""
    bits = BITS[placed.unit]
    inner, outer = choose(digits, placed, bits)
    tile = enumerate_tile(inner, placed, bits)
    if (moves := _simple(tile, [d for d in outer if d.along_k], isa)) is not None:
        return tile, Back(moves), outer
    plain = copies(tile) if bits == 8 and len(tile.row) <= _MOST_ROWS else None
    if plain is not None and (isa == s.PORTABLE or int(plain.parts["size"].min()) >= _LONG_PIECE):
        return tile, Back(plain), outer
    if isa == s.AVX512:
        more, rest = choose_wide(digits, placed, bits, few_rows=False)
        wide = enumerate_tile(more, placed, bits)
        if (back := _through_block(wide, isa)) is not None:
            return wide, back, rest
    back = _through_block(tile, isa)
    if back is None and plain is not None:
        back = Back(plain)
    return None if back is None else (tile, back, outer)


def _through_block(tile: Tile, isa: int) -> Back | None:
    """The fastest kernel that has a place for the tile; None where it is too large."""
    size, pieces = tile.pieces()
    block = len(pieces) * size
    if len(tile.row) > _MOST_ROWS or max(block, tile.size) > _MOST_BLOCK:
        return None
    inverse = tile.backwards()
    moves = lines(inverse) if isa == s.AVX512 else None
    if moves is None and isa != s.PORTABLE:
        moves = shuffles(inverse)
    if moves is None:
        moves = copies(inverse) if tile.bits == 8 else words(inverse)
    if moves is None:
        return None
    word = 1 if moves.kernel == s.SHUFFLE else moves.word  # a block is not stored past the caches
    parts = [(number * size, row, column, size, 0, 0, 0) for number, (row, column) in enumerate(pieces)]
    return Back(replace(moves, word=word, whole_lines=0), np.array(parts, dtype=s.PART), size, block)


def _simple(tile: Tile, columns: Sequence[Digit], isa: int) -> Moves | None:
    """Runs, and tiles of 16-byte pieces: the fastest where they fit."""
    if tile.bits != 8:
        return None
    count = np.arange(len(tile.source))
    if len(tile.row) == 1 and (tile.source == count).all() and (tile.target == count).all():
        return Moves(s.RUN)
    return Moves(s.TILE16) if isa != s.PORTABLE and _is_tile16(tile, columns) else None


def _is_tile16(tile: Tile, columns: Sequence[Digit]) -> bool:
    """Vector i of the tile is 16 bytes of row i, and the next tile along the innermost loop is the next 16."""
    count = len(tile.row)
    if count % 4 or len(tile.source) != 16 * count or not columns:
        return False
    whole = np.array_equal(tile.target, tile.of_row * 16 + tile.source)
    return bool(whole and columns[-1].k == 16 and columns[-1].stride > 0)
