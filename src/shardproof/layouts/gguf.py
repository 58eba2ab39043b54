"""GGUF type 39 (MXFP4): blocks of 17 bytes, one E8M0 byte and 16 bytes of codes.

The low nibbles of a block hold its values 0 to 15, the high nibbles 16 to 31. Weights and scales share one buffer:
each layout treats the other's bytes as holes, so pack the weight first and the scale with `fill=False`.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_GGML = "ggml block_mxfp4 (type 39); gguf 0.19.0"

WEIGHT = register(
    Layout(
        name="gguf.mxfp4_weight",
        field="weight",
        unit="nibble",
        pattern="e n (k 2h 16j) -> e n k 34+2{j h}",
        summary="the 16 code bytes of each 17-byte block, value j beside value j + 16",
        source=_GGML,
        held_against=("vendor bytes", "index formula"),
    )
)
SCALE = register(
    Layout(
        name="gguf.mxfp4_scale",
        field="scale",
        pattern="e n k -> e n k 17+0{}",
        pad_value=0,
        summary="the first byte of each 17-byte block",
        source=_GGML,
        held_against=("vendor bytes", "index formula"),
    )
)
