"""Legal shapes of any layout, found from its declaration alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shardproof.layouts import Layout
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.layouts.registry import everything
from shardproof.layouts.sizing import number

ALL = everything()
IDS = [f"{layout.name}@{layout.version}" for layout in ALL]


def steps(layout: Layout, parameters: Mapping[str, int]) -> tuple[int, int]:
    """The multiples of N and of K bytes that a canonical shape must be, where the layout does not pad."""
    pattern = layout.parsed
    sizes = pattern.sizes(parameters)
    need = {}
    for axis, digits in zip(pattern.axes, pattern.digits, strict=True):
        fixed = math.prod(s for d in digits if (s := sizes[d.name]) is not None)
        if axis in layout.pad:
            fixed = 1
        need[axis] = math.lcm(fixed, number(layout.multiple.get(axis, 1), parameters))
    per_byte = UNITS_PER_BYTE[layout.unit]
    columns = math.lcm(need["k"], per_byte) // per_byte
    rows = need.get("n", 1) * (2 if "h" in need else 1)
    rows = math.lcm(rows, number(layout.multiple.get("n", 1), parameters)) if "m" in need else rows
    return rows, columns


def legal(layout: Layout, parameters: Mapping[str, int], e: int, n: int, k: int) -> tuple[int, int, int]:
    """A legal canonical shape: e experts, n steps of rows, k steps of bytes along K."""
    rows, columns = steps(layout, parameters)
    return e, n * rows, k * columns
