"""b12x: kernels for DGX Spark and RTX PRO 6000."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, ExpertParallel, HiddenMultiple, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both
from shardproof.backends.packages import Needs

RAW = same_for_both(weight="raw.weight", scale="raw.scale")


class B12x(Kernel):
    """vLLM's B12X_MXFP4_MXFP8 and B12X_MXFP4_BF16."""

    name = "b12x"
    known_as = ("B12X_MXFP4_MXFP8", "B12X_MXFP4_BF16")
    summary = "b12x on NVIDIA sm120 and sm121; takes canonical bytes and packs them itself"
    source = "vLLM 0.33 fused_moe/b12x.py, read in less detail than the others; package b12x 1.5.1 was not read"
    package = "b12x"
    conditions = (
        RunsOn(cuda=((120, 121),)),
        Activations(("silu",)),
        Needs(package="b12x"),
        NoBias(),
        ExpertParallel(only=False),
    )
    variants = (
        Variant(name="W4A8", layouts=RAW, conditions=(HiddenMultiple(256),), activation_dtype="mxfp8"),
        Variant(name="W4A16", layouts=RAW),
    )
