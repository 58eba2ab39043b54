"""gpt-oss checkpoints: rows of gate and up alternate in the stacked w13; w2 is canonical (`raw.*`).

Weights are stored as [E, N, K/32, 16] and scales as [E, N, K/32]: the bytes of a row are canonical.
"""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.raw import RAW_BIAS, RAW_SCALE, RAW_WEIGHT
from shardproof.layouts.registry import register
from shardproof.layouts.rows import in_rows

W13_WEIGHT: Layout = register(in_rows(RAW_WEIGHT, "interleaved", "gpt_oss.w13_weight", held_against=("index formula",)))
W13_SCALE: Layout = register(in_rows(RAW_SCALE, "interleaved", "gpt_oss.w13_scale", held_against=("index formula",)))
W13_BIAS: Layout = register(in_rows(RAW_BIAS, "interleaved", "gpt_oss.w13_bias", held_against=("index formula",)))
