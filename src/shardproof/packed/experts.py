"""PackedLayer and PackedExperts: a rank's tensors with the identity of their byte order."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardproof.checkpoint import pages
from shardproof.digest import Digest
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.layouts import Placed
from shardproof.mxfp4 import Bytes
from shardproof.partition import Rank
from shardproof.plan import LayerShape, Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedLayer:
    """One layer of one rank: kernel bytes by (stack, field), and everything needed to read them.

    `tensors` are flat uint8 arrays in kernel order; `canonical` undoes the layout.
    """

    key: str
    rank: Rank
    plan: Plan
    tensors: Mapping[tuple[Stack, Field], Bytes]

    def __repr__(self) -> str:
        held = f"{len(self.experts)} experts for {self.plan.recipe.backend}"
        return f"PackedLayer({self.key}, rank {self.rank}, {held}, {_size(self)})"

    @property
    def shape(self) -> LayerShape:
        """How the layer was dealt and padded."""
        return self.plan.shape(self.key)

    @property
    def spec(self) -> ExpertSpec:
        """The whole layer's spec."""
        return self.shape.spec

    @property
    def experts(self) -> tuple[int, ...]:
        """Global ids of the experts held here, in local order."""
        return self.plan.experts(self.key, self.rank)

    @property
    def valid(self) -> int:
        """Intermediate values that are not padding."""
        return self.shape.valid(self.rank)

    def placed(self, stack: Stack, name: Field) -> Placed:
        """The layout on this tensor's canonical shape."""
        return self.plan.placed(self.key, self.rank, stack, name)

    def torch(self, stack: Stack, name: Field) -> torch.Tensor:
        """One tensor's bytes as torch.uint8, without a copy. Writing to it never reaches the file."""
        import torch

        held = self.tensors[stack, name]
        return torch.from_numpy(_private(held) if isinstance(held, np.memmap) else held)

    def canonical(self, stack: Stack, name: Field) -> Bytes:
        """The padded stack in canonical form, uint8 [E, N, bytes a row], from the kernel's bytes."""
        return self.placed(stack, name).unpack(self.tensors[stack, name])


@dataclass(frozen=True)
class PackedExperts:
    """All layers of one rank. `digest` is the logical content's (see `digest`), None where it was not computed."""

    plan: Plan
    rank: Rank
    layers: Mapping[str, PackedLayer]
    digest: Digest | None = None

    def __iter__(self) -> Iterator[PackedLayer]:
        return iter(self.layers.values())

    def __repr__(self) -> str:
        held = f"{len(self.layers)} layers for {self.plan.recipe.backend}"
        return f"PackedExperts(rank {self.rank}, {held}, {_size(*self)})"


def _size(*layers: PackedLayer) -> str:
    return f"{sum(t.nbytes for layer in layers for t in layer.tensors.values()):,} bytes"


def _private(held: np.memmap[Any, Any]) -> Bytes:
    """The same bytes of the file in private pages of their own, which may be written.

    Nothing is reserved for pages that nobody writes, so that a whole rank can be mapped on any machine.
    """
    whole: Any = held
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start = int(whole.offset) + held.ctypes.data - whole.ctypes.data
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with Path(str(held.filename)).open("rb") as stream:
        memory = mmap.mmap(
            stream.fileno(), start - first + held.nbytes, offset=first, prot=mmap.PROT_READ | mmap.PROT_WRITE,
            flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0),
        )  # fmt: skip
    if pages.wanted() is not False:
        pages.advise(memory, huge=True)
    return np.frombuffer(memory, dtype=np.uint8, offset=start - first, count=held.nbytes)
