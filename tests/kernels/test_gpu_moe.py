"""`moe` on a GPU, from a checkpoint through `shardproof pack`, against the reference and float64."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from shardproof.cli.app import application
from shardproof.errors import KernelError
from shardproof.experts import Activation
from shardproof.moe import PreparedLayer, moe
from shardproof.packed import load
from shardproof.repack import is_packed
from tests.checkpoints import make
from tests.kernels.gpu_layers import HOPPER, PORTABLE, judged, packed
from tests.layers import by_hand, inputs

ON_GPU = torch.cuda.is_available()
ON_HOPPER = ON_GPU and torch.version.hip is None and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a GPU")]
needs_hopper = pytest.mark.skipif(not ON_HOPPER, reason="needs an NVIDIA Hopper GPU")

WAYS = [
    pytest.param(HOPPER, "shardproof_hopper", marks=needs_hopper),
    pytest.param(HOPPER, "shardproof_hopper_w4a8", marks=needs_hopper),
    (PORTABLE, "shardproof_triton"),
    (PORTABLE, "shardproof_triton_w4a8"),
]
SITU = {"activation": Activation("situ")}


def small(x: torch.Tensor) -> torch.Tensor:
    """Tokens small enough that activations are not all at their limits."""
    return (x / 64).bfloat16()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double().cpu() - wanted.double().cpu()).norm() / wanted.double().norm())


def bound(name: str) -> float:
    return 1.5e-2 if name.endswith("w4a8") else 6e-3


@pytest.mark.parametrize(("platform", "name"), WAYS)
@pytest.mark.parametrize(("kind", "spec"), [("deepseek", None), ("gpt_oss", None), ("compressed_tensors", SITU)])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("tokens", [1, 7, 150])
def test_ranks_add_up_to_the_judge(tmp_path, platform, name, kind, spec, tp, ep, tokens):
    make(tmp_path, kind, experts=6, hidden=320, intermediate=256, top_k=3, seed=tp)
    ranks = packed(tmp_path, platform, tp=tp, ep=ep, spec=spec)
    x, ids, weights = inputs(tokens, ranks[0].spec, top_k=3)
    x, ids[0, 1] = small(x), -1
    found = moe(x.cuda(), ranks, ids.cuda(), weights.cuda(), implementation=name)
    assert (found.dtype, found.device.type) == (torch.bfloat16, "cuda")
    assert error(found, judged(ranks, name, x, ids, weights)) < bound(name) + 4e-3 * (len(ranks) > 1)


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_from_a_checkpoint_to_the_result(tmp_path, kind):
    made = make(tmp_path / "ckpt", kind, hidden=192, intermediate=160)
    out = tmp_path / "packed"
    run = CliRunner().invoke(application(), ["pack", str(made.folder), str(out), "--backend", "shardproof_gpu"])
    assert run.exit_code == 0, run.output
    assert is_packed(out)
    proof = CliRunner().invoke(application(), ["verify", str(out), "--against", str(made.folder)])
    assert proof.exit_code == 0, proof.output
    layer = load(out, 0).layers["layers.0"]
    prepared = PreparedLayer(layer, device="cuda")
    assert prepared.implementation == ("shardproof_hopper" if ON_HOPPER else "shardproof_triton")
    x, ids, weights = inputs(9, layer.spec)
    x = small(x)
    exact = torch.from_numpy(by_hand(made, layer.spec, x.float(), ids, weights))
    assert error(moe(x.cuda(), layer, ids.cuda(), weights.cuda()), exact) < 6e-3
    assert error(prepared(x.cuda(), ids.cuda(), weights.cuda()), exact) < 6e-3


@pytest.mark.parametrize(("platform", "name"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_strides_and_no_tokens(tmp_path, platform, name, dtype):
    make(tmp_path, "deepseek", hidden=128, intermediate=128)
    (layer,) = packed(tmp_path, platform)
    x, ids, weights = inputs(6, layer.spec)
    prepared = PreparedLayer(layer, implementation=name, device="cuda")
    given = small(x).to(dtype).cuda()
    plain = prepared(given, ids.int().cuda(), weights.cuda())
    assert plain.dtype == dtype
    strided = torch.stack([given, given], -1).flatten(1)[:, ::2]
    assert torch.equal(prepared(strided, ids.long().T.contiguous().T.cuda(), weights.cuda()), plain)
    assert prepared(given[:0], ids[:0].cuda(), weights[:0].cuda()).shape == (0, 128)


@pytest.mark.parametrize(("platform", "name"), WAYS)
def test_replicas_are_counted_once(tmp_path, platform, name):
    make(tmp_path, "deepseek", hidden=128, intermediate=128)
    ranks = packed(tmp_path, platform, ep=3, placement=[[0, 1, 3], [2, 3, 0], [3]])
    x, ids, weights = inputs(9, ranks[0].spec)
    whole = judged(packed(tmp_path, platform), name, small(x), ids, weights)
    found = moe(small(x).cuda(), ranks, ids.cuda(), weights.cuda(), implementation=name)
    assert error(found, whole) < bound(name) + 4e-3


@pytest.mark.parametrize(("platform", "name"), WAYS)
def test_compiled_and_captured(tmp_path, platform, name):
    make(tmp_path, "gpt_oss", hidden=128, intermediate=128)
    (layer,) = packed(tmp_path, platform)
    prepared = PreparedLayer(layer, implementation=name, device="cuda")
    x, ids, weights = (t.cuda() for t in inputs(5, layer.spec))
    x, ids = small(x), ids.int()
    plain = prepared(x, ids, weights)
    compiled = torch.compile(lambda *a: prepared(*a) * 2, fullgraph=True)
    assert torch.equal(compiled(x, ids, weights), plain * 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = prepared(x, ids, weights)
    x.copy_(x.flip(0))
    graph.replay()
    assert torch.equal(out, prepared(x, ids, weights))
    assert not torch.equal(out, plain)


@pytest.mark.parametrize(("platform", "name"), WAYS)
def test_mistakes_are_named(tmp_path, platform, name):
    make(tmp_path, "deepseek", hidden=128, intermediate=128)
    (layer,) = packed(tmp_path, platform)
    prepared = PreparedLayer(layer, implementation=name, device="cuda")
    x, ids, weights = (t.cuda() for t in inputs(3, layer.spec))
    with pytest.raises(KernelError) as refused:
        prepared(x.cpu(), ids, weights)
    assert (refused.value.code, refused.value.next_step) == ("kernel.device", "move it: x.to('cuda')")
    with pytest.raises(KernelError, match=r"kernel\.dtype"):
        prepared(x.double(), ids, weights)
    ids[1, 0] = 4
    with pytest.raises(KernelError, match=r"kernel\.expert_id"):
        moe(x, layer, ids, weights, implementation=name)


@needs_hopper
def test_a_raw_layer_is_refused_by_the_hopper_kernel(tmp_path):
    make(tmp_path, "deepseek", hidden=128, intermediate=128)
    (layer,) = packed(tmp_path, PORTABLE)
    x, ids, weights = (t.cuda() for t in inputs(3, layer.spec))
    with pytest.raises(KernelError) as refused:
        moe(x, layer, ids, weights, implementation="shardproof_hopper")
    assert "found layout raw.weight@1 for w13.weight" in str(refused.value.found)
