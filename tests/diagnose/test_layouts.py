"""Right tensors in every layout of the catalogue: recognised, and no alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardproof.diagnose import diagnose, put_back
from shardproof.formats import ExpertModel
from shardproof.layouts import Layout, catalogue
from shardproof.plan import make_plan
from tests.diagnose.cases import Shape, model_of, told
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
