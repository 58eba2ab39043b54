"""shardproof's own CPU kernels: 4-byte words of checkpoint bytes, rows side by side in one vector register.

A word holds 8 codes of one row; the rows of a register's lanes stand next to each other, and the scales of those rows
likewise. w13 has tiles of gate rows and up rows alternate, so that the activation is computed tile by tile.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_SOURCE = "shardproof.kernels.cpu.layer (this library)"

W13 = register(
    Layout(
        name="shardproof.cpu_w13",
        field="weight",
        pattern="e 2h (n 8r) (k 4q 4b) -> e n k q h r b",
        summary="words of 4 bytes, 8 rows of gate beside 8 rows of up",
        source=_SOURCE,
        held_against=("vendor kernel", "index formula"),
    )
)
W13_SCALE = register(
    Layout(
        name="shardproof.cpu_w13_scale",
        field="scale",
        pattern="e 2h (n 8r) k -> e n k h r",
        summary="scales of 8 rows of gate, then of 8 rows of up, block by block",
        source=_SOURCE,
        held_against=("vendor kernel", "index formula"),
    )
)
W2 = register(
    Layout(
        name="shardproof.cpu_w2",
        field="weight",
        pattern="e (n 16r) (k 4q 4b) -> e n k q r b",
        stacks=("w2",),
        summary="words of 4 bytes, 16 rows side by side",
        source=_SOURCE,
        held_against=("vendor kernel", "index formula"),
    )
)
W2_SCALE = register(
    Layout(
        name="shardproof.cpu_w2_scale",
        field="scale",
        pattern="e (n 16r) k -> e n k r",
        stacks=("w2",),
        summary="scales of 16 rows, block by block",
        source=_SOURCE,
        held_against=("vendor kernel", "index formula"),
    )
)
