"""reference: the short torch forward that judges all others."""

from __future__ import annotations

from shardproof.backends.conditions import Activations
from shardproof.backends.kernel import Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs

RAW = same_for_both(weight="raw.weight", scale="raw.scale", bias="raw.bias")
"""Canonical bytes for every field: what kernels that rearrange nothing read."""


class Reference(Kernel):
    """shardproof's reference forward: float32 accumulation, any platform that torch has."""

    name = "reference"
    summary = "torch on any platform, float32 accumulation: short and slow, the judge of the others"
    source = "shardproof.kernels.reference"
    package = "torch"
    conditions = (
        Needs(package="torch"),
        Activations(("silu", "swiglu_oai", "situ")),
    )
    variants = (Variant(name="reference", layouts=RAW, activation_dtype="float32"),)
