"""Placed: a layout on one shape, with every size known: pack, unpack, address, element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.errors import LayoutError
from shardproof.layouts.notation import Pattern, Place, Slot
from shardproof.mxfp4 import Bytes, pack_codes, unpack_codes

Ints = npt.NDArray[np.int64]
UNITS_PER_BYTE = {"byte": 1, "nibble": 2, "bit": 8}


@dataclass(frozen=True, slots=True)
class Step:
    """One digit with its place: `value = coordinate[axis] // weight % size`, moving the address by `stride`."""

    axis: int
    weight: int
    size: int
    stride: int
    group: int | None = None  # index into `Placed.groups` for digits that go through a table


@dataclass(frozen=True, slots=True)
class Group:
    """Digits joined to one number, looked up in `table`, times `stride`."""

    steps: tuple[int, ...]
    table: tuple[int, ...]
    stride: int


class Placed:
    """A layout on the canonical shape (E, N, K bytes); made by `Layout.place`.

    `extents` and `padded` are the axes' sizes in units before and after padding, `units` is the number of
    addresses, `nbytes` the size of the kernel buffer.
    """

    def __init__(
        self,
        pattern: Pattern,
        sizes: Mapping[str, int],
        shape: tuple[int, int, int],
        padded: Sequence[int],
        *,
        unit: str,
        pad_value: int,
        tables: Mapping[str, tuple[int, ...]],
        values: Bytes | None = None,
    ) -> None:
        self.pattern, self.sizes, self.shape, self.unit, self.pad_value = (
            pattern,
            dict(sizes),
            shape,
            unit,
            pad_value,
        )
        self._values = values
        experts, rows, columns = shape
        self._k_units = columns * UNITS_PER_BYTE[unit]
        stacked = len(pattern.axes) == 2
        self.extents = (experts * rows, self._k_units) if stacked else (experts, rows, self._k_units)
        self.padded = tuple(padded)
        self._tables = tables
        self._order = [d.name for axis in pattern.digits for d in axis]
        self._strides: dict[str, int] = {}
        self.offset = 0
        self.groups: list[Group] = []
        self._in_group: dict[str, int] = {}
        self.units = self._assign(pattern.places, 1)
        self.steps = tuple(self._steps())
        self.nbytes = -(-self.units // UNITS_PER_BYTE[unit])

    @property
    def expert_bytes(self) -> int | None:
        """Bytes of one expert's own run of the buffer, where experts stand one after the other; else None."""
        first, experts = self.pattern.places[0], self.pattern.digits[0]
        alone = len(self.pattern.axes) == 3 and isinstance(first, Place) and first == Place((experts[0].name,))
        units = self.units // max(self.shape[0], 1)
        return units // UNITS_PER_BYTE[self.unit] if alone and units % UNITS_PER_BYTE[self.unit] == 0 else None

    # -- compiling -----------------------------------------------------------------------------------------

    def _assign(self, places: Sequence[Place | Slot], stride: int) -> int:
        """Give each digit its stride, from the right; return the number of addresses that `places` span."""
        for place in reversed(places):
            if isinstance(place, Slot):
                if self._assign(place.inside, stride) > (place.pitch - place.offset) * stride:
                    raise LayoutError("layout.pattern", "a slot is smaller than its digits", found=self.pattern.text)
                self.offset += place.offset * stride
                stride *= place.pitch
                continue
            size = math.prod(self.sizes[d] for d in place.digits)
            if place.table is not None:
                table = self._tables[place.table]
                if sorted(table) != list(range(size)):
                    raise LayoutError(
                        "layout.pattern",
                        f"table {place.table!r} is not a permutation of its digits",
                        needed=size,
                    )
                for name in place.digits:
                    self._in_group[name] = len(self.groups)
                    self._strides[name] = 0
                index = {name: i for i, name in enumerate(self._order)}
                self.groups.append(Group(tuple(index[d] for d in place.digits), table, stride))
            elif place.reverse:
                self._strides[place.digits[0]] = -stride
                self.offset += (size - 1) * stride
            else:
                self._strides[place.digits[0]] = stride
            stride *= size
        return stride

    def _steps(self) -> Iterator[Step]:
        for axis, digits in enumerate(self.pattern.digits):
            weight = math.prod(self.sizes[d.name] for d in digits)
            for digit in digits:
                size = self.sizes[digit.name]
                weight //= size
                yield Step(axis, weight, size, self._strides[digit.name], self._in_group.get(digit.name))

    # -- moving --------------------------------------------------------------------------------------------

    def pack(self, canonical: Bytes, out: Bytes | None = None) -> Bytes:
        """Canonical bytes uint8 [E, N, K] to kernel bytes uint8 [nbytes]; every byte of `out` is written.

        Raises LayoutError `layout.shape` for another shape or dtype, `layout.value` for a byte the layout
        cannot hold.
        """
        if canonical.shape != self.shape or canonical.dtype != np.uint8:
            raise LayoutError(
                "layout.shape",
                "not the shape this layout was placed on",
                found=f"{canonical.dtype} {canonical.shape}",
                needed=f"uint8 {self.shape}",
            )
        if self._values is not None:
            canonical = self._map_values(canonical)
        units = self._to_units(canonical).reshape(self.extents)
        if self.extents != self.padded:
            whole = np.full(self.padded, self._pad_unit(), dtype=np.uint8)
            whole[tuple(slice(0, size) for size in self.extents)] = units
            units = whole
        kernel = np.full(self.units, self._pad_unit(), dtype=np.uint8)
        for source, target in self._views(units, kernel):
            target[...] = source
        packed = self._from_units(kernel)
        if out is None:
            return packed
        out[...] = packed
        return out

    def unpack(self, kernel: Bytes) -> Bytes:
        """Kernel bytes uint8 [nbytes] to canonical bytes uint8 [E, N, K]; padding is dropped.

        Raises LayoutError `layout.size` for another number of bytes.
        """
        flat = np.ascontiguousarray(kernel).reshape(-1).view(np.uint8)
        if flat.size != self.nbytes:
            raise LayoutError(
                "layout.size",
                "not the number of bytes this layout takes",
                found=flat.size,
                needed=self.nbytes,
            )
        units = np.empty(self.padded, dtype=np.uint8)
        for target, source in self._views(units, self._to_units(flat)):
            target[...] = source
        valid = units[tuple(slice(0, size) for size in self.extents)]
        canonical = self._from_units(np.ascontiguousarray(valid)).reshape(self.shape)
        return canonical if self._values is None else self._unmap_values(canonical)

    def _views(self, units: Bytes, kernel: Bytes) -> Iterator[tuple[Bytes, Bytes]]:
        """Pairs of equal-shaped views (canonical side, kernel side), one pair a table entry."""
        shape = [step.size for step in self.steps]
        source = units.reshape(shape)
        strides = [step.stride for step in self.steps]
        for index, offset in self._table_entries():
            chosen = source[index]
            kept = [s for s, i in zip(strides, index, strict=True) if isinstance(i, slice)]
            yield chosen, np.lib.stride_tricks.as_strided(kernel[self.offset + offset :], chosen.shape, kept)

    def _table_entries(self) -> Iterator[tuple[tuple[int | slice, ...], int]]:
        choices = [range(len(group.table)) for group in self.groups]
        for picked in itertools.product(*choices):
            index: list[int | slice] = [slice(None)] * len(self.steps)
            offset = 0
            for group, joined in zip(self.groups, picked, strict=True):
                offset += group.table[joined] * group.stride
                rest = joined
                for step in reversed(group.steps):
                    rest, index[step] = divmod(rest, self.steps[step].size)
            yield tuple(index), offset

    def _to_units(self, data: Bytes) -> Bytes:
        if self.unit == "byte":
            return data
        if self.unit == "nibble":
            return unpack_codes(data)
        return np.unpackbits(data, axis=-1, bitorder="little")

    def _from_units(self, units: Bytes) -> Bytes:
        if self.unit == "byte":
            return units
        if self.unit == "nibble":
            return pack_codes(units)
        return np.packbits(units, axis=-1, bitorder="little")

    def _pad_unit(self) -> int:
        if self.unit == "byte":
            return self.pad_value
        return self.pad_value & (0xF if self.unit == "nibble" else 1)

    def _map_values(self, canonical: Bytes) -> Bytes:
        assert self._values is not None
        mapped = self._values[canonical]
        lossy = self._inverse_values()[mapped] != canonical
        if lossy.any():
            raise LayoutError(
                "layout.value",
                "this layout cannot hold a byte of the checkpoint",
                found=int(canonical[lossy][0]),
            )
        return np.asarray(mapped, dtype=np.uint8)

    def _unmap_values(self, canonical: Bytes) -> Bytes:
        return np.asarray(self._inverse_values()[canonical], dtype=np.uint8)

    def _inverse_values(self) -> Bytes:
        assert self._values is not None
        inverse = np.zeros(256, dtype=np.uint8)
        inverse[self._values[::-1]] = np.arange(256, dtype=np.uint8)[::-1]
        return inverse

    # -- addressing ----------------------------------------------------------------------------------------

    def address(self, *coordinates: npt.ArrayLike) -> Ints:
        """Address in units of the unit at (e, n, k), k counted in units; arrays broadcast.

        Raises LayoutError `layout.range` for a coordinate outside the padded shape.
        """
        experts, rows, units = (np.asarray(c, dtype=np.int64) for c in coordinates)
        parts = (experts * self.shape[1] + rows, units) if len(self.extents) == 2 else (experts, rows, units)
        for part, size, name in zip(parts, self.padded, self.pattern.axes, strict=True):
            if ((part < 0) | (part >= size)).any():
                raise LayoutError(
                    "layout.range",
                    f"coordinate {name} is outside the shape",
                    found=int(np.max(part)),
                    needed=f"0..{size - 1}",
                )
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

    def element(self, address: npt.ArrayLike) -> tuple[Ints, Ints, Ints]:
        """(e, n, k in units) that stands at an address; (-1, -1, -1) where padding or a hole stands.

        Raises LayoutError `layout.range` for an address outside the buffer.
        """
        at = np.asarray(address, dtype=np.int64)
        if ((at < 0) | (at >= self.units)).any():
            raise LayoutError(
                "layout.range",
                "no such address",
                found=int(np.max(at)),
                needed=f"0..{self.units - 1} ({self.unit}s)",
            )
        digits, hole = self._digits_at(at)
        parts = [np.zeros_like(at) for _ in self.extents]
        for name, step in zip(self._order, self.steps, strict=True):
            parts[step.axis] += digits[name] * step.weight
        for part, extent in zip(parts, self.extents, strict=True):
            hole |= part >= extent
        if len(parts) == 2:
            parts = [parts[0] // self.shape[1], parts[0] % self.shape[1], parts[1]]
        experts, rows, units = (np.where(hole, -1, part) for part in parts)
        return experts, rows, units

    def _digits_at(self, at: Ints) -> tuple[dict[str, Ints], npt.NDArray[np.bool_]]:
        digits: dict[str, Ints] = {}
        hole = np.zeros(at.shape, dtype=np.bool_)

        def read(places: Sequence[Place | Slot], rest: Ints) -> Ints:
            """Peel the places off `rest` from the right; return what is left above them."""
            for place in reversed(places):
                if isinstance(place, Slot):
                    rest, inner = rest // place.pitch, rest % place.pitch - place.offset
                    above = read(place.inside, np.maximum(inner, 0))
                    np.logical_or(hole, (inner < 0) | (above > 0), out=hole)
                    continue
                size = math.prod(self.sizes[d] for d in place.digits)
                rest, value = rest // size, rest % size
                if place.table is not None:
                    value = np.argsort(self._tables[place.table])[value]
                elif place.reverse:
                    value = size - 1 - value
                for name in reversed(place.digits):
                    value, digits[name] = value // self.sizes[name], value % self.sizes[name]
            return rest

        read(self.pattern.places, at)
        return digits, hole

    def source_map(self) -> Ints:
        """For every address the canonical unit index ((e * N + n) * K units + k), or -1 for padding: int64 [units]."""
        experts, rows, units = self.element(np.arange(self.units))
        flat = (experts * self.shape[1] + rows) * self._k_units + units
        return np.where(experts < 0, -1, flat)
