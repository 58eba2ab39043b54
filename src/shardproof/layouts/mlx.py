"""MLX `mxfp4`: canonical bytes, weights viewed as little-endian 32-bit words; gate and up are separate tensors."""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_MLX = "MLX affine/mxfp4 quantized matmul, mode 'mxfp4', group size 32"

WEIGHT = register(
    Layout(
        name="mlx.weight",
        field="weight",
        pattern="e n k -> e n k",
        summary="uint32 [N, K/8]: canonical bytes read as words",
        source=_MLX,
        held_against=("index formula",),
    )
)
SCALE = register(
    Layout(
        name="mlx.scale",
        field="scale",
        pattern="e n k -> e n k",
        summary="uint8 [N, K/32]",
        source=_MLX,
        held_against=("index formula",),
    )
)
