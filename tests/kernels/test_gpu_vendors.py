"""Vendors' kernels behind `moe`: what they refuse, and, on a GPU, their results from packed bytes against the judge.

On the GPU each runs where its package can be imported; which ones did not is said by the skips.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from shardproof.backends import Request, describe
from shardproof.bench import Subject
from shardproof.errors import KernelError
from shardproof.experts import Activation, ExpertSpec
from shardproof.kernels import marlin, triton_kernels
from shardproof.kernels.device import experts as device_experts
from shardproof.kernels.implementation import implementations
from shardproof.moe import PreparedLayer, choose
from shardproof.oracle import select
from tests.kernels.gpu_layers import claim_gpu

SILU, OAI = Activation("silu", 10.0), Activation("swiglu_oai", 7.0)
DEEPSEEK = ExpertSpec("deepseek_v4", 6, 320, 256, 2, SILU, weight_before_w2=True)
OSS = ExpertSpec("gpt_oss", 6, 320, 256, 2, OAI, bias=True)
SITU = ExpertSpec("kimi_k3", 6, 320, 256, 2, Activation("situ"))
KERNELS = {
    "marlin": ("marlin", (DEEPSEEK, OSS, SITU)), "humming": ("humming", (DEEPSEEK, OSS, SITU)),
    "triton_kernels": ("triton", (OSS,)), "triton_kernels_unfused": ("triton_unfused", (DEEPSEEK,)),
}  # fmt: skip
CASES = [pytest.param(name, spec, id=f"{name}-{spec.family}") for name, (_, specs) in KERNELS.items() for spec in specs]
CUDA = torch.device("cuda")


def layer_for(name: str, spec: ExpertSpec, ep: int = 1, version: str = "3.5.1"):
    where = describe("cuda:sm90", [f"triton_kernels={version}"])
    recipe = select(Request(spec, where, ep=ep), KERNELS[name][0]).recipe
    subject = Subject.random("small", spec, ep=ep)
    return subject, subject.layer(recipe)


def named(name: str):
    return next(i for i in implementations() if i.name == name)


@pytest.fixture
def nothing_installed(monkeypatch):
    claim_gpu(monkeypatch, (9, 0), "NVIDIA H100")
    monkeypatch.setattr(marlin, "operator", lambda: None)
    monkeypatch.setattr(device_experts, "is_importable", lambda name: name == "triton")


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        ("marlin", DEEPSEEK, "found no operator _moe_C.moe_wna16_marlin_gemm, needed vllm 0.33 (read at 0.33.0)"),
        ("humming", DEEPSEEK, "found no package humming, needed humming-kernels (read at 0.1.19)"),
        ("triton_kernels", OSS,
         "found no package triton_kernels, needed 3.5.1 or 1.0.0.post20260510 (read at these)"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_named_with_the_version_that_was_read(name, spec, reason):
    _, layer = layer_for(name, spec)
    assert named(name).refuses(layer, CUDA) == reason
    with pytest.raises(KernelError) as refused:
        choose(layer, CUDA, name)
    assert refused.value.found == f"{name}: {reason}"
    assert choose(layer, CUDA).name == "reference"


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_other_layouts_and_devices_are_refused(name, spec, monkeypatch):
    _, layer = layer_for(name, spec)
    other = next(n for n in ("marlin", "humming") if n != name)
    assert "found layout" in str(named(other).refuses(layer, CUDA))
    claim_gpu(monkeypatch, (9, 0), "NVIDIA H100")
    assert named(name).refuses(layer, torch.device("cpu")) == "found device cpu, needed a GPU (cuda)"


def test_another_generation_is_refused_by_name(monkeypatch):
    claim_gpu(monkeypatch, (9, 0), "NVIDIA H100")
    monkeypatch.setattr(device_experts, "is_importable", lambda _: True)
    _, layer = layer_for("triton_kernels", OSS, version="1.0.0.post20260510")
    monkeypatch.setattr(triton_kernels, "generation", lambda: "triton_kernels.matmul_ogs")
    assert named("triton_kernels").refuses(layer, CUDA) == (
        "found layout triton_kernels.hopper_value_interleaved@2 for w13.weight, needed "
        "triton_kernels.hopper_value_interleaved@1, which is what the installed triton_kernels.matmul_ogs reads"
    )
    monkeypatch.setattr(triton_kernels, "generation", lambda: "triton_kernels.matmul")
    assert named("triton_kernels").refuses(layer, CUDA) is None
    claim_gpu(monkeypatch, (8, 0), "NVIDIA A100")
    assert named("triton_kernels").refuses(layer, CUDA) == "found NVIDIA A100, needed an NVIDIA Hopper GPU (sm90)"


@pytest.mark.parametrize("name", ["marlin", "humming"])
def test_a_bias_after_a_weight_before_w2_is_refused(name, monkeypatch):
    claim_gpu(monkeypatch, (9, 0), "NVIDIA H100")
    _, layer = layer_for(name, dataclasses.replace(OSS, weight_before_w2=True))
    assert named(name).refuses(layer, CUDA) == (
        "found biases and the routing weight before w2, needed one of them at most"
    )


def test_bytes_of_another_size_are_named():
    _, layer = layer_for("marlin", DEEPSEEK)
    like = torch.zeros(1, 5, 7, dtype=torch.int32)
    with pytest.raises(KernelError) as refused:
        device_experts.vendor_tensor(layer, ("w2", "weight"), like, torch.device("cpu"))
    assert refused.value.needed == "6 x 140 bytes"
    assert refused.value.tensor == "w2.weight"


def test_a_vendor_tensor_has_the_vendors_strides():
    _, layer = layer_for("marlin", DEEPSEEK)
    held = layer.tensors["w2", "weight"]
    like = torch.zeros(1, held.size // 6 // 32, 32, dtype=torch.uint8).mT
    made = device_experts.vendor_tensor(layer, ("w2", "weight"), like, torch.device("cpu"))
    assert made.shape == (6, *like.shape[1:])
    assert made.stride()[1:] == like.stride()[1:]
    assert made.mT.reshape(-1).numpy().tobytes() == held.tobytes()


def prepared(name: str, spec: ExpertSpec, ep: int = 1):
    version = "3.5.1" if triton_kernels.generation() != "triton_kernels.matmul" else "1.0.0.post20260510"
    subject, layer = layer_for(name, spec, ep, version)
    reason = named(name).refuses(layer, CUDA)
    if reason:
        pytest.skip(f"{name}: {reason}")
    return subject, PreparedLayer(layer, implementation=name, device="cuda")


def error(subject: Subject, layer: PreparedLayer, tokens: int, spec: ExpertSpec, *, total: int, absent: bool) -> float:
    made = torch.Generator(device="cuda").manual_seed(tokens)
    ids = torch.rand(tokens, total, device="cuda", generator=made).topk(2, 1).indices.int()
    if absent:
        ids[::3, 1] = -1
    x = torch.randn(tokens, spec.hidden, device="cuda", generator=made).bfloat16()
    weights = torch.rand(tokens, 2, device="cuda", generator=made)
    wanted = subject.judge(CUDA)(x.float(), ids, weights).double()
    for _ in range(2):
        torch.full((1 << 24,), float("nan"), device="cuda")  # memory that is handed out next holds NaN
        found = layer.partial(x, ids, weights).double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tokens", [1, 33, 700, 2500])
@pytest.mark.parametrize(("name", "spec"), CASES)
def test_results_from_packed_bytes(name, spec, tokens):
    subject, layer = prepared(name, spec)
    assert error(subject, layer, tokens, spec, total=6, absent=False) < 1e-2
    assert error(subject, layer, tokens, spec, total=6, absent=True) < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tokens", [2, 300])
@pytest.mark.parametrize(("name", "spec"), CASES)
def test_a_rank_of_expert_parallelism(name, spec, tokens):
    subject, layer = prepared(name, spec, ep=2)
    assert error(subject, layer, tokens, spec, total=6, absent=True) < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "spec"), CASES)
def test_wrong_bytes_give_wrong_results(name, spec):
    subject, layer = prepared(name, spec)
    tensors = dict(layer.layer.tensors)
    whole = tensors["w13", "weight"]
    cut = whole.size // 2048 * 2048
    tensors["w13", "weight"] = whole.copy()
    tensors["w13", "weight"][:cut] = whole[:cut].reshape(-1, 2048)[:, ::-1].reshape(-1)
    broken = PreparedLayer(dataclasses.replace(layer.layer, tensors=tensors), implementation=name, device="cuda")
    assert error(subject, broken, 33, spec, total=6, absent=False) > 0.3
