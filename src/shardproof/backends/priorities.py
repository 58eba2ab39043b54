"""In which order backends are tried, by platform and model family."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from shardproof.backends.backend import Request
from shardproof.backends.conditions import RunsOn


@dataclass(frozen=True, kw_only=True)
class Priority:
    """The order in which backends are tried on a platform, for some model families (`*`: any ending; none: all)."""

    on: RunsOn
    order: tuple[str, ...]
    source: str
    families: tuple[str, ...] = ()

    def concerns(self, request: Request) -> bool:
        """Whether this list is for the request."""
        return self.on.holds(request) and (
            not self.families or any(fnmatch(request.spec.family, family) for family in self.families)
        )


_V4 = ("deepseek_v4*",)
_OSS = ("gpt_oss",)
_OSS_ROCM = ("aiter", "aiter_triton_bf16", "aiter_triton_fp8", "aiter_grouped", "triton")
_OSS_TAIL = ("marlin", "humming", "shardproof_gpu")
_LIST = "vLLM 0.33 oracle/mxfp4.py, line 438"
_OSS_LIST = "vLLM 0.33 oracle/mxfp4.py, line 402"

PRIORITIES: tuple[Priority, ...] = (
    Priority(
        families=_V4,
        on=RunsOn(others=("rocm",)),
        order=("aiter", "triton_unfused"),
        source=f"{_LIST}; turned round by vLLM #42595",
    ),
    Priority(
        families=_OSS,
        on=RunsOn(others=("rocm",)),
        order=(*_OSS_ROCM, "triton_unfused", "emulation"),
        source=f"{_OSS_LIST}; triton_unfused, which the list leaves out, before emulation",
    ),
    Priority(
        on=RunsOn(others=("rocm",)),
        order=("aiter", "aiter_grouped", "triton_unfused", "emulation"),
        source=f"{_LIST} (aiter, emulation), and between them kernels that run what aiter refuses",
    ),
    Priority(
        families=_OSS,
        on=RunsOn(cuda=((90, 90),)),
        order=("triton", "flashinfer_cutlass", "humming", "marlin", "shardproof_gpu", "emulation"),
        source=f"{_OSS_LIST}, humming before marlin on sm90",
    ),
    Priority(
        families=_OSS,
        on=RunsOn(cuda=((120, 129),)),
        order=(
            "flashinfer_trtllm",
            "flashinfer_cutlass",
            "cutlass",
            "marlin",
            "triton",
            *_OSS_TAIL[1:],
            "emulation",
        ),
        source=f"{_OSS_LIST}, where triton moves behind marlin on sm120",
    ),
    Priority(
        families=_OSS,
        on=RunsOn(others=("cuda",)),
        order=("flashinfer_trtllm", "triton", "flashinfer_cutlass", "cutlass", *_OSS_TAIL, "emulation"),
        source=_OSS_LIST,
    ),
    Priority(
        on=RunsOn(cuda=((90, 90),)),
        order=("flashinfer_trtllm", "deep_gemm", "humming", "marlin", "shardproof_gpu"),
        source=f"{_LIST}, humming before marlin on sm90",
    ),
    Priority(
        on=RunsOn(others=("cuda",)),
        order=("flashinfer_trtllm", "deep_gemm", "marlin", "humming", "shardproof_gpu"),
        source=_LIST,
    ),
    Priority(on=RunsOn(others=("xpu",)), order=("xpu",), source=_LIST),
    Priority(
        on=RunsOn(others=("cpu",)),
        order=("shardproof_cpu", "cpu", "reference"),
        source=f"{_LIST} (cpu); shardproof's own before it, its reference as the last resort",
    ),
)
"""First match counts. Names that are not registered are passed over."""


def priority(request: Request) -> Priority | None:
    """The priority list for a request, or None where there is none."""
    return next((p for p in PRIORITIES if p.concerns(request)), None)
