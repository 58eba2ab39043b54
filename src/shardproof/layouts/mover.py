"""Mover: parts of a canonical tensor to their places in a kernel buffer and back, in pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from shardproof.errors import LayoutError
from shardproof.layouts.moves import BITS, Choice, Copy, Dim
from shardproof.layouts.strides import Strides
from shardproof.mxfp4 import Bytes

_PIECE = 4 << 20  # bytes moved at a time: bounds the memory of padding and of moves inside bytes


class Mover:
    """The moves of one placed layout. Its first digit (experts, or tiles of the whole stack) is cut into pieces.

    `padded` are the sizes of the pattern's axes in units. Parts are shaped as the pattern's axes, bytes along K.
    """

    def __init__(self, strides: Strides, padded: tuple[int, ...], unit: str, pad_value: int) -> None:
        self._strides, self._padded, self._unit, self._pad_value = strides, padded, unit, pad_value
        self._per_byte = 8 // BITS[unit]
        self._lead = strides.steps[0]
        if self._lead.group is not None or self._lead.stride % self._per_byte:
            raise LayoutError(
                "layout.pattern",
                "the first digit must move whole bytes",
                found=strides.pattern.text,
                next_step="put a digit of at least a byte first; see layouts/notation.py",
            )
        self._inner = (*padded[1:-1], padded[-1] // self._per_byte)

    def write(self, part: Bytes, kernel: Bytes, first: int) -> None:
        """Write a part that begins at step `first` of the leading digit."""
        for begin, count, piece in self._pieces(part, first):
            whole = self._pad(piece, count)
            self._packing.run(whole.reshape(-1), kernel, self._lead_dim(count, whole), 0, self._target(begin))

    def read(self, kernel: Bytes, part: Bytes, first: int) -> None:
        """Fill a part that begins at step `first` of the leading digit."""
        for begin, count, piece in self._pieces(part, first):
            whole = np.empty((count * self._lead.weight, *self._inner), dtype=np.uint8)
            lead = self._lead_dim(count, whole)
            back = Dim(lead.size, lead.target, lead.source)
            self._unpacking.run(kernel, whole.reshape(-1), back, self._target(begin), 0)
            piece[...] = whole[tuple(slice(0, size) for size in piece.shape)]

    def _pieces(self, part: Bytes, first: int) -> Iterator[tuple[int, int, Bytes]]:
        """(leading digit at the start, how many, the bytes)."""
        rows = self._lead.weight
        each = max(1, _PIECE // max(1, rows * math.prod(self._inner)))
        total = -(-part.shape[0] // rows)
        for at in range(0, total, each):
            yield first + at, min(each, total - at), part[at * rows : (at + each) * rows]

    def _pad(self, piece: Bytes, count: int) -> Bytes:
        shape = (count * self._lead.weight, *self._inner)
        if piece.shape == shape:
            return np.ascontiguousarray(piece)
        whole = np.full(shape, self._pad_value, dtype=np.uint8)
        whole[tuple(slice(0, size) for size in piece.shape)] = piece
        return whole

    def _lead_dim(self, count: int, whole: Bytes) -> Dim:
        return Dim(count, whole.nbytes // max(count, 1), self._lead.stride // self._per_byte)

    def _target(self, begin: int) -> int:
        return self._strides.offset // self._per_byte + begin * self._lead.stride // self._per_byte

    @cached_property
    def _packing(self) -> Copy:
        dims, choices = self._units()
        return Copy(dims, choices, self._unit)

    @cached_property
    def _unpacking(self) -> Copy:
        dims, choices = self._units()
        back = [Choice(tuple((b, a) for a, b in choice.offsets)) for choice in choices]
        return Copy([Dim(d.size, d.target, d.source) for d in dims], back, self._unit)

    def _units(self) -> tuple[list[Dim], list[Choice]]:
        """Every digit but the leading one, with its strides in canonical (padded) and kernel units."""
        steps = self._strides.steps
        along = [math.prod(self._padded[axis + 1 :]) for axis in range(len(self._padded))]
        source = [step.weight * along[step.axis] for step in steps]
        dims = [Dim(s.size, at, s.stride) for s, at in zip(steps[1:], source[1:], strict=True) if s.group is None]
        choices = [Choice(((0, self._strides.offset % self._per_byte),))]
        for group in self._strides.groups:
            offsets = []
            for joined, place in enumerate(group.table):
                rest, at = joined, 0
                for i in reversed(group.steps):
                    rest, digit = divmod(rest, steps[i].size)
                    at += digit * source[i]
                offsets.append((at, place * group.stride))
            choices.append(Choice(tuple(offsets)))
        return dims, choices
