"""Tiles on every layout: the kernels' own text, run on the CPU, against `Placed.pack`."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.device.on_cpu import COMPILER, OnCpu, aligned
from tests.kernels.device.padded import LARGE, padded, placed_on

from shardproof.kernels.device.permute import DeviceTiles, can_build, machine_code
from shardproof.kernels.device.source import kernel_of
from shardproof.kernels.device.tiles import tiling_of
from shardproof.layouts import find
from shardproof.layouts.registry import everything

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("family", sorted({layout.name.partition(".")[0] for layout in everything()}))
@pytest.mark.parametrize("at", [0, 4, 1])
def test_every_layout_in_tiles(tmp_path, family, at):
    """Every shape, into destinations that begin at a multiple of 16, of 4 and of 1 byte; nothing beside them."""
    cases = [
        (layout, shape, placed)
        for layout in everything() if layout.name.startswith(f"{family}.")
        for shape, placed in placed_on(layout, layout.filled())
    ]  # fmt: skip
    if at:  # the shape matters less than the width of the stores
        cases = cases[::3]
    tilings = [tiling_of(placed) for _, _, placed in cases]
    assert all(tilings)
    kernels = [kernel_of(tiling, {0: 16, 4: 4, 1: 1}[at]) for tiling in tilings]
    library, rng = OnCpu(tmp_path, kernels), np.random.default_rng(1)
    for number, (layout, shape, placed) in enumerate(cases):
        source = rng.integers(0, (layout.highest if layout.add else 255) + 1, shape, dtype=np.uint8)
        staged = padded(placed, (source + np.uint8(layout.add)).astype(np.uint8))
        whole = aligned(staged.size)
        whole[:] = staged
        out = aligned(placed.nbytes + 48, at)
        out[:] = 0x77
        library.run(number, whole, out)
        np.testing.assert_array_equal(out[: placed.nbytes], placed.pack(source), err_msg=f"{layout.name} {shape}")
        assert (out[placed.nbytes :] == 0x77).all(), f"{layout.name} {shape}"


@pytest.mark.parametrize("name", ["raw.scale", "aiter.e8", "marlin.weight", "flashinfer.sm90_w2", "gguf.mxfp4_scale"])
def test_kernels_compile_without_a_gpu(name, monkeypatch, tmp_path):
    """NVRTC takes the text, and the code is kept on disk."""
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path))
    assert can_build()
    layout = find(name)[0]
    text = DeviceTiles(tiling_of(layout.place(LARGE[layout.field]))).kernel(16)[1]
    code = machine_code(text, "sm_90")
    assert b"shardproof_permute" in code
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [code]
