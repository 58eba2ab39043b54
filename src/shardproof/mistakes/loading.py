"""Mistakes of loading: experts, layers or parts of them that are missing, or that belong elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, Owners, register
from shardproof.mxfp4 import E2M1, E8M0, Bytes, unpack_codes
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Plan


def _first_missing(plan: Plan, layer: str, rank: Rank) -> Owners:
    owners = plan.experts(layer, rank)
    return (None, *owners[1:])


def _filtered(plan: Plan, layer: str, rank: Rank) -> Owners:
    """Experts that a round-robin filter takes for another rank's stay unread, though the placement is linear."""
    owners = plan.experts(layer, rank)
    ep = max(plan.ep, 2)
    return tuple(e if e % ep == rank.ep_rank else None for e in owners)


def _next_rank(plan: Plan, layer: str, rank: Rank) -> Owners:
    """The experts of the next expert-parallel rank (as many as this rank has places for)."""
    shape = plan.shape(layer)
    here = shape.owners[rank.ep_rank]
    there = shape.owners[(rank.ep_rank + 1) % plan.ep]
    return tuple(there[i % len(there)] for i in range(len(here)))


def _rotated(plan: Plan, layer: str, rank: Rank) -> Owners:
    owners = plan.experts(layer, rank)
    return (*owners[1:], owners[0])


def _next_layer(plan: Plan, layer: str) -> str:
    keys = list(plan.layers)
    return keys[(keys.index(layer) + 1) % len(keys)]


def _truncated(matrix: Bytes, _stack: Stack, _name: Field) -> Bytes:
    short = matrix.copy()
    short[len(matrix) // 2 :] = 0
    return short


def _one_row(matrix: Bytes, _stack: Stack, _name: Field) -> Bytes:
    return np.asarray(np.broadcast_to(matrix[:1], matrix.shape))


def _up_missing(matrix: Bytes, stack: Stack, _name: Field) -> Bytes:
    half = matrix.copy()
    if stack == "w13":
        half[len(matrix) // 2 :] = 0
    return half


def _cast(weight: Bytes, scale: Bytes, _name: Field) -> Bytes:
    """Dequantised numbers copied into uint8 one by one: toward zero, modulo 256, as many as fit."""
    with np.errstate(all="ignore"):
        numbers = E2M1[unpack_codes(weight)].reshape(*scale.shape, -1) * E8M0[scale][..., None]
        whole = np.nan_to_num(numbers.reshape(len(weight), -1)[:, : weight.shape[1]], posinf=0, neginf=0)
        return np.asarray(np.fmod(np.trunc(whole.astype(np.float64)), 256.0).astype(np.int64) % 256, dtype=np.uint8)


ZERO_EXPERTS = register(
    Mistake(
        name="zero_experts",
        sentence="experts {experts} are all zero, weights and scales: they were never loaded",
        explanation="A missing tensor left its place at zero, and the parameter was reported as loaded all the same.",
        issues=("vLLM #57108", "vLLM #37322", "SGLang #37679"),
        repair="load the missing tensors, and fail where one is absent",
        experts=_first_missing,
    )
)
WEIGHTS_NOT_READ = register(
    Mistake(
        name="weights_not_read",
        sentence="the weights of experts {experts} are zero, although their scales were loaded",
        explanation=(
            "A filter that skips other ranks' experts computed another placement than the layer (round robin against "
            "linear). It looks at names ending in .weight only, so the scales arrived."
        ),
        issues=("vLLM #37322", "vLLM #49558"),
        repair="use one placement for filter and layer, or switch the filter off (--enable-ep-weight-filter)",
        zeroed=("weight",),
        experts=_filtered,
    )
)
OTHER_EP_RANK = register(
    Mistake(
        name="other_ep_rank",
        sentence="the experts are those of another expert-parallel rank: {experts}",
        explanation="The range of experts was computed for another rank (start and end swapped, or the rank mixed up).",
        issues=("vLLM #27025", "vLLM #28715", "vLLM #51130"),
        repair="load the experts that the placement gives this rank",
        experts=_next_rank,
    )
)
EXPERTS_PERMUTED = register(
    Mistake(
        name="experts_permuted",
        sentence="the experts are in another order than the router's: {experts}",
        explanation="The local order of experts differs from the placement, so the router picks other experts.",
        issues=(),
        repair="store experts in the order of the placement, or give the router the physical-to-logical map",
        experts=_rotated,
    )
)
OTHER_LAYER = register(
    Mistake(
        name="other_layer",
        sentence="the bytes are those of {found_layer}, not of {layer}",
        explanation="Layers were mixed up, or an offset (dense layers before the first MoE layer) was forgotten.",
        issues=(),
        repair="load the layer's own tensors",
        layer=_next_layer,
    )
)
TRUNCATED = register(
    Mistake(
        name="truncated",
        sentence="the second half of the rows is zero: a shorter tensor was copied into a longer one",
        explanation="The destination was narrowed to the size of what came, so a short tensor passed for a whole one.",
        issues=("vLLM #39688", "vmlx-swift #217"),
        repair="compare shapes before copying; finish the download",
        canonical=_truncated,
    )
)
ONE_ROW = register(
    Mistake(
        name="one_row",
        sentence="every row is the same: one row was broadcast over all",
        explanation="Tensor.copy_ broadcasts, so a 1-D tensor or a single row fills the whole matrix without an error.",
        issues=("MoE-Infinity #136",),
        repair="compare shapes before copying",
        canonical=_one_row,
    )
)
UP_MISSING = register(
    Mistake(
        name="up_missing",
        sentence="the up half of w13 is zero: w3 was never loaded",
        explanation="One half of w13 did not arrive, and the parameter was reported as loaded all the same.",
        issues=("vLLM #57108",),
        repair="load w3 too, and fail where a half is absent",
        canonical=_up_missing,
    )
)
CAST_WEIGHTS = register(
    Mistake(
        name="cast_weights",
        sentence="numbers were cut down to uint8: a bfloat16 or float32 tensor was copied into packed 4-bit weights",
        explanation=(
            "The checkpoint's experts were dequantised, or never quantised. Tensor.copy_ converts numbers one by one, "
            "so most bytes became 0, 1 or 255, and only half of each row fitted."
        ),
        issues=("vLLM #35366", "mlx-lm #1192"),
        repair="quantise first (`shardproof.mxfp4.encode`), or use the checkpoint's packed weights",
        fields=("weight",),
        valued=_cast,
    )
)
