"""Packed layers for tests, and the layer computed again from a made checkpoint in float64, one token at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from shardproof.api import open_model
from shardproof.backends import Recipe
from shardproof.experts import Activation, ExpertSpec
from shardproof.mxfp4 import decode
from shardproof.pack import pack_in_memory
from shardproof.packed import PackedLayer
from shardproof.plan import ExpertMap, make_plan
from tests.checkpoints import Made

BIAS = {("w13", "bias"): "raw.bias", ("w2", "bias"): "raw.bias"}
RAW = Recipe(
    "reference",
    {
        ("w13", "weight"): "raw.weight", ("w13", "scale"): "raw.scale", ("w2", "weight"): "raw.weight",
        ("w2", "scale"): "raw.scale", **BIAS,
    },
)  # fmt: skip
SEPARATED = Recipe(
    "aiter",
    {
        ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8", ("w2", "weight"): "aiter.w16",
        ("w2", "scale"): "aiter.e8", **BIAS,
    },
    align_hidden=256, align_intermediate=128, gate_mode="separated",
)  # fmt: skip
INTERLEAVED = Recipe(
    "aiter",
    {
        ("w13", "weight"): "aiter.w16_gugu", ("w13", "scale"): "aiter.e8_gugu", ("w2", "weight"): "aiter.w16",
        ("w2", "scale"): "aiter.e8", **BIAS,
    },
    align_hidden=256, align_intermediate=128, gate_mode="interleaved", bias_dtype="bfloat16",
)  # fmt: skip
RECIPES = {"raw": RAW, "separated": SEPARATED, "interleaved": INTERLEAVED}


def pack_ranks(
    folder: Path, recipe: Recipe = SEPARATED, *, tp: int = 1, ep: int = 1, placement: ExpertMap = "linear",
    layer: str = "layers.0",
) -> list[PackedLayer]:  # fmt: skip
    """One layer of every rank of a made checkpoint."""
    model = open_model(folder)
    plan = make_plan(model, recipe, tp=tp, ep=ep, placement=placement, allow_empty=True)
    return [pack_in_memory(model, plan, rank).layers[layer] for rank in plan.ranks]


def inputs(tokens: int, spec: ExpertSpec, top_k: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Tokens x [M, H], ids [M, k], weights [M, k]."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(spec.experts, generator=made)[:top_k] for _ in range(tokens)])
    return torch.randn(tokens, spec.hidden, generator=made), ids, torch.rand(tokens, top_k, generator=made)


def by_hand(made: Made, spec: ExpertSpec, x, ids, weights, layer: str = "layers.0") -> np.ndarray:
    """The layer in float64, token by token and slot by slot, from the checkpoint's own matrices."""
    out = np.zeros((len(x), spec.hidden))
    for token in range(len(x)):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            if expert < 0:
                continue
            w1, w3, w2 = (_matrix(made, layer, expert, p) for p in ("w1", "w3", "w2"))
            b1, b3, b2 = (made.bias.get((layer, expert, p), 0.0) for p in ("w1", "w3", "w2"))
            vector = x[token].double().numpy()
            pairs = zip(w1 @ vector + b1, w3 @ vector + b3, strict=True)
            h = np.array([gate_by_hand(g, u, spec.activation) for g, u in pairs])
            out[token] += w2 @ (h * weight) + b2 if spec.weight_before_w2 else weight * (w2 @ h + b2)
    return out


def _matrix(made: Made, layer: str, expert: int, projection: str) -> np.ndarray:
    return decode(made.weight[layer, expert, projection], made.scale[layer, expert, projection]).astype(np.float64)


def gate_by_hand(g: float, u: float, activation: Activation) -> float:
    """The activations as their papers write them, for one pair of numbers."""
    limit = math.inf if activation.limit is None else activation.limit
    if activation.kind == "silu":
        g, u = min(g, limit), min(max(u, -limit), limit)
        return g * _sigmoid(g) * u
    if activation.kind == "swiglu_oai":
        g, u = min(g, limit), min(max(u, -limit), limit)
        return (u + 1) * g * _sigmoid(activation.alpha * g)
    beta, linear = activation.beta, activation.linear_beta
    return beta * math.tanh(g / beta) * _sigmoid(g) * linear * math.tanh(u / linear)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def close(found: torch.Tensor, wanted, relative: float = 1e-5) -> bool:
    """Whether the largest difference is within float32 rounding of the largest value."""
    wanted = torch.as_tensor(np.asarray(wanted))
    return bool((found.double() - wanted.double()).abs().max() <= relative * wanted.double().abs().max())
