"""Requests that each backend takes, and single changes that make one of its conditions fail."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cache

from shardproof.backends import Platform, Request, describe
from shardproof.backends.packages import PACKAGES
from shardproof.backends.registry import find
from shardproof.experts import Activation, ExpertSpec

V4_PRO = ExpertSpec("deepseek_v4", 384, 7168, 3072, 6, Activation("silu", 10.0), weight_before_w2=True)
V4_FLASH = ExpertSpec("deepseek_v4", 256, 4096, 2048, 6, Activation("silu", 10.0), weight_before_w2=True)
V41_FLASH = ExpertSpec("deepseek_v4", 384, 5120, 2304, 6, Activation("silu", 10.0), weight_before_w2=True)
GPT_OSS = ExpertSpec("gpt_oss", 128, 2880, 2880, 4, Activation("swiglu_oai", 7.0), bias=True)
KIMI_K3 = ExpertSpec("kimi_k3", 896, 3584, 3072, 16, Activation("situ"))
QWEN3 = ExpertSpec("qwen3_moe", 128, 4096, 1536, 8)
SMOLLM = ExpertSpec("llama_moe", 8, 576, 192, 8)
SPECS = (V4_PRO, V4_FLASH, V41_FLASH, GPT_OSS, KIMI_K3, QWEN3, SMOLLM)

PLACES = (
    *("cpu", "xpu:any"),
    *(f"cuda:sm{capability}" for capability in (75, 89, 90, 100, 120)),
    *(f"rocm:{arch}" for arch in ("gfx942", "gfx950", "gfx1250", "gfx1100")),
)
DTYPES = (None, "bfloat16", "fp8", "mxfp8", "mxfp4")


@cache
def home(name: str) -> Request:
    """A request that a backend takes. A new backend needs no entry here, but a model, a place and a question below."""
    found = (
        Request(spec, describe(where), tp, ep, activation_dtype=dtype)
        for dtype, spec, where, (tp, ep) in itertools.product(DTYPES, SPECS, PLACES, ((8, 1), (1, 8), (1, 1)))
    )
    return next(r for r in found if all(check.ok for check in find(name).checks(r)))


Change = Callable[[Request], Request]


def on(where: str) -> Change:
    """The same on another platform, with the same packages."""
    return lambda request: dataclasses.replace(
        request, platform=dataclasses.replace(describe(where), packages=request.platform.packages)
    )


def model(**fields: object) -> Change:
    """The same for a model that differs in some fields."""
    return lambda request: dataclasses.replace(request, spec=dataclasses.replace(request.spec, **fields))


def asked(**fields: object) -> Change:
    """The same with another question."""
    return lambda request: dataclasses.replace(request, **fields)


def package(name: str, version: str) -> Change:
    """The same with one package in one version."""
    return lambda request: dataclasses.replace(
        request, platform=dataclasses.replace(request.platform, packages={name: version})
    )


def detected(request: Request) -> Request:
    """The same on a machine that was looked at, where nothing is installed (tests see to that)."""
    return dataclasses.replace(request, platform=Platform(request.platform.kind, request.platform.arch))


def all_installed(request: Request) -> Request:
    """The same on a machine that was looked at, with every package named."""
    newest = {name: package.newest or "1.0" for name, package in PACKAGES.items()}
    return dataclasses.replace(
        request, platform=dataclasses.replace(request.platform, packages=newest, described=False)
    )


CHANGES: dict[str, Change] = {
    **{
        f"on {where}": on(where)
        for where in ("cuda:sm70", "cuda:sm90", "cuda:sm100", "cuda:sm120", "xpu:any", "rocm:gfx950")
    },
    "on gfx1250": on("rocm:gfx1250"),
    "silu": model(activation=Activation("silu")),
    "swiglu_oai": model(activation=Activation("swiglu_oai", 7.0)),
    "situ": model(activation=Activation("situ")),
    "biases": model(bias=True),
    "another family": model(family="deepseek_v4"),
    "a hidden size of 2848": model(hidden=2848),
    "tp 1": asked(tp=1),
    "tp 3": asked(tp=3),
    "ep 1": asked(ep=1),
    "ep 2": asked(ep=2),
    "no dtype": asked(activation_dtype=None),
    "int8": asked(activation_dtype="int8"),
    "gates separated": asked(gate_mode="separated"),
    "gates interleaved": asked(gate_mode="interleaved"),
    "aiter 0.1.13": package("aiter", "0.1.13"),
    "aiter 0.1.14": package("aiter", "0.1.14"),
    "aiter 0.1.18": package("aiter", "0.1.18"),
    "triton_kernels 3.5.1": package("triton_kernels", "3.5.1"),
    "triton_kernels 3.8": package("triton_kernels", "3.8"),
    **{f"{name} 0.0.1": package(name, "0.0.1") for name in PACKAGES},
    "nothing installed": detected,
    "all installed": all_installed,
}
"""Single changes; each condition of each backend must fail under one of them."""


def grid() -> Iterator[Request]:
    """Models x places x questions x versions: enough to reach every variant of every backend."""
    versions = ([], ["triton_kernels=3.5.1"], ["aiter=0.1.15"], ["aiter=0.1.15.post1"], ["aiter=0.1.19"])
    for spec, where, packages in itertools.product((V4_PRO, GPT_OSS, KIMI_K3), PLACES, versions):
        if packages and not where.startswith("rocm" if "aiter" in packages[0] else ("rocm", "cuda")):
            continue
        for dtype, (tp, ep) in itertools.product(DTYPES, ((1, 1), (8, 1), (1, 2))):
            yield Request(spec, describe(where, packages), tp, ep, activation_dtype=dtype)
