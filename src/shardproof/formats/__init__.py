"""Formats: how checkpoints store experts, one dialect a file; all are read into the canonical form."""

from shardproof.formats.format import Format, formats, read_experts
from shardproof.formats.model import Evidence, ExpertModel, LayerExperts, Source, Window, check_model, layer_span

__all__ = [
    "Evidence", "ExpertModel", "Format", "LayerExperts", "Source", "Window", "check_model", "formats", "layer_span",
    "read_experts",
]  # fmt: skip
