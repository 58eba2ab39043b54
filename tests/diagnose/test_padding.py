"""Layers that hold padding only: right on ranks that are left no block, never loaded on all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardproof.backends import Recipe
from shardproof.diagnose import Diagnosis, diagnose, put_back
from shardproof.errors import DiagnoseError
from shardproof.formats import ExpertModel
from shardproof.plan import Plan, make_plan
from tests.diagnose.cases import Shape, model_of
from tests.models import AITER, RAW

LAST = 7
RECIPES = {"raw": replace(RAW, align_intermediate=64), "aiter": AITER}
RIGHT = "tp and rank leave it no block (policy ceil): so it should be"
OPEN = "right for tensor-parallel ranks 5, 6, 7, left no block (policy ceil); any other was never loaded"
UNLESS = "every tensor holds padding only: the layer was never loaded, unless tp and rank leave it no block"
BESIDE = "every tensor holds padding only: the layer was never loaded: other layers of the dump hold content"


def made(folder: Path, kind: str, recipe: Recipe, layers: int = 1) -> tuple[ExpertModel, Plan]:
    """Nine blocks, two a rank: three of eight ranks get none."""
    model = model_of(folder, Shape("nine", kind, 4, 256, 288, 8, recipe), layers=layers)
    return model, make_plan(model, recipe, tp=8, policy="ceil", allow_empty=True)


def assert_just_padding(found: Diagnosis, note: str, layers: str = "layers.0") -> None:
    assert found.sentence == f"{layers}: every tensor holds padding only; {note}"
    assert not found.findings
    assert found.ok
    assert {(row.found, row.wrong) for row in found.layers[0].rows} == {("padding only", 0)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_a_rank_without_blocks_is_padding_and_nothing_else(tmp_path: Path, kind: str, name: str) -> None:
    model, plan = made(tmp_path, kind, RECIPES[name])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    for hints in ({"tp": 8}, {"tp": 8, "recipe": plan.recipe}, {"tp": 8, "policy": "ceil", "layer": 0}):
        assert_just_padding(diagnose(dump, model, **hints), OPEN)
    known: dict[str, Any] = {"tp": 8, "rank": LAST, "policy": "ceil"}
    assert_just_padding(diagnose(dump, model, **known), RIGHT)
    whole = diagnose(dump, model, **known, recipe=plan.recipe)
    assert (whole.names, whole.sentence) == (set(), "nothing is wrong with layers.0: every byte is where it is needed")


def assert_never_loaded(found: Diagnosis, sentence: str, layer: str = "layers.0") -> None:
    assert (found.names, found.sentence) == ({"never_loaded"}, f"rank not known: {sentence}")
    assert found.exit_code == 1
    padded = next(report for report in found.layers if report.padding)
    assert padded.layer == layer
    assert {(row.share, row.needed) for row in padded.rows} == {(0.0, "blocks of the checkpoint")}


@pytest.mark.parametrize("hints", [{}, {"policy": "ceil"}, {"layer": 0}, {"recipe": RECIPES["raw"]}])
def test_without_tp_it_was_never_loaded(tmp_path: Path, hints: dict[str, Any]) -> None:
    """An operator looks for a model that talks garbage: zeros pass only where something says that they may."""
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    assert_never_loaded(diagnose(dump, model, **hints), UNLESS)


@pytest.mark.parametrize("hints", [{"tp": 3}, {"tp": 3, "ep": 1}, {"tp": 3, "policy": "ceil"}])
def test_a_tp_that_leaves_no_rank_empty(tmp_path: Path, hints: dict[str, Any]) -> None:
    """Nine blocks by three: no examination of pieces, of which there are none."""
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    found = diagnose(dump, model, **hints)
    assert_never_loaded(found, "every tensor holds padding only: the layer was never loaded: tp 3 leaves no rank empty")
    assert found.findings[0].also == ("padded_offset",)


def test_an_offset_beyond_the_checkpoint_is_still_named(tmp_path: Path) -> None:
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    assert "padded_offset" in diagnose(dump, model, tp=8, rank=LAST, policy="balanced").names


@pytest.mark.parametrize("hints", [{}, {"tp": 8}, {"tp": 8, "recipe": RECIPES["raw"]}])
def test_one_layer_of_many_was_never_loaded(tmp_path: Path, hints: dict[str, Any]) -> None:
    """A rank that holds blocks of one layer holds blocks of all."""
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"], layers=2)
    dump = put_back(model, plan, "layers.0", plan.ranks[1]) | put_back(model, plan, "layers.1", plan.ranks[LAST])
    assert_never_loaded(diagnose(dump, model, **hints), BESIDE, "layers.1")


def test_a_rank_that_must_hold_blocks_is_not_excused(tmp_path: Path) -> None:
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    for hints in ({"tp": 8, "policy": "balanced"}, {"tp": 8, "rank": 0, "policy": "ceil"}, {"tp": 4, "rank": 2}):
        assert not diagnose(dump, model, **hints).ok


@pytest.mark.parametrize("slot", ["w13.weight", "w13.scale", "w2.bias"])
def test_one_other_byte_is_more_than_padding(tmp_path: Path, slot: str) -> None:
    model, plan = made(tmp_path, "gpt_oss", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    dump[f"layers.0.experts.{slot}"][-1] ^= 1
    assert not diagnose(dump, model).layers[0].padding


def test_scales_that_an_engine_never_wrote_are_no_padding(tmp_path: Path) -> None:
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    assert not diagnose({name: np.zeros_like(data) for name, data in dump.items()}, model).ok


def test_without_a_name_it_may_be_any_layer(tmp_path: Path) -> None:
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"], layers=2)
    dump = put_back(model, plan, "layers.1", plan.ranks[LAST])
    nameless = {name.removeprefix("layers.1."): data for name, data in dump.items()}
    assert_just_padding(diagnose(nameless, model, tp=8), OPEN, "layers.0, layers.1")
    assert_never_loaded(diagnose(nameless, model), UNLESS, "layers.0, layers.1")


def test_padding_is_not_repaired(tmp_path: Path) -> None:
    model, plan = made(tmp_path, "deepseek", RECIPES["raw"])
    dump = put_back(model, plan, "layers.0", plan.ranks[LAST])
    with pytest.raises(DiagnoseError, match="padding only") as caught:
        diagnose(dump, model, recipe=plan.recipe, repair=tmp_path / "out.safetensors")
    assert caught.value.code == "diagnose.repair_lost"
