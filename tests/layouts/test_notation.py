"""The pattern language: what it reads, what it refuses, and how row orders compose."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.errors import LayoutError
from shardproof.layouts import Layout, catalogue, find, register
from shardproof.layouts.aiter import E8_COLUMNS, E8_GUGU, UNINITIALISED, W16, W16_GUGU
from shardproof.layouts.notation import parse
from shardproof.layouts.placed import Placed
from shardproof.layouts.rows import BLOCK_ROWS, compose


def made(pattern, **more):
    return Layout(name="test.made", field="weight", pattern=pattern, source="test", summary="test", **more)


def refused(code, call):
    with pytest.raises(LayoutError) as caught:
        call()
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("e n k", "no '->'"),
        ("e n -> e", "each digit must stand once on each side"),
        ("e -> e", "the left side needs the axes e n k, e h n k or m k"),
        ("e (n m) k -> e n m k", "an axis has two digits without a size"),
        ("e n k -> e n", "each digit must stand once on each side"),
        ("e n k -> e n k k", "each digit must stand once on each side"),
        ("e (n 4r k -> e n r k", "an unclosed '('"),
        ("e n ~k -> e n k", "unexpected on the left side"),
        ("e n (k 4s) -> e n k 4s", "unexpected on the right side"),
        ("e n k -> e n word[k", "an unclosed '[' or '{'"),
        ("e n k -> e n k]", "unexpected on the right side"),
        ("e n k -> e n k!", "cannot read"),
        ("e () k -> e k", "unexpected on the left side"),
    ],
)
def test_what_cannot_be_read_is_named(pattern, part):
    text = refused("layout.pattern", lambda: parse(pattern))
    assert part in text
    assert pattern in text
    assert "next: see layouts/notation.py" in text


def test_what_fits_no_size_is_refused():
    cases = {
        "e n (k 4s) -> e n k swap[s]": "no such table",
        "e n (k 4s) -> e n k 3+0{s}": "a slot is smaller than its digits",
        "(8a e) n k -> a e n k": "E a multiple of 8",
    }
    for pattern, part in cases.items():
        assert part in refused(
            "layout.shape" if "8a" in pattern else "layout.pattern",
            lambda p=pattern: made(p).place((2, 2, 8)),
        )
    wrong = made("e n (k 4s) -> e n k swap[s]", tables={"swap": (0, 1, 1, 2)})
    assert "each of 0..3 once" in refused("layout.pattern", lambda: wrong.place((2, 2, 8)))


def test_every_word_of_the_notation():
    data = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    pack = lambda pattern, **more: made(pattern, **more).place((1, 4, 6)).pack(data).tolist()  # noqa: E731
    flat = data.reshape(4, 6)
    assert pack("e n k -> e k n") == flat.T.reshape(-1).tolist()
    assert pack("e n k -> e ~n k") == flat[::-1].reshape(-1).tolist()
    assert pack("e h n k -> e n h k") == flat[[0, 2, 1, 3]].reshape(-1).tolist()
    assert pack("e (n 2r) k -> e r n k") == flat[[0, 2, 1, 3]].reshape(-1).tolist()
    assert pack("m (k 3s) -> k m s") == flat.reshape(4, 2, 3).transpose(1, 0, 2).reshape(-1).tolist()
    table = {"tables": {"turn": (2, 0, 1)}}
    assert pack("e n (k 3s) -> e n k turn[s]", **table) == flat.reshape(4, 2, 3)[..., [1, 2, 0]].reshape(-1).tolist()
    holes = pack("e n (k 3s) -> e n k 5+1{s}", pad_value=99)
    assert holes[:10] == [99, 0, 1, 2, 99, 99, 3, 4, 5, 99]
    padded = pack("e n k -> e n k", pad={"k": 4, "n": 3}, pad_value=7)
    assert padded[:8] == [0, 1, 2, 3, 4, 5, 7, 7]
    assert padded[32:] == [7] * 16


def test_nibbles_and_bits_count_from_the_low_end():
    data = np.array([[[0x21, 0x43]]], dtype=np.uint8)
    turned = made("e n k -> e n ~k", unit="nibble").place((1, 1, 2)).pack(data)
    assert turned.tolist() == [0x34, 0x12]
    one = made("e n (k 8b) -> e n k ~b", unit="bit").place((1, 1, 2)).pack(np.array([[[1, 128]]], dtype=np.uint8))
    assert one.tolist() == [128, 1]


def test_a_value_change_refuses_what_would_not_come_back():
    placed = made("e n k -> e n k", add=6, highest=248).place((1, 1, 3))
    assert placed.pack(np.array([[[0, 127, 248]]], dtype=np.uint8)).tolist() == [6, 133, 254]
    text = refused("layout.value", lambda: placed.pack(np.array([[[0, 249, 1]]], dtype=np.uint8)))
    assert "found: 249 at (0, 0, 1)" in text
    assert "needed: at most 248" in text
    refused("layout.value", lambda: placed.unpack(np.array([3, 9, 9], dtype=np.uint8)))


def test_a_refused_shape_says_what_would_fit():
    text = refused("layout.shape", lambda: W16_GUGU.place((2, 40, 32)))
    assert "layout aiter.w16_gugu cannot hold this shape" in text
    assert "the rows of each half of w13 (N / 2) a multiple of 16: 16 or 32" in text
    assert "(2, 40, 32) (E, N, K bytes)" in text
    text = refused("layout.shape", lambda: W16.place((2, 32, 48)))
    assert "K a multiple of 32 bytes along K (64 values): 32 or 64" in text
    text = refused("layout.shape", lambda: W16_GUGU.place((2, 33, 32)))
    assert "the halves of N a multiple of 2" in text


def test_declarations_that_contradict_themselves_are_refused():
    refused("layout.parameter", lambda: made("e (n {warps}w) k -> e n w k"))
    refused(
        "layout.pad_value",
        lambda: Layout(**{**vars(made("e n k -> e n k")), "field": "scale", "pad_value": 255}),
    )
    refused("layout.pad_value", lambda: made("e n k -> e n k", unit="bit", pad_value=1))
    other = Layout(name=W16.name, field="weight", pattern="e n k -> e n k", source="test", summary="another")
    refused("layout.duplicate", lambda: register(other))


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ("aiter.w17", "layout.unknown"),
        ("", "layout.unknown"),
        ("aiter.w16@2", "layout.newer"),
        ("aiter.w16@1(colour=3)", "layout.parameter"),
        ("triton_kernels.hopper_scale@1(num_warps=four)", "layout.parameter"),
        ("triton_kernels.hopper_scale@1(num_warps=0)", "layout.parameter"),
        ("triton_kernels.hopper_scale@1(num_warps)", "layout.parameter"),
    ],
)
def test_ids_that_name_nothing_are_refused(identity, code):
    text = refused(code, lambda: find(identity))
    if code == "layout.unknown":
        assert ("aiter.w16" if identity else "aiter.") in text
    if code == "layout.newer":
        assert "needed: version 1" in text
        assert "next: use a newer shardproof" in text


def test_an_id_reads_back():
    for layout in catalogue():
        assert find(layout.identity()) == (layout, layout.filled())
    layout, parameters = find("triton_kernels.hopper_scale@1(kpad=2,num_warps=4)")
    assert layout.identity(parameters) == "triton_kernels.hopper_scale@1(kpad=2,num_warps=4)"
    assert find("triton_kernels.hopper_value@1")[0].pad != find("triton_kernels.hopper_value")[0].pad


def test_aiters_alternating_tiles_are_a_row_order_and_a_layout():
    assert W16_GUGU.pattern == "e 2h (n 16r) (k 16b) -> e n h k r b"
    assert E8_GUGU.pattern == "e 2h (n 16r) (k 2q 4s) -> e n k s r q h"
    assert compose("interleaved", E8_COLUMNS.pattern) == "e 2h (n 2p 8r) (k 2q 4s) -> e n k s r h q p"


@given(order=st.sampled_from(sorted(BLOCK_ROWS)), half=st.sampled_from([128, 256]), seed=st.integers(0, 99))
def test_a_row_order_and_then_a_layout_is_the_composed_layout(order, half, seed):
    rows = np.arange(2 * half)
    block = BLOCK_ROWS[order] or half
    gate_up = rows.reshape(2, half // block, block)
    gate_up = gate_up[::-1] if order.startswith("up_first") else gate_up
    permuted = gate_up.transpose(1, 0, 2).reshape(-1)
    data = np.random.default_rng(seed).integers(0, 256, (2, 2 * half, 32), dtype=np.uint8)
    for pattern in ("e n k -> e n k", "e (n 16r) (k 16b) -> e n k r b", "e (n 4w 32r) (k 4s) -> e n k r w s"):
        composed = made(compose(order, pattern)).place(data.shape)
        assert (composed.pack(data) == made(pattern).place(data.shape).pack(data[:, permuted])).all()


@pytest.mark.parametrize(
    ("order", "pattern", "part"),
    [
        ("interleaved", "m k -> m k", "only a layout with the axes e n k"),
        ("interleaved16", "e (n 24r) k -> e n r k", "cuts through a digit"),
        ("interleaved16", "e (n {p}w 8r) k -> e n w r k", "inside a parameter"),
        ("interleaved", "e (n 4r) k -> e n ~r k", "inside a reversed digit"),
        ("up_first", "e (4n 4r) k -> e n r k", "a first digit without a size"),
        ("interleaved8", "e 4n k -> e n k", "fewer than one block"),
    ],
)
def test_row_orders_that_do_not_fit_are_refused(order, pattern, part):
    assert part in refused("layout.compose", lambda: compose(order, pattern))


def test_parts_that_share_a_tile_must_come_together():
    placed = made("(m 32r) k -> m r k").place((4, 16, 2))
    out = np.zeros(placed.nbytes, dtype=np.uint8)
    placed.write(np.ones((2, 16, 2), dtype=np.uint8), out, first=2)
    assert out.sum() == 64
    text = refused("layout.part", lambda: placed.write(np.ones((1, 16, 2), dtype=np.uint8), out, first=1))
    assert "whole tiles of 32 rows" in text


def test_defects_are_data():
    assert UNINITIALISED.concerns(2, 64, 64)
    assert UNINITIALISED.to_dict()["package"] == "aiter"
    every = {defect.name: defect for layout in catalogue() for defect in layout.defects}
    for name in (
        "shuffle_scale_moe",
        "scale_kwidth",
        "stack_padding",
        "mxmoe_hidden_8192",
        "uninitialised_padding",
    ):
        assert f"aiter.{name}" in every
    stack = every["aiter.stack_padding"]
    assert stack.concerns(3, 96, 64)
    assert not stack.concerns(8, 96, 64)
    assert "when stack_rows not a multiple of 256" in str(stack)
    assert not every["aiter.scale_kwidth"].concerns(1, 1, 1, arch="gfx950")


def test_sub_byte_layouts_take_little_memory_beside_their_result():
    placed: Placed = find("triton_kernels.hopper_value")[0].place((16, 1024, 1024))
    data = np.zeros(placed.shape, dtype=np.uint8)
    out = np.empty(placed.nbytes, dtype=np.uint8)
    tracemalloc.start()
    placed.pack(data, out)
    placed.read(out, 3, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * data.nbytes  # one byte a bit would be eight times
