"""Gather: a layout as index arrays, so that a GPU can permute canonical bytes by the same declaration.

Everything is written in words of the kernel's order. A word of 4 bytes is either 4 bytes that stand together in the
source, or is put together from source bytes through tables of 256 words - single bytes, nibbles and bits alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from shardproof.layouts import Placed
from shardproof.layouts.moves import BITS
from shardproof.pack.digits import Digit, choose
from shardproof.pack.plain import words
from shardproof.pack.program import digits_of
from shardproof.pack.tile import Tile, enumerate_tile

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]
_AT_ONCE = 1 << 22  # words moved at a time where torch does it


@dataclass(frozen=True)
class Gather:
    """Word w of tile t: from source bytes `tile_source[t] + source[w, :]` to `tile_target[t] + target[w]`.

    `tables` is None for plain copies of `word` bytes; else source byte b of part p counts `tables[table[w, p], b]`.
    """

    tile_source: Ints
    tile_target: Ints
    source: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    table: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int32] | None
    word: int

    def on(self, device: Any) -> DeviceGather:
        """The arrays as tensors on a device."""
        import torch

        def sent(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return DeviceGather(
            sent(self.tile_source), sent(self.tile_target), sent(self.source), sent(self.target), sent(self.table),
            None if self.tables is None else sent(self.tables), self.word,
        )  # fmt: skip


def gather_of(placed: Placed) -> Gather | None:
    """Compile a placed layout; its source is canonical bytes with the layout's own padding, [rows, padded bytes a row].

    None where bytes are filled only in part.
    """
    bits = BITS[placed.unit]
    inner, outer = choose(digits_of(placed), placed, bits)
    tile = enumerate_tile(inner, placed, bits)
    pitch = placed.padded[-1] * bits // 8
    rows = _padded_rows(placed)
    origin = placed.strides.offset * bits // 8 + tile.start
    tile_source, tile_target = np.zeros(1, dtype=np.int64), np.full(1, origin, dtype=np.int64)
    for digit in outer:
        count = np.arange(digit.size, dtype=np.int64)
        tile_source = (tile_source[:, None] + count * _step(digit, rows, pitch, bits)).reshape(-1)
        tile_target = (tile_target[:, None] + count * (digit.stride * bits // 8)).reshape(-1)
    at_row = np.array([_row(int(r), int(b), rows) for r, b in zip(tile.row, tile.base, strict=True)], dtype=np.int64)
    strides = [digit.stride * bits // 8 for digit in outer]
    return _copies(tile, at_row, pitch, tile_source, tile_target) or _words(
        tile, at_row, pitch, tile_source, tile_target, strides
    )


def _padded_rows(placed: Placed) -> tuple[int, int]:
    """(rows of one matrix or half in canonical bytes, the same with the layout's padding)."""
    axes = placed.pattern.axes
    if axes[0] == "m":
        return 0, 0
    return placed.extents[-2], placed.padded[-2]


def _row(row: int, base: int, rows: tuple[int, int]) -> int:
    """Row of the padded source: `base` counts rows of whole matrices and halves, which padding makes longer."""
    return row + (base // rows[0] * rows[1] if base else 0)


def _step(digit: Digit, rows: tuple[int, int], pitch: int, bits: int) -> int:
    return _row(digit.row, digit.base, rows) * pitch + digit.k * bits // 8


def _copies(tile: Tile, at_row: Ints, pitch: int, tile_source: Ints, tile_target: Ints) -> Gather | None:
    """Plain copies of 4 bytes, where runs, strides and places allow it."""
    if tile.bits != 8 or len(tile.target) % 4:
        return None
    source = at_row[tile.of_row] * pitch + tile.source
    grouped, target = source.reshape(-1, 4), tile.target.reshape(-1, 4)
    together = (np.diff(grouped) == 1).all() and (np.diff(target) == 1).all()
    aligned = all((values % 4 == 0).all() for values in (grouped[:, 0], target[:, 0], tile_source, tile_target))
    if not together or not aligned:
        return None
    none = np.zeros((1, 1), dtype=np.int32)
    return Gather(
        tile_source,
        tile_target,
        grouped[:, :1].astype(np.int32),
        target[:, 0].astype(np.int32),
        none,
        None,
        4,
    )


def _words(
    tile: Tile, at_row: Ints, pitch: int, tile_source: Ints, tile_target: Ints, strides: list[int]
) -> Gather | None:
    aligned = (tile_target % 4 == 0).all() and all(stride % 4 == 0 for stride in strides)
    made = words(tile, wide=bool(aligned))
    if made is None:
        return None
    parts, tables, word = made.parts, made.tables, made.word
    ends = np.flatnonzero(parts["keep"]) + 1
    counts = np.diff(np.concatenate(([0], ends)))
    most = int(counts.max())
    zero = np.zeros((1, 256), dtype=np.uint32)
    source = np.zeros((len(ends), most), dtype=np.int32)
    table = np.full((len(ends), most), len(tables), dtype=np.int32)  # words of fewer parts look up zeros
    for number, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
        part = parts[end - count : end]
        source[number, :count] = at_row[part["row"]] * pitch + part["column"]
        table[number, :count] = part["index"]
    filled = np.concatenate((tables, zero)).view(np.int32)
    return Gather(tile_source, tile_target, source, parts["dst"][ends - 1].astype(np.int32), table, filled, word)


@dataclass(frozen=True)
class DeviceGather:
    """A `Gather` whose arrays are on a device; holes keep what they hold."""

    writes_holes: ClassVar[bool] = False

    tile_source: torch.Tensor
    tile_target: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    table: torch.Tensor
    tables: torch.Tensor | None
    word: int

    def run(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """Write `out` (uint8, contiguous) from padded canonical bytes `source` (uint8); holes keep what they hold."""
        if out.is_cuda:
            from shardproof.kernels.device.kernel import launch

            launch(self, source, out)
            return
        step = max(1, _AT_ONCE // self.source.shape[0])
        for begin in range(0, len(self.tile_source), step):
            self._part(source, out, slice(begin, begin + step))

    def _part(self, source: torch.Tensor, out: torch.Tensor, tiles: slice) -> None:
        import torch

        kind = torch.int32 if self.word == 4 else torch.uint8
        at = self.tile_source[tiles, None, None] + self.source
        to = (self.tile_target[tiles, None] + self.target) // self.word
        if self.tables is None:
            words = source.view(kind)[at[..., 0] // self.word]
        else:
            words = torch.zeros(to.shape, dtype=torch.int32, device=out.device)
            for part in range(self.source.shape[1]):
                words |= self.tables.view(-1)[self.table[:, part] * 256 + source[at[..., part]].long()]
        out.view(kind)[to.reshape(-1)] = words.to(kind).reshape(-1)


@lru_cache(maxsize=128)
def device_gather(placed: Placed, device: str) -> DeviceGather | None:
    """`gather_of`, on a device; kept for the layers of the same shape."""
    made = gather_of(placed)
    return None if made is None else made.on(device)
