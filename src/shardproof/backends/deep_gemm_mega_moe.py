"""deep_gemm_mega_moe: DeepGEMM's one-kernel MoE with fused expert-parallel communication."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs


class DeepGemmMegaMoe(Kernel):
    """vLLM's `deep_gemm_mega_moe`, which stands outside its oracle (DeepSeek-V4's own model code)."""

    name = "deep_gemm_mega_moe"
    known_as = ("deep_gemm_mega_moe",)
    summary = "DeepGEMM mega-MoE on NVIDIA sm100; gate and up alternate in blocks of 8 rows"
    source = "DeepGEMM 54e2261 (2026-06-23); vLLM 0.33 models/deepseek_v4. Read in source, not run."
    package = "deep_gemm"
    conditions = (
        RunsOn(cuda=((100, 109),)),
        Activations(("silu",)),
        Needs(package="deep_gemm"),
        NoBias(),
    )
    variants = (
        Variant(
            name="fp8_fp4_mega_moe",
            layouts={
                "w13.weight": "deepgemm.mega_w13",
                "w13.scale": "deepgemm.mega_w13_scale",
                "w2.weight": "raw.weight",
                "w2.scale": "deepgemm.mega_w2_scale",
            },
            align_hidden=128,
            align_intermediate=128,
            activation_dtype="fp8",
            gate_mode="interleaved",
            rows="8 rows of gate, 8 of up, alternating",
        ),
    )
