"""aiter_grouped: AITER's grouped FlyDSL kernels on gfx1250."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both, with_w13
from shardproof.backends.packages import Needs

LAYOUTS = with_w13(
    same_for_both(weight="aiter.w16", scale="aiter.n32k4", bias="raw.bias"),
    weight="aiter.w16_rowgugu",
    scale="aiter.n32k4_rowgugu",
    bias="aiter.bias_rowgugu",
)


def _variant(name: str, dtype: str) -> Variant:
    return Variant(
        name=name,
        layouts=LAYOUTS,
        align_hidden=256,
        align_intermediate=256,
        activation_dtype=dtype,
        gate_mode="interleaved",
        rows="gate and up rows alternate",
        notes=("the kernel ignores hidden_pad and intermediate_pad, and does not detect another order of rows",),
    )


class AiterGrouped(Kernel):
    """The grouped GEMM pair behind `aiter.fused_moe` on gfx1250 (MI400 series)."""

    name = "aiter_grouped"
    summary = "AITER grouped FlyDSL MoE on AMD gfx1250; gate and up rows alternate, biases too"
    source = (
        "ROCm/aiter at e4048607 (2026-08-22), read in source, not run; first tag with moe_shuffle_weight: v0.1.18. "
        "That it cannot hold a part of the experts was not established either way."
    )
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx1250",)),
        Activations(("silu", "swiglu_oai")),
        Needs(package="aiter", since="0.1.18", because="symbol moe_shuffle_weight"),
    )
    variants = (
        _variant("grouped_gemm1_fp4_gugu (a4w4)", "mxfp4"),
        _variant("grouped_gemm1_fp4_gugu (a8w4; AITER_FORCE_A8W4=1)", "mxfp8"),
    )
