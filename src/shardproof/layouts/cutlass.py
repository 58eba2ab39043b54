"""CUTLASS and cuBLAS: the 128 x 4 tile in which block-scaled tensor cores (SM100) take their scales.

Weights stay in canonical order (`raw.weight`).
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

SCALE_128X4 = register(
    Layout(
        name="cutlass.scale_128x4",
        field="scale",
        pattern="e (n 4w 32r) (k 4s) -> e n k r w s",
        pad={"n": 128, "k": 4},
        summary="512-byte tiles of 128 rows x 4 blocks: 32 rows of 16 bytes, 4 row groups x 4 blocks",
        source="PTX ISA 8.8 block scaling, CUTLASS SM100 Sm1xxBlkScaledConfig; vLLM 0.33.0 swizzle_mxfp4_scales",
        held_against=("vendor bytes", "index formula"),
        golden=("blockscale_128x4_*",),
    )
)
