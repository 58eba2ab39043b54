"""Mistakes with scales: E8M0 bytes are exponents, and a copy that converts numbers destroys them."""

from __future__ import annotations

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import E8M0, SCALE_NAN, Bytes

_NUMBERS = np.where(np.arange(256) == SCALE_NAN, 0.0, E8M0.astype(np.float64))
NUMERIC = np.where(_NUMBERS < 256, _NUMBERS, 0).astype(np.uint8)
"""What `uint8.copy_(float8_e8m0fnu)` makes of each scale byte: its value 2**(b - 127), cut to 8 bits."""


def _numeric(matrix: Bytes, _stack: Stack, name: Field) -> Bytes:
    return NUMERIC[matrix] if name == "scale" else matrix


def _unbiased(matrix: Bytes, _stack: Stack, name: Field) -> Bytes:
    return np.asarray(matrix - np.uint8(127), dtype=np.uint8) if name == "scale" else matrix


def _all_one(matrix: Bytes, _stack: Stack, name: Field) -> Bytes:
    return np.full_like(matrix, 127) if name == "scale" else matrix


SCALES_NUMERIC = register(
    Mistake(
        name="scales_numeric",
        sentence="scales were converted as numbers: byte 127 (which means 1.0) became 1, byte 120 became 0",
        explanation=(
            "A tensor of dtype float8_e8m0fnu was copied into uint8. torch converts the value 2**(b - 127), and all "
            "scales below 1 become 0."
        ),
        issues=("vLLM #43416", "SGLang #26701"),
        repair="move scales as bytes: tensor.view(torch.uint8)",
        fields=("scale",),
        canonical=_numeric,
    )
)
SCALES_UNBIASED = register(
    Mistake(
        name="scales_unbiased",
        sentence="scales are exponents without their bias of 127",
        explanation="The producer stored log2 of the scale; E8M0 stores log2 + 127.",
        issues=("Quark Pack_mxfp4 (older mx packing)",),
        repair="add 127 to every scale byte",
        fields=("scale",),
        canonical=_unbiased,
    )
)
SCALES_DROPPED = register(
    Mistake(
        name="scales_dropped",
        sentence="all scales are 127 (1.0): the checkpoint's scales were never loaded",
        explanation="The destination was initialised with ones, and the scales' names matched no parameter.",
        issues=("vLLM #37322",),
        repair="load the scales; fail where an expert has a weight and no scale",
        fields=("scale",),
        canonical=_all_one,
    )
)
SCALES_AS_NUMBERS = register(
    Mistake(
        name="scales_as_numbers",
        sentence="scale bytes were stored as numbers: byte 120 became 120.0",
        explanation="Bytes viewed as uint8 were copied into a floating tensor, which converted them to numbers.",
        issues=("vLLM #43416", "vLLM #51946"),
        repair="view the byte as float8_e8m0fnu first, so that 120 becomes 2**-7; or keep bytes",
        fields=("scale",),
        dtype="float32",
    )
)
