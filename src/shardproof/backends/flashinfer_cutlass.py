"""flashinfer_cutlass: CUTLASS MoE kernels through FlashInfer, two generations."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, Needs, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both, with_w13

SM90 = with_w13(
    same_for_both(weight="flashinfer.sm90_weight", scale="flashinfer.sm90_scale", bias="raw.bias"),
    weight="flashinfer.sm90_weight_w13",
    scale="flashinfer.sm90_scale_w13",
    bias="raw.bias_up_first",
)
SM100 = with_w13(
    same_for_both(weight="raw.weight", scale="cutlass.scale_128x4", bias="raw.bias"),
    weight="raw.weight_up_first",
    scale="cutlass.scale_128x4_up_first",
    bias="raw.bias_up_first",
)


class FlashinferCutlass(Kernel):
    """vLLM's FLASHINFER_CUTLASS_MXFP4_BF16 (sm90) and _MXFP8 (sm100 and newer)."""

    name = "flashinfer_cutlass"
    known_as = ("FLASHINFER_CUTLASS_MXFP4_BF16", "FLASHINFER_CUTLASS_MXFP4_MXFP8")
    summary = "CUTLASS MoE through FlashInfer: bfloat16 activations on sm90, mxfp8 from sm100 on"
    source = "vLLM 0.33 oracle/mxfp4.py; FlashInfer 0.7.2.post1, read in source, not run"
    package = "flashinfer"
    conditions = (
        RunsOn(cuda=((90, 90), (100, 129))),
        Activations(("silu", "swiglu_oai")),
        Needs(package="flashinfer"),
    )
    variants = (
        Variant(
            name="SM90 mixed input",
            layouts=SM90,
            conditions=(RunsOn(cuda=((90, 90),)),),
            align_hidden=128,
            align_intermediate=128,
            bias_dtype="bfloat16",
            rows="up, then gate",
        ),
        Variant(
            name="SM100 block scaled",
            layouts=SM100,
            conditions=(RunsOn(cuda=((100, 129),)),),
            align_hidden=128,
            align_intermediate=128,
            bias_dtype="bfloat16",
            activation_dtype="mxfp8",
            rows="up, then gate",
        ),
    )
