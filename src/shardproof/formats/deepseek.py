"""DeepSeek-V4 native: `layers.L.ffn.experts.E.w{1,2,3}.{weight, scale}`, I8 pairs of codes and F8_E8M0 scales."""

from __future__ import annotations

from typing import Any

from shardproof.formats.format import expert_dtype
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat


class DeepSeek(PerExpertFormat):
    """DeepSeek-V4 and V4.1 as DeepSeek publishes them."""

    name = "deepseek"
    summary = "DeepSeek-V4 native: experts.E.w1.weight (I8) + .scale (F8_E8M0)"
    suffixes = {"weight": "weight", "scale": "scale"}
    dtypes = {"weight": ("I8", "U8"), "scale": ("F8_E8M0", "U8"), "bias": ("BF16", "F32")}

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`expert_dtype: fp4`, at top level (V4) or in quantization_config (V4.1)."""
        found = expert_dtype(config)
        return None if found is None else Evidence(found.lower() == "fp4", "config", f"expert_dtype is {found!r}")
