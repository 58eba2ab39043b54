"""Tile: the digits that are moved together, enumerated, and the kernel that moves them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shardproof.layouts import Placed
from shardproof.pack.native import structs as s

Ints = npt.NDArray[np.int64]
Moves = tuple[int, npt.NDArray[np.void], npt.NDArray[np.uint8], npt.NDArray[np.uint32], int]

LINE = 64
MOST_ROWS = 256  # of a group, as work.c has room for
_TILE_BYTES, _TILE_ROWS, _LONG_RUN = 256, 128, 32
_MOST_SHUFFLES = 20  # a vector: beyond it single bytes are as fast


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit with its strides in units: `row` along the layout's row axis, `base` along experts and halves."""

    number: int
    size: int
    row: int
    base: int
    k: int
    stride: int
    along_k: bool
    group: int | None

    def split(self, inner: int) -> tuple[Digit, Digit]:
        """The upper and the lower part of a digit; the lower counts to `inner`."""
        upper = replace(
            self, size=self.size // inner, row=self.row * inner, base=self.base * inner, k=self.k * inner,
            stride=self.stride * inner,
        )  # fmt: skip
        return upper, replace(self, size=inner)


def choose(digits: Sequence[Digit], placed: Placed, bits: int) -> tuple[list[Digit], list[Digit]]:
    """Split digits into those of the tile and the outer ones (outermost first)."""
    per_byte = 8 // bits
    inner: list[Digit] = []
    free: list[Digit] = []
    for digit in digits:
        if digit.group is not None:
            inner.append(digit)
            continue
        upper, lower = _whole_bytes(digit, per_byte)
        inner += [lower] if lower.size > 1 else []
        free += [upper] if upper.size > 1 else []
    free.sort(key=lambda d: abs(d.stride))
    if free and not inner and _is_run(free[0], placed):
        return free[:1], _ordered(free[1:])
    covered, rows = 1, 1
    for digit in inner:
        covered *= digit.size
        rows *= 1 if digit.along_k else digit.size
    outer: list[Digit] = []
    for place, digit in enumerate(free):
        bytes_ = covered // per_byte
        if bytes_ >= LINE and bytes_ % LINE == 0 and (bytes_ >= _TILE_BYTES or not _completes(digit, bytes_)):
            outer += free[place:]
            break
        part = _fitting(digit, bytes_, rows)
        if part == 1:
            outer += free[place:]
            break
        upper, lower = digit.split(part)
        inner.append(lower)
        covered *= part
        rows *= 1 if digit.along_k else part
        if upper.size > 1:
            outer.append(upper)
            outer += free[place + 1 :]
            break
    return inner, _ordered(outer)


def _is_run(digit: Digit, placed: Placed) -> bool:
    """Whether a digit alone is worth a tile: a long run of bytes, or all of a row."""
    together = placed.unit == "byte" and digit.along_k and digit.k == digit.stride == 1
    return together and (digit.size >= _LONG_RUN or digit.size == placed.padded[-1])


def _completes(digit: Digit, bytes_: int) -> bool:
    return digit.size * bytes_ <= _TILE_BYTES


def _fitting(digit: Digit, bytes_: int, rows: int) -> int:
    """The largest part of a digit (a divisor of its size) that keeps the tile small."""
    fits = [
        f for f in range(1, min(digit.size, 1024) + 1)
        if digit.size % f == 0 and f * max(bytes_, 1) <= 1024 and (digit.along_k or f * rows <= _TILE_ROWS)
    ]  # fmt: skip
    good = [f for f in fits if f * bytes_ % LINE == 0]
    return min((f for f in good if f * bytes_ >= _TILE_BYTES), default=max(good or fits))


def _whole_bytes(digit: Digit, per_byte: int) -> tuple[Digit, Digit]:
    """The part of a digit that moves whole bytes on both sides, and the part inside bytes."""
    for inner in range(1, digit.size + 1):
        aligned = digit.stride * inner % per_byte == 0 and digit.k * inner % per_byte == 0
        if digit.size % inner == 0 and aligned:
            return digit.split(inner)
    return digit.split(digit.size)


def _ordered(outer: list[Digit]) -> list[Digit]:
    return sorted(outer, key=lambda d: -abs(d.stride))


@dataclass(frozen=True)
class Tile:
    """An enumerated tile: row `row[i]`, `base[i]` of its group, and for every unit its row, source and address.

    `source` and `target` count units from the tile's first column and lowest address; `start` is that address in bytes.
    """

    row: Ints
    base: Ints
    of_row: Ints
    source: Ints
    target: Ints
    start: int
    bits: int
    padded_bytes: int

    @cached_property
    def size(self) -> int:
        """From the first byte that the tile writes to the last."""
        return int(self.target.max()) * self.bits // 8 + 1

    def moves(self, *, simd: bool, columns: Sequence[Digit]) -> Moves | None:
        """Kernel, parts, masks, tables and word size; None where a byte is filled only in part."""
        none = np.zeros(0, dtype=s.PART), np.zeros((0, 16), np.uint8), np.zeros((0, 256), np.uint32)
        if self.bits == 8:
            count = np.arange(len(self.source))
            if len(self.row) == 1 and (self.source == count).all() and (self.target == count).all():
                return s.RUN, *none, 1
            if simd and self._is_tile16(columns):
                return s.TILE16, *none, 1
        if simd and (shuffles := self._shuffles()) is not None:
            return shuffles
        return self._copies() if self.bits == 8 else self.words()

    def _is_tile16(self, columns: Sequence[Digit]) -> bool:
        """Vector i of the tile is 16 bytes of row i, and the next tile along the innermost loop is the next 16."""
        count = len(self.row)
        if count % 4 or len(self.source) != 16 * count or not columns:
            return False
        whole = np.array_equal(self.target, self.of_row * 16 + self.source)
        return bool(whole and columns[-1].k == 16 and columns[-1].stride > 0)

    def _shuffles(self) -> Moves | None:
        vectors = self._vectors()
        if vectors is None:
            return None
        masks: dict[bytes, int] = {b"": 0}  # mask 0 means none
        parts = []
        for at in vectors:
            found = min((self._windows(at, low) for low in (False, True)), key=len)
            if len(found) > _MOST_SHUFFLES * (8 // self.bits):
                return None
            for row, column, shift, mask, keep in found:
                index, kept = (masks.setdefault(m, len(masks)) for m in (mask, keep))
                parts.append((at, row, column, 16, index, kept, shift))
        stacked = np.frombuffer(b"".join(m.ljust(16, b"\x80") for m in masks), dtype=np.uint8).reshape(-1, 16)
        lines = 64 if self.size % LINE == 0 and len(vectors) * 16 == self.size else 16
        return s.SHUFFLE, np.array(parts, dtype=s.PART), stacked, np.zeros((0, 256), np.uint32), lines

    def _vectors(self) -> list[int] | None:
        """Where the 16-byte vectors of the tile begin; None where its bytes do not come in whole vectors."""
        filled = np.bincount(self.target * self.bits // 8)
        if set(np.unique(filled)) - {0, 8 // self.bits}:
            return None
        edges = np.flatnonzero(np.diff(np.concatenate(([0], filled, [0])) != 0))
        runs = edges.reshape(-1, 2)
        if ((runs[:, 1] - runs[:, 0]) % 16).any():
            return None
        return [at for first, stop in runs.tolist() for at in range(first, stop, 16)]

    def _windows(self, vector: int, low: bool) -> list[tuple[int, int, int, bytes, bytes]]:
        """What one vector takes: (row, first byte of a 16-byte window, shift, byte mask, bits kept or b"").

        Bits move in 16-bit lanes. A source byte is first brought to the byte of the lane where its bits go, or, with
        `low`, always to the lane's low byte: whichever needs fewer windows.
        """
        bits = self.bits
        begin = vector * 8
        inside = np.flatnonzero((self.target * bits >= begin) & (self.target * bits < begin + 128))
        to, at = self.target[inside] * bits - begin, self.source[inside] * bits
        byte = at // 8
        place = to // 16 * 2 if low else to // 8
        shift = to - place * 8 - at % 8
        keyed: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for row, b, p, bit, by in zip(self.of_row[inside], byte, place, to, shift, strict=True):
            keyed.setdefault((int(row), int(by)), []).append((int(b), int(p), int(bit)))
        found = []
        for (row, by), moves in sorted(keyed.items()):
            waiting = sorted(moves)
            while waiting:
                first, left = waiting[0][0], []
                mask, keep = bytearray(b"\x80" * 16), bytearray(16)
                for b, p, bit in waiting:
                    if b < first + 16 and mask[p] in (0x80, b - first):
                        mask[p] = b - first
                        keep[bit // 8] |= (1 << bits) - 1 << bit % 8
                    else:
                        left.append((b, p, bit))
                plain = by == 0 and all(k in (0, 255) for k in keep)
                found.append((row, first, by, bytes(mask), b"" if plain else bytes(keep)))
                waiting = left
        return found

    def _copies(self) -> Moves:
        """Runs of bytes."""
        order = np.lexsort((self.target,))
        row, source, target = self.of_row[order], self.source[order], self.target[order]
        breaks = (np.diff(row) != 0) | (np.diff(source) != 1) | (np.diff(target) != 1)
        starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        sizes = np.diff(np.concatenate((starts, [len(row)])))
        parts = [(target[i], row[i], source[i], size, 0, 0, 0) for i, size in zip(starts, sizes, strict=True)]
        return (
            s.COPY,
            np.array(parts, dtype=s.PART),
            np.zeros((0, 16), np.uint8),
            np.zeros((0, 256), np.uint32),
            1,
        )

    def words(self, *, wide: bool = True) -> Moves | None:
        """Table look-ups, one for every source byte that a word takes bits from; words of 4 bytes if `wide`."""
        per_byte = 8 // self.bits
        touched = np.bincount(self.target // per_byte)
        if set(np.unique(touched)) - {0, per_byte}:
            return None
        whole = not (touched == 0).any() and len(touched) % 4 == 0
        word = 4 if wide and whole and self.start % 4 == 0 else 1
        shares: dict[int, dict[tuple[int, int], list[tuple[int, int]]]] = {}
        for row, at, to in zip(self.of_row.tolist(), self.source.tolist(), self.target.tolist(), strict=True):
            first = to // per_byte // word * word
            share = shares.setdefault(first, {}).setdefault((row, at // per_byte), [])
            share.append((at % per_byte * self.bits, to * self.bits - first * 8))
        tables: dict[tuple[tuple[int, int], ...], int] = {}
        parts = []
        for first, sources in sorted(shares.items()):
            for last, ((row, column), moved) in enumerate(sources.items(), 1 - len(sources)):
                index = tables.setdefault(tuple(sorted(moved)), len(tables))
                parts.append((first, row, column, 1, index, int(last == 0), 0))
        filled = np.stack([_table(moved, self.bits) for moved in tables])
        return s.WORDS, np.array(parts, dtype=s.PART), np.zeros((0, 16), np.uint8), filled, word


def _table(moved: tuple[tuple[int, int], ...], bits: int) -> npt.NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    table = np.zeros(256, dtype=np.uint32)
    for at, to in moved:
        table |= (values >> np.uint32(at) & np.uint32((1 << bits) - 1)) << np.uint32(to)
    return table


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
