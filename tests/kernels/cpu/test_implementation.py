"""The CPU kernels behind `moe`: packed by a plan, run for every number of ranks, against the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardproof.api import select
from shardproof.checkpoint import Checkpoint
from shardproof.formats import read_experts
from shardproof.kernels.implementation import implementations
from shardproof.moe import moe
from shardproof.pack import pack_in_memory
from shardproof.plan import make_plan
from tests.checkpoints import make

BOUNDS = {"shardproof_cpu": 2e-2, "shardproof_cpu_int16": 1e-4, "shardproof_cpu_float32": 2e-6}
"""Relative l2 error: int8 and int16 activations round, float32 does not."""


@pytest.fixture(autouse=True)
def kernels_are_built() -> None:
    from shardproof.kernels.cpu.library import library

    library()


def test_the_three_precisions_are_registered() -> None:
    assert set(BOUNDS) <= {i.name for i in implementations()}


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss", "compressed_tensors", "quark"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (3, 1), (4, 2), (1, 3)])
@pytest.mark.parametrize("name", BOUNDS)
def test_ranks_add_up_to_the_reference(kind: str, tp: int, ep: int, name: str, tmp_path: Path) -> None:
    make(tmp_path, kind, experts=5, hidden=96, intermediate=160, top_k=3, seed=tp)
    model = read_experts(Checkpoint.open(tmp_path))
    decision = select(model, platform="cpu", tp=tp, ep=ep)
    assert decision.backend == "shardproof_cpu"
    plan = make_plan(model, decision.recipe, tp=tp, ep=ep)
    ranks = [pack_in_memory(model, plan, rank).layers["layers.0"] for rank in plan.ranks]
    torch.manual_seed(0)
    x = torch.randn(7, 96) / 10
    ids = torch.stack([torch.randperm(5)[:3] for _ in range(7)])
    ids[0, 1] = -1
    weights = torch.rand(7, 3)
    needed = moe(x, ranks, ids, weights, implementation="reference")
    found = moe(x, ranks, ids, weights, implementation=name)
    assert (found - needed).norm() / needed.norm() < BOUNDS[name]


def test_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "deepseek")
    model = read_experts(Checkpoint.open(tmp_path))
    plan = make_plan(model, select(model, platform="cpu", backend="reference").recipe)
    layer = pack_in_memory(model, plan, plan.ranks[0]).layers["layers.0"]
    kernel = next(i for i in implementations() if i.name == "shardproof_cpu")
    reason = kernel.refuses(layer, torch.device("cpu"))
    assert reason == "found layout raw.weight@1 for w13.weight, needed shardproof.cpu_w13@1"
