"""Layers of every format and awkward shape, ranks of them with mistakes put back, and what a diagnosis must say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.diagnose import Diagnosis, diagnose, put_back
from shardproof.errors import LayoutError
from shardproof.formats import ExpertModel, read_experts
from shardproof.mistakes import Mistake
from shardproof.partition import Rank
from shardproof.plan import Plan, make_plan
from tests.checkpoints import make
from tests.models import AITER, GUGU, RAW

GFX1250 = Recipe(
    backend="test_gfx1250", align_hidden=256, align_intermediate=128,
    layouts={**RAW.layouts, ("w13", "scale"): "aiter.n32k4", ("w2", "scale"): "aiter.n32k4"},
)  # fmt: skip
CDNA4 = Recipe(
    backend="test_cdna4", align_hidden=128, align_intermediate=32,
    layouts={**RAW.layouts, ("w13", "scale"): "triton_kernels.cdna4_scale", ("w2", "scale"): "triton_kernels.cdna4_scale"},
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A checkpoint to make: format, experts, hidden, intermediate, and how it is dealt."""

    name: str
    kind: str
    experts: int
    hidden: int
    intermediate: int
    tp: int
    recipe: Recipe
    ep: int = 1


SHAPES = (
    Shape("v4_flash", "deepseek", 8, 256, 512, 2, AITER),
    Shape("v4_flash_gugu", "deepseek", 8, 256, 512, 4, GUGU),
    Shape("v4_pro", "deepseek", 8, 448, 768, 8, AITER),
    Shape("v4_pro_ep", "deepseek", 8, 256, 768, 2, AITER, ep=2),
    Shape("v4_pro_raw", "deepseek", 6, 256, 768, 8, replace(RAW, align_intermediate=128)),
    Shape("gpt_oss", "gpt_oss", 4, 288, 288, 2, RAW),
    Shape("gpt_oss_aiter", "gpt_oss", 8, 288, 288, 4, AITER),
    Shape("wide_1408", "quark", 4, 128, 1408, 8, replace(RAW, align_intermediate=256)),
    Shape("wide_2304", "compressed_tensors", 4, 128, 2304, 16, replace(RAW, align_intermediate=256)),
    Shape("wide_768", "quark", 4, 128, 768, 16, replace(RAW, align_intermediate=64)),
    Shape("gfx1250", "quark", 4, 256, 512, 2, GFX1250),
    Shape("cdna4", "deepseek", 8, 256, 768, 2, CDNA4),
)


def model_of(folder: Path, shape: Shape, *, layers: int = 2, seed: int = 1) -> ExpertModel:
    """Make the checkpoint of a shape and read it."""
    make(
        folder, shape.kind, layers=layers, experts=shape.experts, hidden=shape.hidden, intermediate=shape.intermediate,
        seed=seed,
    )  # fmt: skip
    return read_experts(Checkpoint.open(folder))


def plan_of(model: ExpertModel, shape: Shape) -> Plan:
    """The plan of a shape."""
    return make_plan(model, shape.recipe, tp=shape.tp, ep=shape.ep)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two dumps hold the same bytes in the same dtypes."""
    return all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in b)


def spoiled(model: ExpertModel, plan: Plan, mistakes: Sequence[Mistake]) -> tuple[Rank, dict[str, np.ndarray]] | None:
    """A rank on which the mistakes change some byte, with its bytes; None where they change none."""
    key = next(iter(plan.layers))
    for rank in sorted(plan.ranks, key=lambda r: -r.tp_rank):
        right = put_back(model, plan, key, rank)
        try:
            wrong = put_back(model, plan, key, rank, mistakes)
            each = all(not same(put_back(model, plan, key, rank, [m]), right) for m in mistakes)
        except LayoutError:  # the mistake's layout cannot hold this shape
            continue
        if each and not same(wrong, right):
            return rank, wrong
    return None


def told(model: ExpertModel, plan: Plan, rank: Rank, dump: dict[str, np.ndarray]) -> Diagnosis:
    """A diagnosis with everything known."""
    return diagnose(dump, model, rank=rank.index, tp=plan.tp, ep=plan.ep, recipe=plan.recipe)


def named(found: Diagnosis) -> set[str]:
    """Names of all mistakes that were found, those that give the very same bytes included."""
    return {f.name for f in found.findings} | {name for f in found.findings for name in f.also}
