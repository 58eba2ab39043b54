"""aiter_triton_mxfp4: AITER's Triton MoE with mxfp4 activations."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both, with_w13
from shardproof.backends.packages import Needs

SEPARATED = same_for_both(weight="raw.weight", scale="aiter.n32k4", bias="raw.bias")
INTERLEAVED = with_w13(
    SEPARATED,
    weight="triton_kernels.strided_value_interleaved",
    scale="aiter.n32k4_rowgugu",
    bias="triton_kernels.bias_interleaved",
)


class AiterTritonMxfp4(Kernel):
    """vLLM's AITER_TRITON_MXFP4_MXFP4."""

    name = "aiter_triton_mxfp4"
    known_as = ("AITER_TRITON_MXFP4_MXFP4", "aiter_triton_mxfp4_mxfp4")
    summary = "AITER's Triton MoE (a4w4) on AMD gfx1250; raw weights, scales in 32 x 4 stripes"
    source = "vLLM 0.33 oracle/mxfp4.py; AITER e4048607 (2026-08-22), read in source, not run"
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx1250",)),
        Activations(("silu", "swiglu_oai")),
        Needs(package="aiter", since="0.1.18", because="first tag with shuffle_scale_moe"),
    )
    variants = (
        Variant(
            name="moe_gemm_a4w4",
            layouts=SEPARATED,
            conditions=(Activations(("silu",)),),
            align_hidden=256,
            align_intermediate=256,
            activation_dtype="mxfp4",
            gate_mode="separated",
        ),
        Variant(
            name="moe_gemm_a4w4, fused swiglu",
            layouts=INTERLEAVED,
            conditions=(Activations(("swiglu_oai",)),),
            align_hidden=256,
            align_intermediate=256,
            activation_dtype="mxfp4",
            gate_mode="interleaved",
            rows="gate and up rows alternate",
        ),
    )
