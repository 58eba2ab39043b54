"""ExpertSpec: what one MoE layer is, apart from where its bytes are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from shardproof.errors import FormatError
from shardproof.mxfp4 import BLOCK

Projection: TypeAlias = Literal["w1", "w3", "w2"]
Stack: TypeAlias = Literal["w13", "w2"]
Field: TypeAlias = Literal["weight", "scale", "bias"]
ActivationKind: TypeAlias = Literal["silu", "swiglu_oai", "situ"]

PROJECTIONS: tuple[Projection, ...] = ("w1", "w3", "w2")
STACKS: tuple[Stack, ...] = ("w13", "w2")
FIELDS: tuple[Field, ...] = ("weight", "scale", "bias")


@dataclass(frozen=True, slots=True)
class Activation:
    """The gated activation h(g, u) between w13 and w2, computed in float32.

    silu        silu(min(g, limit)) * clamp(u, -limit, limit); no limit where it is None
    swiglu_oai  (clamp(u, -limit, limit) + 1) * g' * sigmoid(alpha * g'), g' = min(g, limit)
    situ        beta * tanh(g / beta) * sigmoid(g) * linear_beta * tanh(u / linear_beta)
    """

    kind: ActivationKind = "silu"
    limit: float | None = None
    alpha: float = 1.702
    beta: float = 4.0
    linear_beta: float = 25.0

    def __str__(self) -> str:
        extra = {
            "silu": "" if self.limit is None else f"limit {self.limit:g}",
            "swiglu_oai": f"alpha {self.alpha:g}, limit {self.limit}",
            "situ": f"beta {self.beta:g}, linear beta {self.linear_beta:g}",
        }[self.kind]
        return f"{self.kind} ({extra})" if extra else self.kind


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One MoE layer's routed experts: w1 and w3 are [I, H], w2 is [H, I], blocks of 32 run along the last axis.

    `weight_before_w2` says where the model family multiplies by the routing weight.
    `family` is the model family's name as backends' priority lists use it.
    """

    family: str
    experts: int
    hidden: int
    intermediate: int
    top_k: int
    activation: Activation = Activation()
    bias: bool = False
    weight_before_w2: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "intermediate"):
            size = getattr(self, name)
            if size <= 0 or size % BLOCK:
                raise FormatError(
                    "format.block",
                    f"the {name} size is not a whole number of 32-value blocks",
                    found=size,
                    needed=f"a positive multiple of {BLOCK}",
                    next_step="correct the size; a model with such a size cannot be stored in MXFP4",
                )
        if self.experts <= 0:
            raise FormatError(
                "format.experts",
                "a layer needs at least one expert",
                found=self.experts,
                needed=">= 1",
                next_step="give the number of experts of the layer",
            )

    @property
    def blocks(self) -> int:
        """Blocks of 32 along the intermediate axis: the units of tensor parallelism."""
        return self.intermediate // BLOCK

    def rows(self, stack: Stack) -> int:
        """Output rows N of a stack: 2I for w13, H for w2."""
        return 2 * self.intermediate if stack == "w13" else self.hidden

    def columns(self, stack: Stack) -> int:
        """Contraction size K of a stack in values: H for w13, I for w2."""
        return self.hidden if stack == "w13" else self.intermediate

    @property
    def expert_bytes(self) -> int:
        """Checkpoint bytes of one expert's weights and scales (biases left out)."""
        values = 3 * self.hidden * self.intermediate
        return values // 2 + values // BLOCK

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExpertSpec:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "activation": Activation(**data["activation"])})
