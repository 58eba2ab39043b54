"""flashinfer_trtllm: TensorRT-LLM's generated MoE kernels through FlashInfer."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs

LAYOUTS = {
    f"{stack}.{field}": f"flashinfer.trtllm_{stack}{ending}"
    for stack in ("w13", "w2")
    for field, ending in (("weight", ""), ("scale", "_scale"), ("bias", "_bias"))
}
OAI, OTHERS = Activations(("swiglu_oai",)), Activations(("silu", "situ"))


def _variant(dtype: str, activations: Activations) -> Variant:
    return Variant(
        name=f"trtllm-gen, {dtype} activations",
        layouts=LAYOUTS,
        conditions=(activations,),
        align_hidden=256,
        align_intermediate=128,
        activation_dtype=dtype,
        rows="up and gate rows alternate, then permuted in 32s",
    )


class FlashinferTrtllm(Kernel):
    """vLLM's FLASHINFER_TRTLLM_MXFP4_BF16 and _MXFP8."""

    name = "flashinfer_trtllm"
    known_as = ("FLASHINFER_TRTLLM_MXFP4_BF16", "FLASHINFER_TRTLLM_MXFP4_MXFP8")
    summary = "TensorRT-LLM's kernels through FlashInfer on NVIDIA sm100 and sm103"
    source = (
        "vLLM 0.33 oracle/mxfp4.py; FlashInfer 0.7.2.post1. vLLM prefers bfloat16 activations for gpt-oss and "
        "mxfp8 for DeepSeek-V4; its class that routes inside the layer takes no expert parallelism, the other does."
    )
    package = "flashinfer"
    conditions = (
        RunsOn(cuda=((100, 109),)),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="flashinfer"),
    )
    variants = (
        _variant("bfloat16", OAI),
        _variant("mxfp8", OAI),
        _variant("mxfp8", OTHERS),
        _variant("bfloat16", OTHERS),
    )
