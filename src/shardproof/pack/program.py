"""Program: a layout on one shape, compiled for the native engine into loops over tiles and the moves inside one tile.

A tile is the smallest set of digits whose bytes stand together in the kernel's order and that the fast kernels can
move as a whole. Digits inside the tile are enumerated once; the others become loops: those along rows, experts and
halves choose a *group* of rows, those along K walk through it. So ragged cuts and padding matter only where rows are
looked up, and every layout of the catalogue, of bytes, nibbles or bits, goes through the same kernels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shardproof.experts import Field
from shardproof.layouts import Placed, find
from shardproof.layouts.moves import BITS
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT
from shardproof.pack.digits import Digit
from shardproof.pack.fitting import fit, fit_back, has_holes
from shardproof.pack.moves import Back
from shardproof.pack.native import structs as s
from shardproof.pack.tile import Tile

Ints = npt.NDArray[np.int64]
_LONG_ROW, _ROWS_TOGETHER = 1024, 16  # long enough that the hardware reads ahead by itself; as work.c has it


@dataclass(frozen=True)
class Program:
    """A compiled layout: the C struct and the arrays that it points into.

    `groups` is how many groups of rows there are in all, `group_bytes` what one group writes; with `holes` some bytes
    of the buffer are not written.
    """

    struct: s.ProgramStruct
    groups: int
    group_bytes: int
    scratch: tuple[int, int]
    holes: bool
    arrays: tuple[Any, ...] = field(repr=False)

    @cached_property
    def first_rows(self) -> Ints:
        """Of each group its lowest row of the stack of all experts; all its rows are within `span` of that."""
        found = np.full(1, self._rows.min(), dtype=np.int64)
        for loop in self.arrays[0]:
            steps = np.arange(loop["count"], dtype=np.int64) * (loop["rows"] + loop["base"])
            found = (found[:, None] + steps).reshape(-1)
        return found

    @property
    def span(self) -> int:
        """See `first_rows`."""
        return int(self._rows.max() - self._rows.min()) + 1

    @property
    def _rows(self) -> Ints:
        rows: Ints = self.arrays[2] + self.arrays[3]
        return rows

    @property
    def address(self) -> int:
        """Where the struct is."""
        return ctypes.addressof(self.struct)


@lru_cache(maxsize=512)
def program(identity: str, shape: tuple[int, int, int], pad: int, *, isa: int) -> Program | None:
    """Compile a layout on canonical shape (E, N, bytes a row); `pad` is the value of padding inside that shape.

    `isa` is PORTABLE, AVX2 or AVX512 of engine.h. None where the engine has no kernel for the layout (bytes that
    checkpoint units fill only in part).
    """
    layout, parameters = find(identity)
    placed = layout.place(shape, parameters)
    change = (layout.add, layout.highest)
    return compile_placed(placed, pad, change, isa=isa)


@lru_cache(maxsize=512)
def inverse(identity: str, shape: tuple[int, int, int], *, isa: int) -> Program | None:
    """Compile the way back from kernel bytes to rows; as `program`."""
    layout, parameters = find(identity)
    placed = layout.place(shape, parameters)
    found = fit_back(digits_of(placed), placed, isa)
    if found is None:
        return None
    tile, back, outer = found
    return _program(placed, tile, back, outer, s.UNPACK_BLOCK if back.block else s.UNPACK, 0, (layout.add, 255))


def compile_placed(placed: Placed, pad: int, change: tuple[int, int], *, isa: int) -> Program | None:
    """Compile a placed layout; `change` is its value change (add, highest)."""
    found = fit(digits_of(placed), placed, isa)
    return None if found is None else _program(placed, found[0], Back(found[1]), found[2], s.PACK, pad, change)


def _program(
    placed: Placed, tile: Tile, back: Back, outer: Sequence[Digit], way: int, pad: int, change: tuple[int, int]
) -> Program:
    moves = back.moves
    rows = [d for d in outer if not d.along_k]
    columns = [d for d in outer if d.along_k]
    per_byte = 8 // BITS[placed.unit]
    row_loops = np.array(
        [(d.size, d.row, d.base, d.stride // per_byte) for d in rows] or [(1, 0, 0, 0)], dtype=s.ROW_LOOP
    )
    column_loops = np.array(
        [(d.size, d.k // per_byte, d.stride // per_byte) for d in columns] or [(1, 0, 0)], dtype=s.COLUMN_LOOP
    )
    experts, matrix_rows, width = placed.shape
    padded = placed.padded[-1] // per_byte
    near = moves.kernel == s.SHUFFLE and way == s.PACK
    near = near and _reach(moves.masks, moves.parts) + int(column_loops["src"][-1]) < 16
    masks, tables = _aligned(moves.masks), np.ascontiguousarray(moves.tables)
    arrays = (row_loops, column_loops, tile.row, tile.base, moves.parts, masks, tables, moves.pieces, moves.terms)
    offset = placed.strides.offset // per_byte
    struct = s.ProgramStruct(
        moves.kernel, len(tile.row), len(row_loops), len(column_loops), len(moves.parts), moves.word, int(near),
        pad, placed.pad_value, change[0], change[1],
        placed.extents[-2], matrix_rows, experts * matrix_rows, width, padded, tile.size, offset + tile.start,
        *(a.ctypes.data for a in arrays), len(moves.pieces), len(moves.terms), moves.block, moves.whole_lines,
        *moves.fold, way, placed.nbytes, back.pieces.ctypes.data, len(back.pieces), back.piece, back.block,
    )  # fmt: skip
    groups = math.prod(int(n) for n in row_loops["count"])
    return Program(
        struct, groups, -(-placed.nbytes // groups), (len(tile.row), ((padded + 64) | 63) + 1),
        has_holes(placed) and not tile.span, (*arrays, back.pieces),
    )  # fmt: skip


def digits_of(placed: Placed) -> list[Digit]:
    """Every digit with its strides: along the rows, the base (experts, halves), K, and the kernel's address."""
    axes, strides = placed.pattern.axes, placed.strides
    row_axis = len(axes) - 2
    matrix_rows = placed.shape[1]
    base = {"e": matrix_rows, "h": matrix_rows // 2}
    found = []
    for number, step in enumerate(strides.steps):
        along_k = step.axis == len(axes) - 1
        digit = Digit(
            number, step.size,
            row=step.weight if step.axis == row_axis else 0,
            base=step.weight * base[axes[step.axis]] if step.axis < row_axis else 0,
            k=step.weight if along_k else 0,
            stride=step.stride, along_k=along_k, group=step.group,
        )  # fmt: skip
        found.append(digit)
    return [d for d in found if d.size > 1 or d.group is not None]


@lru_cache(maxsize=128)
def staging_program(placed: Placed, identity: str, name: Field) -> Program:
    """Rows in canonical order with the layout's own padding and value change: what a GPU permutes further.

    Rows stand as [experts, halves, padded rows]; for layouts of the whole stack as [padded rows]. A group is one long
    row, or several short ones, whose digests are taken together.
    """
    layout, _ = find(identity)
    experts, matrix_rows, width = placed.shape
    pitch = placed.padded[-1] * BITS[placed.unit] // 8
    together = 1 if width >= _LONG_ROW else math.gcd(placed.padded[-2], _ROWS_TOGETHER)
    rows = _rows_in_order(placed, pitch, together)
    columns = np.array([(1, 0, 0)], dtype=s.COLUMN_LOOP)
    count = np.arange(together, dtype=np.int64)
    part = np.array([(i * pitch, i, 0, pitch, 0, 0, 0) for i in range(together) if together > 1], dtype=s.PART)
    arrays = (
        rows, columns, count, 0 * count, part, np.zeros(16, np.uint8), np.zeros(256, np.uint32),
        np.zeros(0, s.PART), np.zeros(0, s.TERM),
    )  # fmt: skip
    pad = PAD_SCALE if name == "scale" else PAD_WEIGHT
    struct = s.ProgramStruct(
        s.COPY if together > 1 else s.RUN, together, len(rows), 1, len(part), 1, 0,
        pad, placed.pad_value, layout.add, layout.highest,
        placed.extents[-2], matrix_rows, experts * matrix_rows, width, pitch, pitch * together, 0,
        *(a.ctypes.data for a in arrays), 0, 0, 0, 0,
    )  # fmt: skip
    groups = math.prod(placed.padded[:-1]) // together
    return Program(struct, groups, pitch * together, (together, ((pitch + 64) | 63) + 1), False, arrays)


def _rows_in_order(placed: Placed, pitch: int, together: int) -> npt.NDArray[np.void]:
    """Loops over the rows of canonical bytes with the layout's padding, `together` rows a turn of the innermost."""
    base = {"e": placed.shape[1], "h": placed.shape[1] // 2}
    loops, inside = [], pitch * together
    for axis, size in reversed(list(zip(placed.pattern.axes[:-1], placed.padded[:-1], strict=True))):
        if axis in "nm":
            loops.append((size // together, together, 0, inside))
            inside *= size // together
        else:
            loops.append((size, 0, base[axis], inside))
            inside *= size
    return np.array(loops[::-1], dtype=s.ROW_LOOP)


def _reach(masks: npt.NDArray[np.uint8], parts: npt.NDArray[np.void]) -> int:
    """The last byte of its window that any shuffle takes."""
    return int(masks[parts["index"]].view(np.int8).max())


def _aligned(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    room = np.zeros(masks.size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + masks.size] = masks.reshape(-1)
    return room[start : start + masks.size]


__all__ = ["Program", "compile_placed", "inverse", "program"]
