"""How model families route tokens, and the condition of kernels whose caller routes inside the layer."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from shardproof.backends.backend import Check, Request

ROUTING: dict[str, str] = {
    "deepseek_v4*": "sqrtsoftplus scores with a bias, or hashed",
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


def routing_of(family: str) -> str | None:
    """The routing of a family, or None where it is not known here."""
    return next((routing for name, routing in ROUTING.items() if fnmatch(family, name)), None)


@dataclass(frozen=True)
class RoutesBySoftmax:
    """The kernel's caller routes inside the layer, and only by a softmax over the chosen experts."""

    @property
    def brief(self) -> str:
        """`softmax routing`."""
        return "softmax routing"

    def check(self, request: Request) -> Check:
        """Condition `routing`; a family whose routing is not known here passes and the text says so."""
        routing = routing_of(request.spec.family)
        ok = routing is None or routing.startswith("softmax")
        found = f"{routing or 'not known here'} (family {request.spec.family})"
        return Check("routing", ok, found, "softmax over the chosen experts", "use triton_unfused, which takes any")
