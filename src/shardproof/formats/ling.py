"""Ling-3.0: per-expert `.weight` (U8) and `.weight_scale_inv`, which holds E8M0 bytes in spite of its name."""

from __future__ import annotations

from typing import Any

from shardproof.checkpoint import Checkpoint
from shardproof.formats.format import quantization
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat


class Ling(PerExpertFormat):
    """Ling-3.0-flash (bailing_hybrid): FP8 attention, MXFP4 routed experts."""

    name = "ling"
    summary = "Ling-3.0: experts.E.gate_proj.weight (U8) + .weight_scale_inv (E8M0 bytes)"
    suffixes = {"weight": "weight", "weight_scale_inv": "scale"}
    dtypes = {"weight": ("U8", "I8"), "scale": ("U8", "F8_E8M0")}

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`routed_experts_quant_method: mxfp4` beside `quant_method: fp8`."""
        found = quantization(config).get("routed_experts_quant_method")
        return Evidence(found == "mxfp4", "config", f"routed_experts_quant_method is {found!r}") if found else None

    def from_tensors(self, checkpoint: Checkpoint) -> Evidence | None:
        """Speaks against the dialect where the scales are float32: that is block-FP8 under the same names."""
        evidence = super().from_tensors(checkpoint)
        names = (n for n in checkpoint.tensors if n.endswith("_proj.weight_scale_inv") and ".experts." in n)
        scale = checkpoint.tensors[first] if (first := next(names, None)) else None
        if evidence is not None and scale is not None and scale.dtype not in self.dtypes["scale"]:
            return Evidence(False, "tensors", f"{scale.name} is {scale.dtype}: block-FP8, not MXFP4")
        return evidence
