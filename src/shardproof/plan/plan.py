"""Plan: which bytes of the checkpoint go where on each rank - integers only, known before any byte is read.

The order of the steps is the point of this file. A rank's slice is cut from the checkpoint's logical shape
(`partition`); only then is the slice padded, each half of w13 by itself; only then is it laid out (`layouts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shardproof.arguments import expect, whole_number
from shardproof.backends import Recipe
from shardproof.errors import PartitionError
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.formats import ExpertModel, check_model, layer_span
from shardproof.formats.family import UNKNOWN
from shardproof.layouts import Placed, find
from shardproof.mxfp4 import BLOCK
from shardproof.partition import Placement, Policy, Rank, block_intervals, expert_owners, ranks
from shardproof.plan.cover import prove_cover, uncovered
from shardproof.plan.shape import Cut, LayerShape

BIAS_ITEM = {"float32": 4, "bfloat16": 2}
ExpertMap = Placement | Mapping[int, Sequence[int]] | Sequence[Sequence[int]]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Plan:
    """A model's experts, cut for tp x ep ranks, padded and laid out for one backend.

    `shapes` are the distinct layer shapes, `layers` maps a layer key to its index in `shapes`;
    `identity` is the checkpoint's (`Checkpoint.identity`).
    """

    format: str
    family: str
    source: str
    identity: str
    recipe: Recipe
    tp: int
    ep: int
    policy: Policy
    shapes: tuple[LayerShape, ...]
    layers: Mapping[str, int]

    def __repr__(self) -> str:
        return f"Plan({self.family}, tp {self.tp} x ep {self.ep} for {self.recipe.backend}, {len(self.layers)} layers)"

    @property
    def guesses_activation(self) -> bool:
        """Whether no config named the model's family: its activation and where its routing weight goes are guesses."""
        return self.family == UNKNOWN

    @cached_property
    def ranks(self) -> tuple[Rank, ...]:
        """All ranks, TP fastest."""
        return tuple(ranks(self.tp, self.ep))

    @property
    def bias_item(self) -> int:
        """Bytes of one bias number."""
        return BIAS_ITEM[self.recipe.bias_dtype]

    def shape(self, layer: str) -> LayerShape:
        """The shape of a layer. Raises PartitionError `plan.layer`, ArgumentError."""
        if expect("layer", layer, str, "give a layer of the plan: plan.layers") not in self.layers:
            raise self._no_layer(layer, layer)
        return self.shapes[self.layers[layer]]

    def fields(self, layer: str) -> list[tuple[Stack, Field]]:
        """The (stack, field) pairs that a layer has for this backend, in file order."""
        bias = self.shape(layer).spec.bias
        return [slot for slot in self.recipe.layouts if bias or slot[1] != "bias"]

    def experts(self, layer: str, rank: Rank) -> tuple[int, ...]:
        """Global ids of a rank's experts, in local order."""
        return self.shape(layer).owners[rank.ep_rank]

    def canonical_shape(self, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[int, int, int]:
        """(E, N, bytes a row) of a rank's padded stack in canonical form."""
        rows, width = self.shape(layer).matrix_shape(stack, name, self.bias_item)
        return len(self.experts(layer, rank)), rows, width

    def cuts(self, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
        """The rectangles of one expert; see `LayerShape.cuts`."""
        return self.shape(layer).cuts(rank, stack, name, self.bias_item)

    def placed(self, layer: str, rank: Rank, stack: Stack, name: Field) -> Placed:
        """The backend's layout on a rank's padded stack. Raises LayoutError `layout.shape`."""
        layout, parameters = find(self.recipe.layouts[stack, name])
        return layout.place(self.canonical_shape(layer, rank, stack, name), parameters)

    def rank_bytes(self, rank: Rank) -> int:
        """Bytes of a rank's packed tensors, padding included."""
        return sum(self.placed(key, rank, *slot).nbytes for key in self.layers for slot in self.fields(key))

    def read_bytes(self, rank: Rank) -> int:
        """Checkpoint bytes of weights and scales that a rank takes."""
        return sum(
            len(self.experts(key, rank)) * cut.area
            for key in self.layers
            for stack, name in self.fields(key)
            if name != "bias"
            for cut in self.cuts(key, rank, stack, name)
        )

    def waste_bytes(self, rank: Rank) -> int:
        """Bytes of padding in a rank's weights and scales."""
        biases = sum(
            self.placed(key, rank, stack, name).nbytes
            for key in self.layers
            for stack, name in self.fields(key)
            if name == "bias"
        )
        return self.rank_bytes(rank) - biases - self.read_bytes(rank)

    def kernel_padding(self, layer: str, rank: Rank) -> dict[str, int]:
        """`hidden_pad` and `intermediate_pad` in values, as AITER's fused_moe takes them, for this very rank."""
        shape = self.shape(layer)
        return {
            "hidden_pad": shape.hidden - shape.spec.hidden,
            "intermediate_pad": shape.intermediate - shape.valid(rank),
        }

    def aligned(self) -> Plan:
        """The same plan with the padding that its backend wants, where its shapes have less."""
        h, i = self.recipe.align_hidden, self.recipe.align_intermediate
        shapes = (
            replace(s, hidden=_round_up(s.hidden, h), intermediate=_round_up(s.intermediate, i)) for s in self.shapes
        )
        return replace(self, shapes=tuple(shapes))

    def restrict(self, keys: Iterable[str]) -> Plan:
        """The same plan for some layers only. Raises PartitionError `plan.layer`, ArgumentError."""
        wanted = list(expect("layers", keys, Iterable, 'give a list, for instance ["layers.0"]'))  # type: ignore[type-abstract]
        unknown = [key for key in wanted if key not in self.layers]
        if unknown or not wanted:
            raise self._no_layer(unknown[0] if unknown else None, ", ".join(map(str, wanted)) or "no layer")
        return replace(self, layers={key: self.layers[key] for key in self.layers if key in set(wanted)})

    def _no_layer(self, layer: str | None, found: str) -> PartitionError:
        return PartitionError(
            "plan.layer", "the plan has no such layer", layer=layer, found=found, needed=layer_span(list(self.layers)),
            next_step="choose layers of the plan",
        )  # fmt: skip

    def prove(self) -> list[str]:
        """Show that each checkpoint byte is taken exactly once by the ranks of a TP group and every expert is held.

        Returns the sentences that were shown. Raises PartitionError `plan.cover`.
        """
        for shape in self.shapes:
            if (len(shape.intervals), len(shape.owners)) != (self.tp, self.ep):
                found = f"tp {len(shape.intervals)}, ep {len(shape.owners)}"
                needed = f"tp {self.tp}, ep {self.ep}"
                raise uncovered("a layer is not dealt to the plan's ranks", found=found, needed=needed)
        strange = [key for key, index in self.layers.items() if not 0 <= index < len(self.shapes)]
        if strange or not self.layers:
            raise uncovered("a layer has no shape", layer=", ".join(strange[:4]) or "none at all")
        group = [rank for rank in self.ranks if rank.ep_rank == 0]
        return [sentence for shape in self.shapes for sentence in prove_cover(shape, group, self.bias_item)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready record, as saved beside packed experts; `from_dict` reads it back."""
        return {
            "format": self.format, "family": self.family, "source": self.source, "identity": self.identity,
            "recipe": self.recipe.to_dict(), "tp": self.tp, "ep": self.ep, "policy": self.policy,
            "shapes": [
                {
                    "spec": s.spec.to_dict(), "intervals": [list(i) for i in s.intervals],
                    "owners": [list(row) for row in s.owners], "hidden": s.hidden, "intermediate": s.intermediate,
                }
                for s in self.shapes
            ],
            "layers": dict(self.layers),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote."""
        shapes = tuple(
            LayerShape(
                ExpertSpec.from_dict(s["spec"]), tuple((a, b) for a, b in s["intervals"]),
                tuple(tuple(row) for row in s["owners"]), s["hidden"], s["intermediate"],
            )
            for s in data["shapes"]
        )  # fmt: skip
        plain = {k: data[k] for k in ("format", "family", "source", "identity", "tp", "ep", "policy")}
        return cls(**plain, recipe=Recipe.from_dict(data["recipe"]), shapes=shapes, layers=dict(data["layers"]))


def make_plan(
    model: ExpertModel,
    recipe: Recipe,
    *,
    tp: int = 1,
    ep: int = 1,
    policy: Policy = "balanced",
    placement: ExpertMap = "linear",
    allow_empty: bool = False,
) -> Plan:
    """Plan a model's experts for a recipe on tp x ep ranks.

    Raises PartitionError (sizes, empty ranks, uncovered experts), LayoutError (a padded shape that the layouts
    cannot hold), FormatError `format.model` (a path: `open_model` reads it) or ArgumentError, and proves the cover
    before it returns.
    """
    check_model(model)
    expect("recipe", recipe, Recipe, "choose a backend first: shardproof.select(model, ...).recipe")
    tp, ep = whole_number("tp", tp), whole_number("ep", ep)
    ranks(tp, ep)
    shapes: dict[ExpertSpec, LayerShape] = {}
    layers: dict[str, int] = {}
    for key, layer in model.layers.items():
        if layer.spec not in shapes:
            shapes[layer.spec] = _shape(layer.spec, recipe, tp, ep, policy, placement, allow_empty)
        layers[key] = list(shapes).index(layer.spec)
    plan = Plan(
        model.format, model.family, str(model.checkpoint.root), model.checkpoint.identity, recipe, tp, ep, policy,
        tuple(shapes.values()), layers,
    )  # fmt: skip
    for key in {index: key for key, index in layers.items()}.values():
        for slot in plan.fields(key):
            plan.placed(key, plan.ranks[0], *slot)
    plan.prove()
    return plan


def _shape(
    spec: ExpertSpec, recipe: Recipe, tp: int, ep: int, policy: Policy, placement: ExpertMap, allow_empty: bool
) -> LayerShape:
    intervals = block_intervals(spec.blocks, tp, policy, allow_empty=allow_empty)
    longest = max(stop - start for start, stop in intervals) * BLOCK
    return LayerShape(
        spec, tuple(intervals), tuple(expert_owners(spec.experts, ep, placement)),
        _round_up(spec.hidden, recipe.align_hidden), _round_up(longest, recipe.align_intermediate),
    )  # fmt: skip
