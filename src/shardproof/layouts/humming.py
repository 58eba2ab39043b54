"""humming (humming-kernels 0.1.19): scales of its W4A16 and UMMA kernels.

vLLM 0.33.0 pads N to 256 and K to 128. For kernels that fold exponents (fp8 activations) humming pads scales along
K with the row's largest byte, so that the range does not widen; a plan that feeds those must do the same.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_HUMMING = "humming-kernels 0.1.19"

SCALE = register(
    Layout(
        name="humming.scale",
        field="scale",
        pattern="e (n 8a 8b) k -> e k n b a",
        summary="[K/32, N], columns permuted inside 64",
        source=f"process_weight_scale for 16-bit activations; {_HUMMING}",
        held_against=("vendor bytes",),
        golden=("humming_w4a16_scale_*",),
    )
)
UMMA_SCALE = register(
    Layout(
        name="humming.umma_scale",
        field="scale",
        pattern="e (n 4w 32r) (k 4s) -> e k n r w s",
        summary="the 128 x 4 tile with K outermost (SM100)",
        source=f"process_weight_scale for UMMA; {_HUMMING}",
        held_against=("vendor bytes",),
        golden=("humming_umma_scale_*",),
    )
)
