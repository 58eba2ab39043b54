"""Right tensors in every layout of the catalogue: recognised, and no alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardproof.diagnose import diagnose, put_back
from shardproof.formats import ExpertModel
from shardproof.layouts import Layout, catalogue
from shardproof.mistakes import find_mistake
from shardproof.plan import make_plan
from tests.diagnose.cases import Shape, model_of, named, told
from tests.models import RAW


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, ExpertModel]:
    return {
        bias: model_of(tmp_path_factory.mktemp(kind), Shape(kind, kind, 8, 512, 1024, 2, RAW), layers=1)
        for bias, kind in ((False, "deepseek"), (True, "gpt_oss"))
    }


@pytest.mark.parametrize("layout", catalogue(), ids=lambda layout: layout.identity())
def test_right_tensors_in_every_layout(models: dict[bool, ExpertModel], layout: Layout) -> None:
    layouts = {**RAW.layouts, **{(stack, layout.field): layout.identity() for stack in layout.stacks}}
    recipe = replace(RAW, layouts=layouts, align_intermediate=512, align_hidden=512)
    model = models[layout.field == "bias"]
    plan = make_plan(model, recipe, tp=2)
    for rank in plan.ranks:
        dump = put_back(model, plan, "layers.0", rank)
        assert not told(model, plan, rank, dump).findings
        unhinted = diagnose(dump, model)
        assert not unhinted.findings, str(unhinted)
        assert unhinted.layers[0].where["tp"] == 2


@pytest.mark.parametrize("intermediate", [96, 352, 1056])
def test_chance_does_not_choose_a_scale_layout(tmp_path: Path, intermediate: int) -> None:
    """Scales cut in the wrong place agree a little with every order: as vLLM 0.33 and SGLang 0.5.23 load such sizes."""
    model = model_of(tmp_path, Shape("cut", "deepseek", 4, 256, intermediate, 2, RAW), layers=1)
    recipe = replace(RAW, align_intermediate=128)
    plan = make_plan(model, recipe, tp=2)
    for rank in plan.ranks:
        dump = put_back(model, plan, "layers.0", rank, [find_mistake("floor_division")])
        assert named(told(model, plan, rank, dump)) == {"floor_division"}
        assert named(diagnose(dump, model)) == {"floor_division"}


ENGINES = {
    "vLLM 0.33": "model.layers.0.mlp.experts.routed_experts.{}_weight{}",
    "vLLM before": "model.layers.0.mlp.experts.{}_weight{}",
    "SGLang 0.5.23": "model.layers.0.mlp.experts.{}_weight{}_inv",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_names_that_engines_give(models: dict[bool, ExpertModel], engine: str) -> None:
    model = models[False]
    plan = make_plan(model, RAW, tp=2)
    dump: dict[str, np.ndarray] = {}
    for name, array in put_back(model, plan, "layers.0", plan.ranks[1]).items():
        stack, field = name.split(".")[-2:]
        full = ENGINES[engine].format(stack, "_scale" if field == "scale" else "")
        dump[full.removesuffix("_inv") if field == "weight" else full] = array
    found = diagnose(dump, model, rank=1, tp=2, recipe=RAW)
    assert not found.findings
    assert {row.tensor for row in found.layers[0].rows} == set(dump)


@pytest.mark.parametrize("ending", ["_bias", "_weight_bias"])
def test_names_that_engines_give_to_biases(models: dict[bool, ExpertModel], ending: str) -> None:
    model = models[True]
    plan = make_plan(model, RAW, tp=2)
    dump = {}
    for name, array in put_back(model, plan, "layers.0", plan.ranks[0]).items():
        stack, field = name.split(".")[-2:]
        suffix = {"weight": "_weight", "scale": "_weight_scale", "bias": ending}[field]
        dump[f"model.layers.0.mlp.experts.{stack}{suffix}"] = array
    found = diagnose(dump, model, rank=0, tp=2, recipe=RAW)
    assert not found.findings
    assert len(found.layers[0].rows) == 6
