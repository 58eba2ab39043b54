"""Padding: layers of a dump that hold nothing of the checkpoint: never loaded, or of a rank beyond the last block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardproof.backends import Recipe
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.report import Finding, LayerReport, Row
from shardproof.diagnose.scales import scale_bytes
from shardproof.diagnose.slices import Hints
from shardproof.formats import ExpertModel, layer_span
from shardproof.layouts import catalogue, find
from shardproof.layouts.layout import Layout
from shardproof.partition import POLICIES, Policy, block_intervals

_WHAT = "padding only"


def only_padding(
    model: ExpertModel, groups: Sequence[Sequence[Foreign]], hints: Hints, recipe: Recipe | None
) -> list[LayerReport | None]:
    """Of each layer of a dump the report on tensors that hold padding alone; None where more is held, or must be.

    Such a rank was never loaded, and that is a finding, unless what is known says that it may be left no block. With a
    rank and a recipe it is None too: then sizes are known, and every byte is compared as on any other rank.
    """
    known = hints.rank is not None and hints.tp is not None
    padded = [not (known and recipe) and _holds_nothing(group, recipe) for group in groups]
    return [_report(model, g, hints, alone=all(padded)) if p else None for g, p in zip(groups, padded, strict=True)]


def _report(model: ExpertModel, tensors: Sequence[Foreign], hints: Hints, *, alone: bool) -> LayerReport | None:
    key = hints.layer or next((t.layer for t in tensors if t.layer), None)
    concerned = [model.layer(key)] if key is not None else list(model.layers.values())
    known = hints.rank is not None and hints.tp is not None
    empty = {p: set.intersection(*(_empty(layer.spec.blocks, p, hints) for layer in concerned)) for p in POLICIES}
    policies = " or ".join(policy for policy, left in empty.items() if left)
    if known and not policies:
        return None  # the cut is known, so that known mistakes can explain it
    where: dict[str, Any] = {"tp": hints.tp} if hints.tp else {}
    where["intermediate"] = f"nothing of {concerned[0].spec.intermediate}, {_WHAT}"
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    if known:
        notes = (f"tp and rank leave it no block (policy {policies}): so it should be",)
    elif policies and alone:
        notes = (f"right for {_ranks(sorted(set.union(*empty.values())), policies)}; any other was never loaded",)
    else:
        findings = (_never_loaded(hints, alone=alone),)
    share, needed = (0.0, "blocks of the checkpoint") if findings else (1.0, _WHAT)
    rows = tuple(
        Row(t.name, f"{t.stack}.{t.field}", share, _WHAT, needed, 0, 0) for t in tensors if t.stack and t.field
    )
    missing = tuple(n for n in ("tp", "rank", "ep", "layer") if getattr(hints, n) is None)
    rank = str(hints.rank) if known else "not known"
    shown = key or layer_span(list(model.layers))
    return LayerReport(shown, rank, where, findings, rows, missing, notes, padding=True)


def _ranks(empty: Sequence[int], policies: str) -> str:
    several = "ranks" if len(empty) > 1 else "rank"
    return f"tensor-parallel {several} {', '.join(map(str, empty))}, left no block (policy {policies})"


def _never_loaded(hints: Hints, *, alone: bool) -> Finding:
    unless = ": other layers of the dump hold content"
    if alone:
        unless = f": tp {hints.tp} leaves no rank empty" if hints.tp else ", unless tp and rank leave it no block"
    return Finding(
        "never_loaded", f"every tensor holds padding only: the layer was never loaded{unless}", (),
        explanation="Memory was allocated as padding and no loader wrote to it, so that the layer gives zeros.",
        repair="load the layer, and fail where a tensor is absent; give --tp and --rank of a rank that may be empty",
        also=("padded_offset",),
    )  # fmt: skip


def _empty(blocks: int, policy: Policy, hints: Hints) -> set[int]:
    """Tensor-parallel ranks that a policy leaves no block: of the one that is hinted at, or of all."""
    if hints.tp is None or hints.policy not in (None, policy):
        return set()
    intervals = block_intervals(blocks, hints.tp, policy, allow_empty=True)
    concerned = range(hints.tp) if hints.rank is None else [hints.rank % hints.tp]
    return {rank for rank in concerned if intervals[rank][0] == intervals[rank][1]}


def _holds_nothing(tensors: Sequence[Foreign], recipe: Recipe | None) -> bool:
    """Whether a weight is among the tensors, each stands for one field, and all of them are padding."""
    slots = [(t.stack, t.field) for t in tensors if t.stack and t.field]
    clear = len(set(slots)) == len(slots) and any(name == "weight" for _, name in slots)
    return clear and all(_is_padding(t, recipe) for t in tensors)


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
