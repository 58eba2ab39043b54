"""The three mistakes of vLLM pull request #42595: DeepSeek-V4 on AMD GPUs answered with garbage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan


def _padded_offset(plan: Plan, layer: str, rank: Rank, stack: Stack, name: Field) -> tuple[Cut, ...]:
    """A rank's first row is rank * padded size, and it takes as many rows as the padded destination has room for."""
    shape = plan.shape(layer)
    start = min(shape.intermediate * rank.tp_rank, shape.spec.intermediate)
    stop = min(start + shape.intermediate, shape.spec.intermediate)
    cuts = shape.cuts(rank, stack, name, plan.bias_item)
    if stack == "w2":
        unit = {"weight": BLOCK_BYTES, "scale": 1, "bias": 0}[name]
        if not unit:
            return cuts
        return tuple(replace(c, columns=(start // BLOCK * unit, stop // BLOCK * unit)) for c in cuts if stop > start)
    return tuple(replace(c, rows=(start, stop)) for c in cuts if stop > start)


def _deinterleave(matrix: Bytes, stack: Stack, _name: Field) -> Bytes:
    """Rows taken as g0, u0, g1, u1, ... although they are [gate; up] already."""
    return np.concatenate([matrix[0::2], matrix[1::2]]) if stack == "w13" else matrix


_A16W4 = {
    ("w13", "weight"): "aiter.w16_gugu", ("w13", "scale"): "aiter.e8_gugu",
    ("w2", "weight"): "aiter.w16", ("w2", "scale"): "aiter.e8",
}  # fmt: skip
_SEPARATED = {**_A16W4, ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8"}


def _other_shuffle(plan: Plan, stack: Stack, name: Field) -> str:
    """The shuffle of the other gate mode: a16w4 bytes for a separated kernel, and the reverse."""
    right = plan.recipe.layouts[stack, name]
    table = _A16W4 if plan.recipe.gate_mode == "separated" else _SEPARATED
    return table.get((stack, name), right) if right.startswith("aiter.") else right


PADDED_OFFSET = register(
    Mistake(
        name="padded_offset",
        sentence="the offset was computed from the padded size {padded} instead of {valid}",
        explanation=(
            "Tensor-parallel ranks were cut at rank * padded size. Later ranks start at or beyond the end of the "
            "checkpoint's rows and stay zero; earlier ones hold rows that the kernel skips as padding."
        ),
        issues=(
            "vLLM #42595",
            "vLLM #43865",
            "ATOM #309",
            "TokenSpeed #356",
            "SGLang #32781",
            "TensorRT-LLM #18870",
            "vLLM #52209",
        ),
        repair="cut from the checkpoint's own size, then pad: offset = rank * (checkpoint size // tp)",
        cuts=_padded_offset,
    )
)
DEINTERLEAVED = register(
    Mistake(
        name="deinterleaved",
        sentence="rows of w13 were de-interleaved (g0, u0, g1, u1, ...) although they are [gate; up] already",
        explanation="A converter for gpt-oss, whose checkpoint interleaves rows, ran on separated w1 and w3.",
        issues=("vLLM #42595",),
        repair="drop the de-interleaving step for this checkpoint format",
        canonical=_deinterleave,
    )
)
WRONG_SHUFFLE = register(
    Mistake(
        name="wrong_shuffle",
        sentence="the bytes are in the shuffle of the other gate mode: {found_layout} where the kernel reads {layout}",
        explanation=(
            "shuffle_weight_a16w4 and shuffle_scale_a16w4 alternate gate and up in tiles of 16 rows; kernels in "
            "separated mode read shuffle_weight(w, (16, 16)) and e8m0_shuffle. w2 is the same in both."
        ),
        issues=("vLLM #42595", "vLLM #44893", "vLLM #46122"),
        repair="use the layout that the kernel's gate mode reads, or pass the gate mode that the bytes are in",
        layout=_other_shuffle,
    )
)
