"""The digest: equal for one content however it is cut and laid out, different for any other content."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.checkpoint import Checkpoint
from shardproof.digest import Digest
from shardproof.formats import read_experts
from shardproof.pack import pack_in_memory
from shardproof.plan import make_plan
from tests.checkpoints import make
from tests.models import AITER, GUGU, RAW, recipe

WORD = st.integers(0, 2**64 - 1)


def digest_of(folder, chosen=RAW, **options) -> Digest:
    model = read_experts(Checkpoint.open(folder))
    plan = make_plan(model, chosen, allow_empty=True, **options)
    return sum((pack_in_memory(model, plan, rank).digest for rank in plan.ranks), start=Digest())


# -- a value that adds --------------------------------------------------------------------------------------------


@given(a=WORD, b=WORD, c=WORD, d=WORD)
def test_addition(a, b, c, d):
    one, two = Digest(a, b), Digest(c, d)
    assert one + two == two + one
    assert one + Digest() == one
    assert (one + two).low == (a + c) % 2**64
    assert (one + two) + two == one + (two + two)


@given(a=WORD, b=WORD)
def test_text(a, b):
    digest = Digest(a, b)
    assert Digest.parse(str(digest)) == digest
    assert len(str(digest)) == 32


@pytest.mark.parametrize("text", ["", "0", "0" * 31, "0" * 33, "g" * 32, "0x" + "0" * 30, " " * 32, "-" + "0" * 31])
def test_text_that_is_none(text):
    with pytest.raises(ValueError, match=r"."):
        Digest.parse(text)


# -- equal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_equal_for_every_layout_tp_and_ep(tmp_path, kind):
    make(tmp_path, kind, layers=2, experts=3, hidden=64, intermediate=160)
    found = {
        str(digest_of(tmp_path, chosen, tp=tp, ep=ep, policy=policy))
        for chosen in (RAW, recipe(128, 128), AITER, GUGU)
        for tp, ep in ((1, 1), (2, 1), (3, 3), (5, 2), (7, 1))
        for policy in ("balanced", "ceil")
    }
    assert len(found) == 1
    assert found != {str(Digest())}


def test_equal_for_every_placement_and_for_replicas(tmp_path):
    make(tmp_path, "quark", experts=4)
    one = digest_of(tmp_path)
    for placement in ("linear", "round_robin", [[3, 0], [1, 2]], [[0, 1, 2], [2, 3, 0]], [[0, 1, 2, 3]] * 2):
        assert digest_of(tmp_path, tp=2, ep=2, placement=placement) == one, placement


def test_equal_for_every_format(tmp_path):
    kinds = ["deepseek", "quark", "compressed_tensors", "ling", "modelopt"]
    for kind in kinds:
        make(tmp_path / kind, kind, seed=5)
    assert len({str(digest_of(tmp_path / kind)) for kind in kinds}) == 1


def test_equal_however_the_model_is_spread_over_files(tmp_path):
    for files in (1, 4):
        make(tmp_path / str(files), "deepseek", files=files)
    assert digest_of(tmp_path / "1") == digest_of(tmp_path / "4")


# -- different --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    make(folder, "gpt_oss", layers=2, experts=3)
    return folder, digest_of(folder)


def altered(tmp_path, alter) -> Digest:
    make(tmp_path, "gpt_oss", layers=2, experts=3, alter=alter)
    return digest_of(tmp_path, tp=3)


TENSORS = [
    f"model.layers.{layer}.mlp.experts.{stack}_{field}"
    for layer in (0, 1) for stack in ("gate_up_proj", "down_proj") for field in ("blocks", "scales", "bias")
]  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("bit", [0, 5])
def test_one_bit(tmp_path, original, name, at, bit):
    def flip(tensors):
        tensors[name][1].flat[at] ^= 1 << bit

    assert altered(tmp_path, flip) != original[1]


def swapped(tensors, suffixes, one, two):
    for suffix in suffixes:
        array = tensors[f"model.layers.0.mlp.experts.down_proj_{suffix}"][1]
        array[one], array[two] = array[two].copy(), array[one].copy()


@pytest.mark.parametrize(
    ("one", "two"),
    [((0, 3, 0), (0, 3, 1)), ((0, 3, 0), (0, 4, 0)), ((0, 3, 0), (0, 4, 1)), ((0, 3, 0), (2, 3, 0))],
    ids=["in a row", "in a column", "across", "between experts"],
)
def test_two_blocks_in_each_others_place(tmp_path, original, one, two):
    assert altered(tmp_path, lambda t: swapped(t, ("blocks", "scales"), one, two)) != original[1]


def test_two_scales_in_each_others_place(tmp_path, original):
    def swap(tensors):
        array = tensors["model.layers.0.mlp.experts.down_proj_scales"][1]
        row = next(r for r in range(array.shape[1]) if array[0, r, 0] != array[0, r, 2])
        swapped(tensors, ("scales",), (0, row, 0), (0, row, 2))

    assert altered(tmp_path, swap) != original[1]


def test_two_experts_in_each_others_place(tmp_path, original):
    assert altered(tmp_path, lambda t: swapped(t, ("blocks", "scales", "bias"), 0, 1)) != original[1]


def test_two_layers_in_each_others_place(tmp_path, original):
    def swap(tensors):
        for name in [n for n in tensors if ".0.mlp." in n]:
            other = name.replace(".0.mlp.", ".1.mlp.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    assert altered(tmp_path, swap) != original[1]


def test_gate_and_up_in_each_others_place(tmp_path, original):
    def swap(tensors):
        for suffix in ("blocks", "scales", "bias"):
            array = tensors[f"model.layers.0.mlp.experts.gate_up_proj_{suffix}"][1]
            if suffix == "bias":
                array = array.reshape(3, -1, 2)
            array[:, 0::2], array[:, 1::2] = array[:, 1::2].copy(), array[:, 0::2].copy()

    assert altered(tmp_path, swap) != original[1]


def test_constant_models_of_every_byte_differ(tmp_path):
    """A sum must not cancel: all-equal blocks still count."""
    seen = set()
    for weight, scale in itertools.product((0, 1, 0x88, 0xFF), (0, 120, 127)):
        folder = tmp_path / f"{weight}-{scale}"
        make(
            folder,
            "quark",
            fill=lambda f, _l, _e, _p, s, w=weight, c=scale: np.full(s, w if f == "weight" else c, np.uint8),
        )
        seen.add(str(digest_of(folder)))
    assert len(seen) == 12


def test_one_rank_is_not_the_whole(original):
    model = read_experts(Checkpoint.open(original[0]))
    plan = make_plan(model, RAW, tp=3)
    parts = [pack_in_memory(model, plan, r).digest for r in plan.ranks]
    assert len({str(p) for p in parts}) == 3
    assert original[1] not in parts
