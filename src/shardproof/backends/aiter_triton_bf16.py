"""aiter_triton_bf16: AITER's Triton MoE with bfloat16 activations."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel
from shardproof.backends.packages import Needs
from shardproof.backends.routing import RoutesBySoftmax
from shardproof.backends.triton_kernels import on_gfx950, on_other_rocm


class AiterTritonBf16(Kernel):
    """vLLM's AITER_TRITON_MXFP4_BF16."""

    name = "aiter_triton_bf16"
    known_as = ("AITER_TRITON_MXFP4_BF16", "aiter_triton_mxfp4_bf16")
    summary = "AITER's Triton MoE (a16w4) on AMD gfx942, gfx950, gfx1250; fused activation"
    source = (
        "vLLM 0.33 oracle/mxfp4.py; AITER e4048607. It routes inside the layer; that only softmax routing is taken is "
        "inferred from vLLM's TRITON class."
    )
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx942", "gfx950", "gfx1250")),
        Activations(("silu", "swiglu_oai")),
        Needs(package="aiter"),
        RoutesBySoftmax(),
    )
    variants = (*on_gfx950(interleaved=True), on_other_rocm(256, interleaved=True))
