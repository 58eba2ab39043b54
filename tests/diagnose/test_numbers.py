"""A layer's output against the reference: what the kernel misunderstood is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardproof.diagnose import Activations, Diagnosis, diagnose, put_back
from shardproof.kernels.reference import Reference, from_packed
from shardproof.mistakes import Mistake, find_mistake
from shardproof.pack import pack_in_memory
from tests.diagnose.conftest import Made

torch = pytest.importorskip("torch")


def _case(made: Made, name: str, rank: int = 1, seed: int = 0) -> tuple[Reference, Activations, object, object]:
    model, plan, _ = made(name)
    layer = pack_in_memory(model, plan, plan.ranks[rank]).layers["layers.0"]
    right = from_packed(layer)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(24, layer.spec.hidden, generator=rng) * 0.05
    ids = torch.stack([torch.randperm(layer.spec.experts, generator=rng)[:2] for _ in range(24)])
    weights = torch.rand(24, 2, generator=rng) + 0.5
    return right, Activations(x, ids, weights, right(x, ids, weights)), model, plan


def _diagnose(
    made: Made, name: str, given: Activations, mistakes: tuple[Mistake, ...] = (), rank: int = 1
) -> Diagnosis:
    model, plan, _ = made(name)
    dump = put_back(model, plan, "layers.0", plan.ranks[rank], mistakes)
    hints = {"rank": rank, "tp": plan.tp, "ep": plan.ep, "recipe": plan.recipe}
    return diagnose(dump, model, activations=given, **hints)


@pytest.mark.parametrize("name", ["v4_flash", "gpt_oss", "v4_pro_ep"])
def test_right_numbers_raise_no_alarm(made: Made, name: str) -> None:
    _, given, _, _ = _case(made, name)
    assert not _diagnose(made, name, given).findings
    noisy = replace(given, y=given.y.bfloat16())
    assert not _diagnose(made, name, noisy).findings


def test_misunderstandings_are_named(made: Made) -> None:
    right, given, _, _ = _case(made, "v4_flash")
    spec = right.spec
    unclamped = replace(right, spec=replace(spec, activation=replace(spec.activation, limit=None)))
    big = replace(given, x=given.x * 40)
    cases = {
        "routing_weight_dropped": replace(given, y=right(given.x, given.topk_ids, torch.ones(24, 2))),
        "clamp_missing": replace(big, y=unclamped(big.x, big.topk_ids, big.topk_weights)),
    }
    for name, case in cases.items():
        assert _diagnose(made, "v4_flash", case).names == {name}


def test_wrong_bytes_explain_the_output(made: Made) -> None:
    from shardproof.packed import PackedLayer

    model, plan, _ = made("v4_flash")
    _, given, _, _ = _case(made, "v4_flash")
    wrong = put_back(model, plan, "layers.0", plan.ranks[1], [find_mistake("gate_up_swapped")])
    tensors = {slot: wrong[f"layers.0.experts.{'.'.join(slot)}"] for slot in plan.fields("layers.0")}
    read = from_packed(PackedLayer("layers.0", plan.ranks[1], plan, tensors))
    case = replace(given, y=read(given.x, given.topk_ids, given.topk_weights))
    found = _diagnose(made, "v4_flash", case, (find_mistake("gate_up_swapped"),))
    assert found.names == {"gate_up_swapped", "output_of_wrong_bytes"}


def test_an_expert_that_contributes_nothing(made: Made) -> None:
    right, given, _, _ = _case(made, "v4_flash")
    held = tuple(e if e != 3 else -7 for e in right.experts)
    found = _diagnose(
        made, "v4_flash", replace(given, y=replace(right, experts=held)(given.x, given.topk_ids, given.topk_weights))
    )
    assert found.names == {"numbers_wrong"}
    assert "experts 3 contribute nothing" in found.sentence
    assert "the bytes of the dump are right" in found.sentence


def test_not_a_number_is_not_right(made: Made) -> None:
    _, given, _, _ = _case(made, "v4_flash")
    y = given.y.clone()
    y[3, 5] = float("nan")
    assert not _diagnose(made, "v4_flash", replace(given, y=y)).ok
