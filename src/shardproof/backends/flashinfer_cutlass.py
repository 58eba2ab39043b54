"""flashinfer_cutlass: CUTLASS MoE kernels through FlashInfer, two generations."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both, with_w13
from shardproof.backends.packages import Needs

SM90 = with_w13(
    same_for_both(weight="flashinfer.sm90_w2", scale="flashinfer.sm90_w2_scale", bias="raw.bias"),
    weight="flashinfer.sm90_w13",
    scale="flashinfer.sm90_w13_scale",
    bias="flashinfer.up_first_bias",
)
SM100 = with_w13(
    same_for_both(weight="raw.weight", scale="cutlass.scale_128x4", bias="raw.bias"),
    weight="flashinfer.up_first_weight",
    scale="flashinfer.up_first_scale_128x4",
    bias="flashinfer.up_first_bias",
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
