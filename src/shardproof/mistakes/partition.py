"""Mistakes of the cut: a rank holds other rows, columns or blocks than its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES
from shardproof.partition import Rank, block_intervals

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan


def _values(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field, start: int, stop: int) -> tuple[Cut, ...]:
    """The rank's cuts moved to the values [start, stop) of the intermediate axis; columns in bytes of the field."""
    shape = plan.shape(layer)
    first = next((r for r in plan.ranks if shape.valid(r)), rank)
    cuts = shape.cuts(first, stack, name, plan.bias_item)
    if start >= stop:
        return ()
    if stack == "w13":
        return tuple(replace(c, rows=(start, stop)) for c in cuts)
    if name == "bias":
        return shape.cuts(rank, stack, name, plan.bias_item)
    per_byte = BLOCK // BLOCK_BYTES if name == "weight" else BLOCK
    return tuple(replace(c, columns=(start // per_byte, stop // per_byte)) for c in cuts)


def _floor_division(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """Rows and weight columns are cut at I // tp values, scale columns at (I / 32) // tp blocks."""
    shape = plan.shape(layer)
    size = min(shape.spec.intermediate // plan.tp, shape.intermediate)
    if stack == "w2" and name == "scale":
        size = shape.spec.blocks // plan.tp * BLOCK
    return _values(plan, layer, rank, stack, name, rank.tp_rank * size, (rank.tp_rank + 1) * size)


def _remainder_dropped(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """Each rank takes blocks // tp blocks; the remainder is on no rank."""
    size = plan.shape(layer).spec.blocks // plan.tp * BLOCK
    return _values(plan, layer, rank, stack, name, rank.tp_rank * size, (rank.tp_rank + 1) * size)


def _other_policy(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """The blocks are dealt by the policy that the plan does not follow."""
    shape = plan.shape(layer)
    other = block_intervals(
        shape.spec.blocks, plan.tp, "ceil" if plan.policy == "balanced" else "balanced", allow_empty=True
    )
    start, stop = (min(b * BLOCK, shape.spec.intermediate) for b in other[rank.tp_rank])
    return _values(plan, layer, rank, stack, name, start, min(stop, start + shape.intermediate))


def _whole_layer(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """Every rank takes from row 0 as much as its destination holds."""
    shape = plan.shape(layer)
    return _values(plan, layer, rank, stack, name, 0, min(shape.intermediate, shape.spec.intermediate))


def _live_rows(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """As many rows again as there is padding are overwritten with padding."""
    shape = plan.shape(layer)
    start, stop = (b * BLOCK for b in shape.intervals[rank.tp_rank])
    lost = shape.intermediate - (stop - start)
    return _values(plan, layer, rank, stack, name, start, max(start, stop - lost))


def _first_rank(plan: Plan, _layer: str, rank: Rank) -> Rank:
    return plan.ranks[rank.ep_rank * rank.tp]


FLOOR_DIVISION = register(
    Mistake(
        name="floor_division",
        sentence=(
            "the cut is I // tp = {floor} values, which is no whole number of 32-value blocks: "
            "weights and scales were cut in different places"
        ),
        explanation=(
            "A rank's share was computed as checkpoint size // tp for weights and for scales separately. Where a share "
            "is not a multiple of 32 the scale columns are floored, so they belong to other values than the weights."
        ),
        issues=("vLLM #42595 (the rule it introduced)", "vLLM #49951", "SGLang #9433"),
        repair="cut in blocks of 32, weights and scales by the same block interval; or choose another tp",
        cuts=_floor_division,
    )
)
REMAINDER_DROPPED = register(
    Mistake(
        name="remainder_dropped",
        sentence="blocks were dealt as {blocks} // tp: the last {dropped} of {blocks} blocks are on no rank",
        explanation="The number of blocks does not divide by tp, and the remainder was dropped without a word.",
        issues=("SGLang #9433",),
        repair="deal the remainder too: the first ranks hold one block more",
        cuts=_remainder_dropped,
    )
)
OTHER_POLICY = register(
    Mistake(
        name="other_policy",
        sentence="the blocks were dealt by another policy than {policy}",
        explanation=(
            "Two ways to deal an uneven number of blocks are in use: runs that differ by one block, and "
            "ceil(blocks / tp) with short last ranks. Loader and kernel must agree on one."
        ),
        issues=("vLLM #42098",),
        repair="plan with the policy that the kernel is told (--policy), and pass the rank's own valid length",
        cuts=_other_policy,
    )
)
RANK_ZERO_EVERYWHERE = register(
    Mistake(
        name="rank_zero_everywhere",
        sentence="the rank holds the slice of tensor-parallel rank 0",
        explanation="One rank's shard was loaded on every rank: the rank was not passed on, or was always 0.",
        issues=(),
        repair="pass the tensor-parallel rank to the loader",
        rank=_first_rank,
    )
)
FROM_ROW_ZERO = register(
    Mistake(
        name="from_row_zero",
        sentence="the rank was filled from row 0, up to the padded size {padded}",
        explanation="The checkpoint was copied into the destination's corner without an offset: no shard was cut.",
        issues=(),
        repair="cut the rank's own rows before copying",
        cuts=_whole_layer,
    )
)
PADDING_DOUBLED = register(
    Mistake(
        name="padding_doubled",
        sentence="the last {waste} live rows of each half were overwritten with padding",
        explanation=(
            "intermediate_pad was given for both halves of w13 and doubled once more by the callee, so padding "
            "was written over rows that hold weights."
        ),
        issues=("vLLM #42098", "vLLM #44679", "vLLM #46201"),
        repair="pass the padding of one half once; the plan's `kernel_padding` states it",
        cuts=_live_rows,
    )
)
BLOCK_FROM_SHAPE = register(
    Mistake(
        name="block_from_shape",
        sentence=(
            "the scales of values {columns} are another block's: the block size was taken from the shard's shape, "
            "{size} values / {scales} scales = {block}, instead of 32"
        ),
        explanation=(
            "Weights were cut in the middle of a 32-value block, scale columns were dealt whole, and the dequantiser "
            "divided one size by the other. It shows in dequantised weights only."
        ),
        issues=("transformers 5.23 and 5.24, tensor-parallel DeepSeek-V4",),
        repair="choose tp so that moe_intermediate_size / tp is a multiple of 32, or cut in whole blocks",
        fields=("weight",),
    )
)
