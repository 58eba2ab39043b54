"""AMD Quark: per-expert `.weight` (U8) and `.weight_scale` (U8)."""

from __future__ import annotations

from typing import Any

from shardproof.formats.format import quantization
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat


class Quark(PerExpertFormat):
    """Quark `real_quantized` MXFP4 exports, with w1/w2/w3 or gate/up/down_proj names."""

    name = "quark"
    summary = "AMD Quark: experts.E.gate_proj.weight (U8) + .weight_scale (U8)"
    suffixes = {"weight": "weight", "weight_scale": "scale", "bias": "bias"}
    ignored = frozenset({"input_scale"})
    dtypes = {"weight": ("U8", "I8"), "scale": ("U8", "F8_E8M0"), "bias": ("BF16", "F32", "F16")}

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`quant_method: quark`."""
        method = quantization(config).get("quant_method")
        return Evidence(method == "quark", "config", f"quant_method is {method!r}") if method else None
