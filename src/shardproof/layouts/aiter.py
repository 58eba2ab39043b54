"""AITER (AMD): byte orders of its CK, CK-Tile, FlyDSL, Opus and Triton MoE kernels.

Formulas were read at AITER commit e4048607 (2026-08-22) and compared with bytes that its own functions wrote.
"Gugu" means that gate and up alternate: by tiles of 16 rows on gfx950, by single rows on gfx1250.
"""

from __future__ import annotations

from shardproof.layouts.defect import Clause, Defect
from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register
from shardproof.layouts.rows import in_rows

_AITER = "AITER e4048607 (2026-08-22)"

LOST_MARK = Defect(
    name="aiter.lost_mark",
    what="whether a weight is shuffled is a Python attribute (is_shuffled) that copies, views and files lose",
    safe="the layout's id is part of the value and of the file",
    package="aiter",
    versions="all up to e4048607",
    source="AITER issue 2194, ATOM issue 1932, vLLM pull request 42061",
)
UNINITIALISED = Defect(
    name="aiter.uninitialised_padding",
    what="e8m0_shuffle leaves padding rows and columns uninitialised: not reproducible, and may hold 255 (NaN)",
    safe="padding is 127",
    package="aiter",
    versions="all up to e4048607",
    source="aiter/ops/shuffle.py; reproduced with poisoned memory",
)
STACK_ROWS = Defect(
    name="aiter.stack_padding",
    what="rows of the whole stack are padded to 256, so a reader that takes a fixed size an expert reads past its own",
    safe="the stack is padded at its end only; address() names every byte",
    package="aiter",
    versions="all up to e4048607",
    source="aiter/ops/shuffle.py; asm fmoe_g1u1 views the scales as (E, -1)",
    where="reader",
    when=(Clause("stack_rows", "not a multiple of", 256),),
)
SCALE_MOE = Defect(
    name="aiter.shuffle_scale_moe",
    what="shuffle_scale_moe returns a wrong permutation, silently, for K/32 not a multiple of 8 (I = 384)",
    safe="columns are padded to 8 before they are moved",
    package="aiter",
    versions="all up to e4048607",
    source="aiter/ops/triton/utils/shuffle.py; reproduced on E=384, I=384",
    when=(Clause("blocks", "not a multiple of", 8),),
    archs=("gfx950",),
)
KWIDTH = Defect(
    name="aiter.scale_kwidth",
    what="shuffle_scale_moe writes gfx1250 scales with kwidth 8 by default, its kernels read kwidth 4",
    safe="aiter.n32k4 is what the kernels read; aiter.n32k8 must be asked for by name",
    package="aiter",
    versions="2026-08 (pull requests 4562, 4826, 4836) to e4048607",
    source="aiter/ops/triton; relative error 0.98 to 1.3",
    archs=("gfx1250",),
)
HIDDEN_8192 = Defect(
    name="aiter.mxmoe_hidden_8192",
    what="mxmoe g1 keeps two scale base pointers only: scales beyond K = 8192 are read from the wrong place",
    safe="the bytes are right; choose another kernel for such a model",
    package="aiter",
    versions="all up to e4048607",
    source="FlyDSL mxmoe g1, emulated from its source",
    where="reader",
    when=(Clause("columns", "greater than", 8192),),
    archs=("gfx950",),
)

W16 = register(
    Layout(
        name="aiter.w16",
        field="weight",
        pattern="e (n 16r) (k 16b) -> e n k r b",
        multiple={"k": 32},
        summary="tiles of 16 rows x 16 bytes",
        source=f"aiter.ops.shuffle.shuffle_weight(w, (16, 16)); {_AITER}",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=(
            "aiter_w16_*",
            "aiter_a16w4_gateup0_*",
            "aiter_moe1250_gguu_*",
            "aiter_f4_weight",
        ),
        defects=(LOST_MARK,),
    )
)
W16_GUGU = register(
    in_rows(
        W16,
        "interleaved16",
        "aiter.w16_gugu",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_a16w4_gateup1_*",),
    )
)
W16_ROWGUGU = register(
    in_rows(
        W16,
        "interleaved",
        "aiter.w16_rowgugu",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_moe1250_gugu_*",),
    )
)
E8 = register(
    Layout(
        name="aiter.e8",
        field="scale",
        pattern="(m 2p 16r) (k 2q 4s) -> m k s r q p",
        pad={"m": 256, "k": 8},
        multiple={"n": 32},
        summary="tiles of 32 rows x 8 blocks over the rows of the whole stack",
        source=f"aiter.utility.fp4_utils.e8m0_shuffle; {_AITER}",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_e8_[gikr]*",),
        defects=(UNINITIALISED, STACK_ROWS, HIDDEN_8192),
    )
)
E8_COLUMNS = register(
    Layout(
        name="aiter.e8_columns",
        field="scale",
        pattern="e (n 2p 16r) (k 2q 4s) -> e n k s r q p",
        pad={"k": 8},
        summary="tiles of 32 rows x 8 blocks, no padding of rows",
        source=f"aiter.ops.shuffle.shuffle_scale_a16w4(s, E, False); {_AITER}",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_e8_a16w4_gateup0_*", "aiter_triton_scale_moe950_*", "aiter_scale_gemm950"),
        defects=(SCALE_MOE, HIDDEN_8192),
    )
)
E8_GUGU = register(
    in_rows(
        E8_COLUMNS,
        "interleaved16",
        "aiter.e8_gugu",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_e8_a16w4_gateup1_*",),
    )
)
N32K4 = register(
    Layout(
        name="aiter.n32k4",
        field="scale",
        pattern="e (n 32r) (k 4s) -> e n k r s",
        summary="tiles of 32 rows x 4 blocks: the scales of one K = 128 step together",
        source=f"aiter.ops.shuffle.shuffle_scale_n32k4; {_AITER}",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_n32k4_gguu_*", "aiter_triton_scale_moe1250_kw4_*", "aiter_mxfp8fp4_scale"),
        defects=(KWIDTH,),
    )
)
N32K4_ROWGUGU = register(
    in_rows(
        N32K4,
        "interleaved",
        "aiter.n32k4_rowgugu",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("aiter_n32k4_gugu_*",),
    )
)
N32K8 = register(
    Layout(
        name="aiter.n32k8",
        field="scale",
        pattern="e (n 32r) (k 8s) -> e n k r s",
        summary="tiles of 32 rows x 8 blocks, blocks innermost",
        source=f"aiter.ops.triton.utils.shuffle.shuffle_scale_moe(arch='gfx1250', scale_kwidth=8); {_AITER}",
        held_against=("vendor bytes", "index formula"),
        golden=("aiter_triton_scale_moe1250_kw8_*",),
        defects=(KWIDTH,),
    )
)
N32K8_ROWGUGU = register(in_rows(N32K8, "interleaved", "aiter.n32k8_rowgugu"))
BIAS_ROWGUGU = register(
    Layout(
        name="aiter.bias_rowgugu",
        field="bias",
        pattern="e 2h n b -> e n h b",
        summary="gate and up alternate, as the rows of the gfx1250 weights do",
        source=f"aiter.ops.flydsl grouped_gemm1 (gfx1250); {_AITER}",
        held_against=("index formula",),
    )
)
