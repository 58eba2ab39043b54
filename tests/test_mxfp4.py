"""E2M1 and E8M0 against ml_dtypes, torch, and formulas written in another way than the code under test."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.errors import FormatError
from shardproof.mxfp4 import (
    BLOCK,
    BLOCK_BYTES,
    E2M1,
    E8M0,
    PAD_SCALE,
    PAD_WEIGHT,
    SCALE_NAN,
    decode,
    encode,
    pack_codes,
    unpack_codes,
)

RULES = ("floor", "ceil", "even")
MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def codes_of(weight: np.ndarray) -> np.ndarray:
    return unpack_codes(weight).astype(int)


# -- decode ---------------------------------------------------------------------------------------------------


def test_every_code_has_the_value_of_ml_dtypes_and_of_the_standard():
    theirs = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert E2M1.tobytes() == theirs.tobytes()  # bytes: code 8 is -0.0
    assert E2M1.tolist() == MAGNITUDES + [-m for m in MAGNITUDES]
    assert np.signbit(E2M1[8])


@pytest.mark.parametrize("byte", range(256))
def test_every_scale_byte_is_exact(byte):
    if byte == SCALE_NAN:
        assert math.isnan(E8M0[byte])
    else:
        assert Fraction(float(E8M0[byte])) == Fraction(2) ** (byte - 127)


def test_scale_bytes_agree_with_ml_dtypes_and_torch():
    torch = pytest.importorskip("torch")
    raw = np.arange(256, dtype=np.uint8)
    assert np.array_equal(E8M0, raw.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), equal_nan=True)
    theirs = torch.from_numpy(raw).view(torch.float8_e8m0fnu).float().numpy()
    assert np.array_equal(E8M0, theirs, equal_nan=True)


def test_scale_byte_0_is_a_subnormal_and_not_zero():
    assert E8M0[0] == np.float32(2.0**-127) > 0
    assert E8M0[0] < np.finfo(np.float32).tiny


def test_decode_multiplies_every_code_by_every_scale():
    weight = np.tile(np.arange(0, 16, 2, dtype=np.uint8) | np.arange(1, 17, 2, dtype=np.uint8) << 4, (256, 2))
    scale = np.arange(256, dtype=np.uint8)[:, None]
    found = decode(weight, scale)
    exact = np.tile(np.array(MAGNITUDES + [-m for m in MAGNITUDES]), 2) * np.exp2(np.arange(256) - 127.0)[:, None]
    exact[SCALE_NAN] = np.nan
    with np.errstate(over="ignore"):
        assert np.array_equal(found, exact.astype(np.float32), equal_nan=True)


def test_the_low_nibble_is_the_even_k():
    assert unpack_codes(np.array([[0x21, 0x43]], dtype=np.uint8)).tolist() == [[1, 2, 3, 4]]
    assert pack_codes(np.array([[1, 2, 3, 4]], dtype=np.uint8)).tolist() == [[0x21, 0x43]]


def test_pack_codes_undoes_unpack_codes_for_every_byte():
    every = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert np.array_equal(pack_codes(unpack_codes(every)), every)


@pytest.mark.parametrize(
    ("weight", "scale"), [((4, 16), (4, 2)), ((4, 16), (3, 1)), ((4, 15), (4, 1)), ((16,), (1, 1))]
)
def test_decode_refuses_a_scale_of_another_matrix(weight, scale):
    with pytest.raises(FormatError) as caught:
        decode(np.zeros(weight, np.uint8), np.zeros(scale, np.uint8))
    assert caught.value.code == "format.scale_shape"
    assert str(weight) in caught.value.found
    assert str(scale) in caught.value.found


def test_padding_decodes_to_zero():
    zeros = decode(np.full((1, BLOCK_BYTES), PAD_WEIGHT, np.uint8), np.full((1, 1), PAD_SCALE, np.uint8))
    assert (zeros == 0).all()
    assert zeros.shape == (1, BLOCK)


# -- the scale rules, by formulas that do not use frexp ---------------------------------------------------------


def exponent_by_formula(largest: float, rule: str) -> int:
    """The rule in exact arithmetic, from its definition."""
    a = Fraction(largest)
    power = 0
    while Fraction(2) ** (power + 1) <= a:
        power += 1
    while Fraction(2) ** power > a:
        power -= 1  # power = floor(log2 a)
    if rule == "floor":
        exponent = power - 2
    elif rule == "ceil":
        exponent = power - 3
        while Fraction(6) * Fraction(2) ** exponent < a:
            exponent += 1
    else:
        exponent = (power + 1 if a >= Fraction(7, 4) * Fraction(2) ** power else power) - 2
    return min(max(exponent, -127), 127)


def even_by_bits(largest: np.float32) -> int:
    """Quark and AITER: add 0x200000 to the float32 bits, keep the exponent, subtract 2 (normal numbers)."""
    bits = int(np.float32(largest).view(np.uint32)) + 0x200000
    return (bits >> 23 & 0xFF) - 127 - 2


LARGEST = st.floats(min_value=2.0**-120, max_value=2.0**120, width=32)


@pytest.mark.parametrize("rule", RULES)
@given(largest=LARGEST)
def test_scale_rule_is_its_definition(rule, largest):
    _, scale = encode([largest] + [0.0] * 31, rule)
    assert int(scale[0]) - 127 == exponent_by_formula(largest, rule)


@given(largest=LARGEST)
def test_even_is_the_bit_trick_of_quark_and_aiter(largest):
    _, scale = encode([largest] + [0.0] * 31, "even")
    assert int(scale[0]) - 127 == even_by_bits(np.float32(largest))


@pytest.mark.parametrize(
    ("rule", "largest", "byte"),
    [
        ("floor", 4.0, 127), ("floor", 7.999, 127), ("floor", 8.0, 128), ("floor", 3.999, 126),
        ("ceil", 6.0, 127), ("ceil", np.nextafter(6.0, 7), 128), ("ceil", 3.0, 126), ("ceil", 3.1, 127),
        ("even", 6.999, 127), ("even", 7.0, 128), ("even", 3.5, 127), ("even", 3.4999, 126),
    ],
)  # fmt: skip
def test_scale_rule_at_its_thresholds(rule, largest, byte):
    assert int(encode([largest] + [0.0] * 31, rule)[1][0]) == byte


@pytest.mark.parametrize("largest", [3e-39, 1e-40, 1e-45, 1e-300])
@pytest.mark.parametrize("rule", RULES)
def test_tiny_blocks_take_scale_byte_0_and_never_wrap(rule, largest):
    weight, scale = encode([largest] + [0.0] * 31, rule)
    assert scale.tolist() == [0]  # ggml's cast to uint8 wraps 1e-40 to byte 248
    assert decode(weight, scale).max() <= 2.0**-126


@pytest.mark.parametrize("rule", RULES)
def test_zeros_take_scale_1_and_code_0(rule):
    weight, scale = encode(np.zeros((2, 64)), rule)
    assert (scale == PAD_SCALE).all()
    assert not weight.any()


@pytest.mark.parametrize("rule", RULES)
def test_no_scale_byte_is_ever_nan(rule):
    _, scale = encode(np.array([3e38] * 32 + [1e300] * 32), rule)
    assert (scale < SCALE_NAN).all()


def test_floor_saturates_above_6_and_ceil_does_not():
    assert codes_of(encode([7.9] + [0.0] * 31, "floor")[0])[0] == 7
    weight, scale = encode([7.9] + [0.0] * 31, "ceil")
    assert decode(weight, scale)[0] == 8.0


# -- rounding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("middle", "rounded"), [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)]
)
def test_midpoints_go_to_the_even_code(middle, rounded, sign):
    block = [6.0, sign * middle, sign * np.nextafter(middle, 9), sign * np.nextafter(middle, 0)] + [0.0] * 28
    values = decode(*encode(block, "ceil"))
    below, above = max(m for m in MAGNITUDES if m < middle), min(m for m in MAGNITUDES if m > middle)
    assert values[1:4].tolist() == [sign * rounded, sign * above, sign * below]


@given(st.lists(st.floats(-6, 6, width=32), min_size=31, max_size=31))
def test_elements_round_as_ml_dtypes_rounds(values):
    block = np.array([6.0, *values], dtype=np.float32)
    theirs = block.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    ours = decode(*encode(block, "ceil"))
    assert np.array_equal(ours, theirs)  # as numbers: a negative that rounds to zero is +0 here, -0 there


def test_code_8_is_never_written():
    assert not (codes_of(encode([6.0, -0.0, -0.1, -1e-30] + [0.0] * 28, "ceil")[0]) == 8).any()


@pytest.mark.parametrize("rule", RULES)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=64, max_size=64))
def test_error_is_at_most_half_a_step_where_nothing_saturates(rule, values):
    x = np.array(values, dtype=np.float64)
    weight, scale = encode(x, rule)
    found = decode(weight, scale).astype(np.float64)
    unit = np.repeat(np.exp2(scale.astype(float) - 127), BLOCK)
    size = np.abs(x) / unit
    step = np.where(size < 2, 0.5, np.where(size < 4, 1.0, 2.0))
    inside = size <= 6
    assert (np.abs(found - x)[inside] <= (step * unit / 2)[inside]).all()
    assert (np.abs(found[~inside]) == 6 * unit[~inside]).all()
    assert rule != "ceil" or inside.all()


@pytest.mark.parametrize("rule", RULES)
@given(st.data())
def test_encoding_what_was_decoded_keeps_every_value(rule, data):
    codes = data.draw(st.lists(st.integers(0, 15), min_size=31, max_size=31))
    byte = data.draw(st.integers(2, 250))
    top = data.draw(st.sampled_from([6, 7, 14, 15]))  # 4 or 6 present: every rule finds the block's own scale
    weight = pack_codes(np.array([top, *codes], dtype=np.uint8))
    scale = np.array([byte], dtype=np.uint8)
    values = decode(weight, scale)
    assert np.array_equal(decode(*encode(values, rule)), values)
    assert rule != "floor" or encode(values, rule)[1].tolist() == [byte]


@given(st.integers(0, 3), st.integers(1, 4))
def test_leading_axes_are_kept(rows, blocks):
    weight, scale = encode(np.ones((2, rows, blocks * BLOCK)), "even")
    assert weight.shape == (2, rows, blocks * BLOCK_BYTES)
    assert scale.shape == (2, rows, blocks)


# -- what has no encoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_what_is_not_finite(bad):
    with pytest.raises(FormatError) as caught:
        encode([bad] + [0.0] * 31)
    assert caught.value.code == "format.not_finite"


@pytest.mark.parametrize("shape", [(), (31,), (2, 33)])
def test_encode_refuses_a_part_of_a_block(shape):
    with pytest.raises(FormatError) as caught:
        encode(np.zeros(shape))
    assert (caught.value.code, caught.value.needed) == ("format.block", "last axis % 32 == 0")


def test_encode_refuses_an_unknown_rule():
    with pytest.raises(FormatError) as caught:
        encode(np.ones(32), "nearest")  # type: ignore[arg-type]
    assert caught.value.code == "format.scale_rule"
    assert "nearest" in str(caught.value)


# -- what producers in the field wrote ----------------------------------------------------------------------------


def test_quark_packs_0x1_0x2_to_0x21():
    assert pack_codes(np.array([1, 2], dtype=np.uint8)).tolist() == [0x21]


def test_producers_of_code_8_decode_to_the_same_number():
    """ModelOpt writes exact zeros as 0x88."""
    assert (decode(np.full((1, 16), 0x88, np.uint8), np.full((1, 1), 130, np.uint8)) == 0).all()


def test_a_numeric_cast_of_scales_is_not_a_view():
    """What `uint8.copy_(e8m0)` and `.to(uint8)` did in engines: bytes became numbers."""
    torch = pytest.importorskip("torch")
    raw = torch.tensor([0, 1, 2, 126, 127, 128, 134, 253], dtype=torch.uint8)
    scales = raw.view(torch.float8_e8m0fnu)
    assert torch.equal(scales.view(torch.uint8), raw)
    assert not torch.equal(scales.to(torch.float32).clamp(max=255).to(torch.uint8), raw)


def test_seven_saturates_to_six_under_floor_as_ggml_does():
    assert (decode(*encode(np.full(32, 7.0), "floor")) == 6.0).all()
    assert (decode(*encode(np.full(32, 7.0), "even")) == 8.0).all()  # 7 = 1.75 * 4 rounds up, 3.5 goes to even 4
