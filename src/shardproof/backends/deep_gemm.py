"""deep_gemm: DeepGEMM's fp8 x fp4 grouped GEMM."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs


class DeepGemm(Kernel):
    """vLLM's DEEPGEMM_MXFP4."""

    name = "deep_gemm"
    known_as = ("DEEPGEMM_MXFP4",)
    summary = "DeepGEMM grouped GEMM on NVIDIA sm100 and sm120; fp8 activations in groups of 128"
    source = "vLLM 0.33 oracle/mxfp4.py; DeepGEMM 54e2261 (2026-06-23). Its form for sm90 is an open request only."
    package = "deep_gemm"
    conditions = (
        RunsOn(cuda=((100, 109), (120, 129))),
        Activations(("silu", "situ")),
        Needs(package="deep_gemm"),
        NoBias("the kernel's caller does not use them"),
    )
    variants = (
        Variant(
            name="m_grouped_fp8_fp4_gemm",
            layouts=same_for_both(weight="raw.weight", scale="deepgemm.packed_ue8m0"),
            align_hidden=128,
            align_intermediate=128,
            activation_dtype="fp8",
        ),
    )
