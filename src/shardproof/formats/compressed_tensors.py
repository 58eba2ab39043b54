"""compressed-tensors `mxfp4-pack-quantized`: per-expert `.weight_packed` (U8) and `.weight_scale` (U8)."""

from __future__ import annotations

from typing import Any

from shardproof.formats.format import quantization
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat

_NAME = "mxfp4-pack-quantized"


class CompressedTensors(PerExpertFormat):
    """llm-compressor output and Kimi-K3."""

    name = "compressed_tensors"
    summary = "compressed-tensors: experts.E.gate_proj.weight_packed (U8) + .weight_scale (U8)"
    suffixes = {"weight_packed": "weight", "weight_scale": "scale", "bias": "bias"}
    ignored = frozenset({"input_global_scale", "weight_shape"})
    dtypes = {"weight": ("U8",), "scale": ("U8", "F8_E8M0"), "bias": ("BF16", "F32", "F16")}

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`quant_method: compressed-tensors` with the format at top level or in a config group."""
        quant = quantization(config)
        method = quant.get("quant_method")
        if not method:
            return None
        groups = quant.get("config_groups")
        inner = [g.get("format") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
        named = method == "compressed-tensors" and _NAME in (quant.get("format"), *inner)
        return Evidence(named, "config", f"quant_method is {method!r}, format {quant.get('format')!r}")
