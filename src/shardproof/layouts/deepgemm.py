"""DeepGEMM (fp8 x fp4 on SM100): scales packed four to a 32-bit word, and the orders of its fused mega-MoE kernel.

Read at DeepGEMM 54e2261 (2026-06-23). Weights of the grouped GEMM stay in canonical order (`raw.weight`).
"""

from __future__ import annotations

from shardproof.layouts.defect import Clause, Defect
from shardproof.layouts.layout import Layout
from shardproof.layouts.raw import RAW_WEIGHT
from shardproof.layouts.registry import register
from shardproof.layouts.rows import in_rows

_DEEPGEMM = "DeepGEMM 54e2261 (2026-06-23)"

UNWRITTEN_ROWS = Defect(
    name="deepgemm.unwritten_rows",
    what="rows between N and the next multiple of 4 are left unwritten by the packer",
    safe="padding is 127",
    package="deep_gemm",
    versions="54e2261",
    source="transform_sf_into_required_layout",
    when=(Clause("rows", "not a multiple of", 4),),
)

PACKED_SCALE = register(
    Layout(
        name="deepgemm.packed_ue8m0",
        field="scale",
        pattern="e n (k 4s) -> e k n s",
        pad={"n": 4, "k": 4},
        summary="[K/128, N] words of 4 E8M0 bytes, N contiguous and aligned for TMA",
        source=f"transform_sf_into_required_layout, recipe (1, 1, 32); {_DEEPGEMM}",
        held_against=("vendor bytes", "index formula"),
        golden=("deepgemm_packed_ue8m0_*",),
        defects=(UNWRITTEN_ROWS,),
    )
)
MEGA_W13 = register(
    in_rows(
        RAW_WEIGHT,
        "interleaved8",
        "deepgemm.mega_w13",
        held_against=("vendor bytes", "index formula"),
        golden=("deepgemm_mega_moe_*",),
    )
)
MEGA_W2_SCALE = register(
    Layout(
        name="deepgemm.mega_w2_scale",
        field="scale",
        stacks=("w2",),
        pattern="e (n 4w 32r) (k 4s) -> e k n r w s",
        summary="words of 4 E8M0 bytes, rows transposed 4 x 32 inside 128 for UTCCP",
        source=f"transform_weights_for_mega_moe, layer 2; {_DEEPGEMM}",
        held_against=("vendor bytes", "index formula"),
        golden=("deepgemm_mega_moe_*",),
    )
)
MEGA_W13_SCALE = register(
    in_rows(
        MEGA_W2_SCALE,
        "interleaved8",
        "deepgemm.mega_w13_scale",
        held_against=("vendor bytes", "index formula"),
        golden=("deepgemm_mega_moe_*",),
    )
)
