"""Digits of a layout, and which of them make its tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardproof.layouts import Placed

LINE = 64
_TILE_BYTES, _TILE_ROWS, _LONG_RUN = 256, 128, 32
_TWO_LINES, _WIDE_BYTES, _WIDE_RUN, _WIDE_BLOCK = 128, 512, 8, 2048


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


def choose(
    digits: Sequence[Digit], placed: Placed, bits: int, *, enough: int = _TILE_BYTES, cut: bool = False
) -> tuple[list[Digit], list[Digit]]:
    """Split digits into those of the tile and the outer ones (outermost first); tiles grow to `enough` bytes.

    With `cut` they do so by a part of a digit where all of it would be more; else they stay whole lines below that.
    """
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
        if bytes_ >= LINE and bytes_ % LINE == 0 and (bytes_ >= enough or (not cut and digit.size * bytes_ > enough)):
            outer += free[place:]
            break
        part = _fitting(digit, bytes_, rows, enough)
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


def choose_wide(
    digits: Sequence[Digit], placed: Placed, bits: int, *, few_rows: bool
) -> tuple[list[Digit], list[Digit]]:
    """As `choose`, for kernels that gather pieces of rows, which are made up to 8 bytes long here.

    With `few_rows` two lines of a tile stand together where they can: more of them would take more rows than the
    hardware follows, one would be written far from the next (benchmarks/notes/pack.md). Else there are about eight.
    Other lines of the tile need not stand together.
    """
    inner, outer = choose(digits, placed, bits, enough=_TWO_LINES if few_rows else _WIDE_BYTES, cut=few_rows)
    run, size = 1, 1
    for digit in sorted((d for d in inner if d.along_k), key=lambda d: d.k):
        run *= digit.size if digit.k == run else 1
    for digit in inner:
        size *= digit.size
    longer = next((d for d in outer if d.along_k and d.k == run), None)
    if longer is None or run * bits >= _WIDE_RUN * 8:
        return inner, outer
    part = max(
        f for f in range(1, longer.size + 1)
        if longer.size % f == 0 and f * run * bits <= _WIDE_RUN * 8 and f * size * bits <= _WIDE_BLOCK * 8
    )  # fmt: skip
    upper, lower = longer.split(part)
    rest = [upper if d is longer else d for d in outer]
    return [*inner, lower] if part > 1 else inner, _ordered([d for d in rest if d.size > 1])


def _is_run(digit: Digit, placed: Placed) -> bool:
    """Whether a digit alone is worth a tile: a long run of bytes, or all of a row."""
    together = placed.unit == "byte" and digit.along_k and digit.k == digit.stride == 1
    return together and (digit.size >= _LONG_RUN or digit.size == placed.padded[-1])


def _fitting(digit: Digit, bytes_: int, rows: int, enough: int) -> int:
    """The largest part of a digit (a divisor of its size) that keeps the tile small."""
    fits = [
        f for f in range(1, min(digit.size, 1024) + 1)
        if digit.size % f == 0 and f * max(bytes_, 1) <= 1024 and (digit.along_k or f * rows <= _TILE_ROWS)
    ]  # fmt: skip
    good = [f for f in fits if f * bytes_ % LINE == 0]
    return min((f for f in good if f * bytes_ >= enough), default=max(good or fits))


def _whole_bytes(digit: Digit, per_byte: int) -> tuple[Digit, Digit]:
    """The part of a digit that moves whole bytes on both sides, and the part inside bytes."""
    for inner in range(1, digit.size + 1):
        aligned = digit.stride * inner % per_byte == 0 and digit.k * inner % per_byte == 0
        if digit.size % inner == 0 and aligned:
            return digit.split(inner)
    return digit.split(digit.size)


def _ordered(outer: list[Digit]) -> list[Digit]:
    return sorted(outer, key=lambda d: -abs(d.stride))
