"""humming: JIT-compiled grouped GEMM for quantized weights."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, Declared, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs

ELSEWHERE = RunsOn(cuda=((75, 99), (120, 129)))
SM100 = RunsOn(cuda=((100, 109),))


def _variant(name: str, scale: str, on: RunsOn) -> Variant:
    return Variant(
        name=name,
        layouts=same_for_both(weight="humming.weight", scale=scale, bias="raw.bias"),
        conditions=(on, Declared("humming.weight")),
        align_hidden=256,
        align_intermediate=128,
        bias_dtype="bfloat16",
        notes=(
            "humming pads scales along K with the row's largest scale; shardproof pads with 127 under zero weights",
        ),
    )


class Humming(Kernel):
    """vLLM's HUMMING, its first choice on sm90 for DeepSeek-V4."""

    name = "humming"
    known_as = ("HUMMING",)
    summary = "humming-kernels on NVIDIA from Turing on; bfloat16 activations"
    source = (
        "vLLM 0.33 oracle/mxfp4.py; humming-kernels 0.1.19. Its weight repack exists as a CUDA kernel only, so the "
        "weight layout is the least certain one here; which scale form sm100 takes for bfloat16 activations was not "
        "established, nor the order of biases. Rounding (N to 256, K to 128) is what vLLM's caller does."
    )
    package = "humming"
    conditions = (
        RunsOn(cuda=((75, 129),)),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="humming"),
    )
    variants = (
        _variant("W4A16", "humming.scale", ELSEWHERE),
        _variant("W4A16, UMMA", "humming.umma_scale", SM100),
    )
