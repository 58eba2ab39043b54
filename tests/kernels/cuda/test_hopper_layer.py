"""The Hopper layer on a GPU against float64: each geometry, activation, map and shape; poisoned outputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hopper_cases import Case, relative_error  # noqa: E402

from shardproof.experts import Activation  # noqa: E402
from shardproof.kernels.cuda import builds, workspace  # noqa: E402

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")]
TOLERANCE = {"w4a16": 5e-3, "w4a8": 1.5e-2}
SILU = Activation("silu", limit=10.0)


def poison() -> None:
    for pool in workspace._POOLS.values():
        for name, t in pool.items():
            if name in ("h", "y", "rounded"):
                t.fill_(float("nan"))
            elif name == "xq":
                t.fill_(0x7F)
            elif name in ("xs", "hs"):
                t.fill_(float("nan"))
            elif name in ("many_x", "many_h", "many_hq", "many_xs", "many_hs", "many_y"):
                t.fill_(0xFF)  # NaN in every format


def check(case: Case, build: builds.Build | None, tokens: int, top_k: int, **kw: object) -> None:
    layer = case.layer()
    tolerance = TOLERANCE[case.precision]
    for seed in (1, 2):
        x, ids, weights = case.inputs(tokens, top_k, seed=seed, **kw)
        outs = []
        for _ in range(2):
            out = torch.full_like(x, float("nan"))
            if build is None:
                out = layer(x, ids, weights)
            else:
                layer.run(build, x, ids, weights, out)
            outs.append(out)
            poison()
        assert torch.equal(outs[0], outs[1])
        assert relative_error(outs[0], case.reference(x, ids, weights)) < tolerance


BF16 = [b for b in builds.BUILDS.values() if not b.fp8]
FP8 = [b for b in builds.BUILDS.values() if b.fp8]


@pytest.mark.parametrize("build", BF16, ids=lambda b: b.name)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (3, 2), (17, 3), (200, 4)])
def test_w4a16(build: builds.Build, tokens: int, top_k: int) -> None:
    check(Case(6, 512, 256, SILU), build, tokens, top_k)


@pytest.mark.parametrize("build", [*BF16, *FP8], ids=lambda b: b.name)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (17, 3), (200, 4)])
def test_w4a8(build: builds.Build, tokens: int, top_k: int) -> None:
    check(Case(6, 512, 256, SILU, precision="w4a8"), build, tokens, top_k)


@pytest.mark.parametrize(
    ("build", "width"), [(b, w) for b in (*BF16, *FP8) for w in b.widths], ids=lambda v: getattr(v, "name", v)
)
def test_every_compiled_width(build: builds.Build, width: int) -> None:
    """One expert has exactly as many tokens as a width holds."""
    check(Case(1, 512, 256, SILU, precision="w4a8" if build.fp8 else "w4a16"), build, width, 1)


@pytest.mark.parametrize("build", [*BF16, *FP8], ids=lambda b: b.name)
@pytest.mark.parametrize("top_k", [9, 40])
def test_more_experts_a_token_than_the_last_sum_takes_at_once(build: builds.Build, top_k: int) -> None:
    check(Case(48, 128, 64, SILU, precision="w4a8" if build.fp8 else "w4a16"), build, 5, top_k)


@pytest.mark.parametrize("build", [*BF16, *FP8], ids=lambda b: b.name)
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 64), (96, 32), (320, 352), (448, 192), (2880, 480)])
def test_shapes(build: builds.Build, hidden: int, intermediate: int) -> None:
    check(Case(3, hidden, intermediate, SILU, precision="w4a8" if build.fp8 else "w4a16"), build, 40, 2)


@pytest.mark.parametrize("build", [*BF16, *FP8], ids=lambda b: b.name)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "activation",
    [Activation("silu"), Activation("swiglu_oai", limit=7.0), Activation("situ")],
    ids=lambda a: a.kind,
)
def test_activations(build: builds.Build, activation: Activation, first: bool) -> None:
    precision = "w4a8" if build.fp8 else "w4a16"
    check(Case(4, 256, 128, activation, bias=not first, weight_first=first, precision=precision), build, 33, 2)


@pytest.mark.parametrize("build", [*BF16, *FP8], ids=lambda b: b.name)
@pytest.mark.parametrize("ids", ["one", "hot"])
def test_uneven_routing(build: builds.Build, ids: str) -> None:
    check(Case(5, 256, 128, SILU, precision="w4a8" if build.fp8 else "w4a16"), build, 170, 3, ids=ids)


@pytest.mark.parametrize("precision", ["w4a16", "w4a8"])
@pytest.mark.parametrize("scales", [(120, 121), (110, 130), (1, 254)])
@pytest.mark.parametrize("tokens", [4, 100, 400])
def test_scales(precision: str, scales: tuple[int, int], tokens: int) -> None:
    if scales == (1, 254):
        case = Case(3, 128, 64, Activation("situ"), precision=precision)
        case.s13.fill_(1)
        case.s13[1] = 200
    else:
        case = Case(3, 256, 128, SILU, precision=precision, scales=scales)
    layer = case.layer()
    x, ids, weights = case.inputs(tokens, 2)
    assert relative_error(layer(x, ids, weights), case.reference(x, ids, weights)) < TOLERANCE[precision]


@pytest.mark.parametrize("tokens", [5, 300])
def test_zeros(tokens: int) -> None:
    case = Case(3, 128, 64, SILU)
    case.w2.zero_()
    x, ids, weights = case.inputs(tokens, 2)
    assert torch.equal(case.layer()(x, ids, weights), torch.zeros_like(x))


@pytest.mark.parametrize("tokens", [1, 6, 300])
@pytest.mark.parametrize("precision", ["w4a16", "w4a8"])
def test_expert_map_and_absent_slots(tokens: int, precision: str) -> None:
    case = Case(4, 256, 128, SILU, precision=precision)
    expert_map = torch.tensor([-1, 2, -1, 0, 3, -1, 1, -1], device="cuda", dtype=torch.int32)
    layer = case.layer(expert_map)
    x, ids, weights = case.inputs(tokens, 3, total=8)
    ids[::3, 1] = -1
    assert relative_error(layer(x, ids, weights), case.reference(x, ids, weights, expert_map)) < TOLERANCE[precision]
    ids.fill_(2)
    assert torch.equal(layer(x, ids, weights), torch.zeros_like(x))


def test_a_nan_token_stays_alone() -> None:
    case = Case(3, 256, 128, SILU)
    layer = case.layer()
    for tokens in (4, 60, 300):
        x, ids, weights = case.inputs(tokens, 2)
        good = layer(x, ids, weights)
        x[2] = float("nan")
        bad = layer(x, ids, weights)
        keep = torch.arange(tokens, device="cuda") != 2
        assert torch.equal(bad[keep], good[keep])
        assert torch.isnan(bad[2]).all()


def test_no_tokens() -> None:
    case = Case(2, 128, 64)
    x, ids, weights = case.inputs(0, 2)
    assert case.layer()(x, ids, weights).shape == (0, 128)


@pytest.mark.parametrize("tokens", [2, 90])
def test_graph_capture_and_replay(tokens: int) -> None:
    case = Case(4, 256, 128, SILU)
    layer = case.layer()
    x, ids, weights = case.inputs(tokens, 2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        layer(x, ids, weights)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        out = layer(x, ids, weights)
    for seed in (5, 6):
        fresh = case.inputs(tokens, 2, seed=seed)
        for held, new in zip((x, ids, weights), fresh, strict=True):
            held.copy_(new)
        graph.replay()
        assert relative_error(out, case.reference(*fresh)) < TOLERANCE["w4a16"]
