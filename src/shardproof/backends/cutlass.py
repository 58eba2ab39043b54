"""cutlass: vLLM's own block-scaled CUTLASS grouped GEMM, four bits on both sides."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, NoBias, RunsOn
from shardproof.backends.kernel import ACTIVATION_APART, Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs


class Cutlass(Kernel):
    """vLLM's CUTLASS_MXFP4_MXFP4."""

    name = "cutlass"
    known_as = ("CUTLASS_MXFP4_MXFP4",)
    summary = "vLLM's CUTLASS grouped GEMM on NVIDIA sm100 to sm119; mxfp4 activations"
    source = (
        "vLLM 0.33 oracle/mxfp4.py. vLLM asks its library for the device (mxfp4_experts_quant_supported); that this "
        "means sm100 to sm119 is two users' account of it, not read in its source."
    )
    package = "vllm"
    conditions = (
        RunsOn(cuda=((100, 119),)),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="vllm"),
        NoBias("the kernel's caller handles none"),
    )
    variants = (
        Variant(
            name="cutlass_mxfp4_group_mm",
            layouts=same_for_both(weight="raw.weight", scale="cutlass.scale_128x4"),
            align_hidden=128,
            align_intermediate=128,
            activation_dtype="mxfp4",
            notes=(ACTIVATION_APART,),
        ),
    )
