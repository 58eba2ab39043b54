"""Mistakes with biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan


def _on_every_rank(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    shape = plan.shape(layer)
    if (stack, name) == ("w2", "bias"):
        rank = plan.ranks[rank.ep_rank * rank.tp]
    return shape.cuts(rank, stack, name, plan.bias_item)


BIAS_ON_EVERY_RANK = register(
    Mistake(
        name="bias_on_every_rank",
        sentence="w2's bias stands on tensor-parallel rank {rank} too: the all-reduce adds it {tp} times",
        explanation="The output of w2 is summed over ranks, so its bias must be on one rank and zero on the others.",
        issues=("vLLM gpt-oss loader (zeroes it on ranks > 0)",),
        repair="zero w2's bias on all ranks but the first",
        fields=("bias",),
        cuts=_on_every_rank,
    )
)
BIAS_DTYPE = register(
    Mistake(
        name="bias_dtype",
        sentence="the bias is {found}, the kernel takes {needed}",
        explanation="A kernel that reads bfloat16 bytes as float32 (or the reverse) adds other numbers to every row.",
        issues=("vLLM #42595",),
        repair="convert the bias by value to the dtype that the kernel takes",
        fields=("bias",),
    )
)
