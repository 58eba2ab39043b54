"""Recipes and plans for packing tests: byte, nibble and bit layouts, with and without padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.formats import ExpertModel, read_experts
from shardproof.layouts import find
from shardproof.layouts.registry import everything
from shardproof.pack import pack_layer
from shardproof.plan import Plan
from tests.checkpoints import make

POISON = {"weight": 0x77, "scale": 0xFF, "bias": 0x77}
_SLOTS = [("w13", "weight"), ("w13", "scale"), ("w2", "weight"), ("w2", "scale")]
_BIAS = {("w13", "bias"): "raw.bias", ("w2", "bias"): "raw.bias"}


def recipe(weight: str, scale: str, *, hidden: int = 128, intermediate: int = 64) -> Recipe:
    """One layout for the weights and one for the scales of both stacks, as far as they can hold them."""
    layouts = {}
    for stack, name in _SLOTS:
        wanted = weight if name == "weight" else scale
        fits = stack in find(wanted)[0].stacks
        layouts[stack, name] = wanted if fits else f"raw.{name}"
    return Recipe("test", {**layouts, **_BIAS}, align_hidden=hidden, align_intermediate=intermediate)


RECIPES = {
    "aiter": recipe("aiter.w16", "aiter.e8", hidden=256, intermediate=128),
    "aiter_gugu": recipe("aiter.w16_gugu", "aiter.e8_gugu", hidden=256, intermediate=128),
    "hopper": recipe("triton_kernels.hopper_value", "triton_kernels.hopper_scale"),
    "marlin": recipe("marlin.weight", "marlin.scale", hidden=128, intermediate=128),
    "marlin_a8": recipe("marlin.weight_a8", "marlin.scale_a8", hidden=128, intermediate=128),
    "gguf": recipe("gguf.mxfp4_weight", "gguf.mxfp4_scale", hidden=32, intermediate=32),
    "raw": recipe("raw.weight", "raw.scale", hidden=32, intermediate=32),
}


def names(field: str) -> list[str]:
    """Ids of every version of every layout of a field."""
    return [layout.identity() for layout in everything() if layout.field == field]


def model(folder: Path, kind: str = "deepseek", **sizes: int) -> ExpertModel:
    """A checkpoint that is made on the spot, opened and read."""
    make(folder, kind, **sizes)
    return read_experts(Checkpoint.open(folder))


def poisoned(plan: Plan, key: str, rank) -> dict:
    """Buffers of a layer of a rank, filled with what must not survive."""
    return {slot: np.full(plan.placed(key, rank, *slot).nbytes, POISON[slot[1]], np.uint8) for slot in plan.fields(key)}


def packed(model: ExpertModel, plan: Plan, key: str, **options):
    """Every rank of a layer packed into poisoned buffers: digests and buffers."""
    digests, outs = [], []
    for rank in plan.ranks:
        out = poisoned(plan, key, rank)
        digests.append(pack_layer(model, plan, key, rank, out, **options))
        outs.append(out)
    return digests, outs
