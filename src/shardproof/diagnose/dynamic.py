"""Mistakes that only exist with a value that was recognised: another layout, another rank, another order of experts."""

from __future__ import annotations

from collections.abc import Sequence

from shardproof.experts import Field, Stack
from shardproof.mistakes import Mistake, Owners, find_mistake
from shardproof.partition import Rank
from shardproof.plan import Plan


def other_layout(slot: tuple[Stack, Field], identity: str) -> Mistake:
    """The tensor is in a byte order of the catalogue that the backend does not read."""

    def layout(plan: Plan, stack: Stack, name: Field) -> str:
        return identity if (stack, name) == slot else plan.recipe.layouts[stack, name]

    return Mistake(
        name="other_layout",
        sentence=f"the bytes are in {identity} where the kernel reads {{layout}}",
        explanation="The conversion was made for another kernel, or for another version of it.",
        issues=("vLLM #44893", "vLLM #46122", "vLLM #52240"),
        repair="lay the tensor out for the backend that runs (`--repair` does), or run the kernel that reads it",
        layout=layout,
        fields=(slot[1],),
    )


def other_tp_rank(rank: Rank) -> Mistake:
    """The slice is another tensor-parallel rank's."""
    return Mistake(
        name="other_tp_rank",
        sentence=f"the slice is that of tensor-parallel rank {rank.tp_rank}, not of rank {{rank}}",
        explanation="The rank that cut the checkpoint is not the rank that runs.",
        issues=(),
        repair="pass the rank of the tensor-parallel group, not the local or global one",
        rank=lambda plan, _layer, own: plan.ranks[own.ep_rank * plan.tp + rank.tp_rank],
    )


def expert_mistake(found: Owners, planned: Sequence[int], others: set[int], *, scales_too: bool) -> Mistake | None:
    """The mistake that explains experts which are not those of the plan; None where they are."""
    if tuple(found) == tuple(planned):
        return None
    if any(e is None for e in found):
        return find_mistake("zero_experts" if scales_too else "weights_not_read")
    held = {e for e in found if e is not None}
    if held == set(planned):
        return find_mistake("experts_permuted")
    return find_mistake("other_ep_rank" if held & others else "experts_permuted")
