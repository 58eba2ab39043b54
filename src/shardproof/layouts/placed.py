"""Placed: a layout on one shape, with every size known: pack, unpack, address, element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shardproof.errors import LayoutError
from shardproof.layouts.mover import Mover
from shardproof.layouts.moves import BITS
from shardproof.layouts.notation import Pattern
from shardproof.layouts.strides import Ints, Strides
from shardproof.layouts.values import ValueChange
from shardproof.mxfp4 import Bytes

UNITS_PER_BYTE = {unit: 8 // bits for unit, bits in BITS.items()}


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
        self._lead = self.strides.steps[0]
        self._mover = Mover(self.strides, self.padded, unit, pad_value)

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
        self._mover.write(part, out, self._leads_before(first))

    def unpack(self, kernel: Bytes) -> Bytes:
        """Kernel bytes uint8 [nbytes] to canonical bytes uint8 [E, N, K]; padding is dropped.

        Raises LayoutError `layout.size` for another number of bytes.
        """
        return self.read(np.ascontiguousarray(kernel).reshape(-1).view(np.uint8), 0, self.shape[0])

    def read(self, kernel: Bytes, first: int, count: int) -> Bytes:
        """Canonical bytes uint8 [count, N, K] of experts `first`, `first + 1`, ...; the inverse of `write`."""
        self._check_buffer(kernel)
        part = np.empty((count, *self.shape[1:]), dtype=np.uint8)
        self._mover.read(kernel, self._check_part(part, first), self._leads_before(first))
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
                next_step="give the whole buffer, flat, as uint8",
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
                next_step="give these experts together with their neighbours, or all at once",
            )
        return part.reshape(end - begin, self.shape[2])

    def _leads_before(self, first: int) -> int:
        """Steps of the leading digit before expert `first`."""
        return first if self.pattern.axes[0] == "e" else first * self.shape[1] // self._lead.weight

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
                    next_step="stay within the shape",
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
            raise LayoutError(
                "layout.range", "no such address", found=worst, needed=needed, next_step="stay within the buffer"
            )
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
            next_step="give the canonical bytes in this shape, or place the layout on another one",
        )
