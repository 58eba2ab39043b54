"""The page of `shardproof layouts view`: one layout drawn before and after, in one file that loads nothing."""

from __future__ import annotations

import base64
import json
from importlib import resources

import numpy as np

from shardproof.errors import LayoutError
from shardproof.layouts import Layout, Placed
from shardproof.layouts.moves import BITS

MOST_UNITS = 1 << 19


def page(layout: Layout, placed: Placed, identity: str) -> str:
    """HTML of a placed layout. Raises LayoutError `layout.view` for a shape with more units than can be drawn."""
    if placed.units > MOST_UNITS:
        raise LayoutError(
            "layout.view",
            "too many units to draw",
            found=f"{placed.units} {placed.unit}s",
            needed=f"at most {MOST_UNITS}",
            next_step="choose a smaller --shape: a few tiles show the order",
        )
    template = resources.files(__package__).joinpath("layout_page.html").read_text(encoding="utf-8")
    text = json.dumps(_data(layout, placed, identity)).replace("<", "\\u003c")
    return template.replace("__DATA__", text)


def _data(layout: Layout, placed: Placed, identity: str) -> dict[str, object]:
    addresses = placed.source_map().astype("<i4")
    return {
        "id": identity,
        "pattern": layout.pattern,
        "summary": layout.summary,
        "field": layout.field,
        "unit": layout.unit,
        "unitBits": BITS[layout.unit],
        "shape": list(placed.shape),
        "stacks": list(layout.stacks),
        "halves": "w13" in layout.stacks and placed.shape[1] % 2 == 0,
        "nbytes": placed.nbytes,
        "pad": placed.pad_value,
        "padding": placed.has_padding,
        "pitch": int(np.clip(placed.shape[2] * 8 // BITS[layout.unit], 16, 128)),
        "map": base64.b64encode(addresses.tobytes()).decode(),
    }
