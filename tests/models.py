"""Models of any shape without a file (for plans), and recipes for tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.experts import ExpertSpec
from shardproof.formats import ExpertModel, LayerExperts, Source

RAW = Recipe(
    backend="test_raw",
    layouts={
        ("w13", "weight"): "raw.weight", ("w13", "scale"): "raw.scale", ("w13", "bias"): "raw.bias",
        ("w2", "weight"): "raw.weight", ("w2", "scale"): "raw.scale", ("w2", "bias"): "raw.bias",
    },
)  # fmt: skip
AITER = Recipe(
    backend="test_aiter", align_hidden=256, align_intermediate=128, gate_mode="separated",
    layouts={
        ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8", ("w13", "bias"): "raw.bias",
        ("w2", "weight"): "aiter.w16", ("w2", "scale"): "aiter.e8", ("w2", "bias"): "raw.bias",
    },
)  # fmt: skip
GUGU = Recipe(
    backend="test_gugu", align_hidden=256, align_intermediate=128, gate_mode="interleaved",
    layouts={**AITER.layouts, ("w13", "weight"): "aiter.w16_gugu", ("w13", "scale"): "aiter.e8_gugu"},
)  # fmt: skip
RECIPES = (RAW, AITER, GUGU)


def recipe(align_hidden: int = 32, align_intermediate: int = 32, **changes: Any) -> Recipe:
    """The raw recipe with other alignments."""
    return Recipe(
        backend="test_raw",
        layouts=RAW.layouts,
        align_hidden=align_hidden,
        align_intermediate=align_intermediate,
        **changes,
    )


def model_of(*specs: ExpertSpec) -> ExpertModel:
    """A model with one layer a spec and no byte behind it: planning must not need any."""
    checkpoint = SimpleNamespace(root=Path("nowhere"), identity="none", tensors={}, config={})
    layers = {f"layers.{i}": LayerExperts(f"layers.{i}", spec, _sources(spec)) for i, spec in enumerate(specs)}
    return ExpertModel(cast(Checkpoint, checkpoint), "deepseek", specs[0].family, layers)


def _sources(spec: ExpertSpec) -> dict[Any, Source]:
    none = np.zeros(spec.experts, dtype=np.int64)
    return {
        ("w2", "weight"): Source(none, none, spec.hidden, spec.intermediate // 2, spec.intermediate // 2, "U8", str)
    }


def spec_of(experts: int = 4, hidden: int = 64, intermediate: int = 96, **changes: Any) -> ExpertSpec:
    """A spec of family `test`."""
    return ExpertSpec("test", experts, hidden, intermediate, top_k=min(2, experts), **changes)
