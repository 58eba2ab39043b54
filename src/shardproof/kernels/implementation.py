"""Implementation: one way to run a packed layer. `moe` asks each in turn whether it can.

A subclass in `kernels/NAME.py` or `kernels/NAME/implementation.py` is found by itself. Such a file must be importable
without its toolchain: what is missing is a reason that `refuses` gives, not an ImportError.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.packed import PackedLayer

Runner: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"
"""(x [M, H], global expert ids [M, k], weights [M, k]) to the rank's partial sum [M, H] in float32.

Ids that the rank does not hold, and -1, are skipped.
"""

_IMPLEMENTATIONS: dict[str, Implementation] = {}


class Implementation(ABC):
    """One way to run a packed layer; the lowest `priority` that does not refuse is taken."""

    name: ClassVar[str]
    summary: ClassVar[str]
    priority: ClassVar[int] = 100

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            _IMPLEMENTATIONS[cls.name] = cls()

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
