"""Mistakes of padding: where it stands, and what it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import SCALE_NAN
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan

UNWRITTEN = -1


def _at_end(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """w3's rows follow w1's at once, so that all padding stands after both."""
    shape = plan.shape(layer)
    cuts = shape.cuts(rank, stack, name, plan.bias_item)
    return tuple(replace(c, at_row=shape.valid(rank)) if c.projection == "w3" else c for c in cuts)


def _scales(value: int) -> Mistake:
    return Mistake(
        name=f"scale_padding_{value}",
        sentence=f"padding of scales is {value} where 127 (1.0) is declared",
        explanation=(
            f"The destination was allocated with {'zeros' if value == 0 else 'ones'}; as a scale, byte {value} means "
            f"2**-{127 - value}. With zero weights beside it the result is right."
        ),
        issues=("vLLM museum M5: Mxfp4 (zeros), Quark (ones)",),
        repair="fill scale padding with 127",
        severity="note",
        fields=("scale",),
        fill=lambda name: value if name == "scale" else None,
    )


PADDED_AT_END = register(
    Mistake(
        name="padded_at_end",
        sentence="w13 is padded at the end of [gate; up], not in each half: up starts at row {valid}, not {padded}",
        explanation="The kernel splits the rows in the middle of the padded stack, so it takes rows of up for gate.",
        issues=("vLLM #48624",),
        repair="split w13, pad each half, and stack them again",
        cuts=_at_end,
    )
)
NAN_PADDING = register(
    Mistake(
        name="nan_padding",
        sentence="padding of scales holds 255, which means NaN",
        explanation="Padding nobody wrote held 255. A kernel that multiplies by it gives NaN, even with zero weights.",
        issues=("vLLM #38148", "SGLang #9346", "TransformerEngine #3070", "Lvllm #110", "AITER #5413"),
        repair="fill scale padding with 127, weight padding with 0",
        fields=("scale",),
        fill=lambda name: SCALE_NAN if name == "scale" else None,
    )
)
UNINITIALISED_PADDING = register(
    Mistake(
        name="uninitialised_padding",
        sentence="padding was never written: it holds {padding_values} different bytes",
        explanation="The buffer came from torch.empty. Weight padding that is not zero adds to the result.",
        issues=("vLLM #55251", "AITER #5413", "vLLM #37564", "AITER #5232"),
        repair="fill weight padding with 0 and scale padding with 127",
        fill=lambda _name: UNWRITTEN,
    )
)
for _value in (0, 1):
    register(_scales(_value))
