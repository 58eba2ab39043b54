"""Plans over random shapes: every checkpoint byte once, in the right place, and padding counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.errors import LayoutError, PartitionError
from shardproof.experts import STACKS
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES
from shardproof.partition import POLICIES
from shardproof.plan import Plan, make_plan
from tests.models import AITER, GUGU, RAW, model_of, recipe, spec_of

FIELDS = ("weight", "scale", "bias")


@st.composite
def plans(draw):
    spec = spec_of(
        draw(st.integers(1, 9)),
        BLOCK * draw(st.integers(1, 6)),
        BLOCK * draw(st.integers(1, 20)),
        bias=draw(st.booleans()),
    )
    tp, ep = draw(st.integers(1, 9)), draw(st.integers(1, spec.experts))
    aligned = recipe(draw(st.sampled_from([32, 128, 256])), draw(st.sampled_from([32, 64, 128, 256])))
    options = {"policy": draw(st.sampled_from(POLICIES)), "placement": draw(st.sampled_from(["linear", "round_robin"]))}
    return make_plan(model_of(spec), aligned, tp=tp, ep=ep, allow_empty=True, **options)


def matrix_size(plan, projection, name):
    spec = plan.shape("layers.0").spec
    rows, columns = (spec.hidden, spec.intermediate) if projection == "w2" else (spec.intermediate, spec.hidden)
    width = {"weight": columns // 2, "scale": columns // BLOCK, "bias": plan.bias_item}[name]
    return rows, width


@given(plan=plans())
def test_conservation(plan):
    """Each byte of each expert is taken by exactly one rank: counted, not reasoned."""
    spec = plan.shape("layers.0").spec
    taken: Counter[int] = Counter()
    for rank in plan.ranks:
        if rank.tp_rank == 0:
            taken.update(plan.experts("layers.0", rank))
    assert taken == Counter(range(spec.experts))
    for stack in STACKS:
        for name in FIELDS if spec.bias else FIELDS[:2]:
            counts = {
                p: np.zeros(matrix_size(plan, p, name), int) for p in (("w1", "w3") if stack == "w13" else ("w2",))
            }
            for rank in plan.ranks[: plan.tp]:
                for cut in plan.cuts("layers.0", rank, stack, name):
                    counts[cut.projection][slice(*cut.rows), slice(*cut.columns)] += 1
            assert all((count == 1).all() for count in counts.values()), (stack, name)


@given(plan=plans())
def test_destinations(plan):
    """w1 fills the first half of w13 from its top and w3 the second half from its top; w2 fills from the left."""
    shape = plan.shape("layers.0")
    for rank in plan.ranks[: plan.tp]:
        valid = shape.valid(rank)
        for stack in STACKS:
            for name in FIELDS if shape.spec.bias else FIELDS[:2]:
                rows, width = shape.matrix_shape(stack, name, plan.bias_item)
                filled = np.zeros((rows, width), int)
                for cut in plan.cuts("layers.0", rank, stack, name):
                    height = cut.rows[1] - cut.rows[0]
                    filled[
                        cut.at_row : cut.at_row + height,
                        cut.at_column : cut.at_column + cut.columns[1] - cut.columns[0],
                    ] += 1
                expected = np.zeros_like(filled)
                unit = {"weight": BLOCK_BYTES, "scale": 1, "bias": 0}[name]
                if stack == "w13":
                    columns = shape.spec.hidden // BLOCK * unit or width
                    expected[:valid, :columns] = 1
                    expected[shape.intermediate : shape.intermediate + valid, :columns] = 1
                elif valid and (name != "bias" or rank.tp_rank == 0):
                    expected[: shape.spec.hidden, : valid // BLOCK * unit or width] = 1
                assert np.array_equal(filled, expected), (rank, stack, name)


@given(plan=plans())
def test_weights_and_scales_are_cut_at_the_same_places(plan):
    """The mistake of #42595's rule: weights at dim // tp, scales at (dim / 32) // tp."""
    for rank in plan.ranks[: plan.tp]:
        for stack in STACKS:
            weights = plan.cuts("layers.0", rank, stack, "weight")
            scales = plan.cuts("layers.0", rank, stack, "scale")
            assert [(c.projection, c.rows, c.at_row) for c in weights] == [
                (c.projection, c.rows, c.at_row) for c in scales
            ]
            for weight, scale in zip(weights, scales, strict=True):
                assert weight.columns == tuple(BLOCK_BYTES * c for c in scale.columns)


@given(plan=plans())
def test_the_two_stacks_hold_the_same_intermediate_values(plan):
    for rank in plan.ranks[: plan.tp]:
        rows = [c.rows for c in plan.cuts("layers.0", rank, "w13", "weight")]
        columns = [tuple(c * 2 for c in cut.columns) for cut in plan.cuts("layers.0", rank, "w2", "weight")]
        assert rows == columns * 2


@given(plan=plans())
def test_bytes_add_up(plan):
    shape, spec = plan.shape("layers.0"), plan.shape("layers.0").spec
    read = sum(plan.read_bytes(r) for r in plan.ranks)
    assert read == spec.experts * spec.expert_bytes
    for rank in plan.ranks:
        held = len(plan.experts("layers.0", rank))
        matrices = 3 * shape.hidden * shape.intermediate
        biases = (2 * shape.intermediate + shape.hidden) * plan.bias_item if spec.bias else 0
        assert plan.rank_bytes(rank) == held * (matrices // 2 + matrices // BLOCK + biases)
        assert plan.waste_bytes(rank) == held * (matrices // 2 + matrices // BLOCK) - plan.read_bytes(rank)


@given(plan=plans())
def test_padding_comes_after_the_cut(plan):
    shape = plan.shape("layers.0")
    longest = max(shape.valid(r) for r in plan.ranks)
    for size, least, step in (
        (shape.intermediate, longest, plan.recipe.align_intermediate), (shape.hidden, shape.spec.hidden, plan.recipe.align_hidden),
    ):  # fmt: skip
        assert size % step == 0
        assert 0 <= size - least < step
    for rank in plan.ranks:
        padding = plan.kernel_padding("layers.0", rank)
        assert padding["intermediate_pad"] + shape.valid(rank) == shape.intermediate
        assert padding["hidden_pad"] + shape.spec.hidden == shape.hidden


@given(plan=plans())
def test_a_plan_survives_json(plan):
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.to_dict() == json.loads(json.dumps(plan.to_dict()))
    assert again.prove() == plan.prove()


def test_policies_agree_exactly_where_blocks_divide():
    model = model_of(spec_of(2, 64, 32 * 12))
    for tp in range(1, 13):
        balanced = make_plan(model, RAW, tp=tp)
        ceil = make_plan(model, RAW, tp=tp, policy="ceil", allow_empty=True)
        assert (balanced.shapes == ceil.shapes) == (12 % tp == 0)


def test_layers_of_one_spec_share_a_shape():
    one, two = spec_of(), spec_of(intermediate=128)
    plan = make_plan(model_of(one, two, one), RAW, tp=2)
    assert len(plan.shapes) == 2
    assert dict(plan.layers) == {"layers.0": 0, "layers.1": 1, "layers.2": 0}
    assert plan.shape("layers.2").spec == one


def test_fields_follow_the_recipe_and_the_spec():
    with_bias = make_plan(model_of(spec_of(bias=True)), RAW)
    assert with_bias.fields("layers.0") == [(s, f) for s in STACKS for f in FIELDS]
    without = make_plan(model_of(spec_of()), RAW)
    assert without.fields("layers.0") == [(s, f) for s in STACKS for f in FIELDS[:2]]


def test_w2_bias_stands_on_one_rank():
    plan = make_plan(model_of(spec_of(bias=True)), RAW, tp=3)
    assert [len(plan.cuts("layers.0", r, "w2", "bias")) for r in plan.ranks] == [1, 0, 0]


def test_restrict():
    plan = make_plan(model_of(spec_of(), spec_of(), spec_of()), RAW)
    assert list(plan.restrict(["layers.2", "layers.0"]).layers) == ["layers.0", "layers.2"]
    for keys in (["layers.9"], []):
        with pytest.raises(PartitionError) as caught:
            plan.restrict(keys)
        assert caught.value.code == "plan.layer"
        assert caught.value.needed == "layers.0, layers.1, layers.2"


def test_replicas():
    plan = make_plan(model_of(spec_of(3)), RAW, ep=2, placement=[[0, 1], [2, 0]])
    assert plan.experts("layers.0", plan.ranks[1]) == (2, 0)
    assert "every expert is on at least one rank (1 replicas)" in plan.prove()[0]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tp": 4}, "partition.empty_rank"), ({"tp": 0}, "partition.size"), ({"ep": 0}, "partition.size"),
        ({"ep": 5}, "partition.empty_rank"), ({"ep": 2, "placement": [[0, 1], [2]]}, "partition.cover"),
        ({"policy": "floor"}, "partition.policy"), ({"placement": "random"}, "partition.placement"),
    ],
    ids=str,
)  # fmt: skip
def test_plans_that_are_refused(options, code):
    with pytest.raises(PartitionError) as caught:
        make_plan(model_of(spec_of()), RAW, **options)
    assert caught.value.code == code


def test_a_layout_that_cannot_hold_the_padded_shape_is_refused_before_any_byte():
    loose = replace(AITER, align_intermediate=32, align_hidden=32)
    odd = replace(loose, layouts={**RAW.layouts, ("w13", "weight"): "aiter.w16_gugu"})
    with pytest.raises(LayoutError) as caught:
        make_plan(model_of(spec_of(2, 96, 96)), odd)
    assert caught.value.code == "layout.shape"


def test_unknown_layouts_are_refused():
    with pytest.raises(LayoutError) as caught:
        make_plan(model_of(spec_of()), replace(RAW, layouts={("w13", "weight"): "raw.nothing"}))
    assert caught.value.code == "layout.unknown"


@pytest.mark.parametrize("which", [AITER, GUGU], ids=lambda r: r.backend)
def test_real_recipes_hold_every_tp(which):
    for tp in (1, 2, 3, 4, 6):
        plan = make_plan(model_of(spec_of(4, 288, 192)), which, tp=tp)
        assert {plan.shape("layers.0").intermediate} == {-(-(-(-6 // tp) * 32) // 128) * 128}
        assert plan.shape("layers.0").hidden == 512
