"""Placed: a layout on one shape, with every size known: pack, unpack, address, element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shardproof.errors import LayoutError
from shardproof.layouts.moves import BITS, Choice, Copy, Dim
from shardproof.layouts.notation import Pattern
from shardproof.layouts.strides import Ints, Strides
from shardproof.layouts.values import ValueChange
from shardproof.mxfp4 import Bytes

UNITS_PER_BYTE = {unit: 8 // bits for unit, bits in BITS.items()}
_CHUNK = 4 << 20  # bytes moved at a time: bounds the memory of padding and of sub-byte moves


class Placed:
    """A layout on the canonical shape (E, N, K bytes); made by `Layout.place`.

    `extents` and `padded` are the sizes of the pattern's axes in units before and after padding, `units` is the
    number of addresses, `nbytes` the size of the kernel buffer. Padding and holes hold `pad_value`.
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
        values: ValueChange | None = None,
    ) -> None:
        self.pattern, self.shape, self.unit, self.pad_value = pattern, shape, unit, pad_value
        self._values = values
        self._per_byte = UNITS_PER_BYTE[unit]
        experts, rows, columns = shape
        sizes_by_axis = {"e": experts, "h": 2, "n": rows, "m": experts * rows, "k": columns * self._per_byte}
        if "h" in pattern.axes:
            sizes_by_axis["n"] = rows // 2
        self.extents = tuple(sizes_by_axis[axis] for axis in pattern.axes)
        self.padded = tuple(padded)
        self.strides = Strides(pattern, sizes, tables)
        self.units = self.strides.units
        self.nbytes = -(-self.units // self._per_byte)
        lead = self.strides.steps[0]
        if lead.group is not None or lead.stride % self._per_byte:
            raise LayoutError("layout.pattern", "the first digit must move whole bytes", found=pattern.text)
        self._lead = lead

    @property
    def has_padding(self) -> bool:
        """Whether some address holds no checkpoint unit."""
        return self.units != math.prod(self.extents)

    # -- moving --------------------------------------------------------------------------------------------

    def pack(self, canonical: Bytes, out: Bytes | None = None, *, fill: bool = True) -> Bytes:
        """Canonical bytes uint8 [E, N, K] to kernel bytes uint8 [nbytes]; every byte of `out` is written.

        With `fill=False` padding and holes keep what `out` held, so that two fields can share one buffer.
        Raises LayoutError `layout.shape` for another shape or dtype, `layout.value` for a byte the layout
        cannot hold.
        """
        _require(canonical.shape == self.shape and canonical.dtype == np.uint8, canonical, f"uint8 {self.shape}")
        if out is None:
            out = np.empty(self.nbytes, dtype=np.uint8)
        if fill:
            self.fill(out)
        self.write(canonical, out)
        return out

    def fill(self, out: Bytes) -> None:
        """Write the declared padding value; the units themselves are left to `write`."""
        self._check_buffer(out)
        if self.has_padding:
            out[...] = self.pad_value

    def write(self, part: Bytes, out: Bytes, first: int = 0) -> None:
        """Write experts `first`, `first + 1`, ... of canonical bytes uint8 [count, N, K] to their places in `out`.

        Experts that share a tile of the whole stack must come together: raises LayoutError `layout.part`.
        """
        self._check_buffer(out)
        part = self._check_part(part, first)
        if self._values is not None:
            part = self._values.apply(part)
        for begin, count, piece in self._pieces(part, first):
            whole = self._pad(piece, count)
            source = whole.reshape(-1)
            self._packing.run(source, out, self._lead_dim(count, whole), 0, self._target(begin))

    def unpack(self, kernel: Bytes) -> Bytes:
        """Kernel bytes uint8 [nbytes] to canonical bytes uint8 [E, N, K]; padding is dropped.

        Raises LayoutError `layout.size` for another number of bytes.
        """
        return self.read(np.ascontiguousarray(kernel).reshape(-1).view(np.uint8), 0, self.shape[0])

    def read(self, kernel: Bytes, first: int, count: int) -> Bytes:
        """Canonical bytes uint8 [count, N, K] of experts `first`, `first + 1`, ...; the inverse of `write`."""
        self._check_buffer(kernel)
        part = np.empty((count, *self.shape[1:]), dtype=np.uint8)
        for begin, leads, piece in self._pieces(self._check_part(part, first), first):
            whole = np.empty((leads * self._lead.weight, *self._padded_bytes()), dtype=np.uint8)
            lead = self._lead_dim(leads, whole)
            swapped = Dim(lead.size, lead.target, lead.source)
            self._unpacking.run(kernel, whole.reshape(-1), swapped, self._target(begin), 0)
            piece[...] = whole[tuple(slice(0, size) for size in piece.shape)]
        return part if self._values is None else self._values.undo(part)

    def check_padding(self, kernel: Bytes) -> None:
        """Compare kernel bytes with what `pack` would have written around the same content.

        Raises LayoutError `layout.padding` with the first address whose padding differs.
        """
        wrong = np.flatnonzero(self.pack(self.unpack(kernel)) != kernel)
        if wrong.size:
            raise LayoutError(
                "layout.padding",
                f"padding byte {int(wrong[0])} is not what this layout declares",
                found=f"{int(kernel[wrong[0]])}, and {wrong.size} such bytes in all",
                needed=self.pad_value,
                next_step="lay the tensor out again: uninitialised padding may hold NaN scales",
            )

    def _check_buffer(self, out: Bytes) -> None:
        if out.shape != (self.nbytes,) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise LayoutError(
                "layout.size",
                "not the number of bytes this layout takes",
                found=f"{out.size} ({out.dtype} {out.shape})",
                needed=f"{self.nbytes} (uint8, contiguous)",
            )

    def _check_part(self, part: Bytes, first: int) -> Bytes:
        """The part as the pattern's axes (bytes along K), checked to begin and end between tiles."""
        count = part.shape[0] if part.ndim == 3 else -1
        inside = 0 <= first <= first + count <= self.shape[0]
        needed = f"uint8 [count, {self.shape[1]}, {self.shape[2]}] inside experts 0..{self.shape[0] - 1}"
        _require(inside and part.shape[1:] == self.shape[1:] and part.dtype == np.uint8, part, needed)
        if self.pattern.axes[0] == "e":
            return part.reshape(count, *self.extents[1:-1], self.shape[2])
        begin, end = first * self.shape[1], (first + count) * self.shape[1]
        if begin % self._lead.weight or (end % self._lead.weight and end != self.extents[0]):
            raise LayoutError(
                "layout.part",
                "experts that share a tile must be written together",
                found=f"rows {begin}..{end} of the stack",
                needed=f"whole tiles of {self._lead.weight} rows",
            )
        return part.reshape(end - begin, self.shape[2])

    def _pieces(self, part: Bytes, first: int) -> list[tuple[int, int, Bytes]]:
        """(leading digit at the start, how many, the bytes), in pieces of bounded size."""
        rows = self._lead.weight
        start = first if self.pattern.axes[0] == "e" else first * self.shape[1] // rows
        each = max(1, _CHUNK // max(1, rows * math.prod(self._padded_bytes())))
        total = -(-part.shape[0] // rows)
        return [
            (start + at, min(each, total - at), part[at * rows : (at + each) * rows]) for at in range(0, total, each)
        ]

    def _padded_bytes(self) -> tuple[int, ...]:
        return (*self.padded[1:-1], self.padded[-1] // self._per_byte)

    def _pad(self, piece: Bytes, leads: int) -> Bytes:
        shape = (leads * self._lead.weight, *self._padded_bytes())
        if piece.shape == shape:
            return np.ascontiguousarray(piece)
        whole = np.full(shape, self.pad_value, dtype=np.uint8)
        whole[tuple(slice(0, size) for size in piece.shape)] = piece
        return whole

    def _lead_dim(self, count: int, whole: Bytes) -> Dim:
        return Dim(count, whole.nbytes // max(count, 1), self._lead.stride // self._per_byte)

    def _target(self, begin: int) -> int:
        return self.strides.offset // self._per_byte + begin * self._lead.stride // self._per_byte

    @cached_property
    def _packing(self) -> Copy:
        dims, choices = self._units()
        return Copy(dims, choices, self.unit)

    @cached_property
    def _unpacking(self) -> Copy:
        dims, choices = self._units()
        back = [Choice(tuple((b, a) for a, b in choice.offsets)) for choice in choices]
        return Copy([Dim(d.size, d.target, d.source) for d in dims], back, self.unit)

    def _units(self) -> tuple[list[Dim], list[Choice]]:
        """Every digit but the leading one, with its strides in canonical (padded) and kernel units."""
        steps = self.strides.steps
        along = [math.prod(self.padded[axis + 1 :]) for axis in range(len(self.padded))]
        source = [step.weight * along[step.axis] for step in steps]
        dims = [Dim(s.size, at, s.stride) for s, at in zip(steps[1:], source[1:], strict=True) if s.group is None]
        choices = [Choice(((0, self.strides.offset % self._per_byte),))]
        for group in self.strides.groups:
            offsets = []
            for joined, place in enumerate(group.table):
                rest, at = joined, 0
                for i in reversed(group.steps):
                    rest, digit = divmod(rest, steps[i].size)
                    at += digit * source[i]
                offsets.append((at, place * group.stride))
            choices.append(Choice(tuple(offsets)))
        return dims, choices

    # -- addressing ----------------------------------------------------------------------------------------

    def address(self, expert: npt.ArrayLike, row: npt.ArrayLike, unit: npt.ArrayLike) -> Ints:
        """Address in units of the unit at canonical (e, n, k), k counted in units; arrays broadcast.

        Raises LayoutError `layout.range` for a coordinate outside the canonical shape.
        """
        limits = (self.shape[0], self.shape[1], self.shape[2] * self._per_byte)
        parts = [np.asarray(c, dtype=np.int64) for c in (expert, row, unit)]
        for part, size, name in zip(parts, limits, "enk", strict=True):
            if ((part < 0) | (part >= size)).any():
                worst = part.min() if (part < 0).any() else part.max()
                raise LayoutError(
                    "layout.range",
                    f"coordinate {name} is outside the shape",
                    found=worst,
                    needed=f"0..{size - 1}",
                )
        e, n, k = parts
        if len(self.extents) == 2:
            return self.strides.address([e * self.shape[1] + n, k])
        if len(self.extents) == 4:
            half = self.shape[1] // 2
            return self.strides.address([e, n // half, n % half, k])
        return self.strides.address([e, n, k])

    def element(self, address: npt.ArrayLike) -> tuple[Ints, Ints, Ints]:
        """(e, n, k in units) that stands at an address; (-1, -1, -1) where padding or a hole stands.

        Raises LayoutError `layout.range` for an address outside the buffer.
        """
        at = np.asarray(address, dtype=np.int64)
        if ((at < 0) | (at >= self.units)).any():
            worst = at.min() if (at < 0).any() else at.max()
            needed = f"0..{self.units - 1} ({self.unit}s)"
            raise LayoutError("layout.range", "no such address", found=worst, needed=needed)
        parts, hole = self.strides.coordinates(at)
        for part, extent in zip(parts, self.extents, strict=True):
            hole |= part >= extent
        if len(parts) == 2:
            parts = [parts[0] // self.shape[1], parts[0] % self.shape[1], parts[1]]
        elif len(parts) == 4:
            parts = [parts[0], parts[1] * (self.shape[1] // 2) + parts[2], parts[3]]
        experts, rows, units = (np.where(hole, -1, part) for part in parts)
        return experts, rows, units

    def source_map(self) -> Ints:
        """For every address the canonical unit index ((e * N + n) * K units + k), or -1 for padding: int64 [units]."""
        experts, rows, units = self.element(np.arange(self.units))
        flat = (experts * self.shape[1] + rows) * self.shape[2] * self._per_byte + units
        return np.where(experts < 0, -1, flat)


def _require(holds: bool, found: Bytes, needed: str) -> None:
    if not holds:
        raise LayoutError(
            "layout.shape",
            "not the shape this layout was placed on",
            found=f"{found.dtype} {found.shape}",
            needed=needed,
        )
