"""Layers packed for the GPU kernels by the library's own steps, and a machine that claims to have a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from shardproof.api import open_model, select
from shardproof.experts import ExpertSpec
from shardproof.kernels.reference import Reference, from_packed
from shardproof.pack import pack_in_memory
from shardproof.packed import PackedLayer
from shardproof.plan import ExpertMap, make_plan

HOPPER, PORTABLE = "cuda:sm90", "cuda:sm80"


def packed(
    folder: Path, platform: str = HOPPER, *, tp: int = 1, ep: int = 1, placement: ExpertMap = "linear",
    spec: dict[str, object] | None = None, dtype: str = "bfloat16", backend: str = "shardproof_gpu",
) -> list[PackedLayer]:  # fmt: skip
    """One layer of every rank of a made checkpoint; `spec` changes fields of its ExpertSpec."""
    model = open_model(folder)
    layers = {k: dataclasses.replace(v, spec=changed(v.spec, spec)) for k, v in model.layers.items()}
    model = dataclasses.replace(model, layers=layers)
    recipe = select(model, platform=platform, tp=tp, ep=ep, backend=backend).recipe
    plan = make_plan(model, dataclasses.replace(recipe, activation_dtype=dtype), tp=tp, ep=ep, placement=placement)
    return [pack_in_memory(model, plan, rank).layers["layers.0"] for rank in plan.ranks]


def changed(spec: ExpertSpec, fields: dict[str, object] | None) -> ExpertSpec:
    return dataclasses.replace(spec, **(fields or {}))


def claim_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    """Let torch say that it has this NVIDIA GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)


class WholeProducts(Reference):
    """The judge with products in float32, as kernels leave them; DeepSeek's own code rounds them to bfloat16."""

    def _product(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return x @ w.T if bias is None else x @ w.T + bias


def judged(ranks: list[PackedLayer], name: str, *given: torch.Tensor) -> torch.Tensor:
    """The judge's result for (x, ids, weights), with activations as the implementation `name` rounds them."""
    quant = "e4m3_1x128" if name.endswith("w4a8") else None
    x, ids, weights = given
    judges = [WholeProducts(**vars(from_packed(layer, activation_quant=quant))) for layer in ranks]
    return sum((judge(x.float(), ids, weights) for judge in judges), torch.zeros(()))
