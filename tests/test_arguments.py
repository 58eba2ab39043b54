"""Plain slips at the public doors: a value of another kind is refused where it is handed over, in the library's words."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import shardproof
from shardproof.distributed import DistributedLayer, load_rank
from shardproof.errors import ShardproofError
from shardproof.integrations.transformers import replace_experts
from shardproof.kernels.cpu import CpuExperts
from shardproof.kernels.device.upload import pack_layer_on_device
from shardproof.moe import PreparedLayer
from shardproof.pack import pack_in_memory, pack_layer
from tests.checkpoints import make

BYTES = {"w13.weight": np.zeros(64, dtype=np.uint8)}
KEY = "layers.0"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A packed model and what led to it."""
    folder = tmp_path_factory.mktemp("doors")
    make(folder / "checkpoint", "deepseek")
    model = shardproof.open_model(folder / "checkpoint")
    decision = shardproof.select(model, platform="cpu", tp=2)
    plan = shardproof.make_plan(model, decision.recipe, tp=2)
    shardproof.pack(model, plan, folder / "packed")
    return SimpleNamespace(
        folder=folder, out=folder / "out", packed=folder / "packed", model=model, decision=decision, plan=plan,
        recipe=decision.recipe, rank=plan.ranks[0], other=shardproof.make_plan(model, decision.recipe).ranks[0],
        loaded=shardproof.load(folder / "packed"), layer=shardproof.load(folder / "packed").layers[KEY],
        x=torch.zeros(2, model.layers[KEY].spec.hidden), ids=torch.zeros(2, 2, dtype=torch.int64), w=torch.ones(2, 2),
    )  # fmt: skip


WRONG_KIND: dict[str, tuple[Callable[[Any], object], str]] = {
    "checkpoint": (lambda a: shardproof.open_model(a.model), "checkpoint is not a path"),
    "format": (lambda a: shardproof.open_model(a.folder / "checkpoint", format=[]), "format is not a str"),
    "restrict": (lambda a: a.plan.restrict(0), "layers is not an Iterable"),
    "pack worker": (lambda a: shardproof.pack(a.model, a.plan, a.out, worker=1), "worker is not a Worker"),
    "select tp": (lambda a: shardproof.select(a.model, platform="cpu", tp="2"), "tp is not a whole number"),
    "select ep": (lambda a: shardproof.select(a.model, platform="cpu", ep=2.0), "ep is not a whole number"),
    "select platform": (lambda a: shardproof.select(a.model, platform=3), "platform is not a Platform"),
    "select packages": (lambda a: shardproof.select(a.model, packages=3), "packages is not an Iterable"),
    "select package": (lambda a: shardproof.select(a.model, packages=[3]), "a package is not a str"),
    "select backend": (lambda a: shardproof.select(a.model, backend=a.decision), "backend is not a str"),
    "plan decision": (lambda a: shardproof.make_plan(a.model, a.decision), "recipe is not a Recipe"),
    "plan name": (lambda a: shardproof.make_plan(a.model, "aiter"), "recipe is not a Recipe"),
    "plan tp": (lambda a: shardproof.make_plan(a.model, a.recipe, tp="2"), "tp is not a whole number"),
    "plan bool": (lambda a: shardproof.make_plan(a.model, a.recipe, tp=True), "tp is not a whole number"),
    "pack recipe": (lambda a: shardproof.pack(a.model, a.recipe, a.out), "plan is not a Plan"),
    "pack out": (lambda a: shardproof.pack(a.model, a.plan, None), "output is not a path"),
    "pack rank": (lambda a: shardproof.pack(a.model, a.plan, a.out, rank_indices=1), "rank_indices is not an Iterable"),
    "pack ranks": (lambda a: shardproof.pack(a.model, a.plan, a.out, rank_indices=["1"]), "a rank index is not a whole"),
    "pack threads": (lambda a: shardproof.pack(a.model, a.plan, a.out, threads="2"), "threads is not a whole number"),
    "pack reader": (lambda a: shardproof.pack(a.model, a.plan, a.out, reader=3), "reader is not a Reader"),
    "pack report": (lambda a: shardproof.pack(a.model, a.plan, a.out, report=3), "report is not a function"),
    "verify report": (lambda a: shardproof.verify(a.packed, a.model, report=3), "report is not a function"),
    "layer shape": (lambda a: a.plan.shape([]), "layer is not a str"),
    "memory rank": (lambda a: pack_in_memory(a.model, a.plan, 1), "rank is not a Rank"),
    "memory plan": (lambda a: pack_in_memory(a.model, a.recipe, a.rank), "plan is not a Plan"),
    "layer plan": (lambda a: pack_layer(a.model, a.recipe, KEY, a.rank, {}), "plan is not a Plan"),
    "layer rank": (lambda a: pack_layer(a.model, a.plan, KEY, 1, {}), "rank is not a Rank"),
    "load rank": (lambda a: shardproof.load(a.packed, "0"), "rank is not a whole number"),
    "load Rank": (lambda a: shardproof.load(a.packed, a.rank), "rank is not a whole number"),
    "load loaded": (lambda a: shardproof.load(a.loaded), "folder is not a path"),
    "verify loaded": (lambda a: shardproof.verify(a.loaded, a.model), "folder is not a path"),
    "diagnose swapped": (lambda a: shardproof.diagnose(a.model, BYTES), "checkpoint is not a path"),
    "diagnose rank": (lambda a: shardproof.diagnose(BYTES, a.model, rank="1", tp=2), "rank is not a whole number"),
    "diagnose tp": (lambda a: shardproof.diagnose(BYTES, a.model, tp="2"), "tp is not a whole number"),
    "diagnose layer": (lambda a: shardproof.diagnose(BYTES, a.model, layer=2.5), "layer is not a whole number"),
    "diagnose recipe": (lambda a: shardproof.diagnose(BYTES, a.model, recipe=a.decision), "recipe is not a Recipe"),
    "diagnose most": (lambda a: shardproof.diagnose(BYTES, a.model, most="2"), "most is not a whole number"),
    "moe rank": (lambda a: shardproof.moe(a.x, a.loaded, a.ids, a.w), "packed is not a PackedLayer"),
    "moe ranks": (lambda a: shardproof.moe(a.x, [a.loaded], a.ids, a.w), "packed is not a PackedLayer"),
    "moe path": (lambda a: shardproof.moe(a.x, str(a.packed), a.ids, a.w), "packed is not a PackedLayer"),
    "moe swapped": (lambda a: shardproof.moe(a.layer, a.x, a.ids, a.w), "x is not a Tensor"),
    "moe ids": (lambda a: shardproof.moe(a.x, a.layer, [[0, 1]] * 2, a.w), "topk_ids is not a Tensor"),
    "moe weights": (lambda a: shardproof.moe(a.x, a.layer, a.ids, a.w.numpy()), "topk_weights is not a Tensor"),
    "distributed": (lambda a: DistributedLayer(a.loaded), "layer is not a PackedLayer"),
    "replace path": (lambda a: replace_experts(torch.nn.Module(), str(a.packed)), "ranks is not a PackedExperts"),
    "replace layer": (lambda a: replace_experts(torch.nn.Module(), [a.layer]), "ranks is not a PackedExperts"),
    "prepared": (lambda a: PreparedLayer(a.loaded), "packed is not a PackedLayer"),
}  # fmt: skip

NO_VALUE: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "threads": (lambda a: shardproof.pack(a.model, a.plan, a.out, threads=0), "argument.value", "0"),
    "no ranks": (lambda a: shardproof.pack(a.model, a.plan, a.out, rank_indices=[]), "pack.rank", "an empty list"),
    "negative": (lambda a: pack_in_memory(a.model, a.plan, a.rank, threads=-1), "argument.value", "-1"),
    "kernel": (
        lambda a: CpuExperts(*[None] * 6, experts=1, hidden=32, intermediate=32, threads=0), "argument.value", "0",
    ),
    "experts": (
        lambda a: CpuExperts(*[None] * 6, experts=1 << 40, hidden=32, intermediate=32), "kernel.shape", str(1 << 40),
    ),
    "most": (lambda a: shardproof.diagnose(BYTES, a.model, most=0), "argument.value", "0"),
    "layer": (lambda a: shardproof.diagnose(BYTES, a.model, layer=-1), "argument.value", "-1"),
    "policy": (lambda a: shardproof.diagnose(BYTES, a.model, policy="foo"), "partition.policy", "'foo'"),
    "placement": (lambda a: shardproof.diagnose(BYTES, a.model, placement="foo"), "partition.placement", "'foo'"),
    "map": (lambda a: shardproof.make_plan(a.model, a.recipe, ep=2, placement=3), "partition.placement", "int 3"),
    "flat map": (
        lambda a: shardproof.make_plan(a.model, a.recipe, ep=2, placement=[0, 1]), "partition.placement", "list [0, 1]",
    ),
    "gate mode": (
        lambda a: shardproof.select(a.model, platform="cpu", gate_mode="foo"), "backend.gate_mode", "foo",
    ),
    "threads on a device": (
        lambda a: pack_layer_on_device(a.model, a.plan, KEY, a.rank, {}, threads=0), "argument.value", "0",
    ),
    "no layer": (lambda a: pack_layer(a.model, a.plan, "layers.9", a.rank, {}), "plan.layer", "layers.9"),
    "no group": (lambda a: DistributedLayer(a.layer), "kernel.group", "torch.distributed was not initialised"),
    "no group to load": (lambda a: load_rank(a.packed), "kernel.group", "torch.distributed was not initialised"),
    "x": (lambda a: shardproof.moe(torch.zeros(()), a.layer, a.ids, a.w), "kernel.shape", "()"),
}  # fmt: skip


@pytest.mark.parametrize("slip", WRONG_KIND)
def test_a_value_of_another_kind(slip: str, at: SimpleNamespace) -> None:
    call, words = WRONG_KIND[slip]
    with pytest.raises(ShardproofError, match=words) as caught:
        call(at)
    assert caught.value.code == "argument.type"
    assert caught.value.found
    assert caught.value.needed
    assert not Path(at.out).exists()


@pytest.mark.parametrize("slip", NO_VALUE)
def test_a_value_that_means_nothing(slip: str, at: SimpleNamespace) -> None:
    call, code, found = NO_VALUE[slip]
    with pytest.raises(ShardproofError) as caught:
        call(at)
    assert (caught.value.code, str(caught.value.found)) == (code, found)
    assert not Path(at.out).exists()


@pytest.mark.parametrize("call", [
    lambda a: pack_in_memory(a.model, a.plan, a.other),
    lambda a: pack_layer(a.model, a.plan, KEY, a.other, {}),
    lambda a: pack_layer_on_device(a.model, a.plan, KEY, a.other, {}),
])  # fmt: skip
def test_a_rank_of_another_plan(call: Callable[[Any], object], at: SimpleNamespace) -> None:
    """Rank 0 of 1 would take rank 0's blocks of the plan for two, and claim to be the whole."""
    with pytest.raises(ShardproofError, match="the rank is of another plan") as caught:
        call(at)
    assert caught.value.code == "pack.rank"


def test_numpy_numbers_are_numbers(at: SimpleNamespace, tmp_path: Path) -> None:
    two = np.int64(2)
    decision = shardproof.select(at.model, platform="cpu", tp=two)
    assert type(decision.request.tp) is int
    plan = shardproof.make_plan(at.model, decision.recipe, tp=two)
    digests = shardproof.pack(at.model, plan, tmp_path / "out", rank_indices=np.array([1]), threads=two)
    assert {type(index) for index in digests} == {int}
    loaded = shardproof.load(tmp_path / "out", np.int64(1))
    assert (loaded.plan.tp, loaded.rank.index) == (2, 1)
    assert loaded.digest == digests[1]


@pytest.mark.parametrize(("name", "values"), [
    ("SHARDPROOF_ENGINE", "amx or avx512 or avx2 or portable or numpy"), ("SHARDPROOF_HUGE_PAGES", "0 or 1"),
])  # fmt: skip
def test_a_variable_that_is_set_to_nothing_known(
    name: str, values: str, at: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "AVX2")
    with pytest.raises(ShardproofError) as caught:
        pack_in_memory(at.model, at.plan, at.rank)
    assert str(caught.value) == (
        f"[argument.value] {name} is set to what it does not know\n  found: AVX2\n  needed: {values}\n"
        f"  next: set it to one of these, or unset {name}"
    )
    with contextlib.suppress(ShardproofError):
        shardproof.pack(at.model, at.plan, at.out)
        shutil.rmtree(at.out)
    assert not Path(at.out).exists()
    assert not list(at.folder.glob(".out.part*"))
    monkeypatch.setenv(name, "")
    pack_in_memory(at.model, at.plan, at.rank)
