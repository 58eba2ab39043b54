"""Which GPU implementation takes a layer, what each refuses, and how that is worded; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from shardproof.errors import KernelError
from shardproof.experts import Activation
from shardproof.kernels.device import experts as device_experts
from shardproof.kernels.implementation import implementations
from shardproof.moe import choose, moe
from tests.checkpoints import make
from tests.kernels.gpu_layers import HOPPER, PORTABLE, claim_gpu, packed
from tests.layers import inputs

H100, A100, T4 = ((9, 0), "NVIDIA H100"), ((8, 0), "NVIDIA A100"), ((7, 5), "Tesla T4")
CUDA = torch.device("cuda")


def named(name: str):
    return next(i for i in implementations() if i.name == name)


@pytest.fixture
def folder(tmp_path):
    make(tmp_path, "gpt_oss", hidden=96, intermediate=160)
    return tmp_path


@pytest.mark.parametrize(
    ("platform", "gpu", "dtype", "name"),
    [
        (HOPPER, H100, "bfloat16", "shardproof_hopper"),
        (HOPPER, H100, "fp8", "shardproof_hopper_w4a8"),
        (PORTABLE, H100, "bfloat16", "shardproof_triton"),
        (PORTABLE, A100, "bfloat16", "shardproof_triton"),
        (PORTABLE, A100, "fp8", "shardproof_triton_w4a8"),
        ("rocm:gfx950", A100, "bfloat16", "shardproof_triton"),
        (HOPPER, A100, "bfloat16", "reference"),
        (PORTABLE, T4, "bfloat16", "reference"),
    ],
)
def test_who_runs_a_layer(folder, monkeypatch, platform, gpu, dtype, name):
    pytest.importorskip("cuda.bindings.nvrtc")
    pytest.importorskip("triton")
    claim_gpu(monkeypatch, *gpu)
    (layer,) = packed(folder, platform, dtype=dtype)
    assert choose(layer, CUDA).name == name


def test_one_is_chosen_by_name(folder, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    claim_gpu(monkeypatch, *H100)
    (layer,) = packed(folder)
    assert choose(layer, CUDA, "shardproof_hopper_w4a8").name == "shardproof_hopper_w4a8"
    with pytest.raises(KernelError) as refused:
        choose(layer, CUDA, "shardproof_triton")
    assert str(refused.value) == (
        "[kernel.implementation] no implementation can run this layer\n  layer: layers.0\n"
        "  rank: 0 of 1 (tp 0/1, ep 0/1)\n"
        "  found: shardproof_triton: found layout shardproof.hopper_w13@1 for w13.weight, needed raw.weight@1\n"
        "  next: pack for another backend, or leave the implementation open"
    )


def test_refusals_say_what_was_found(folder, monkeypatch):
    (hopper,), (raw,) = packed(folder), packed(folder, PORTABLE)
    kernel, portable = named("shardproof_hopper"), named("shardproof_triton")
    assert kernel.refuses(raw, CUDA) == ("found layout raw.weight@1 for w13.weight, needed shardproof.hopper_w13@1")
    assert kernel.refuses(hopper, torch.device("cpu")) == "found device cpu, needed a GPU (cuda)"
    assert portable.refuses(raw, torch.device("cpu")) == "found device cpu, needed a GPU (cuda)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel.refuses(hopper, CUDA) == "found no GPU that torch can use, needed one"
    claim_gpu(monkeypatch, *A100)
    with monkeypatch.context() as without:
        without.setattr(device_experts.importlib.util, "find_spec", lambda _: None)
        found = "found no package cuda.bindings.nvrtc, needed one that can be imported"
        assert kernel.refuses(hopper, CUDA) == found
        assert portable.refuses(raw, CUDA) == "found no package triton, needed one that can be imported"
    if device_experts.is_importable("cuda.bindings.nvrtc"):
        assert kernel.refuses(hopper, CUDA) == "found NVIDIA A100, needed an NVIDIA Hopper GPU (sm90)"
    if device_experts.is_importable("triton"):
        claim_gpu(monkeypatch, *T4)
        assert portable.refuses(raw, CUDA) == "found a GPU sm75, needed sm80 or later, or AMD's"


def test_a_gpu_layer_on_a_cpu_is_refused_by_name(folder):
    (layer,) = packed(folder)
    x, ids, weights = inputs(2, layer.spec)
    with pytest.raises(KernelError) as refused:
        moe(x, layer, ids, weights, implementation="shardproof_hopper")
    assert refused.value.found == "shardproof_hopper: found device cpu, needed a GPU (cuda)"


def hopper(**changes):
    from shardproof.kernels.cuda.layer import HopperExperts

    sizes = {"w13_weight": 2 * 64 * 32, "w13_scale": 2 * 64 * 2, "w2_weight": 64 * 32, "w2_scale": 64 * 2}
    tensors = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
    return HopperExperts(
        **{**tensors, **changes}, experts=1, hidden=64, intermediate=64, activation=Activation("silu")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(4096, dtype=torch.uint8), "torch.uint8 (4096,) on cpu, contiguous: True"),
        (torch.zeros(4096), "torch.float32 (4096,) on cpu, contiguous: True"),
        (torch.zeros(8192, dtype=torch.uint8)[::2], "torch.uint8 (4096,) on cpu, contiguous: False"),
        (torch.zeros(64, dtype=torch.uint8), "torch.uint8 (64,) on cpu, contiguous: True"),
    ],
)
def test_wrong_packed_tensors_are_named(tensor, found):
    with pytest.raises(KernelError) as refused:
        hopper(w13_weight=tensor)
    assert str(refused.value) == (
        "[kernel.tensor] a packed tensor is not what the Hopper kernel reads\n  tensor: w13_weight\n"
        f"  found: {found}\n  needed: 4096 contiguous uint8 on a CUDA device\n"
        "  next: pack for the backend shardproof_gpu, which pads hidden and intermediate to 64"
    )


def call(**changes):
    """The checks of a call of HopperExperts, on tensors that are all on a CPU."""
    from shardproof.kernels.cuda.layer import HopperExperts

    layer = object.__new__(HopperExperts)
    layer.hidden, layer.device = 64, torch.device("cpu")
    given = {
        "x": torch.zeros(3, 64, dtype=torch.bfloat16), "ids": torch.zeros(3, 2, dtype=torch.int32),
        "weights": torch.zeros(3, 2),
    }  # fmt: skip
    layer._check_call(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "tensor", "found", "needed"),
    [
        ({"x": torch.zeros(3, 64)}, "x", "torch.float32 (3, 64) on cpu, contiguous: True",
         "contiguous torch.bfloat16 (3, 64) on cpu"),
        ({"x": torch.zeros(3, 65, dtype=torch.bfloat16)[:, 1:]}, "x",
         "torch.bfloat16 (3, 64) on cpu, contiguous: False", "contiguous torch.bfloat16 (3, 64) on cpu"),
        ({"ids": torch.zeros(3, 2, dtype=torch.int64)}, "topk_ids", "torch.int64 (3, 2) on cpu, contiguous: True",
         "contiguous torch.int32 (3, 2) on cpu"),
        ({"weights": torch.zeros(3, 2, device="meta")}, "topk_weights",
         "torch.float32 (3, 2) on meta, contiguous: True", "contiguous torch.float32 (3, 2) on cpu"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(changes, tensor, found, needed):
    call()
    with pytest.raises(KernelError) as refused:
        call(**changes)
    error = refused.value
    assert (error.code, error.tensor, error.found, error.needed) == ("kernel.tensor", tensor, found, needed)


def test_the_portable_layer_names_a_wrong_tensor():
    pytest.importorskip("triton")
    from shardproof.kernels.triton.layer import TritonExperts

    weight, scale = torch.zeros(1, 128, 32, dtype=torch.uint8), torch.zeros(1, 128, 2, dtype=torch.uint8)
    with pytest.raises(KernelError) as refused:
        TritonExperts(
            weight, scale.float(), weight, scale, experts=1, hidden=64, intermediate=64, activation=Activation("silu")
        )
    assert refused.value.tensor == "w13_scale"
    assert refused.value.found == "torch.float32 (1, 128, 2)"
