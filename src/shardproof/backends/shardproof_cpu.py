"""shardproof_cpu: this library's own CPU kernels (plain C; AVX2, AVX-512, NEON and a portable path)."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant

LAYOUTS = {
    "w13.weight": "shardproof.cpu_w13",
    "w13.scale": "shardproof.cpu_w13_scale",
    "w13.bias": "raw.bias",
    "w2.weight": "shardproof.cpu_w2",
    "w2.scale": "shardproof.cpu_w2_scale",
    "w2.bias": "raw.bias",
}


class ShardproofCpu(Kernel):
    """The whole layer in one call, from mapped bytes, on any CPU."""

    name = "shardproof_cpu"
    summary = "shardproof's own CPU kernels: whole layer fused, AVX2 / AVX-512 / NEON / portable C"
    source = "shardproof.kernels.cpu"
    conditions = (RunsOn(others=("cpu",)), Activations(("silu", "swiglu_oai", "situ")))
    variants = (
        Variant(
            name="words of 4 bytes, rows side by side",
            layouts=LAYOUTS,
            activation_dtype="int8",
            rows="8 rows of gate, 8 of up, alternating",
            notes=("activations are int8 with one scale per 32 by default; int16 and float32 can be asked for",),
        ),
    )
