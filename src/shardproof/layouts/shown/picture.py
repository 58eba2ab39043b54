"""Picture: a shape that shows a layout well, and a drawing of one as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from shardproof.layouts.layout import Layout
from shardproof.layouts.moves import BITS
from shardproof.layouts.placed import Placed
from shardproof.layouts.sizing import number

_CELL = 7


def example_shape(layout: Layout, parameters: Mapping[str, int] | None = None) -> tuple[int, int, int]:
    """A small canonical shape (E, N, K bytes) of two experts with whole tiles, and padding where the layout pads."""
    full = layout.filled(parameters)
    pattern, per_byte = layout.parsed, 8 // BITS[layout.unit]
    sizes = pattern.sizes(full)
    steps = {}
    for axis, digits in zip(pattern.axes, pattern.digits, strict=True):
        fixed = math.prod(s for d in digits if (s := sizes[d.name]) is not None)
        needed = math.lcm(fixed, number(layout.multiple.get(axis, 1), full))
        pad = number(layout.pad.get(axis, 1), full)
        steps[axis] = max(1, pad * 3 // 4) if pad > 1 else needed
    rows = steps.get("n", number(layout.multiple.get("n", 1), full))
    rows = max(rows, 4) * (2 if "h" in steps else 1)
    columns = -(-steps["k"] // per_byte)
    least = {"weight": 16, "scale": 4, "bias": 4}[layout.field]
    if columns < least and "k" not in layout.pad:
        columns *= -(-least // columns)
    return 2, rows, columns if layout.field != "bias" else 4


def colours(placed: Placed) -> list[str]:
    """A colour for every kernel unit: hue by expert and half, darker along the rows, grey for padding."""
    e, n, _ = placed.element(np.arange(placed.units))
    half, rows = max(1, placed.shape[1] // 2), placed.shape[1]
    hues = np.where(e < 0, 0, 205 + (e % 2) * 130 + (n >= half) * 50)
    light = np.where(e < 0, 0, 78 - 45 * (n % half) / max(1, rows // 2))
    return ["#d9d9d9" if a < 0 else f"hsl({h},62%,{b:.0f}%)" for a, h, b in zip(e, hues, light, strict=True)]


def svg(layout: Layout, rows: int, columns: int, parameters: Mapping[str, int] | None = None) -> str:
    """One expert's canonical matrix [rows, columns bytes] beside the same units in kernel order, a square a unit.

    Raises LayoutError `layout.shape`.
    """
    placed = layout.place((1, rows, columns), layout.filled(parameters))
    shades = colours(placed)
    across = placed.shape[2] * 8 // BITS[layout.unit]
    where = placed.address(
        np.zeros(placed.shape[1] * across, dtype=np.int64),
        np.repeat(np.arange(placed.shape[1]), across),
        np.tile(np.arange(across), placed.shape[1]),
    )
    left, right = [shades[i] for i in where], shades
    wide = max(16, min(64, across))
    gap = across * _CELL + 40
    height = 34 + _CELL * max(-(-len(left) // across), -(-len(right) // wide))
    body = _squares(left, across, 0) + _squares(right, wide, gap)
    title = f"{layout.name}: {layout.pattern}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{gap + wide * _CELL}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<g font-family="system-ui,sans-serif" font-size="12" fill="#888">'
        f'<text x="0" y="14">canonical [{placed.shape[1]}, {across}] {layout.unit}s</text>'
        f'<text x="{gap}" y="14">kernel order, {wide} {layout.unit}s a line</text></g>{body}</svg>\n'
    )


def _squares(shades: list[str], across: int, left: int) -> str:
    """Runs of one colour become one rectangle."""
    parts, at = [], 0
    while at < len(shades):
        end = at + 1
        while end < len(shades) and shades[end] == shades[at] and end % across:
            end += 1
        x, y = left + at % across * _CELL, 26 + at // across * _CELL
        parts.append(
            f'<rect x="{x}" y="{y}" width="{(end - at) * _CELL - 1}" height="{_CELL - 1}" fill="{shades[at]}"/>'
        )
        at = end
    return "".join(parts)
