"""NVIDIA ModelOpt MXFP4: per-expert `.weight` (U8) and `.weight_scale` (U8)."""

from __future__ import annotations

from typing import Any

from shardproof.formats.format import quantization
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat

_ALGORITHMS = ("MXFP4", "W4A8_MXFP4_FP8")


class ModelOpt(PerExpertFormat):
    """ModelOpt exports; they write exact zeros as code 8 (-0), which is kept as it is."""

    name = "modelopt"
    summary = "ModelOpt MXFP4: experts.E.gate_proj.weight (U8) + .weight_scale (U8)"
    suffixes = {"weight": "weight", "weight_scale": "scale", "bias": "bias"}
    ignored = frozenset({"input_scale"})
    dtypes = {"weight": ("U8", "I8"), "scale": ("U8", "F8_E8M0"), "bias": ("BF16", "F32", "F16")}

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`quant_method: modelopt` with an MXFP4 `quant_algo`."""
        quant = quantization(config)
        method, algorithm = quant.get("quant_method"), quant.get("quant_algo")
        if not method:
            return None
        found = f"quant_method is {method!r}, quant_algo {algorithm!r}"
        return Evidence(method == "modelopt" and algorithm in _ALGORITHMS, "config", found)
