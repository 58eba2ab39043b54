"""flashinfer_moe_ep: FlashInfer's kernels that fuse expert-parallel communication."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, ExpertParallel, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs
from shardproof.backends.reference import RAW


class FlashinferMoeEp(Kernel):
    """vLLM's FLASHINFER_MOE_EP_DEEP_GEMM and FLASHINFER_MOE_EP_CUTEDSL."""

    name = "flashinfer_moe_ep"
    known_as = ("FLASHINFER_MOE_EP_DEEP_GEMM", "FLASHINFER_MOE_EP_CUTEDSL")
    summary = "FlashInfer's fused expert-parallel MoE on NVIDIA sm100; converts canonical bytes itself"
    source = (
        "vLLM 0.33 flashinfer_moe_ep.py, read in less detail than the others: which activations and biases it takes "
        "was not established beyond silu; CUTEDSL dequantises to bfloat16 (four times the memory)."
    )
    package = "flashinfer"
    conditions = (
        RunsOn(cuda=((100, 109),)),
        Activations(("silu",)),
        Needs(package="flashinfer"),
        NoBias("biases were not established for it"),
        ExpertParallel(only=True),
    )
    variants = (Variant(name="moe_ep", layouts=RAW),)
