"""The catalogue's entries for the Hopper kernels are the order that the kernels' own packing functions write."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shardproof.kernels.cuda.pack import pack_scale, pack_weight
from shardproof.layouts import find


@pytest.mark.parametrize("stack", ["w13", "w2"])
def test_weights(stack):
    rng = np.random.default_rng(0)
    canonical = rng.integers(0, 256, (3, 128, 96), dtype=np.uint8)
    layout, _ = find(f"shardproof.hopper_{stack}")
    packed = layout.place(canonical.shape).pack(canonical)
    assert np.array_equal(packed, pack_weight(torch.from_numpy(canonical), stack).numpy().reshape(-1))


@pytest.mark.parametrize("stack", ["w13", "w2"])
def test_scales(stack):
    canonical = np.arange(3 * 128 * 6, dtype=np.int32).reshape(3, 128, 6)
    layout, _ = find(f"shardproof.hopper_{stack}_scale")
    placed = layout.place(canonical.shape)
    for shift in (0, 8):  # two planes of bytes name every address
        plane = (canonical >> shift).astype(np.uint8)
        assert np.array_equal(placed.pack(plane), pack_scale(torch.from_numpy(plane), stack).numpy().reshape(-1))
