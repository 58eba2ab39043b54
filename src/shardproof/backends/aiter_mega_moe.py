"""aiter_mega_moe: AITER's FlyDSL MoE with fused expert-parallel communication."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, ExpertParallel, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs


class AiterMegaMoe(Kernel):
    """vLLM's `aiter_mega_moe`, which stands outside its oracle."""

    name = "aiter_mega_moe"
    known_as = ("aiter_mega_moe",)
    summary = "AITER mega-MoE (FlyDSL v2) on AMD gfx950: expert-parallel communication inside the kernels"
    source = (
        "ROCm/aiter v0.1.20, flydsl/kernels/mega_moe and its tests' writers, read in source, not run. That it takes "
        "silu only and no biases is what its arguments show; sizes are rounded as its step of 256 along K needs, I as "
        "a guess on the safe side."
    )
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx950",)),
        Activations(("silu",)),
        Needs(package="aiter", since="0.1.20", because="first tag with mega_moe v2"),
        NoBias("its arguments have no place for them"),
        ExpertParallel(only=True),
    )
    variants = (
        Variant(
            name="mega_moe_v2 (a8w4)",
            layouts={
                "w13.weight": "aiter.w16_gugu",
                "w13.scale": "aiter.e8_gugu",
                "w2.weight": "aiter.w16",
                "w2.scale": "aiter.e8_columns",
            },
            align_hidden=256,
            align_intermediate=256,
            activation_dtype="mxfp8",
            gate_mode="interleaved",
            rows="16 rows of gate, 16 of up, alternating",
        ),
    )
