"""Blocks and experts dealt to ranks: conservation, and equality with engines where engines are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.errors import PartitionError
from shardproof.partition import POLICIES, Rank, block_intervals, expert_owners, ranks

BLOCKS, SIZES = st.integers(1, 400), st.integers(1, 70)


@pytest.mark.parametrize("policy", POLICIES)
@given(blocks=BLOCKS, tp=SIZES)
def test_every_block_is_dealt_once_in_order(policy, blocks, tp):
    intervals = block_intervals(blocks, tp, policy, allow_empty=True)
    assert len(intervals) == tp
    assert [b for start, stop in intervals for b in range(start, stop)] == list(range(blocks))


@given(blocks=BLOCKS, tp=SIZES)
def test_balanced_runs_differ_by_at_most_one_longer_first(blocks, tp):
    lengths = [b - a for a, b in block_intervals(blocks, tp, allow_empty=True)]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(blocks=BLOCKS, tp=SIZES)
def test_balanced_is_numpys_array_split(blocks, tp):
    theirs = [len(part) for part in np.array_split(np.arange(blocks), tp)]
    assert [b - a for a, b in block_intervals(blocks, tp, allow_empty=True)] == theirs


@given(blocks=BLOCKS, tp=SIZES)
def test_ceil_gives_whole_runs_until_nothing_is_left(blocks, tp):
    run = -(-blocks // tp)
    lengths = [b - a for a, b in block_intervals(blocks, tp, "ceil", allow_empty=True)]
    assert lengths == [max(0, min(run, blocks - run * r)) for r in range(tp)]


@given(per_rank=st.integers(1, 40), tp=SIZES)
def test_where_blocks_divide_both_policies_are_the_engines_rule(per_rank, tp):
    size = per_rank * tp * 32
    engine = [(size // tp * r, size // tp * (r + 1)) for r in range(tp)]
    for policy in POLICIES:
        assert [(a * 32, b * 32) for a, b in block_intervals(per_rank * tp, tp, policy)] == engine


def test_gpt_oss_at_tp_8():
    assert [b - a for a, b in block_intervals(90, 8)] == [12, 12, 11, 11, 11, 11, 11, 11]
    assert [b - a for a, b in block_intervals(90, 8, "ceil")] == [12, 12, 12, 12, 12, 12, 12, 6]  # 384 x 7 + 192


def test_v4_pro_at_tp_8_is_384_a_rank():
    assert {(b - a) * 32 for a, b in block_intervals(96, 8)} == {384}


def test_a_rank_without_blocks_is_refused_unless_asked_for():
    with pytest.raises(PartitionError) as caught:
        block_intervals(6, 8)
    error = caught.value
    assert error.code == "partition.empty_rank"
    assert (error.rank, error.found, error.needed) == ("6, 7", "6 blocks of 32 for tp 8 (balanced)", "tp <= 6")
    assert "--allow-empty" in error.next_step
    assert block_intervals(6, 8, allow_empty=True)[6:] == [(6, 6), (6, 6)]


def test_ceil_can_leave_a_rank_empty_although_there_are_blocks_enough():
    with pytest.raises(PartitionError) as caught:
        block_intervals(90, 16, "ceil")  # 6 blocks a rank: rank 15 gets none
    assert (caught.value.rank, caught.value.needed) == ("15", "policy balanced")


def test_unknown_policy():
    with pytest.raises(PartitionError) as caught:
        block_intervals(4, 2, "floor")  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.found) == ("partition.policy", "'floor'")


@pytest.mark.parametrize("tp", [0, -1])
def test_no_ranks_at_all(tp):
    with pytest.raises(PartitionError) as caught:
        block_intervals(4, tp)
    assert caught.value.code == "partition.size"


# -- ranks ------------------------------------------------------------------------------------------------------


@given(tp=st.integers(1, 8), ep=st.integers(1, 8))
def test_ranks_are_numbered_with_tp_fastest(tp, ep):
    group = ranks(tp, ep)
    assert [r.index for r in group] == list(range(tp * ep))
    assert [(r.tp_rank, r.ep_rank) for r in group[: tp + 1]] == [(t % tp, t // tp) for t in range(len(group[: tp + 1]))]
    assert {r.world for r in group} == {tp * ep}


@pytest.mark.parametrize(("tp", "ep", "what"), [(0, 1, "tp"), (1, 0, "ep"), (-2, 1, "tp")])
def test_sizes_below_one_are_refused(tp, ep, what):
    with pytest.raises(PartitionError, match=f"{what} must be at least 1") as caught:
        ranks(tp, ep)
    assert caught.value.code == "partition.size"


@pytest.mark.parametrize("call", [
    lambda: ranks(10**8, 1), lambda: ranks(1000, 1000), lambda: block_intervals(16, 10**8, allow_empty=True),
    lambda: expert_owners(4, 10**8), lambda: expert_owners(4, 10**8, "round_robin"),
])  # fmt: skip
def test_more_ranks_than_anybody_has_are_refused_at_once(call):
    with pytest.raises(PartitionError, match="more ranks than anybody has") as caught:
        call()
    assert (caught.value.code, caught.value.needed) == ("partition.size", "<= 65536")


def test_a_rank_says_where_it_is():
    assert str(Rank(1, 2, 4, 3)) == "9 of 12 (tp 1/4, ep 2/3)"


# -- experts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["linear", "round_robin"])
@given(data=st.data())
def test_named_placements_hold_each_expert_once(placement, data):
    experts = data.draw(st.integers(1, 300))
    ep = data.draw(st.integers(1, experts))
    owners = expert_owners(experts, ep, placement)
    assert sorted(e for row in owners for e in row) == list(range(experts))
    lengths = [len(row) for row in owners]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_linear_gives_the_first_ranks_one_more():
    assert expert_owners(8, 3) == [(0, 1, 2), (3, 4, 5), (6, 7)]


def test_round_robin_is_the_remainder():
    assert expert_owners(5, 2, "round_robin") == [(0, 2, 4), (1, 3)]


@pytest.mark.parametrize("explicit", [[[3, 0], [1, 2]], {0: [3, 0], 1: [1, 2]}])
def test_an_explicit_map_keeps_its_local_order(explicit):
    assert expert_owners(4, 2, explicit) == [(3, 0), (1, 2)]


def test_a_replica_may_stand_on_another_rank():
    assert expert_owners(3, 2, [[0, 1], [2, 0]]) == [(0, 1), (2, 0)]


@pytest.mark.parametrize(
    ("experts", "ep", "placement", "code", "field", "value"),
    [
        (4, 2, [[0, 1], [2]], "partition.cover", "expert", "3"),
        (4, 2, [[0, 1, 2, 3]], "partition.cover", "found", 1),
        (4, 2, {0: [0, 1], 1: [2, 3], 5: [0]}, "partition.cover", "rank", "5"),
        (4, 2, [[0, 1], [2, 4]], "partition.expert_id", "expert", 4),
        (4, 2, [[0, 1], [2, -1]], "partition.expert_id", "needed", "0..3"),
        (4, 2, [[0, 1], [2, 3, 3]], "partition.duplicate", "expert", 3),
        (4, 2, [[0, 1, 2, 3], []], "partition.empty_rank", "rank", 1),
        (4, 2, [[0, 1], [2, 2.5]], "partition.expert_id", "found", "2.5"),
        (4, 2, [[0, 1], [2, "3"]], "partition.expert_id", "found", "'3'"),
        (2, 4, "linear", "partition.empty_rank", "needed", "ep <= 2"),
        (4, 2, "random", "partition.placement", "found", "'random'"),
    ],
)
def test_maps_that_are_refused(experts, ep, placement, code, field, value):
    with pytest.raises(PartitionError) as caught:
        expert_owners(experts, ep, placement)
    assert caught.value.code == code
    assert getattr(caught.value, field) == value


def test_a_long_list_of_missing_experts_is_cut():
    with pytest.raises(PartitionError, match="92 experts are on no rank") as caught:
        expert_owners(100, 1, [list(range(8))])
    assert caught.value.expert == "8, 9, 10, 11, 12, 13, 14, 15"
