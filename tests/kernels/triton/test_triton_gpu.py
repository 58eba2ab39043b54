"""The Triton layer on a GPU against float64: activations, precisions, shapes, routings; poisoned memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))

from hopper_cases import Case, relative_error  # noqa: E402

from shardproof.experts import Activation  # noqa: E402
from shardproof.kernels.triton.layer import TritonExperts  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
TOLERANCE = {"w4a16": 6e-3, "w4a8": 1.5e-2}
SILU = Activation("silu", limit=10.0)
KINDS = [Activation("silu"), SILU, Activation("swiglu_oai", limit=7.0), Activation("situ")]


def layer(case: Case, expert_map: torch.Tensor | None = None) -> TritonExperts:
    return TritonExperts(
        case.w13, case.s13, case.w2, case.s2, case.b13, case.b2,
        experts=case.experts, hidden=case.hidden, intermediate=case.intermediate, activation=case.activation,
        weight_before_w2=case.weight_first, precision=case.precision, expert_map=expert_map,
    )  # fmt: skip


def poison(case: Case) -> None:
    """Memory that torch hands out next is full of NaN."""
    held = [torch.full((1 << 22,), float("nan"), device=case.device) for _ in range(4)]
    torch.cuda.synchronize()
    del held


def check(case: Case, tokens: int, top_k: int, **kw: object) -> None:
    made = layer(case)
    for seed in (1, 2):
        x, ids, weights = case.inputs(tokens, top_k, seed=seed, **kw)
        outs = []
        for _ in range(2):
            poison(case)
            outs.append(made(x, ids, weights))
        assert torch.equal(outs[0], outs[1])
        assert relative_error(outs[0], case.reference(x, ids, weights)) < TOLERANCE[case.precision]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("activation", KINDS, ids=["plain", "silu", "swiglu_oai", "situ"])
@pytest.mark.parametrize(("bias", "first"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("tokens", [1, 33, 600])
def test_activations_biases_and_weights(precision, activation, bias, first, tokens) -> None:
    case = Case(4, 256, 128, activation, bias=bias, weight_first=first, precision=precision, scales=(112, 118))
    check(case, tokens, 2)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("hidden", "intermediate"), [(32, 32), (96, 160), (2880, 480), (4096, 256)])
@pytest.mark.parametrize("tokens", [3, 200])
def test_shapes(precision, hidden, intermediate, tokens) -> None:
    check(Case(3, hidden, intermediate, SILU, precision=precision), tokens, 2)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("ids", ["one", "hot"])
def test_uneven_routing(precision, ids) -> None:
    check(Case(5, 256, 128, SILU, precision=precision), 170, 3, ids=ids)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("tokens", [2, 300])
def test_map_and_absent_slots(precision, tokens) -> None:
    case = Case(4, 256, 128, SILU, precision=precision)
    expert_map = torch.tensor([-1, 2, -1, 0, 3, -1, 1, -1], device="cuda", dtype=torch.int32)
    x, ids, weights = case.inputs(tokens, 3, total=8)
    ids[::2, 1] = -1
    made = layer(case, expert_map)
    assert relative_error(made(x, ids, weights), case.reference(x, ids, weights, expert_map)) < TOLERANCE[precision]
    assert torch.equal(made(x, torch.full_like(ids, 2), weights), torch.zeros_like(x))
    assert made(x[:0], ids[:0], weights[:0]).shape == (0, 256)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_graph_capture_and_replay(precision) -> None:
    case = Case(4, 256, 128, SILU, precision=precision)
    made = layer(case)
    x, ids, weights = case.inputs(20, 2)
    made(x, ids, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = made(x, ids, weights)
    fresh = case.inputs(20, 2, seed=6)
    for held, new in zip((x, ids, weights), fresh, strict=True):
        held.copy_(new)
    graph.replay()
    assert relative_error(out, case.reference(*fresh)) < TOLERANCE[precision]
