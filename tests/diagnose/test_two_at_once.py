"""Two mistakes at once are both named, wherever each of them shows in the bytes."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from shardproof.diagnose import put_back
from shardproof.mistakes import Mistake, find_mistake, museum
from shardproof.mistakes.explain import _exclude
from tests.diagnose.cases import named, same, spoiled, told
from tests.diagnose.conftest import Made

PAIRS = int(os.environ.get("SHARDPROOF_DIAGNOSE_PAIRS", "40"))
SHAPES = ("v4_pro", "v4_flash_gugu", "gpt_oss_aiter", "wide_1408", "v4_pro_raw")
# bytes that were dropped or cast cannot say what else was done to them, and experts that cannot be told apart
# through another mistake leave no trace of their order
BLINDING = {
    "transposed", "cast_weights", "scales_numeric", "scales_dropped", "scales_unbiased", "one_row", "truncated",
    "up_missing", "other_layer",
}  # fmt: skip


def _cases() -> list[tuple[Mistake, Mistake]]:
    pairs = [
        (a, b) for a, b in itertools.combinations(museum(), 2) if not _exclude(a, b) and not BLINDING & {a.name, b.name}
    ]
    return random.Random(5).sample(pairs, min(PAIRS, len(pairs)))


@pytest.mark.parametrize("pair", _cases(), ids=lambda pair: f"{pair[0].name}+{pair[1].name}")
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
        assert {m.name for m in pair} <= named(found), str(found)
        return


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
