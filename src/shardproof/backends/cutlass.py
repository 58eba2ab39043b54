"""cutlass: vLLM's own block-scaled CUTLASS grouped GEMM, four bits on both sides."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs


class Cutlass(Kernel):
    """vLLM's CUTLASS_MXFP4_MXFP4."""

    name = "cutlass"
    known_as = ("CUTLASS_MXFP4_MXFP4",)
    summary = "vLLM's CUTLASS grouped GEMM on NVIDIA sm100 and newer; mxfp4 activations"
    source = (
        "vLLM 0.33 oracle/mxfp4.py. vLLM asks its own library which devices it was built for; sm100 to sm129 here is "
        "taken from what MXFP4 tensor cores need, not from that list."
    )
    package = "vllm"
    conditions = (
        RunsOn(cuda=((100, 129),)),
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
        ),
    )
