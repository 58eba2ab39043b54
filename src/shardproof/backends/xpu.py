"""xpu: vLLM's MoE on Intel GPUs."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs
from shardproof.backends.reference import RAW


class Xpu(Kernel):
    """vLLM's XPU."""

    name = "xpu"
    known_as = ("XPU",)
    summary = "vLLM's MoE on Intel GPUs; canonical bytes, bfloat16 activations"
    source = "vLLM 0.33 oracle/mxfp4.py; which activations it takes was not established beyond silu and swiglu_oai"
    package = "vllm"
    conditions = (RunsOn(others=("xpu",)), Activations(("silu", "swiglu_oai")), Needs(package="vllm"))
    variants = (Variant(name="xpu", layouts=RAW, align_intermediate=64),)
