"""Conditions: what a kernel needs, as data. Each one says what it found, what it needs, and what would change it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Protocol

from shardproof.backends.backend import Check, Request
from shardproof.backends.platform import cpu_flags
from shardproof.experts import ActivationKind

OTHER_KERNEL = "this cannot be changed for this model; use another backend"


class Condition(Protocol):
    """One thing that a kernel needs."""

    @property
    def brief(self) -> str:
        """A few words for the support table."""

    def check(self, request: Request) -> Check:
        """The condition's outcome for a request."""


@dataclass(frozen=True, kw_only=True)
class RunsOn:
    """The kernel runs on these platforms.

    cuda    inclusive ranges of compute capability
    rocm    architectures; `*` stands for any ending
    others  kinds as a whole: `cpu`, `xpu`, ...
    """

    cuda: tuple[tuple[int, int], ...] = ()
    rocm: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def brief(self) -> str:
        """`cuda:sm90, rocm:gfx950`."""
        ranges = [f"cuda:sm{a}" + ("" if a == b else f"..sm{b}") for a, b in self.cuda]
        return ", ".join([*ranges, *(f"rocm:{arch}" for arch in self.rocm), *self.others])

    def holds(self, request: Request) -> bool:
        """Whether the request's platform is one of these."""
        platform = request.platform
        return (
            platform.kind in self.others
            or (platform.kind == "rocm" and any(fnmatch(platform.arch, arch) for arch in self.rocm))
            or (platform.kind == "cuda" and any(a <= platform.compute_capability <= b for a, b in self.cuda))
        )

    def check(self, request: Request) -> Check:
        """Condition `platform`."""
        return Check(
            "platform",
            self.holds(request),
            str(request.platform),
            self.brief,
            f"run or plan for {self.brief}",
        )


@dataclass(frozen=True)
class Activations:
    """The activations that the kernel computes between w13 and w2."""

    kinds: tuple[ActivationKind, ...]

    @property
    def brief(self) -> str:
        """`silu, swiglu_oai`."""
        return ", ".join(self.kinds)

    def check(self, request: Request) -> Check:
        """Condition `activation`."""
        activation = request.spec.activation
        return Check("activation", activation.kind in self.kinds, str(activation), self.brief, OTHER_KERNEL)


@dataclass(frozen=True)
class NoBias:
    """The kernel adds no expert biases; `why` says what happens to them."""

    why: str = "the kernel takes no biases"

    @property
    def brief(self) -> str:
        """`no bias`."""
        return "no bias"

    def check(self, request: Request) -> Check:
        """Condition `bias`."""
        found = "expert biases" if request.spec.bias else "no expert biases"
        return Check("bias", not request.spec.bias, found, f"no expert biases: {self.why}", OTHER_KERNEL)


@dataclass(frozen=True)
class ExpertParallel:
    """Whether the kernel can hold a part of the experts."""

    only: bool = False
    """False: it must hold all experts. True: it exists for expert parallelism only."""

    @property
    def brief(self) -> str:
        """`ep 1` or `ep > 1`."""
        return "ep > 1" if self.only else "ep 1"

    def check(self, request: Request) -> Check:
        """Condition `expert parallel`."""
        ok = (request.ep > 1) == self.only
        remedy = "ask for --ep 2 or more" if self.only else "ask for --ep 1 and more tensor parallelism"
        return Check("expert parallel", ok, f"ep {request.ep}", self.brief, remedy)


@dataclass(frozen=True)
class CpuHas:
    """The host's processor has a feature, by the name that Linux gives it; on a described platform it is assumed."""

    feature: str

    @property
    def brief(self) -> str:
        """`amx_tile`."""
        return self.feature

    def check(self, request: Request) -> Check:
        """Condition `processor`."""
        has = request.platform.described or self.feature in cpu_flags()
        found = "assumed" if request.platform.described else "present" if has else "absent"
        return Check("processor", has, f"{self.feature} {found}", self.feature, "use a host whose processor has it")


@dataclass(frozen=True)
class HiddenMultiple:
    """The hidden size as it is must be a multiple: the kernel's caller does not pad it."""

    multiple: int

    @property
    def brief(self) -> str:
        """`H % 256`."""
        return f"H % {self.multiple}"

    def check(self, request: Request) -> Check:
        """Condition `hidden size`."""
        hidden = request.spec.hidden
        return Check(
            "hidden size",
            hidden % self.multiple == 0,
            f"H {hidden}",
            f"a multiple of {self.multiple}",
            OTHER_KERNEL,
        )


@dataclass(frozen=True)
class TensorParallelUpTo:
    """The layout is used up to this tensor-parallel size."""

    most: int

    @property
    def brief(self) -> str:
        """`tp <= 2`."""
        return f"tp <= {self.most}"

    def check(self, request: Request) -> Check:
        """Condition `tensor parallel`."""
        ok = request.tp <= self.most
        return Check("tensor parallel", ok, f"tp {request.tp}", self.brief, f"ask for --tp {self.most} or less")


@dataclass(frozen=True)
class AskedFor:
    """The kernel needs something that a checkpoint may lack, so it is taken only when its activation dtype is asked."""

    dtype: str
    because: str

    @property
    def brief(self) -> str:
        """`when fp8 is asked for`."""
        return f"when {self.dtype} is asked for"

    def check(self, request: Request) -> Check:
        """Condition `static scales`."""
        found = f"activation dtype {request.activation_dtype or 'not asked'}"
        ok = request.activation_dtype == self.dtype
        return Check("asked for", ok, found, f"{self.dtype}: {self.because}", f"ask for activation dtype {self.dtype}")
