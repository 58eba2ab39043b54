"""Two mistakes at once are both named, wherever each of them shows in the bytes."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from shardproof.diagnose import Diagnosis, put_back
from shardproof.formats import ExpertModel
from shardproof.mistakes import Mistake, find_mistake, museum
from shardproof.mistakes.explain import _exclude
from shardproof.partition import Rank
from shardproof.plan import Plan
from tests.diagnose.cases import named, same, spoiled, told
from tests.diagnose.conftest import Made

PAIRS = int(os.environ.get("SHARDPROOF_DIAGNOSE_PAIRS", "60"))
SHAPES = ("v4_pro", "v4_flash_gugu", "gpt_oss_aiter", "wide_1408", "v4_pro_raw")
LOST = {
    "no piece of 16 bytes is left that says whose it was": (
        {"transposed", "cast_weights"}, {"experts_permuted", "other_layer", "weights_not_read", "zero_experts"},
    ),
    "padding was cast too, so that it no longer holds what was written": (
        {"scales_numeric", "scales_unbiased"}, {"nan_padding", "scale_padding_0", "scale_padding_1", "uninitialised_padding"},
    ),
    "the half whose padding moved is not there": ({"truncated", "up_missing"}, {"padded_at_end"}),
    "a mistake that shows in a bias only because of the other one": ({"truncated", "one_row"}, {"bias_on_every_rank"}),
}  # fmt: skip
"""Of which mistakes one hides the other, and why. Every other pair that shows in the bytes is named."""


def _lost(a: Mistake, b: Mistake) -> bool:
    return any((a.name in x and b.name in y) or (b.name in x and a.name in y) for x, y in LOST.values())


def _pairs() -> list[tuple[Mistake, Mistake]]:
    return [(a, b) for a, b in itertools.combinations(museum(), 2) if not _exclude(a, b)]


def _cases() -> list[tuple[Mistake, Mistake]]:
    pairs = [pair for pair in _pairs() if not _lost(*pair)]
    return random.Random(5).sample(pairs, min(PAIRS, len(pairs)))


def _name(pair: tuple[Mistake, Mistake]) -> str:
    return f"{pair[0].name}+{pair[1].name}"


def _one_layout(model: ExpertModel, plan: Plan, rank: Rank, dump: dict[str, np.ndarray], found: Diagnosis) -> bool:
    """Whether the two together are one other layout: shuffled after rows were interleaved is `aiter.w16_gugu`."""
    rows = {row.slot: row.found for row in found.layers[0].rows}
    layouts = {slot: rows[".".join(slot)] for slot in plan.fields("layers.0")}
    if "other_layout" not in named(found) or "?" in layouts.values():
        return False
    other = replace(plan, recipe=replace(plan.recipe, layouts=layouts))
    return same(put_back(model, other, "layers.0", rank), dump)


@pytest.mark.parametrize("pair", _cases(), ids=_name)
def test_pairs(made: Made, pair: tuple[Mistake, Mistake]) -> None:
    for name in SHAPES:
        model, plan, _ = made(name)
        case = spoiled(model, plan, pair)
        if case is None:
            continue
        rank, dump = case
        if any(same(put_back(model, plan, "layers.0", rank, [m]), dump) for m in pair):
            continue  # one of them hides the other
        cut = put_back(model, plan, "layers.0", rank, [m for m in pair if m.fill is None])
        if not any(array.any() for n, array in cut.items() if n.endswith("weight")):
            continue  # the rank holds no checkpoint byte at all
        found = told(model, plan, rank, dump)
        assert {m.name for m in pair} <= named(found) or _one_layout(model, plan, rank, dump, found), str(found)
        return


@pytest.mark.parametrize("pair", [pair for pair in _pairs() if _lost(*pair)], ids=_name)
def test_of_a_pair_that_hides_itself_something_is_said(made: Made, pair: tuple[Mistake, Mistake]) -> None:
    """Never "nothing is wrong": one of the two is named, or that it is unexplained."""
    for name in ("v4_pro", "gpt_oss_aiter"):
        model, plan, _ = made(name)
        case = spoiled(model, plan, pair)
        if case is not None:
            found = told(model, plan, *case)
            assert ({m.name for m in pair} | {"unexplained", "other_checkpoint"}) & named(found), str(found)
            assert found.exit_code == 1
            return
    raise AssertionError("shows in neither shape")


def test_the_three_of_the_seed_at_once(made: Made) -> None:
    """VLLM #42595: offset from the padded size, de-interleaved, shuffled for the other gate mode."""
    from shardproof.diagnose import diagnose

    model, plan, _ = made("v4_pro")
    three = [find_mistake(n) for n in ("padded_offset", "deinterleaved", "wrong_shuffle")]
    rank = plan.ranks[2]
    dump = put_back(model, plan, "layers.0", rank, three)
    found = diagnose(dump, model, rank=2, tp=8, ep=1, recipe=plan.recipe, most=3)
    assert {"padded_offset", "deinterleaved", "wrong_shuffle"} <= named(found), str(found)


def test_what_cannot_be_explained_is_not_explained_wrongly(made: Made) -> None:
    """Permuted experts, then transposed under a tiled layout: no piece of 16 bytes is left to say whose it was."""
    model, plan, _ = made("gpt_oss_aiter")
    case = spoiled(model, plan, [find_mistake("transposed"), find_mistake("experts_permuted")])
    assert case is not None
    assert named(told(model, plan, *case)) <= {"other_checkpoint", "unexplained"}
