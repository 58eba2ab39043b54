"""Padding: a dump that holds nothing of the checkpoint, as a rank beyond the last block does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardproof.backends import Recipe
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.report import LayerReport, Row
from shardproof.diagnose.scales import scale_bytes
from shardproof.diagnose.slices import Hints
from shardproof.formats import ExpertModel, layer_span
from shardproof.layouts import catalogue, find
from shardproof.layouts.layout import Layout
from shardproof.partition import POLICIES, Policy, block_intervals

_WHAT = "padding only"


def only_padding(
    model: ExpertModel, tensors: Sequence[Foreign], hints: Hints, recipe: Recipe | None
) -> LayerReport | None:
    """The report on tensors that hold padding and nothing else; None where one holds more, or the rank must.

    With a rank and a recipe it is None too: then sizes are known, and every byte is compared as on any other rank.
    """
    key = hints.layer or next((t.layer for t in tensors if t.layer), None)
    concerned = [model.layer(key)] if key is not None else list(model.layers.values())
    known = hints.rank is not None and hints.tp is not None
    policies = [p for p in POLICIES if all(_leaves_empty(layer.spec.blocks, p, hints) for layer in concerned)]
    slots = [(t.stack, t.field) for t in tensors if t.stack and t.field]
    clear = len(set(slots)) == len(slots) and any(name == "weight" for _, name in slots)
    if (known and recipe) or not policies or not clear or not all(_is_padding(t, recipe) for t in tensors):
        return None
    rank = f"{hints.rank}" if known else "not known"
    note = f"tp and rank leave it no block (policy {' or '.join(policies)}): so it should be"
    if not known:
        note = "right for a rank that is left no block; any other was never loaded: give --tp and --rank"
    where: dict[str, Any] = {"tp": hints.tp} if hints.tp else {}
    rows = tuple(Row(t.name, f"{t.stack}.{t.field}", 1.0, _WHAT, _WHAT, 0, 0) for t in tensors if t.stack and t.field)
    missing = tuple(n for n in ("tp", "rank", "ep", "layer") if getattr(hints, n) is None)
    where["intermediate"] = f"nothing of {concerned[0].spec.intermediate}, {_WHAT}"
    return LayerReport(key or layer_span(list(model.layers)), rank, where, (), rows, missing, (note,), padding=True)


def _leaves_empty(blocks: int, policy: Policy, hints: Hints) -> bool:
    """Whether a policy may leave the rank that is hinted at, or any rank, no block."""
    if hints.policy not in (None, policy):
        return False
    if hints.tp is None:
        return True
    intervals = block_intervals(blocks, hints.tp, policy, allow_empty=True)
    return any(a == b for a, b in (intervals if hints.rank is None else [intervals[hints.rank % hints.tp]]))


def _is_padding(tensor: Foreign, recipe: Recipe | None) -> bool:
    """Whether every byte is what a layout writes where no content stands."""
    if tensor.stack is None or tensor.field is None:
        return True  # nothing of an expert
    if tensor.field != "scale":
        return not tensor.data.any()
    identity = recipe.layouts.get((tensor.stack, "scale")) if recipe else None
    layouts: list[Layout] = [find(identity)[0]] if identity else catalogue()
    values = {x.filler + x.add for x in layouts if x.field == "scale"}
    if not identity:
        values.discard(0)  # also what an engine allocates and never writes
    data, cast = scale_bytes(tensor)
    return cast is None and int(data.data[0]) in values and bool(np.all(data.data == data.data[0]))
