"""`torch.ops.shardproof.gpu_moe`: fake tensors, opcheck and torch.compile, with a layer that a CPU can run."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shardproof.errors import KernelError
from shardproof.kernels import torch_op
from shardproof.kernels.device.experts import runner
from shardproof.moe import PreparedLayer
from tests.checkpoints import make
from tests.kernels.gpu_layers import packed


class Doubler:
    """Takes what a GPU layer takes, and gives x doubled plus its first weight."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, topk_ids, topk_weights))
        return (2 * x + topk_weights[:, :1]).to(x.dtype)


def given(tokens: int = 5) -> tuple[torch.Tensor, ...]:
    ids = torch.zeros(tokens, 2, dtype=torch.int32)
    return torch.randn(tokens, 64).bfloat16(), ids, torch.rand(tokens, 2)


def test_opcheck():
    layer = Doubler()
    torch.library.opcheck(torch.ops.shardproof.gpu_moe.default, (*given(), torch_op.register(layer)))


def test_fake_tensors_of_a_gpu_run_nothing():
    with FakeTensorMode():
        x = torch.empty(5, 64, dtype=torch.bfloat16, device="cuda")
        ids, weights = torch.empty(5, 2, dtype=torch.int32, device="cuda"), torch.empty(5, 2, device="cuda")
        out = torch.ops.shardproof.gpu_moe(x, ids, weights, 10**9)
        assert (out.shape, out.dtype, out.device.type) == ((5, 64), torch.bfloat16, "cuda")
        with pytest.raises(KernelError, match=r"kernel\.shape.*wrong shape"):
            torch.ops.shardproof.gpu_moe(x, ids, torch.empty(2, 2, device="cuda"), 0)


def test_a_layer_that_is_gone_is_named():
    layer = Doubler()
    handle = torch_op.register(layer)
    assert torch.ops.shardproof.gpu_moe(*given(), handle).shape == (5, 64)
    del layer
    gc.collect()
    with pytest.raises(KernelError) as gone:
        torch.ops.shardproof.gpu_moe(*given(), handle)
    assert str(gone.value) == (
        f"[kernel.handle] the layer of this call is gone\n  found: handle {handle}\n  needed: a layer that is held\n"
        "  next: keep the prepared layer for as long as a compiled or exported function calls it"
    )


@pytest.fixture
def prepared(tmp_path):
    """A prepared layer whose kernel is the doubler behind the GPU implementations' own runner."""
    make(tmp_path, "deepseek")
    (layer,) = packed(tmp_path)
    found = PreparedLayer(layer, implementation="reference", check_ids=False)
    doubler = Doubler()
    found._run = runner(layer, doubler)
    return found, doubler


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_inputs_reach_the_kernel_as_it_takes_them(prepared, dtype, ids_dtype):
    layer, doubler = prepared
    _, ids, weights = given()
    wide = torch.randn(5, 128).to(dtype)[:, ::2]
    out = layer(wide, ids.to(ids_dtype).T.contiguous().T, weights.to(dtype))
    (seen,) = doubler.calls
    assert [t.dtype for t in seen] == [torch.bfloat16, torch.int32, torch.float32]
    assert all(t.is_contiguous() for t in seen)
    assert torch.equal(seen[0], wide.bfloat16())
    assert out.dtype == dtype
    assert layer.partial(wide, ids, weights).dtype == torch.float32


def test_torch_compile_sees_one_operator(prepared):
    layer, _ = prepared
    graphs = []

    def backend(graph, _example):
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    compiled = torch.compile(lambda *a: layer(*a) + 1, backend=backend, fullgraph=True)
    x, ids, weights = given()
    assert torch.equal(compiled(x, ids, weights), layer(x, ids, weights) + 1)
    (calls,) = graphs
    assert sum("gpu_moe" in str(target) for target in calls) == 1


def test_ids_are_checked_where_that_is_asked(prepared):
    layer, _ = prepared
    x, ids, weights = given()
    ids[3, 1] = 99
    layer(x, ids, weights)
    layer.check_ids = True
    with pytest.raises(KernelError, match="expert that does not exist"):
        layer(x, ids, weights)
