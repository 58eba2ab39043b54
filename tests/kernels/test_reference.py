"""The judge, judged: against float64 by hand, against poisoned padding, against its own other forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardproof.experts import Activation, ExpertSpec
from shardproof.kernels.reference import Expert, Reference, from_canonical, from_packed, gated, reference
from shardproof.mxfp4 import decode
from tests.checkpoints import make
from tests.layers import INTERLEAVED, RAW, RECIPES, SEPARATED, by_hand, close, gate_by_hand, inputs, pack_ranks

KINDS = ("deepseek", "gpt_oss", "quark", "compressed_tensors")
ACTIVATIONS = (
    Activation("silu"), Activation("silu", limit=1.0), Activation("swiglu_oai", limit=7.0),
    Activation("swiglu_oai", limit=1.0, alpha=1.3), Activation("situ"), Activation("situ", beta=2.0, linear_beta=3.0),
)  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_are_the_papers(activation):
    grid = torch.linspace(-12, 12, 49, dtype=torch.float64)
    g, u = (t.reshape(-1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    wanted = [gate_by_hand(a, b, activation) for a, b in zip(g.tolist(), u.tolist(), strict=True)]
    torch.testing.assert_close(gated(g, u, activation), torch.tensor(wanted, dtype=torch.float64))


def test_limits_clamp_the_gate_above_only():
    clamped = Activation("silu", limit=2.0)
    far = torch.tensor([100.0]), torch.tensor([100.0])
    assert gated(*far, clamped).item() == pytest.approx(2 / (1 + math.exp(-2)) * 2)
    low = torch.tensor([-5.0]), torch.tensor([-100.0])
    assert gated(*low, clamped).item() == pytest.approx(-5 / (1 + math.exp(5)) * -2)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_and_layout_by_hand(tmp_path, kind, recipe):
    made = make(tmp_path / "ckpt", kind, hidden=96, intermediate=160)
    (layer,) = pack_ranks(tmp_path / "ckpt", RECIPES[recipe])
    x, ids, weights = inputs(5, layer.spec)
    if RECIPES[recipe].bias_dtype == "bfloat16":
        made.bias = {key: torch.from_numpy(b).bfloat16().float().numpy() for key, b in made.bias.items()}
    assert layer.spec.bias == (kind == "gpt_oss")
    assert layer.spec.weight_before_w2 == (kind == "deepseek")
    found = reference(x, layer, ids, weights)
    assert found.dtype == torch.float32
    assert close(found, by_hand(made, layer.spec, x, ids, weights))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS), hidden=st.integers(1, 4), blocks=st.integers(1, 5), experts=st.integers(1, 5),
    tp=st.integers(1, 6), ep=st.integers(1, 5), recipe=st.sampled_from(sorted(RECIPES)), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_ranks_sum_to_the_layer(tmp_path_factory, kind, hidden, blocks, experts, tp, ep, recipe, seed):
    folder = tmp_path_factory.mktemp("ckpt")
    made = make(folder, kind, experts=experts, hidden=32 * hidden, intermediate=32 * blocks, seed=seed)
    ranks = pack_ranks(folder, RECIPES[recipe], tp=tp, ep=min(ep, experts))
    if RECIPES[recipe].bias_dtype == "bfloat16":
        made.bias = {key: torch.from_numpy(b).bfloat16().float().numpy() for key, b in made.bias.items()}
    x, ids, weights = inputs(3, ranks[0].spec, top_k=min(2, experts), seed=seed)
    total = sum(reference(x, layer, ids, weights) for layer in ranks)
    assert close(total, by_hand(made, ranks[0].spec, x, ids, weights))


def poisoned(layer):
    """Canonical stacks of a rank in which everything that a kernel must not read is NaN or large."""
    stacks = {slot: layer.canonical(*slot).copy() for slot in layer.tensors}
    valid, half, hidden = layer.valid, layer.shape.intermediate, layer.spec.hidden
    for (stack, name), array in stacks.items():
        poison = {"weight": 0x77, "scale": 0xFF, "bias": 0x7F}[name]
        unit = {"weight": 2, "scale": 32}.get(name)
        if stack == "w13":
            array[:, valid:half] = array[:, half + valid :] = poison
            if unit:
                array[:, :, hidden // unit :] = poison
        else:
            array[:, hidden:] = poison
            if unit:
                array[:, :, valid // unit :] = poison
    return stacks


@pytest.mark.parametrize("tp", [1, 4])
def test_padding_does_not_count(tmp_path, tp):
    make(tmp_path / "ckpt", "gpt_oss", hidden=96, intermediate=160)
    for layer in pack_ranks(tmp_path / "ckpt", SEPARATED, tp=tp):
        assert (layer.shape.hidden, layer.shape.intermediate) == (256, 256 if tp == 1 else 128)
        stacks = poisoned(layer)
        assert any((stacks[slot] != layer.canonical(*slot)).any() for slot in stacks)
        x, ids, weights = inputs(4, layer.spec)
        judged = from_canonical(layer.spec, stacks, experts=layer.experts, valid=layer.valid)(x, ids, weights)
        assert judged.isfinite().all()
        assert torch.equal(judged, reference(x, layer, ids, weights))


def test_canonical_matrices_need_no_plan(tmp_path):
    made = make(tmp_path / "ckpt", "quark")
    (layer,) = pack_ranks(tmp_path / "ckpt", RAW)
    stacks = {}
    for name, held in (("weight", made.weight), ("scale", made.scale)):
        key = "layers.0"
        stacks["w13", name] = np.stack([np.concatenate([held[key, e, "w1"], held[key, e, "w3"]]) for e in range(4)])
        stacks["w2", name] = np.stack([held[key, e, "w2"] for e in range(4)])
    x, ids, weights = inputs(3, layer.spec)
    assert torch.equal(from_canonical(layer.spec, stacks)(x, ids, weights), reference(x, layer, ids, weights))


@pytest.mark.parametrize("recipe", [SEPARATED, INTERLEAVED], ids=["separated", "interleaved"])
def test_kept_experts_give_the_same_bits(tmp_path, recipe):
    make(tmp_path / "ckpt", "deepseek")
    for layer in pack_ranks(tmp_path / "ckpt", recipe, tp=2, ep=2):
        x, ids, weights = inputs(6, layer.spec)
        kept = from_packed(layer, keep=True)
        assert kept.get(0) is kept.get(0)
        assert torch.equal(kept(x, ids, weights), reference(x, layer, ids, weights))


def test_ids_that_are_not_held_are_skipped(tmp_path):
    make(tmp_path / "ckpt", "quark")
    layer = pack_ranks(tmp_path / "ckpt", SEPARATED, ep=2)[1]
    assert layer.experts == (2, 3)
    x, _, weights = inputs(3, layer.spec)
    ids = torch.tensor([[0, 1], [-1, 0], [-1, 3]])
    found = reference(x, layer, ids, weights)
    assert torch.count_nonzero(found[:2]) == 0
    assert torch.count_nonzero(found[2]) > 0


def test_a_slot_may_name_an_expert_twice(tmp_path):
    make(tmp_path / "ckpt", "gpt_oss")
    (layer,) = pack_ranks(tmp_path / "ckpt")
    x, _, _ = inputs(2, layer.spec)
    twice = reference(x, layer, torch.tensor([[1, 1]] * 2), torch.tensor([[0.25, 0.5]] * 2))
    once = reference(x, layer, torch.tensor([[1, -1]] * 2), torch.tensor([[0.75, 9.0]] * 2))
    assert close(twice, once)


def test_an_expert_is_decoded_with_its_own_numbers(tmp_path):
    made = make(tmp_path / "ckpt", "gpt_oss")
    (layer,) = pack_ranks(tmp_path / "ckpt")
    for local in range(4):
        expert = from_packed(layer).get(local)
        for projection in ("w1", "w3", "w2"):
            key = ("layers.0", local, projection)
            wanted = decode(made.weight[key], made.scale[key])
            assert torch.equal(getattr(expert, projection), torch.from_numpy(wanted))
            assert torch.equal(getattr(expert, f"b{projection[1]}"), torch.from_numpy(made.bias[key]))


def e4m3_by_hand(values: list[float]) -> list[float]:
    """One block of 128: power-of-two scale, nearest E4M3 (3 mantissa bits, exponents from 2**-6, subnormals)."""
    scale = 2.0 ** math.ceil(math.log2(max(1e-4, *map(abs, values)) / 448))
    rounded = []
    for value in values:
        size = min(abs(value) / scale, 448.0)
        step = 2.0 ** (max(math.floor(math.log2(size)), -6) - 3) if size else 1.0
        rounded.append(math.copysign(round(size / step) * step * scale, value))
    return rounded


def test_w4a8_rounds_as_deepseek_does():
    made = torch.Generator().manual_seed(1)
    x = (torch.randn(2, 160, generator=made) * torch.logspace(-6, 3, 160)).bfloat16().float()
    spec = ExpertSpec("deepseek_v4", 1, 160, 160, 1, weight_before_w2=True)
    eye = torch.eye(160)
    seen: list[torch.Tensor] = []

    class Probe(Reference):
        def _one(self, x, expert, weight):
            seen.append(x)
            return super()._one(x, expert, weight)

    judge = Probe(spec, (0,), lambda _local: Expert(eye, eye, eye), "e4m3_1x128")
    judge(x, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    for row, found in zip(x.tolist(), seen[0].tolist(), strict=True):
        assert found == e4m3_by_hand(row[:128]) + e4m3_by_hand(row[128:])


def test_w4a8_is_near_and_its_ranks_add_up_on_whole_blocks(tmp_path):
    make(tmp_path / "ckpt", "deepseek", hidden=128, intermediate=512)
    x, ids, weights = inputs(8, pack_ranks(tmp_path / "ckpt")[0].spec)
    x = x * 2e-3  # gates of about 1, where the activation is smooth
    (whole,) = pack_ranks(tmp_path / "ckpt", SEPARATED)
    exact, quantised = (
        reference(x, whole, ids, weights),
        reference(x, whole, ids, weights, activation_quant="e4m3_1x128"),
    )
    error = (quantised - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.1
    halves = pack_ranks(tmp_path / "ckpt", SEPARATED, tp=2)
    summed = sum(reference(x, half, ids, weights, activation_quant="e4m3_1x128") for half in halves)
    assert close(summed, quantised, relative=8e-3)  # each half leaves as bfloat16
