"""AITER (AMD): byte orders of its CK, CK-Tile, FlyDSL, Opus and Triton MoE kernels.

Formulas were read at AITER commit e4048607 (2026-08-22) and compared with bytes that its own functions wrote.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_AITER = "AITER e4048607 (2026-08-22)"

W16 = register(
    Layout(
        name="aiter.w16",
        field="weight",
        pattern="e (n 16r) (k 16b) -> e n k r b",
        multiple={"n": 16, "k": 32},
        summary="16 rows x 16 bytes tiles, [gate; up] separated",
        source=f"aiter.ops.shuffle.shuffle_weight(w, (16, 16)); {_AITER}",
        held_against=("vendor bytes", "reader formula"),
        golden=("aiter_w16_*", "aiter_a16w4_gateup0_*", "aiter_moe1250_gguu_*"),
    )
)
W16_GUGU = register(
    Layout(
        name="aiter.w16_gugu",
        field="weight",
        stacks=("w13",),
        pattern="e (2g n 16r) (k 16b) -> e n g k r b",
        multiple={"k": 64},
        summary="16 rows x 16 bytes tiles, tiles of gate and up alternate",
        source=f"aiter.ops.shuffle.shuffle_weight_a16w4(w, 16, True); {_AITER}",
        held_against=("vendor bytes", "reader formula"),
        golden=("aiter_a16w4_gateup1_*",),
    )
)
E8 = register(
    Layout(
        name="aiter.e8",
        field="scale",
        pattern="(m 2p 16r) (k 2q 4s) -> m k s r q p",
        pad={"m": 256, "k": 8},
        multiple={"n": 32},
        summary="32 rows x 8 blocks tiles over the rows of the whole stack",
        source=f"aiter.utility.fp4_utils.e8m0_shuffle; {_AITER}",
        held_against=("vendor bytes", "reader formula"),
        golden=("aiter_e8_*", "aiter_scale_gemm950"),
        defects=(
            "the vendor's writer leaves padding uninitialised, so it may hold 255 (NaN); shardproof writes 127",
            "where a row count is no multiple of 32, experts share a tile and every reader is wrong; refused",
        ),
    )
)
E8_GUGU = register(
    Layout(
        name="aiter.e8_gugu",
        field="scale",
        stacks=("w13",),
        pattern="e (2g n 16r) (k 2q 4s) -> e n k s r q g",
        pad={"k": 8},
        summary="32 rows x 8 blocks tiles, 16 rows of gate beside 16 rows of up",
        source=f"aiter.ops.shuffle.shuffle_scale_a16w4(s, E, True); {_AITER}",
        held_against=("vendor bytes", "reader formula"),
        golden=("aiter_e8_a16w4_gateup1_*",),
    )
)
