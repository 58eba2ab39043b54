"""The Triton layer's numerics on a CPU, through Triton's interpreter, against float64.

Run by test_triton_interpreter.py in a process of its own: Triton decides at its first import whether it interprets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"
torch = pytest.importorskip("torch")
pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))

from hopper_cases import Case, relative_error  # noqa: E402

from shardproof.experts import Activation  # noqa: E402
from shardproof.kernels.triton.layer import TritonExperts, round_e4m3, token_tiles  # noqa: E402

SILU = Activation("silu", limit=10.0)
# Triton 3.6's interpreter turns one-element arrays into numbers, which NumPy says it will refuse one day.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


def layer(case: Case, expert_map: torch.Tensor | None = None) -> TritonExperts:
    return TritonExperts(
        case.w13, case.s13, case.w2, case.s2, case.b13, case.b2,
        experts=case.experts, hidden=case.hidden, intermediate=case.intermediate, activation=case.activation,
        weight_before_w2=case.weight_first, precision=case.precision, expert_map=expert_map, mode="float32",
    )  # fmt: skip


def check(case: Case, tokens: int, top_k: int, tolerance: float = 5e-3, **kw: object) -> None:
    x, ids, weights = case.inputs(tokens, top_k, **kw)
    out = layer(case)(x.float(), ids, weights)
    assert relative_error(out, case.reference(x, ids, weights)) < tolerance


@pytest.mark.parametrize("precision", ["w4a16", "w4a8"])
def test_layer(precision: str) -> None:
    check(
        Case(3, 160, 96, SILU, device="cpu", precision=precision),
        7,
        2,
        5e-3 if precision == "w4a16" else 1.5e-2,
    )


@pytest.mark.parametrize(
    ("activation", "first"),
    [(Activation("swiglu_oai", limit=7.0), False), (Activation("situ"), True)],
    ids=["swiglu_oai", "situ"],
)
def test_activations_biases_and_weights(activation: Activation, first: bool) -> None:
    check(Case(2, 64, 64, activation, bias=not first, weight_first=first, device="cpu"), 5, 2)


def test_one_expert_takes_every_token() -> None:
    check(Case(2, 64, 32, SILU, device="cpu"), 40, 1, ids="one")


def test_map_and_absent_slots() -> None:
    case = Case(2, 64, 32, SILU, device="cpu")
    expert_map = torch.tensor([-1, 1, -1, 0])
    x, ids, weights = case.inputs(6, 2, total=4)
    ids[2] = -1
    out = layer(case, expert_map)(x.float(), ids, weights)
    assert relative_error(out, case.reference(x, ids, weights, expert_map)) < 5e-3
    assert torch.equal(out[2], torch.zeros(64))


def test_no_tokens() -> None:
    case = Case(1, 64, 32, device="cpu")
    x, ids, weights = case.inputs(0, 2)
    assert layer(case)(x.float(), ids, weights).shape == (0, 64)


def test_tiles_hold_every_slot_once() -> None:
    local = torch.randint(-1, 5, (100,))
    tiles, slots = token_tiles(local, 5, 16)
    seen = []
    for expert, start, count in tiles.tolist():
        places = slots[start : start + count].tolist()
        assert all(local[s] == expert for s in places)
        seen += places
    assert sorted(seen) == (local >= 0).nonzero().flatten().tolist()


def test_rounding_is_deepseeks() -> None:
    x = torch.randn(4, 320) * torch.logspace(-6, 4, 4)[:, None]
    codes, scales = round_e4m3(x)
    value = codes.float() * torch.exp2(scales.float() - 127).repeat_interleave(32, -1)
    block = x[:, :128]
    scale = torch.exp2(torch.ceil(torch.log2(block.abs().amax(1).clamp(min=1e-4).double() / 448)))
    assert torch.equal(torch.exp2(scales[:, 0].double() - 127), scale)
    big = x.abs().amax(1) > 1e-3
    assert relative_error(value[big, :320], x[big].double()) < 0.04
