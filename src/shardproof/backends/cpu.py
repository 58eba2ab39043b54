"""cpu: vLLM's MoE on x86 hosts with AMX."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, CpuHas, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs
from shardproof.backends.reference import RAW


class Cpu(Kernel):
    """vLLM's CPU."""

    name = "cpu"
    known_as = ("CPU",)
    summary = "vLLM's MoE on x86 hosts with AMX; takes canonical bytes and packs them itself"
    source = (
        "vLLM 0.33 oracle/mxfp4.py. Its packed order (convert_weight_packed) is private to vLLM and not declared here; "
        "which activations it takes was not established beyond silu and swiglu_oai."
    )
    package = "vllm"
    conditions = (
        RunsOn(others=("cpu",)),
        Activations(("silu", "swiglu_oai")),
        Needs(package="vllm"),
        CpuHas("amx_tile"),
    )
    variants = (Variant(name="convert_weight_packed", layouts=RAW),)
