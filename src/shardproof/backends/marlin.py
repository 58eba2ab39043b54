"""marlin: vLLM's Marlin MoE, weights upcast in registers."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import ACTIVATION_APART, Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs

A16 = same_for_both(weight="marlin.weight", scale="marlin.scale", bias="marlin.bias")
A8 = same_for_both(weight="marlin.weight_a8", scale="marlin.scale_a8", bias="marlin.bias")


class Marlin(Kernel):
    """vLLM's MARLIN and BATCHED_MARLIN."""

    name = "marlin"
    known_as = ("MARLIN", "BATCHED_MARLIN")
    summary = "vLLM's Marlin MoE on NVIDIA from Turing on; bfloat16 activations, fp8 on sm89 and sm12x"
    source = (
        "vLLM 0.33 oracle/mxfp4.py and marlin_utils_fp4.py. Activations are whatever vLLM's apply_moe_activation "
        "takes; that situ is among them was read in its list, not run. Sizes: H to 256, I to 128, of which the kernel "
        "needs (N % 64 and K % 128) or (N % 128 and K % 64)."
    )
    package = "vllm"
    conditions = (
        RunsOn(cuda=((75, 129),)),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="vllm"),
    )
    variants = (
        Variant(
            name="W4A16",
            layouts=A16,
            align_hidden=256,
            align_intermediate=128,
            bias_dtype="bfloat16",
            notes=(ACTIVATION_APART,),
        ),
        Variant(
            name="W4A8",
            layouts=A8,
            conditions=(RunsOn(cuda=((89, 89), (120, 129))),),
            align_hidden=256,
            align_intermediate=128,
            bias_dtype="bfloat16",
            activation_dtype="fp8",
            notes=(ACTIVATION_APART,),
        ),
    )
