"""Layout: the declaration of one byte order, from which everything else follows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from shardproof.errors import LayoutError
from shardproof.experts import STACKS, Field, Stack
from shardproof.layouts.notation import Pattern, parse
from shardproof.layouts.placed import UNITS_PER_BYTE, Placed
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT

Unit: TypeAlias = Literal["byte", "nibble", "bit"]
Evidence: TypeAlias = Literal["vendor bytes", "reader formula", "vendor kernel", "nothing yet"]
Size: TypeAlias = int | str
"""A number, or a product with parameters such as `"32*{num_warps}"`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The byte order of one field that one kernel reads.

    name, version  `aiter.w16`, 1: a version never changes its meaning
    field          what it holds: weight (uint8 [E, N, K/2]), scale ([E, N, K/32]), bias ([E, N, itemsize] bytes)
    pattern        the line in `notation`; k counts units
    unit           what moves as a whole: byte, nibble (unit 2j is the low nibble of byte j) or bit (low bit first)
    stacks         which stacks it can hold; a digit for the two halves of w13 makes it ("w13",)
    pad            axis -> multiple that the layout itself pads to, with `pad_value`
    multiple       axis -> multiple that the kernel or its writer needs and does not pad to
    tables         permutations that the pattern names
    add, cap       value change: byte -> min(byte + add, cap)
    source         where the order was read, with version
    held_against   what it was compared with
    golden         names of vendor byte vectors in tests/golden that it reproduces (glob patterns)
    defects        what the vendor's own writer gets wrong; shardproof writes the safe form
    """

    name: str
    field: Field
    pattern: str
    source: str
    summary: str
    version: int = 1
    unit: Unit = "byte"
    stacks: tuple[Stack, ...] = STACKS
    pad: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    multiple: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    pad_value: int | None = None
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    add: int = 0
    cap: int = 255
    held_against: tuple[Evidence, ...] = ("nothing yet",)
    golden: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.parameters)
        for digit in (d for axis in self.parsed.digits for d in axis):
            if isinstance(digit.size, str) and digit.size not in known:
                raise LayoutError("layout.parameter", f"layout {self.name} has no parameter {digit.size!r}")

    @property
    def parsed(self) -> Pattern:
        """The pattern, parsed."""
        return parse(self.pattern)

    @property
    def filler(self) -> int:
        """The declared value of padding bytes: 127 for scales, 0 for weights and biases, unless declared."""
        if self.pad_value is not None:
            return self.pad_value
        return PAD_SCALE if self.field == "scale" else PAD_WEIGHT

    def identity(self, parameters: Mapping[str, int] | None = None) -> str:
        """The id that values and files carry: `name@version` and the parameters, if any."""
        full = self._parameters(parameters or {})
        tail = ",".join(f"{k}={v}" for k, v in sorted(full.items()))
        return f"{self.name}@{self.version}" + (f"({tail})" if tail else "")

    def place(self, shape: tuple[int, int, int], parameters: Mapping[str, int] | None = None) -> Placed:
        """Put the layout on canonical bytes of shape (E, N, K): K bytes along K (K/2 weights, K/32 scales).

        Raises LayoutError `layout.shape` with the legal multiple, or `layout.parameter`.
        """
        full = self._parameters(parameters or {})
        return _place(_Key(self), tuple(int(s) for s in shape), tuple(sorted(full.items())))

    def _parameters(self, given: Mapping[str, int]) -> dict[str, int]:
        unknown = set(given) - set(self.parameters)
        if unknown:
            raise LayoutError(
                "layout.parameter",
                f"layout {self.name} has no parameter {min(unknown)!r}",
                found=", ".join(sorted(unknown)),
                needed=", ".join(self.parameters) or "no parameters",
            )
        return {**self.parameters, **given}


class _Key:
    """A layout as a cache key: layouts are compared by what they declare, not hashed through their mappings."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __hash__(self) -> int:
        return hash((self.layout.name, self.layout.version, self.layout.pattern))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.layout == other.layout


def _number(size: Size, parameters: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    return math.prod(int(re.sub(r"\{(\w+)\}", lambda m: str(parameters[m[1]]), part)) for part in size.split("*"))


@lru_cache(maxsize=512)
def _place(key: _Key, shape: tuple[int, ...], parameters: tuple[tuple[str, int], ...]) -> Placed:
    layout, given = key.layout, dict(parameters)
    pattern = layout.parsed
    experts, rows, columns = shape
    units = columns * UNITS_PER_BYTE[layout.unit]
    actual = {"e": experts, "n": rows, "m": experts * rows, "k": units}
    for axis, size in layout.multiple.items():
        _check_multiple(layout, axis, actual[axis], _number(size, given), shape)
    sizes = pattern.sizes(given)
    padded = []
    for axis, digits in zip(pattern.axes, pattern.digits, strict=True):
        step = _number(layout.pad.get(axis, 1), given)
        extent = -(-actual[axis] // step) * step
        fixed = math.prod(s for d in digits if (s := sizes[d.name]) is not None)
        free = [d.name for d in digits if sizes[d.name] is None]
        _check_multiple(layout, axis, extent, fixed, shape)
        if free:
            sizes[free[0]] = extent // fixed
        elif extent != fixed:
            raise _wrong_shape(layout, f"{axis} must be {fixed}", extent, shape)
        padded.append(extent)
    values = None
    if layout.add:
        values = np.minimum(np.arange(256) + layout.add, layout.cap).astype(np.uint8)
    known = {name: size for name, size in sizes.items() if size is not None}
    return Placed(
        pattern,
        known,
        (experts, rows, columns),
        padded,
        unit=layout.unit,
        pad_value=layout.filler,
        tables=layout.tables,
        values=values,
    )


def _check_multiple(layout: Layout, axis: str, size: int, step: int, shape: tuple[int, ...]) -> None:
    if size % step:
        raise _wrong_shape(
            layout,
            f"{axis} must be a multiple of {step} {layout.unit}s"
            if axis == "k"
            else f"{axis} must be a multiple of {step}",
            size,
            shape,
        )


def _wrong_shape(layout: Layout, needed: str, size: int, shape: tuple[int, ...]) -> LayoutError:
    return LayoutError(
        "layout.shape",
        f"layout {layout.name} cannot hold this shape",
        found=f"{size}, in canonical shape {shape} (E, N, K bytes)",
        needed=needed,
        next_step="pad each half of w13 and K before laying out (a plan does), or choose another layout",
    )
