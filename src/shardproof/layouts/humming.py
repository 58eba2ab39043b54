"""humming (humming-kernels 0.1.19): weights, scales and biases of its W4A16 kernels, scales of its UMMA kernels.

Its W4A16 weights and biases are in Marlin's order; its scales lack Marlin's last swap. With 8-bit activations it
folds exponents and may round codes anew, which is no byte order and therefore not here.

vLLM 0.33.0 pads N to 256 and K to 128. For kernels that fold exponents (fp8 activations) humming pads scales along
K with the row's largest byte, so that the range does not widen; a plan that feeds those must do the same.
"""

from __future__ import annotations

import dataclasses

from shardproof.layouts import marlin
from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_HUMMING = "humming-kernels 0.1.19"

WEIGHT = register(
    dataclasses.replace(
        marlin.WEIGHT,
        name="humming.weight",
        summary="16 (k) x 64 (n) tiles of 32-bit words, as Marlin's for 16-bit activations",
        source=f"weight_repack_nk<4, 16, true, ...>, interleave mode 3 (its kernel run on a CPU); {_HUMMING}",
        golden=("humming_w4a16_weight_*",),
    )
)
BIAS = register(
    dataclasses.replace(
        marlin.BIAS,
        name="humming.bias",
        source=f"transform_humming_bias; {_HUMMING}",
        held_against=("index formula",),
        golden=(),
    )
)
SCALE = register(
    Layout(
        name="humming.scale",
        field="scale",
        pattern="e (n 8a 8b) k -> e k n b a",
        summary="[K/32, N], columns permuted inside 64",
        source=f"transform_humming_weight_scale; {_HUMMING}",
        held_against=("vendor kernel", "vendor bytes", "index formula"),
        golden=("humming_w4a16_scale_*",),
    )
)
UMMA_SCALE = register(
    Layout(
        name="humming.umma_scale",
        field="scale",
        pattern="e (n 4w 32r) (k 4s) -> e k n r w s",
        summary="the 128 x 4 tile with K outermost (SM100)",
        source=f"transform_humming_weight_scale(is_umma=True); {_HUMMING}",
        held_against=("vendor bytes", "index formula"),
        golden=("humming_umma_scale_*",),
    )
)
