"""emulation: dequantise on every forward, through amd-quark."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs
from shardproof.backends.reference import RAW


class Emulation(Kernel):
    """vLLM's EMULATION."""

    name = "emulation"
    known_as = ("EMULATION",)
    summary = "amd-quark's emulation on any GPU: dequantises every expert on every forward, very slow"
    source = "vLLM 0.33 oracle/mxfp4.py; amd-quark 0.13"
    package = "amd-quark"
    conditions = (
        RunsOn(others=("cuda", "rocm")),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(package="amd-quark"),
    )
    variants = (Variant(name="emulation", layouts=RAW),)
