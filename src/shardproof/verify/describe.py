"""A wrong tensor in words: where its first bytes come from, and the sentence of each mistake that explains it."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mistakes import Mistake, Slot, Views
from shardproof.mxfp4 import Bytes
from shardproof.pack.unpack import unpack
from shardproof.packed import PackedLayer
from shardproof.verify.causes import loaded_experts
from shardproof.verify.proof import Difference


def describe(
    model: ExpertModel,
    layer: PackedLayer,
    slot: Slot,
    mask: np.ndarray,
    expected: Bytes,
    causes: tuple[Mistake, ...],
) -> Difference:
    """The difference of one tensor: `mask` says which of its bytes are not `expected`, `causes` what explains them."""
    stack, name = slot
    at = np.flatnonzero(mask)
    found = layer.tensors[slot]
    first = tuple(_where(model, layer, slot, int(a), int(found[a]), int(expected[a])) for a in at[:4])
    zero = "" if found.any() or not causes else f"rank {layer.rank.index}: {stack} is all zero: "
    sentence = zero + "; and ".join(_sentence(layer, slot, cause) for cause in causes)
    named = f"{layer.key}.experts.{stack}.{name}"
    names = " + ".join(cause.name for cause in causes) or None
    return Difference(layer.rank.index, named, len(at), mask.size, first, names, sentence)


def _sentence(layer: PackedLayer, slot: Slot, cause: Mistake) -> str:
    stack, name = slot
    shape, rank = layer.shape, layer.rank
    views = Views(layer.tensors[slot], layer.placed(stack, name).shape, unpack)
    words = {
        "padded": shape.intermediate, "valid": layer.valid, "rank": rank.tp_rank, "tp": rank.tp, "layer": layer.key,
        "layout": layer.plan.recipe.layouts[slot], "policy": layer.plan.policy,
        "found_layout": cause.layout(layer.plan, stack, name) if cause.layout else "",
        "found_layer": cause.layer(layer.plan, layer.key) if cause.layer else "",
        "floor": shape.spec.intermediate // rank.tp, "blocks": shape.spec.blocks,
        "dropped": shape.spec.blocks % rank.tp,
        "waste": shape.intermediate - layer.valid, "padding_values": "several",
        "experts": ", ".join(
            str(e) for e, held in zip(layer.experts, loaded_experts(layer, slot, views), strict=True) if held is None
        ) or ", ".join(map(str, cause.experts(layer.plan, layer.key, rank) if cause.experts else ())),
    }  # fmt: skip
    see = f"; see {', '.join(cause.issues)}" if cause.issues else ""
    return f"{cause.sentence.format(**words)}{see}. Repair: {cause.repair}"


def _where(
    model: ExpertModel, layer: PackedLayer, slot: tuple[Stack, Field], address: int, found: int, expected: int
) -> str:
    stack, name = slot
    placed = layer.placed(stack, name)
    per_byte = UNITS_PER_BYTE[placed.unit]
    expert, row, unit = (int(x) for x in placed.element(address * per_byte))
    values = f"found {found:#04x}, expected {expected:#04x}"
    if expert < 0:
        return f"byte {address} (layout padding): {values}"
    column = unit // per_byte
    projection, source_row, source_byte = _source_place(layer, stack, name, row, column)
    if projection is None:
        return f"byte {address} (padding of expert {layer.experts[expert]}, row {row}): {values}"
    named = model.layer(layer.key).sources[projection, name].name(layer.experts[expert])
    unit_name = {"weight": "byte", "scale": "block", "bias": "byte"}[name]
    where = f"{named} expert {layer.experts[expert]} row {source_row} {unit_name} {source_byte}"
    return f"byte {address} = {where}: {values}"


def _source_place(layer: PackedLayer, stack: Stack, name: Field, row: int, column: int) -> tuple[Any, int, int]:
    for cut in layer.plan.cuts(layer.key, layer.rank, stack, name):
        r, c = row - cut.at_row, column - cut.at_column
        if 0 <= r < cut.rows[1] - cut.rows[0] and 0 <= c < cut.columns[1] - cut.columns[0]:
            return cut.projection, cut.rows[0] + r, cut.columns[0] + c
    return None, 0, 0
