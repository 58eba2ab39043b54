"""Trace: one element of a model to its bits in a kernel's buffer, and one byte of the buffer back to its elements.

Elements are counted as a model counts them: k is a value of a weight (4 bits), a block of a scale (8 bits), and 0 for
a bias (8 bits a byte of its type). Shapes are counted the same way; `canonical_shape` turns them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shardproof.errors import LayoutError
from shardproof.layouts.layout import Layout
from shardproof.layouts.moves import BITS
from shardproof.layouts.placed import Placed

Shape = tuple[int, int, int]
Element = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """Bits `low` to `high` of byte `byte`, which hold bits `first` and up of an element."""

    byte: int
    low: int
    high: int
    first: int

    def __str__(self) -> str:
        return (
            f"byte {self.byte}, bits {self.low}-{self.high}"
            if self.high > self.low
            else (f"byte {self.byte}, bit {self.low}")
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"byte": self.byte, "bits": [self.low, self.high], "first": self.first}


def element_bits(layout: Layout, placed: Placed) -> int:
    """Bits of one element: 4 of a weight, 8 of a scale, those of its type of a bias."""
    return {"weight": 4, "scale": 8, "bias": 8 * placed.shape[2]}[layout.field]


def canonical_shape(layout: Layout, shape: Shape) -> Shape:
    """(E, N, K) in elements to (E, N, K) in bytes; a bias counts K in bytes already.

    Raises LayoutError `layout.shape` for weights with an odd K.
    """
    e, n, k = shape
    if layout.field == "weight":
        if k % 2:
            raise LayoutError(
                "layout.shape",
                "two values of a weight share a byte",
                found=f"K {k}",
                needed="an even K",
                next_step="give K in values, not in bytes",
            )
        return e, n, k // 2
    return e, n, k


def locate(layout: Layout, placed: Placed, element: Element) -> tuple[list[Run], list[Run]]:
    """Where an element (e, n, k) is, as (runs of canonical bits, runs of kernel bits), low bits first.

    Raises LayoutError `layout.range` for a coordinate outside the shape.
    """
    size, unit = element_bits(layout, placed), BITS[placed.unit]
    limits = (*placed.shape[:2], placed.shape[2] * 8 // size)
    for part, limit, axis in zip(element, limits, "enk", strict=True):
        if not 0 <= part < limit:
            raise LayoutError(
                "layout.range",
                f"coordinate {axis} is outside the shape",
                found=part,
                needed=f"0..{limit - 1}",
                next_step="stay within the shape",
            )
    e, n, k = element
    bits = k * size + np.arange(size)  # along the row
    where = placed.address(e, n, bits // unit)
    kernel = where * unit + bits % unit
    canonical = (e * placed.shape[1] + n) * placed.shape[2] * 8 + bits
    return _runs(canonical), _runs(kernel)


def _runs(bits: np.ndarray[Any, Any]) -> list[Run]:
    """Join bits that follow one another inside a byte."""
    runs: list[Run] = []
    for first, bit in enumerate(int(b) for b in bits):
        byte, at = divmod(bit, 8)
        last = runs[-1] if runs else None
        if last and last.byte == byte and last.high + 1 == at:
            runs[-1] = Run(byte, last.low, at, last.first)
        else:
            runs.append(Run(byte, at, at, first))
    return runs


def elements_at(layout: Layout, placed: Placed, byte: int) -> list[tuple[Element | None, Run]]:
    """What each run of bits of a kernel byte holds: an element with the bits of it, or None for padding.

    Raises LayoutError `layout.range` for a byte outside the buffer.
    """
    if not 0 <= byte < placed.nbytes:
        raise LayoutError(
            "layout.range",
            "no such byte",
            found=byte,
            needed=f"0..{placed.nbytes - 1}",
            next_step="stay within the buffer",
        )
    size, unit = element_bits(layout, placed), BITS[placed.unit]
    found: list[tuple[Element | None, Run]] = []
    for at in range(8):
        experts, rows, units = placed.element((byte * 8 + at) // unit)
        bit = int(units) * unit + at % unit
        element = None if experts < 0 else (int(experts), int(rows), bit // size)
        first = bit % size if element else 0
        if (
            found
            and found[-1][0] == element
            and (element is None or found[-1][1].first + at - found[-1][1].low == first)
        ):
            last = found[-1][1]
            found[-1] = (element, Run(byte, last.low, at, last.first))
        else:
            found.append((element, Run(byte, at, at, first)))
    return found
