"""Strides: a pattern on known sizes, compiled to the stride of every digit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.errors import LayoutError
from shardproof.layouts.notation import Pattern, Place, Slot

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Step:
    """One digit: its value is `coordinate[axis] // weight % size`; it moves the address by `stride` units."""

    name: str
    axis: int
    weight: int
    size: int
    stride: int
    group: int | None = None  # index into `Strides.groups` for a digit that goes through a table


@dataclass(frozen=True, slots=True)
class Group:
    """Digits (indices of steps) joined to one number, looked up in `table`, times `stride`."""

    steps: tuple[int, ...]
    table: tuple[int, ...]
    stride: int


class Strides:
    """Address arithmetic of one pattern: `steps`, `groups`, the constant `offset`, and `units` addresses in all."""

    def __init__(self, pattern: Pattern, sizes: Mapping[str, int], tables: Mapping[str, tuple[int, ...]]) -> None:
        self.pattern, self.sizes, self.tables = pattern, dict(sizes), tables
        self._order = [d.name for axis in pattern.digits for d in axis]
        self._strides: dict[str, int] = {}
        self._in_group: dict[str, int] = {}
        self.groups: list[Group] = []
        self.offset = 0
        self.units = self._assign(pattern.places, 1)
        self.steps = tuple(self._make_steps())

    def _assign(self, places: Sequence[Place | Slot], stride: int) -> int:
        """Give each digit its stride, from the right; return the number of addresses that `places` span."""
        for place in reversed(places):
            if isinstance(place, Slot):
                if self._assign(place.inside, stride) > (place.pitch - place.offset) * stride:
                    raise LayoutError(
                        "layout.pattern",
                        "a slot is smaller than its digits",
                        found=self.pattern.text,
                        next_step="make the slot's pitch at least what its digits take; see layouts/notation.py",
                    )
                self.offset += place.offset * stride
                stride *= place.pitch
                continue
            size = math.prod(self.sizes[d] for d in place.digits)
            if place.table is not None:
                self._add_group(place, size, stride)
            elif place.reverse:
                self._strides[place.digits[0]] = -stride
                self.offset += (size - 1) * stride
            else:
                self._strides[place.digits[0]] = stride
            stride *= size
        return stride

    def _add_group(self, place: Place, size: int, stride: int) -> None:
        assert place.table is not None
        table = self.tables.get(place.table)
        if table is None or sorted(table) != list(range(size)):
            raise LayoutError(
                "layout.pattern",
                f"table {place.table!r} of pattern {self.pattern.text!r} is not a permutation of its digits",
                found="no such table" if table is None else f"{len(table)} entries",
                needed=f"each of 0..{size - 1} once",
                next_step="correct the layout's tables",
            )
        for name in place.digits:
            self._in_group[name] = len(self.groups)
            self._strides[name] = 0
        self.groups.append(Group(tuple(self._order.index(d) for d in place.digits), table, stride))

    def _make_steps(self) -> Iterator[Step]:
        for axis, digits in enumerate(self.pattern.digits):
            weight = math.prod(self.sizes[d.name] for d in digits)
            for digit in digits:
                size = self.sizes[digit.name]
                weight //= size
                yield Step(digit.name, axis, weight, size, self._strides[digit.name], self._in_group.get(digit.name))

    def address(self, parts: Sequence[Ints]) -> Ints:
        """Address of the unit at one coordinate an axis; arrays broadcast."""
        values = [parts[step.axis] // step.weight % step.size for step in self.steps]
        total = np.full(np.broadcast_shapes(*(p.shape for p in parts)), self.offset, dtype=np.int64)
        for step, value in zip(self.steps, values, strict=True):
            total += value * step.stride
        for group in self.groups:
            joined = np.zeros_like(total)
            for i in group.steps:
                joined = joined * self.steps[i].size + values[i]
            total += np.asarray(group.table, dtype=np.int64)[joined] * group.stride
        return total

    def coordinates(self, at: Ints) -> tuple[list[Ints], Bools]:
        """One coordinate an axis for each address, and where a hole stands instead."""
        digits: dict[str, Ints] = {}
        hole = np.zeros(at.shape, dtype=np.bool_)
        self._read(self.pattern.places, at, digits, hole)
        parts = [np.zeros_like(at) for _ in self.pattern.axes]
        for step in self.steps:
            parts[step.axis] += digits[step.name] * step.weight
        return parts, hole

    def _read(self, places: Sequence[Place | Slot], rest: Ints, digits: dict[str, Ints], hole: Bools) -> Ints:
        """Peel the places off `rest` from the right; return what is left above them."""
        for place in reversed(places):
            if isinstance(place, Slot):
                rest, inner = rest // place.pitch, rest % place.pitch - place.offset
                above = self._read(place.inside, np.maximum(inner, 0), digits, hole)
                np.logical_or(hole, (inner < 0) | (above > 0), out=hole)
                continue
            size = math.prod(self.sizes[d] for d in place.digits)
            rest, value = rest // size, rest % size
            if place.table is not None:
                value = np.argsort(self.tables[place.table])[value]
            elif place.reverse:
                value = size - 1 - value
            for name in reversed(place.digits):
                value, digits[name] = value // self.sizes[name], value % self.sizes[name]
        return rest
