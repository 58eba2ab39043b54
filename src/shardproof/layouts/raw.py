"""Canonical order itself: what kernels that take checkpoint bytes read."""

from __future__ import annotations

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

RAW_WEIGHT = register(
    Layout(
        name="raw.weight",
        field="weight",
        pattern="e n k -> e n k",
        summary="canonical order: rows [w1; w3], two values a byte, low nibble = even k",
        source="OCP Microscaling Formats (MX) 1.0; DeepSeek-V4 and Quark checkpoints",
        held_against=("vendor bytes", "index formula"),
        golden=("deepgemm_mega_moe_*", "tknew_strided_m2_value_*"),
    )
)
RAW_SCALE = register(
    Layout(
        name="raw.scale",
        field="scale",
        pattern="e n k -> e n k",
        summary="canonical order: one E8M0 byte a block of 32",
        source="OCP Microscaling Formats (MX) 1.0",
        held_against=("index formula",),
    )
)
RAW_BIAS = register(
    Layout(
        name="raw.bias",
        field="bias",
        pattern="e n b -> e n b",
        summary="canonical order: one number a row, little endian",
        source="gpt-oss",
        held_against=("index formula",),
    )
)
