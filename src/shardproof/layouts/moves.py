"""Moves: a permutation of units as a few strided copies of bytes.

A digit whose strides are whole bytes on both sides becomes an axis of a strided view. The others - positions
inside a byte, and digits that go through a table - are enumerated: each source byte that they name contributes
to a few destination bytes through a table of 256 values (on the way back, each half word through one of 65,536:
`spread`). Nothing is ever widened to one element a nibble or bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.errors import LayoutError
from shardproof.layouts.spread import Spread, spreads
from shardproof.mxfp4 import Bytes

BITS = {"byte": 8, "nibble": 4, "bit": 1}
_WORD = 4  # bytes written at once where units are smaller than a byte
_WIDE = ((16, np.complex128), (8, np.uint64), (4, np.uint32), (2, np.uint16))


@dataclass(frozen=True, slots=True)
class Dim:
    """One digit as it is moved, with its strides on both sides."""

    size: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Choice:
    """An enumerated digit or table: for each value the unit offsets (source, target)."""

    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Move:
    """Source bytes at `source` + strides, through `table`, into target bytes at `target` + strides.

    `table` is None for a plain copy; else 256 words of 1, 2 or 4 bytes. `keep` is None where the target bits are
    free to be overwritten, else the mask of bits that stay.
    """

    source: int
    target: int
    table: npt.NDArray[np.unsignedinteger] | None
    keep: int | None


class Copy:
    """All moves of one permutation: `run(source, target)` on flat byte arrays."""

    def __init__(self, dims: Sequence[Dim], choices: Sequence[Choice], unit: str) -> None:
        self._bits = BITS[unit]
        per_byte = 8 // self._bits
        views: list[Dim] = []
        listed = list(choices)
        for dim in dims:
            outer, inner = _split(dim, per_byte)
            if outer.size > 1:
                views.append(Dim(outer.size, outer.source // per_byte, outer.target // per_byte))
            if inner.size > 1:
                listed.append(Choice(tuple((i * inner.source, i * inner.target) for i in range(inner.size))))
        self._spreads: list[Spread] | None = None
        if any(len(choice.offsets) > 1 for choice in listed):
            rest, more = _enumerated(views, per_byte, lambda d: d.source)
            self._spreads = (
                None if unit == "byte" else spreads(_pairs([*listed, *more], self._bits, per_byte), self._bits)
            )
            if self._spreads is None:
                rest, more = _enumerated(views, per_byte, lambda d: d.target)
            views, listed = rest, [*listed, *more]
        self._views = sorted(views, key=lambda d: (-abs(d.target), -abs(d.source)))
        self._moves = _compile(listed, self._bits, per_byte) if self._spreads is None else []

    def run(self, source: Bytes, target: Bytes, lead: Dim, source_at: int, target_at: int) -> None:
        """Move `lead.size` leading blocks; `lead` strides and the two starts are in bytes."""
        dims = [lead, *self._views]
        shape = [d.size for d in dims]
        for word in self._spreads or ():
            self._spread(word, source, target, dims, source_at, target_at)
        for move in self._moves:
            read = _view(source, source_at + move.source, shape, [d.source for d in dims])
            start, steps = target_at + move.target, [d.target for d in dims]
            if move.table is None:
                _copy(source, source_at + move.source, target, start, dims)
                continue
            words = move.table.take(read)
            write = _view(target, start, shape, steps, words.dtype)
            if move.keep is None:
                write[...] = words
            else:
                if move.keep != np.iinfo(words.dtype).max:
                    write &= words.dtype.type(move.keep)
                write |= words

    @staticmethod
    def _spread(
        word: Spread, source: Bytes, target: Bytes, dims: Sequence[Dim], source_at: int, target_at: int
    ) -> None:
        shape = [d.size for d in dims]
        read, write = [d.source for d in dims], [d.target for d in dims]
        result = None
        for half, table in enumerate(word.tables):
            part = table.take(_view(source, source_at + word.source + 2 * half, shape, read, np.uint16))
            result = part if result is None else np.bitwise_or(result, part, out=result)
        assert result is not None
        as_bytes = result.view(np.uint8).reshape(*shape, len(word.targets))
        for i, at in enumerate(word.targets):
            _view(target, target_at + at, shape, write)[...] = as_bytes[..., i]


def _enumerated(views: Sequence[Dim], per_byte: int, stride: Callable[[Dim], int]) -> tuple[list[Dim], list[Choice]]:
    """Take the digits that lie inside a word on one side from the views, so that whole words are moved."""
    small = [dim for dim in views if 0 < stride(dim) * dim.size <= _WORD]
    steps = [tuple((i * d.source * per_byte, i * d.target * per_byte) for i in range(d.size)) for d in small]
    return [dim for dim in views if dim not in small], [Choice(offsets) for offsets in steps]


def _split(dim: Dim, per_byte: int) -> tuple[Dim, Dim]:
    """Split a digit into an outer part whose strides are whole bytes on both sides and the rest."""
    for factor in range(1, min(dim.size, per_byte * per_byte) + 1):
        if dim.size % factor == 0 and dim.source * factor % per_byte == 0 and dim.target * factor % per_byte == 0:
            outer = Dim(dim.size // factor, dim.source * factor, dim.target * factor)
            return outer, Dim(factor, dim.source, dim.target)
    return Dim(1, 0, 0), dim


def _pairs(choices: Sequence[Choice], bits: int, per_byte: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Enumerate the choices: which bits each pair of a source and a target byte shares."""
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for picked in itertools.product(*(c.offsets for c in choices)):
        source, target = sum(p[0] for p in picked), sum(p[1] for p in picked)
        key = (source // per_byte, target // per_byte)
        pairs.setdefault(key, []).append((source % per_byte * bits, target % per_byte * bits))
    return pairs


def _compile(choices: Sequence[Choice], bits: int, per_byte: int) -> list[Move]:
    """One move for each pair of source byte and target word that share bits."""
    pairs = _pairs(choices, bits, per_byte)
    if all(len(shifts) == per_byte and all(a == b for a, b in shifts) for shifts in pairs.values()):
        return [Move(source, target, None, None) for source, target in pairs]
    width = _word_width({target for _, target in pairs})
    words: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (source, target), shifts in pairs.items():
        base = target // width * width
        shifted = [(a, b + 8 * (target - base)) for a, b in shifts]
        words.setdefault((source, base), []).extend(shifted)
    return _order(words, bits, width)


def _order(words: dict[tuple[int, int], list[tuple[int, int]]], bits: int, width: int) -> list[Move]:
    """The first move into a word clears the bits that the permutation owns; the others add theirs."""
    whole, mask = (1 << 8 * width) - 1, (1 << bits) - 1
    owned: dict[int, int] = {}
    for (_, target), shifts in words.items():
        for _, to in shifts:
            owned[target] = owned.get(target, 0) | mask << to
    moves, begun = [], set()
    values = np.arange(256, dtype=np.uint64)
    for (source, target), shifts in words.items():
        table = np.zeros(256, dtype=np.uint64)
        for at, to in shifts:
            table |= (values >> np.uint64(at) & np.uint64(mask)) << np.uint64(to)
        first = target not in begun
        begun.add(target)
        keep = whole if not first else whole & ~owned[target]
        moves.append(Move(source, target, table.astype(f"u{width}"), None if keep == 0 else keep))
    return moves


def _word_width(targets: set[int]) -> int:
    """The widest word that the enumerated target bytes fill without a gap."""
    for width in (_WORD, 2):
        if {t // width * width + i for t in targets for i in range(width)} == targets:
            return width
    return 1


def _view(
    data: Bytes, start: int, shape: list[int], steps: list[int], dtype: npt.DTypeLike = np.uint8
) -> npt.NDArray[np.unsignedinteger]:
    kind = np.dtype(dtype)
    low = start + sum(min(0, (n - 1) * s) for n, s in zip(shape, steps, strict=True))
    high = start + sum(max(0, (n - 1) * s) for n, s in zip(shape, steps, strict=True)) + kind.itemsize
    if low < 0 or high > data.size:
        raise LayoutError(
            "layout.pattern",
            "a move leaves its buffer",
            found=(low, high),
            needed=data.size,
            next_step="give a buffer of the whole size",
        )
    whole: npt.NDArray[np.unsignedinteger] = np.ndarray(shape, kind, data.data, start, steps)
    return whole


def _copy(source: Bytes, source_at: int, target: Bytes, target_at: int, dims: Sequence[Dim]) -> None:
    """A plain strided copy, in the widest element that both sides allow."""
    last = next((d for d in dims if d.source == 1 and d.target == 1), None)
    if last is not None:
        rest = [d for d in dims if d is not last]
        starts = math.gcd(source_at, target_at)
        for width, kind in _WIDE:
            strides = [abs(s) for d in rest for s in (d.source, d.target)]
            if last.size % width == 0 and math.gcd(starts, *strides) % width == 0:
                narrow = Dim(last.size // width, width, width)
                ordered = [*rest, narrow]
                shape = [d.size for d in ordered]
                _view(target, target_at, shape, [d.target for d in ordered], kind)[...] = _view(
                    source, source_at, shape, [d.source for d in ordered], kind
                )
                return
    shape = [d.size for d in dims]
    _view(target, target_at, shape, [d.target for d in dims])[...] = _view(
        source, source_at, shape, [d.source for d in dims]
    )
