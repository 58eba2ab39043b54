"""Implementation: one way to run a packed layer. `moe` asks each in turn whether it can.

A subclass in `kernels/NAME.py` or `kernels/NAME/implementation.py` is found by itself. Such a file must be importable
without its toolchain: what is missing is a reason that `refuses` gives, not an ImportError.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.layouts import find

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from shardproof.packed import PackedLayer

Runner: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"
"""(x [M, H], global expert ids [M, k], weights [M, k]) to the rank's partial sum [M, H], float32 or of x's dtype.

Ids that the rank does not hold, and -1, are skipped.
"""

_IMPLEMENTATIONS: dict[str, Implementation] = {}


class Implementation(ABC):
    """One way to run a packed layer; the lowest `priority` that does not refuse is taken.

    `backend` names the backend whose recipes pack for it; one that was packed for goes before the others.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    priority: ClassVar[int] = 100
    backend: ClassVar[str] = ""
    activation_dtype: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            _IMPLEMENTATIONS[cls.name] = cls()

    def wanted(self, layer: PackedLayer) -> bool:
        """Whether the layer's recipe asks for this way: its backend and its dtype of activations."""
        recipe = layer.plan.recipe
        return (recipe.backend, recipe.activation_dtype) == (self.backend, self.activation_dtype)

    @abstractmethod
    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Why this layer cannot run on this device (`found ..., needed ...`), or None."""

    @abstractmethod
    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:
        """The layer, ready to run many times. `keep` lets memory grow for speed."""


@cache
def _load() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        name = f"{__package__}.{module.name}" + (".implementation" if module.ispkg else "")
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def implementations() -> list[Implementation]:
    """Every implementation, the preferred one first."""
    _load()
    return sorted(_IMPLEMENTATIONS.values(), key=lambda i: (i.priority, i.name))


def refuse_layouts(layer: PackedLayer, wanted: Mapping[tuple[Stack, Field], Sequence[str]]) -> str | None:
    """Why a kernel that reads these layouts (ids by field, any one of each) cannot read this layer, or None."""
    for slot, identities in wanted.items():
        named = layer.plan.recipe.layouts.get(slot)
        if named is None:
            continue
        layout, parameters = find(named)
        identity = layout.identity(parameters)
        if identity not in identities:
            return f"found layout {identity} for {'.'.join(slot)}, needed {' or '.join(identities)}"
    return None


def local_experts(layer: PackedLayer) -> NDArray[np.int32]:
    """Global expert id -> local index, int32 [experts of the whole layer]; -1 for those of other ranks."""
    local = np.full(layer.spec.experts, -1, dtype=np.int32)
    local[list(layer.experts)] = np.arange(len(layer.experts), dtype=np.int32)
    return local
