"""Bytes that other libraries' released code writes while the test runs."""

from __future__ import annotations

import numpy as np
import pytest

from shardproof.layouts import find
from shardproof.mxfp4 import decode

LIBRARY = {"gguf.mxfp4_weight@1", "gguf.mxfp4_scale@1"}
"""Layouts whose vendor bytes come from an installed library and not from a file."""


def test_gguf_blocks_hold_weights_and_scales_as_its_own_library_writes_them(held):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2 * 6, 96)).astype(np.float32)
    blocks = gguf.quantize(values, gguf.GGMLQuantizationType.MXFP4).reshape(-1)
    weight = find("gguf.mxfp4_weight")[0].place((2, 6, 48))
    scale = find("gguf.mxfp4_scale")[0].place((2, 6, 3))
    codes, exponents = weight.unpack(blocks), scale.unpack(blocks)
    again = np.full(weight.nbytes, 0xFF, dtype=np.uint8)
    weight.pack(codes, again)
    scale.pack(exponents, again, fill=False)
    assert (again == blocks).all()
    expected = gguf.dequantize(blocks.reshape(12, -1), gguf.GGMLQuantizationType.MXFP4).reshape(2, 6, 96)
    assert (decode(codes, exponents) == expected).all()
    for name in LIBRARY:
        held(name, "vendor bytes")


def test_gpt_oss_rows_become_canonical_by_even_and_odd(held):
    rows = np.arange(2 * 12 * 16, dtype=np.uint8).reshape(2, 12, 16)  # as stored: gate 0, up 0, gate 1, ...
    canonical = find("gpt_oss.w13_weight")[0].place((2, 12, 16)).unpack(rows.reshape(-1))
    assert (canonical == np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)).all()
