"""Conditions: what a kernel needs, as data. Each one says what it found, what it needs, and what would change it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Protocol

from shardproof.backends.backend import Check, Request
from shardproof.backends.packages import PACKAGES, order, version_of
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


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The kernel's package is there, in a known version, not older than `since`; `because` names what came then."""

    package: str
    since: str = ""
    because: str = ""

    @property
    def brief(self) -> str:
        """`aiter >= 0.1.15`."""
        return f"{self.package} >= {self.since}" if self.since else self.package

    def check(self, request: Request) -> Check:
        """Condition `package` or `version`, whichever is not met."""
        info = PACKAGES[self.package]
        version, origin = version_of(self.package, request.platform)
        needed = f"{self.brief} ({self.because})" if self.because else self.brief
        if version is None:
            names = " or ".join(info.distributions)
            return Check(
                "package", False, f"{self.package} is not installed", needed,
                f"install {names}, or name it to plan for another machine: --with {self.package}=VERSION",
            )  # fmt: skip
        found = f"{self.package} {version} ({origin})" if version else f"{self.package} ({origin})"
        if not info.knows(version):
            known = ", ".join(info.known)
            return Check(
                "version", False, found, f"{needed}, in a known release: {known}",
                f"its byte orders may differ from those known here; if they do not, say --with {self.package}="
                f"{info.newest}",
            )  # fmt: skip
        old = bool(self.since and version) and order(version) < order(self.since)
        return Check("version", not old, found, needed, f"install {self.package} {self.since} or newer")


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


ROUTING: dict[str, str] = {
    "deepseek_v4": "sqrtsoftplus scores with a bias, or hashed",
    "gpt_oss": "softmax over the chosen",
    "qwen3_moe": "softmax, renormalised",
    "mixtral": "softmax over the chosen",
    "llama_moe": "softmax over the chosen",
    "kimi_k3": "sigmoid scores with a bias",
    "minimax_m2": "sigmoid scores with a bias",
    "minimax_m3": "sigmoid scores with a bias",
    "glm5": "sigmoid scores with a bias",
    "deepseek_v3": "sigmoid scores with a bias",
}
"""How a family routes, where that is known (model cards and configurations, November 2026)."""


@dataclass(frozen=True)
class RoutesBySoftmax:
    """The kernel's caller routes inside the layer, and only by a softmax over the chosen experts."""

    @property
    def brief(self) -> str:
        """`softmax routing`."""
        return "softmax routing"

    def check(self, request: Request) -> Check:
        """Condition `routing`; a family whose routing is not known here passes and the text says so."""
        routing = ROUTING.get(request.spec.family)
        ok = routing is None or routing.startswith("softmax")
        found = f"{routing or 'not known here'} (family {request.spec.family})"
        return Check("routing", ok, found, "softmax over the chosen experts", "use triton_unfused, which takes any")
