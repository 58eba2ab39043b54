"""humming: JIT-compiled grouped GEMM for quantized weights."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import ACTIVATION_APART, Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs


class Humming(Kernel):
    """vLLM's HUMMING, its first choice on sm90 for DeepSeek-V4."""

    name = "humming"
    known_as = ("HUMMING",)
    summary = "humming-kernels on NVIDIA from Turing on, sm100 left out; bfloat16 activations"
    source = (
        "vLLM 0.33 oracle/mxfp4.py; humming-kernels 0.1.19. On sm100 it has UMMA kernels whose order of weights was "
        "not established, so sm100 is left out here. Rounding (N to 256, K to 128) is what its caller does. With 8-bit "
        "activations it folds exponents, which no byte order describes, so only bfloat16 ones are declared."
    )
    package = "humming"
    conditions = (
        RunsOn(cuda=((75, 99), (120, 129))),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="humming"),
    )
    variants = (
        Variant(
            name="W4A16",
            layouts=same_for_both(weight="humming.weight", scale="humming.scale", bias="humming.bias"),
            align_hidden=256,
            align_intermediate=128,
            bias_dtype="bfloat16",
            notes=(ACTIVATION_APART,),
        ),
    )
