"""Backend: one kernel as data - where it runs, what it needs, and the byte orders that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, cast

from shardproof.arguments import expect
from shardproof.backends.platform import Platform
from shardproof.errors import BackendError
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.mxfp4 import BLOCK
from shardproof.partition import ranks

GateMode: TypeAlias = Literal["separated", "interleaved"]


def check_gate_mode(name: str | None) -> GateMode | None:
    """A gate mode by name; None leaves it to the backend. Raises BackendError `backend.gate_mode`."""
    if name not in (None, "separated", "interleaved"):
        raise BackendError(
            "backend.gate_mode", "unknown gate mode", found=name, needed="separated or interleaved",
            next_step="choose one of the two, or leave it to the backend",
        )  # fmt: skip
    return cast("GateMode | None", name)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a backend: one model's experts on one platform, cut for tp x ep ranks.

    `gate_mode` and `activation_dtype` narrow the choice; None leaves it to the backend.
    Raises PartitionError `partition.size` where tp or ep is below 1, BackendError `backend.gate_mode`.
    """

    spec: ExpertSpec
    platform: Platform
    tp: int = 1
    ep: int = 1
    gate_mode: GateMode | None = None
    activation_dtype: str | None = None

    def __post_init__(self) -> None:
        ranks(self.tp, self.ep)
        check_gate_mode(self.gate_mode)

    @property
    def rank_intermediate(self) -> int:
        """I of the fullest tensor-parallel rank before padding: whole blocks, the same for both policies."""
        return -(-self.spec.blocks // self.tp) * BLOCK


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a backend with its outcome; `remedy` says what would change it."""

    condition: str
    ok: bool
    found: str
    needed: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {s: getattr(self, s) for s in self.__slots__}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How packed experts must be for one backend: sizes, byte orders, and what the kernel is told.

    layouts            (stack, field) -> layout id; fields the kernel does not take are absent
    align_hidden       each rank's H is rounded up to this multiple
    align_intermediate each rank's I is rounded up to this multiple, each half of w13 by itself
    bias_dtype         "float32" or "bfloat16"
    gate_mode          "separated" or "interleaved" rows of w13, or None where the backend has one order only
    version            version of the package that the layouts hold for, or None
    notes              what a user must know: assumed versions, known vendor defects
    """

    backend: str
    layouts: Mapping[tuple[Stack, Field], str]
    align_hidden: int = 32
    align_intermediate: int = 32
    bias_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_dtype: str = "bfloat16"
    gate_mode: GateMode | None = None
    version: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        data = {s: getattr(self, s) for s in self.__slots__}
        data["layouts"] = {f"{stack}.{name}": identity for (stack, name), identity in self.layouts.items()}
        data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` wrote."""
        ids = {key: expect(key, identity, str, "pack again") for key, identity in data["layouts"].items()}
        layouts = {tuple(key.split(".")): identity for key, identity in ids.items()}
        return cls(**{**data, "layouts": layouts, "notes": tuple(data["notes"])})


class Backend(ABC):
    """One kernel. A file in this folder with a subclass is found by itself.

    `checks` states every condition with what was found and needed, also those that hold;
    `recipe` may be called when all of them hold, and for a described platform that is enough.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    known_as: ClassVar[tuple[str, ...]] = ()
    """What vLLM calls it."""

    @abstractmethod
    def checks(self, request: Request) -> list[Check]:
        """Every condition with its outcome."""

    @abstractmethod
    def recipe(self, request: Request) -> Recipe:
        """Sizes and byte orders for a request that passed every check."""
