"""PackedLayer and PackedExperts: a rank's tensors with the identity of their byte order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        if not held.flags.writeable and getattr(held.base, "flags", held.flags).writeable:
            held = held.view()  # private pages, see `file`: the view that was handed out stays read-only
            held.flags.writeable = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(held)

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
