"""The prover: it accepts right plans and refuses every kind of wrong one. Negative controls only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardproof.errors import PartitionError
from shardproof.plan import LayerShape, make_plan
from tests.models import RAW, model_of, spec_of

GPT_OSS = spec_of(2, 2880, 2880, bias=True)


def with_cuts(plan, change):
    """The plan with other rectangles: `change(shape, rank, stack, name, cuts)`."""

    class Changed(LayerShape):
        def cuts(self, rank, stack, name, bias_item=4):
            return tuple(change(self, rank, stack, name, super().cuts(rank, stack, name, bias_item)))

    shapes = tuple(Changed(s.spec, s.intervals, s.owners, s.hidden, s.intermediate) for s in plan.shapes)
    return replace(plan, shapes=shapes)


def refused(plan, change) -> PartitionError:
    assert plan.prove()
    with pytest.raises(PartitionError) as caught:
        with_cuts(plan, change).prove()
    assert caught.value.code == "plan.cover"
    return caught.value


def test_unchanged_cuts_pass():
    plan = make_plan(model_of(GPT_OSS), RAW, tp=4)
    assert with_cuts(plan, lambda _s, _r, _stack, _name, cuts: cuts).prove() == plan.prove()


def test_it_says_what_it_showed():
    (sentence,) = make_plan(model_of(GPT_OSS), RAW, tp=4, ep=2).prove()
    assert sentence == (
        "2 experts of [2880, 2880]: every byte of w1, w3 and w2 is taken by exactly one of 4 tensor-parallel ranks; "
        "every expert is on exactly one of 2 expert-parallel ranks"
    )


def floor_rule(shape, rank, stack, name, cuts):
    """The merged engine fix: each tensor's own size // tp, offset by rank."""
    size = shape.spec.intermediate
    for cut in cuts:
        if stack == "w13":
            share = size // rank.tp
            yield replace(cut, rows=(share * rank.tp_rank, share * (rank.tp_rank + 1)))
        elif name == "bias":
            yield cut
        else:
            share = (size // 2 if name == "weight" else size // 32) // rank.tp
            yield replace(cut, columns=(share * rank.tp_rank, share * (rank.tp_rank + 1)))


@pytest.mark.parametrize("tp", [4, 8])
def test_the_floor_rule_on_gpt_oss(tp):
    error = refused(make_plan(model_of(GPT_OSS), RAW, tp=tp), floor_rule)
    assert error.what == "bytes of w2 scale are taken by no rank"
    assert (error.found, error.needed) == (2880 * (90 // tp) * tp, 2880 * 90)


@pytest.mark.parametrize("tp", [3, 5, 6, 7])
def test_the_floor_rule_on_v4_flash(tp):
    error = refused(make_plan(model_of(spec_of(2, 4096, 2048)), RAW, tp=tp), floor_rule)
    assert "taken by no rank" in error.what


@pytest.mark.parametrize("tp", [2, 3, 5, 6])
def test_the_floor_rule_is_right_where_blocks_divide(tp):
    plan = make_plan(model_of(GPT_OSS), RAW, tp=tp)
    assert with_cuts(plan, floor_rule).prove() == plan.prove()


def test_weights_and_scales_cut_at_different_places_although_both_cover():
    """Even weights beside ceil scales: every byte is taken once, and ranks 0..2 decode with the wrong scales."""

    def mixed(shape, rank, stack, name, cuts):
        for cut in cuts:
            if stack == "w2" and name == "weight":
                yield replace(cut, columns=(360 * rank.tp_rank, 360 * (rank.tp_rank + 1)))
            else:
                yield cut

    error = refused(make_plan(model_of(spec_of(2, 64, 2880)), RAW, tp=4), mixed)
    assert error.what == "weights and scales of w2 are cut at different places"
    assert error.rank.tp_rank == 0


def test_w13_and_w2_that_hold_different_intermediate_values():
    def turned(shape, rank, stack, name, cuts):
        if stack != "w2" or name == "bias":
            return cuts
        start, stop = shape.intervals[(rank.tp_rank + 1) % rank.tp]
        unit = 16 if name == "weight" else 1
        return [replace(c, columns=(start * unit, stop * unit)) for c in cuts]

    error = refused(make_plan(model_of(spec_of(2, 64, 128)), RAW, tp=4), turned)
    assert error.what == "w13 and w2 of a rank hold different intermediate values"


def test_w1_and_w3_that_hold_different_rows():
    def turned(shape, rank, stack, name, cuts):
        start, stop = shape.intervals[(rank.tp_rank + 1) % rank.tp]
        return [replace(c, rows=(start * 32, stop * 32)) if c.projection == "w3" else c for c in cuts]

    refused(make_plan(model_of(spec_of(2, 64, 128)), RAW, tp=4), turned)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s, r, stack, name, cuts: cuts[:-1] if r.tp_rank == 1 else cuts, "taken by no rank"),
        (lambda s, r, stack, name, cuts: cuts + cuts[:1], "two ranks take the same bytes"),
        (lambda s, r, stack, name, cuts: [replace(c, rows=(c.rows[0] + 32, c.rows[1] + 32)) for c in cuts],
         "lies outside the checkpoint"),
        (lambda s, r, stack, name, cuts: [replace(c, rows=(c.rows[1], c.rows[0])) for c in cuts],
         "lies outside the checkpoint"),
        (lambda s, r, stack, name, cuts: [replace(c, at_row=c.at_row + 1) for c in cuts], "does not fit"),
        (lambda s, r, stack, name, cuts: [replace(c, at_row=0) for c in cuts], "land on the same bytes"),
        (lambda s, r, stack, name, cuts: [replace(c, at_column=-1) for c in cuts], "does not fit"),
    ],
)  # fmt: skip
def test_cuts_that_lose_repeat_or_misplace(change, what):
    error = refused(make_plan(model_of(spec_of(2, 64, 128)), RAW, tp=2), change)
    assert what in error.what


def test_halves_that_are_swapped_are_refused():
    """w3 where w1 belongs: covered and inside, and still wrong."""

    def swapped(shape, rank, stack, name, cuts):
        return [replace(c, at_row=shape.intermediate - c.at_row) if stack == "w13" else c for c in cuts]

    error = refused(make_plan(model_of(spec_of(2, 64, 128)), RAW, tp=2), swapped)
    assert "starts" in error.what


def test_an_expert_on_no_rank():
    plan = make_plan(model_of(spec_of(4)), RAW, ep=2)
    broken = replace(plan, shapes=(replace(plan.shapes[0], owners=((0, 1), (3,))),))
    with pytest.raises(PartitionError) as caught:
        broken.prove()
    assert (caught.value.code, caught.value.expert) == ("plan.cover", 2)


def test_an_expert_that_does_not_exist():
    plan = make_plan(model_of(spec_of(4)), RAW, ep=2)
    broken = replace(plan, shapes=(replace(plan.shapes[0], owners=((0, 1), (2, 3, 7))),))
    with pytest.raises(PartitionError) as caught:
        broken.prove()
    assert (caught.value.code, caught.value.expert) == ("plan.cover", 7)


@pytest.mark.parametrize("changes", [{"tp": 3}, {"ep": 1}, {"tp": 10**12}])
def test_a_plan_whose_ranks_are_not_those_of_its_shapes(changes):
    plan = replace(make_plan(model_of(spec_of(4)), RAW, tp=2, ep=2), **changes)
    with pytest.raises(PartitionError, match="not dealt") as caught:
        plan.prove()
    assert caught.value.found == "tp 2, ep 2"


@pytest.mark.parametrize("layers", [{}, {"layers.0": 1}, {"layers.0": -1}])
def test_a_plan_with_a_layer_without_a_shape(layers):
    with pytest.raises(PartitionError, match="no shape"):
        replace(make_plan(model_of(spec_of(4)), RAW), layers=layers).prove()
