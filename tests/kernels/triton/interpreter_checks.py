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
sys.path[:0] = [str(Path(__file__).parents[1] / "cuda"), str(Path(__file__).parents[3])]

from hopper_cases import Case, relative_error  # noqa: E402

from shardproof.experts import Activation  # noqa: E402
from shardproof.kernels.triton import grouped  # noqa: E402
from shardproof.kernels.triton.layer import TritonExperts, round_e4m3, token_tiles  # noqa: E402

SILU = Activation("silu", limit=10.0)


@pytest.fixture(autouse=True)
def one_element_arrays_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter makes loop bounds of one-element arrays by int(), which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


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


@pytest.mark.parametrize("precision", ["w4a16", "w4a8"])
def test_from_packed_ranks(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the implementation makes of a packed layer: biases, padding, expert maps, global ids."""
    from functools import partial

    from tests.checkpoints import make
    from tests.kernels.gpu_layers import PORTABLE, judged, packed
    from tests.layers import inputs

    from shardproof.kernels.implementation import implementations
    from shardproof.kernels.triton import layer as triton_layer

    monkeypatch.setattr(triton_layer, "TritonExperts", partial(TritonExperts, mode="float32"))
    make(tmp_path, "gpt_oss", experts=3, hidden=64, intermediate=96)
    name = "shardproof_triton" + ("" if precision == "w4a16" else "_w4a8")
    way = next(i for i in implementations() if i.name == name)
    for layer in packed(tmp_path, PORTABLE, tp=2, ep=2):
        x, ids, weights = inputs(4, layer.spec)
        x, ids[1, 0] = (x / 64).bfloat16(), -1
        run = way.prepare(layer, torch.device("cpu"))
        with monkeypatch.context() as only:
            only.setattr(torch.Tensor, "to", _never_bfloat16(torch.Tensor.to))
            found = run(x, ids, weights)
        assert relative_error(found, judged([layer], name, x, ids, weights).double()) < 1e-5


def _never_bfloat16(to):  # the interpreter cannot hold bfloat16 (Triton 3.6)
    return lambda t, *a, **kw: t.float() if a == (torch.bfloat16,) else to(t, *a, **kw)


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


@pytest.mark.parametrize(("tokens", "experts", "block"), [(1, 3, 8), (40, 5, 16), (2100, 4, 64), (3, 200, 8)])
def test_blocks_hold_every_slot_once(tokens: int, experts: int, block: int) -> None:
    ids = torch.randint(-1, experts + 1, (tokens, 2), dtype=torch.int32)
    ids = grouped.local_ids(ids, None)
    made = grouped.align(ids, experts, block)
    flat, used = ids.flatten(), int(made.padded)
    assert used % block == 0
    seen = []
    for i, slots in enumerate(made.slots[:used].view(-1, block).tolist()):
        live = [s for s in slots if s < flat.numel()]
        assert all(flat[s] == made.experts[i] for s in live)
        seen += live
    assert sorted(seen) == (flat < experts).nonzero().flatten().tolist()
    assert (made.slots[used:] == flat.numel()).all()
    assert used == sum(-(-int((flat == e).sum()) // block) * block for e in range(experts))


@pytest.mark.parametrize("activation", [Activation("silu"), Activation("swiglu_oai", limit=7.0), Activation("situ")])
def test_the_activation_apart(activation: Activation) -> None:
    h = torch.randn(3, 2 * 1100) * 4
    wanted = Case(1, 32, 32, activation, device="cpu").gate(h[:, :1100].double(), h[:, 1100:].double())
    assert relative_error(grouped.gated(h, activation), wanted) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_the_sum_over_slots(weighted: bool, moved: bool) -> None:
    ids = torch.tensor([[0, -1, 2], [1, 1, 9]], dtype=torch.int32)
    y, weights, at = torch.randn(6, 1200), torch.rand(2, 3), torch.randperm(6)
    rows = (y[at] if moved else y).view(2, 3, 1200) * (weights[..., None] if weighted else 1)
    wanted = torch.where(((ids >= 0) & (ids < 3))[..., None], rows, 0).sum(1)[:, :1100]
    local = grouped.local_ids(ids, None)
    y[int(at[1]) if moved else 1] = float("nan")
    found = grouped.sum_routed(
        y, local, 3, 1100, weights=weights if weighted else None, at=at.int() if moved else None
    )  # fmt: skip
    assert relative_error(found, wanted.double()) < 1e-6


def test_local_ids() -> None:
    ids = torch.tensor([[0, -1], [3, 7]], dtype=torch.int32)
    expert_map = torch.tensor([-1, 0, -1, 1], dtype=torch.int32)
    absent = 0x7FFFFFFF
    assert grouped.local_ids(ids, expert_map).tolist() == [[absent, absent], [1, absent]]
    assert grouped.local_ids(ids, None).tolist() == [[0, absent], [3, 7]]


def test_rounding_is_deepseeks() -> None:
    x = torch.randn(4, 320) * torch.logspace(-6, 4, 4)[:, None]
    codes, scales = round_e4m3(x)
    value = codes.float() * torch.exp2(scales.float() - 127).repeat_interleave(32, -1)
    block = x[:, :128]
    scale = torch.exp2(torch.ceil(torch.log2(block.abs().amax(1).clamp(min=1e-4).double() / 448)))
    assert torch.equal(torch.exp2(scales[:, 0].double() - 127), scale)
    big = x.abs().amax(1) > 1e-3
    assert relative_error(value[big, :320], x[big].double()) < 0.04
