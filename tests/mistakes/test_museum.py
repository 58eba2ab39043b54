"""The museum itself: stable names, complete declarations, sentences that can be filled."""

from __future__ import annotations

import string

import pytest

from shardproof.errors import DiagnoseError
from shardproof.mistakes import find_mistake, museum

NAMES = {
    "bias_dtype", "bias_on_every_rank", "block_from_shape", "cast_weights", "deinterleaved", "doubly_shuffled",
    "experts_permuted", "floor_division", "from_row_zero", "gate_up_swapped", "gguf_nibbles", "nan_padding",
    "nibbles_swapped", "not_shuffled", "one_row", "other_ep_rank", "other_layer", "other_policy", "padded_at_end",
    "padded_offset", "padding_doubled", "rank_zero_everywhere", "remainder_dropped", "rows_interleaved_1",
    "rows_interleaved_16", "rows_interleaved_32", "rows_interleaved_8", "scale_kwidth", "scale_padding_0",
    "scale_padding_1", "scales_as_numbers", "scales_dropped", "scales_exchanged", "scales_numeric", "scales_unbiased",
    "shuffle_scale_moe", "shuffled_for_raw", "transposed", "truncated", "uninitialised_padding", "up_missing",
    "weights_not_read", "wrong_shuffle", "zero_experts",
}  # fmt: skip
WORDS = {
    "padded", "valid", "rank", "tp", "layout", "found_layout", "policy", "floor", "blocks", "dropped", "waste", "layer",
    "found_layer", "experts", "padding_values", "columns", "size", "scales", "block", "found", "needed",
}  # fmt: skip


def test_names_are_stable() -> None:
    assert {m.name for m in museum()} == NAMES


def test_the_seed_comes_first() -> None:
    assert [m.name for m in museum()][:3] == ["padded_offset", "deinterleaved", "wrong_shuffle"]


@pytest.mark.parametrize("mistake", museum(), ids=lambda m: m.name)
def test_every_mistake_says_what_why_and_how_to_repair(mistake) -> None:
    assert mistake.sentence
    assert mistake.explanation.endswith(".")
    assert mistake.repair
    assert mistake.severity in {"wrong", "note"}
    assert {word for _, word, _, _ in string.Formatter().parse(mistake.sentence) if word} <= WORDS


def test_unknown_name_is_refused() -> None:
    with pytest.raises(DiagnoseError) as refused:
        find_mistake("padded_offsets")
    assert refused.value.code == "diagnose.unknown_mistake"
    assert "padded_offset" in str(refused.value)
