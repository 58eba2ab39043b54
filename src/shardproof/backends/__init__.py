"""Backends: one kernel a file, as data. `oracle.select` chooses among them."""

from shardproof.backends.backend import Backend, Check, GateMode, Recipe, Request, check_gate_mode
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.platform import Platform, describe, detect

__all__ = [
    "Backend",
    "Check",
    "GateMode",
    "Kernel",
    "Platform",
    "Recipe",
    "Request",
    "Variant",
    "check_gate_mode",
    "describe",
    "detect",
]
