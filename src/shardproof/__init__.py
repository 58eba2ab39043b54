"""MXFP4 Mixture-of-Experts weights, from checkpoint to kernel: planned, packed, proven, run.

    import shardproof

    model = shardproof.open_model("path/to/checkpoint")
    decision = shardproof.select(model, platform="rocm:gfx950", tp=8)
    plan = shardproof.make_plan(model, decision.recipe, tp=8)
    shardproof.pack(model, plan, "packed")
    assert shardproof.verify("packed", model).ok
    rank0 = shardproof.load("packed", rank=0)

Names are loaded when they are first used, so `import shardproof` stays light and works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shardproof.api import open_model, select
    from shardproof.backends import Platform, Recipe
    from shardproof.checkpoint import Checkpoint
    from shardproof.errors import ShardproofError
    from shardproof.experts import Activation, ExpertSpec
    from shardproof.formats import ExpertModel, read_experts
    from shardproof.packed import PackedExperts, PackedLayer, load
    from shardproof.plan import Plan, make_plan

_HOME = {
    "Activation": "experts",
    "Checkpoint": "checkpoint",
    "ExpertModel": "formats",
    "ExpertSpec": "experts",
    "PackedExperts": "packed",
    "PackedLayer": "packed",
    "Plan": "plan",
    "Platform": "backends",
    "Recipe": "backends",
    "ShardproofError": "errors",
    "load": "packed",
    "make_plan": "plan",
    "open_model": "api",
    "read_experts": "formats",
    "select": "api",
}
_VERBS = ("diagnose", "moe", "pack", "verify")

__all__ = [
    "Activation",
    "Checkpoint",
    "ExpertModel",
    "ExpertSpec",
    "PackedExperts",
    "PackedLayer",
    "Plan",
    "Platform",
    "Recipe",
    "ShardproofError",
    "load",
    "make_plan",
    "open_model",
    "read_experts",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_VERBS])
