"""Layouts on the shapes that they can hold, and canonical bytes as they are staged for a device."""

from __future__ import annotations

import numpy as np
from tests.pack.test_parity import SHAPES

from shardproof.errors import LayoutError

LARGE = {"weight": (2, 768, 3584), "scale": (3, 768, 224), "bias": (3, 768, 2)}


def padded(placed, source: np.ndarray) -> np.ndarray:
    """Canonical bytes with the layout's own padding, as the staging program writes them."""
    per_byte = {"byte": 1, "nibble": 2, "bit": 8}[placed.unit]
    sizes = (*placed.extents[:-1], placed.extents[-1] // per_byte)
    whole = np.full((*placed.padded[:-1], placed.padded[-1] // per_byte), placed.pad_value, dtype=np.uint8)
    whole[tuple(slice(0, size) for size in sizes)] = source.reshape(sizes)
    return whole.reshape(-1)


def placed_on(layout, parameters):
    """(shape, placed) for every shape that a layout can hold; the last is one of a real layer."""
    for shape in [*SHAPES, LARGE[layout.field]]:
        try:
            yield shape, layout.place(shape, parameters)
        except LayoutError:
            continue
