"""Mistakes in the order of w13's rows, and in the order of numbers inside a block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import BLOCK_BYTES, Bytes

WIDTHS = (1, 8, 16, 32)


def interleave(width: int) -> Callable[[Bytes, Stack, Field], Bytes]:
    """[gate; up] to runs of `width` rows that alternate: g0.., u0.., g1.., u1.."""

    def change(matrix: Bytes, stack: Stack, _name: Field) -> Bytes:
        half = len(matrix) // 2
        if stack != "w13" or half % width:
            return matrix
        runs = matrix.reshape(2, half // width, width, -1).transpose(1, 0, 2, 3)
        return np.ascontiguousarray(runs).reshape(matrix.shape)

    return change


def _swapped(matrix: Bytes, stack: Stack, _name: Field) -> Bytes:
    half = len(matrix) // 2
    return np.concatenate([matrix[half:], matrix[:half]]) if stack == "w13" else matrix


def _transposed(matrix: Bytes, _stack: Stack, _name: Field) -> Bytes:
    return np.ascontiguousarray(matrix.T).reshape(matrix.shape)


def split_nibbles(matrix: Bytes) -> Bytes:
    """Adjacent pairs to GGUF's order: byte j of a block holds numbers j (low) and j + 16 (high)."""
    blocks = matrix.reshape(len(matrix), -1, BLOCK_BYTES)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], 2 * BLOCK_BYTES)
    split = codes[..., :BLOCK_BYTES] | codes[..., BLOCK_BYTES:] << 4
    return np.asarray(split.reshape(matrix.shape), dtype=np.uint8)


def _gguf(matrix: Bytes, _stack: Stack, name: Field) -> Bytes:
    return split_nibbles(matrix) if name == "weight" and matrix.shape[1] % BLOCK_BYTES == 0 else matrix


def swap_nibbles(matrix: Bytes) -> Bytes:
    """High nibble first."""
    return np.asarray(matrix << 4 | matrix >> 4, dtype=np.uint8)


def _high_first(matrix: Bytes, _stack: Stack, name: Field) -> Bytes:
    return swap_nibbles(matrix) if name == "weight" else matrix


def _scales_exchanged(matrix: Bytes, stack: Stack, name: Field) -> Bytes:
    return _swapped(matrix, stack, name) if name == "scale" else matrix


GATE_UP_SWAPPED = register(
    Mistake(
        name="gate_up_swapped",
        sentence="gate and up are swapped: w3 stands where the kernel reads w1",
        explanation="Half of the kernels read [w1; w3], half read [w3; w1]; the bytes are in the other order.",
        issues=("vLLM #52240", "vLLM #45942"),
        repair="stack the halves in the order that the kernel reads",
        canonical=_swapped,
    )
)
SCALES_EXCHANGED = register(
    Mistake(
        name="scales_exchanged",
        sentence="the scales of w1 and w3 are exchanged, their weights are not",
        explanation="The halves of w13's scales were stacked in another order than the halves of its weights.",
        issues=("vLLM #52240",),
        repair="stack scales and weights by one rule",
        fields=("scale",),
        canonical=_scales_exchanged,
    )
)
for _width in WIDTHS:
    register(
        Mistake(
            name=f"rows_interleaved_{_width}",
            sentence=f"gate and up alternate every {_width} row(s) although the kernel's layout starts from [gate; up]",
            explanation=(
                "Three things are called interleave: single rows (gpt-oss checkpoints, fused SwiGLU of Triton), 8 rows "
                "(DeepGEMM), 16-row tiles (AITER). The rows were interleaved before a layout that does not expect it."
            ),
            issues=("vLLM #45942", "ATOM #885", "FlashInfer #3334"),
            repair="do not interleave first; or choose the layout that interleaves by the kernel's width",
            canonical=interleave(_width),
        )
    )
GGUF_NIBBLES = register(
    Mistake(
        name="gguf_nibbles",
        sentence="the nibbles are in GGUF's order (numbers j and j + 16 share a byte), read as adjacent pairs",
        explanation="ggml's blocks keep the first 16 numbers in the low nibbles, the last 16 in the high ones.",
        issues=("kekzl/imp #567",),
        repair="reorder the nibbles of each block of 16 bytes",
        fields=("weight",),
        canonical=_gguf,
    )
)
NIBBLES_SWAPPED = register(
    Mistake(
        name="nibbles_swapped",
        sentence="the two numbers of every byte are swapped: the first stands in the high nibble",
        explanation="All MXFP4 checkpoints keep the even number in the low nibble; some documentation says otherwise.",
        issues=("SGLang #23908", "Quark #30"),
        repair="swap the nibbles of every byte",
        fields=("weight",),
        canonical=_high_first,
    )
)
TRANSPOSED = register(
    Mistake(
        name="transposed",
        sentence="each expert's matrix is transposed in memory: bytes run along N where the kernel reads along K",
        explanation="A transposed view was made contiguous, or a kernel that wants [K, N] got [N, K].",
        issues=("MoE-Infinity #136",),
        repair="keep K contiguous",
        fields=("weight", "scale"),
        canonical=_transposed,
    )
)
