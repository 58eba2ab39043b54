"""Sizing: the size of every digit of a layout on one shape, and the refusal of shapes that it cannot hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from shardproof.errors import LayoutError
from shardproof.layouts.placed import UNITS_PER_BYTE, Placed
from shardproof.layouts.values import ValueChange

if TYPE_CHECKING:
    from shardproof.layouts.layout import Layout

Size: TypeAlias = int | str
"""A number, or a product with parameters such as `"32*{num_warps}"`."""

_AXES = {
    "e": "E",
    "h": "the halves of N",
    "n": "N",
    "m": "the rows E * N of the stack",
    "k": "K",
}


class _Key:
    """A layout as a cache key: layouts are compared by what they declare, not hashed through their mappings."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __hash__(self) -> int:
        return hash((self.layout.name, self.layout.version, self.layout.pattern))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.layout == other.layout


def place(layout: Layout, shape: tuple[int, int, int], parameters: Mapping[str, int]) -> Placed:
    """Put `layout` on canonical bytes of shape (E, N, K); raises LayoutError `layout.shape`."""
    sizes = tuple(int(s) for s in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise LayoutError(
            "layout.shape",
            f"layout {layout.name} needs a canonical shape",
            found=shape,
            needed="(E, N, K bytes), all > 0",
            next_step="give three numbers above 0",
        )
    return _place(_Key(layout), sizes, tuple(sorted(parameters.items())))


def number(size: Size, parameters: Mapping[str, int]) -> int:
    """The value of a size with its parameters filled in."""
    if isinstance(size, int):
        return size
    return math.prod(int(re.sub(r"\{(\w+)\}", lambda m: str(parameters[m[1]]), part)) for part in size.split("*"))


@lru_cache(maxsize=512)
def _place(key: _Key, shape: tuple[int, ...], parameters: tuple[tuple[str, int], ...]) -> Placed:
    layout, given = key.layout, dict(parameters)
    pattern = layout.parsed
    experts, rows, columns = shape
    actual = {"e": experts, "n": rows, "m": experts * rows, "k": columns * UNITS_PER_BYTE[layout.unit]}
    if "h" in pattern.axes:
        _check_multiple(layout, "h", rows, 2, shape)
        actual.update(h=2, n=rows // 2)
    sizes = pattern.sizes(given)
    for axis, size in layout.multiple.items():
        _check_multiple(layout, axis, actual[axis], number(size, given), shape)
    padded = []
    for axis, digits in zip(pattern.axes, pattern.digits, strict=True):
        step = number(layout.pad.get(axis, 1), given)
        extent = -(-actual[axis] // step) * step
        fixed = math.prod(s for d in digits if (s := sizes[d.name]) is not None)
        free = [d.name for d in digits if sizes[d.name] is None]
        _check_multiple(layout, axis, extent, fixed, shape)
        if free:
            sizes[free[0]] = extent // fixed
        elif extent != fixed:
            raise _wrong_shape(layout, f"{_named(pattern.axes, axis)} = {fixed}", extent, shape)
        padded.append(extent)
    known = {name: size for name, size in sizes.items() if size is not None}
    return Placed(
        pattern,
        known,
        (experts, rows, columns),
        padded,
        unit=layout.unit,
        pad_value=layout.filler,
        tables=layout.tables,
        values=ValueChange(layout.add, layout.highest) if layout.add else None,
    )


def _named(axes: tuple[str, ...], axis: str) -> str:
    return "the rows of each half of w13 (N / 2)" if axis == "n" and "h" in axes else _AXES[axis]


def _check_multiple(layout: Layout, axis: str, size: int, step: int, shape: tuple[int, ...]) -> None:
    if size % step == 0:
        return
    below, above = size // step * step, -(-size // step) * step
    legal = f"{below} or {above}" if below else str(above)
    unit = ""
    if axis == "k":
        values = {"weight": 2, "scale": 32, "bias": 1}[layout.field]
        each = UNITS_PER_BYTE[layout.unit]
        unit = f" {layout.unit}s along K"
        if step * values % each == 0 and layout.field != "bias":
            unit += f" ({step * values // each} values)"
    raise _wrong_shape(layout, f"{_named(layout.parsed.axes, axis)} a multiple of {step}{unit}: {legal}", size, shape)


def _wrong_shape(layout: Layout, needed: str, size: int, shape: tuple[int, ...]) -> LayoutError:
    return LayoutError(
        "layout.shape",
        f"layout {layout.name} cannot hold this shape",
        found=f"{size}, in canonical shape {shape} (E, N, K bytes)",
        needed=needed,
        next_step="pad each half of w13 and K before laying out (a plan does), or choose another layout",
    )
