"""xpu: vLLM's MoE on Intel GPUs."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant, with_w13
from shardproof.backends.packages import Needs
from shardproof.backends.reference import RAW

ALTERNATING = with_w13(RAW, weight="gpt_oss.w13_weight", scale="gpt_oss.w13_scale", bias="gpt_oss.w13_bias")


class Xpu(Kernel):
    """vLLM's XPU."""

    name = "xpu"
    known_as = ("XPU",)
    summary = "vLLM's MoE on Intel GPUs; bytes as in the checkpoint, bfloat16 activations"
    source = (
        "vLLM 0.33 oracle/mxfp4.py and experts/xpu_moe.py. That rows alternate for swiglu_oai is inferred: of vLLM's "
        "two forms of that activation it lists the one for alternating rows."
    )
    package = "vllm"
    conditions = (RunsOn(others=("xpu",)), Activations(("silu", "swiglu_oai")), Needs(package="vllm"))
    variants = (
        Variant(name="xpu_fused_moe", layouts=RAW, conditions=(Activations(("silu",)),), align_intermediate=64),
        Variant(
            name="xpu_fused_moe, swigluoai",
            layouts=ALTERNATING,
            conditions=(Activations(("swiglu_oai",)),),
            align_intermediate=64,
            rows="gate and up rows alternate",
        ),
    )
