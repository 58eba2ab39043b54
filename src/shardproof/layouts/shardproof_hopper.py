"""shardproof's own Hopper kernels: each lane's 16 bytes of a 64 x 64 chunk are its own operand fragment.

Lane 4b + q of warp w finds its part of a chunk in 16 contiguous bytes: a 32-bit word for each block of 32 (c) and each
half of 16 rows. In w13 the halves are gate and up, so that one thread holds both numbers of an activation.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_SOURCE = "shardproof.kernels.cuda.pack (this library)"

W13 = register(
    Layout(
        name="shardproof.hopper_w13",
        field="weight",
        unit="nibble",
        pattern="e 2h (n 4w 8b) (k 2c 2d 2f 4q 2z) -> e n k w b q c h z d f",
        summary="chunks of 64 x 64 values, 32 rows of gate beside 32 rows of up, 16 bytes a lane",
        source=_SOURCE,
        held_against=("index formula",),
    )
)
W13_SCALE = register(
    Layout(
        name="shardproof.hopper_w13_scale",
        field="scale",
        pattern="e 2h (n 4w 8b) (k 2c) -> e n k w b c h",
        summary="scales of a chunk together, gate beside up",
        source=_SOURCE,
        held_against=("index formula",),
    )
)
W2 = register(
    Layout(
        name="shardproof.hopper_w2",
        field="weight",
        unit="nibble",
        pattern="e (n 4w 2a 8b) (k 2c 2d 2f 4q 2z) -> e n k w b q c a z d f",
        stacks=("w2",),
        summary="chunks of 64 x 64 values, 16 bytes a lane",
        source=_SOURCE,
        held_against=("index formula",),
    )
)
W2_SCALE = register(
    Layout(
        name="shardproof.hopper_w2_scale",
        field="scale",
        pattern="e (n 4w 2a 8b) (k 2c) -> e n k w b c a",
        stacks=("w2",),
        summary="scales of a chunk together",
        source=_SOURCE,
        held_against=("index formula",),
    )
)
