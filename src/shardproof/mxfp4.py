"""E2M1 elements and E8M0 scales: decode, encode, and the nibble order of canonical form.

An MXFP4 block is 32 consecutive values along K: 16 bytes of E2M1 codes, two a byte with the even k in the
low nibble, and one E8M0 byte. The value is `e2m1[code] * 2**(byte - 127)` (OCP Microscaling Formats 1.0).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shardproof.errors import FormatError

BLOCK = 32
"""Values along K that share one scale."""
BLOCK_BYTES = BLOCK // 2
"""Weight bytes of one block."""
SCALE_NAN = 255
"""The E8M0 byte that means NaN; it is never padding and never a scale."""
PAD_SCALE = 127
"""2**0: the declared value of every padding scale."""
PAD_WEIGHT = 0
"""Two zero codes: the declared value of every padding weight byte."""

ScaleRule: TypeAlias = Literal["floor", "ceil", "even"]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1: Floats = np.array([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], dtype=np.float32)
"""Value of each of the 16 codes; code 8 is -0.0."""
_BITS = np.arange(256, dtype=np.uint32) << np.uint32(23)
_BITS[0] = 1 << 22  # 2**-127 is a float32 subnormal; shifting the byte into the exponent would give 0
_BITS[SCALE_NAN] = 0x7FC00000
E8M0: Floats = _BITS.view(np.float32)
"""Value of each of the 256 scale bytes: 2**(b - 127); byte 255 is NaN."""


def unpack_codes(weight: Bytes) -> Bytes:
    """Split bytes [..., K/2] into codes [..., K]; the low nibble is the even k."""
    codes = np.empty((*weight.shape[:-1], weight.shape[-1] * 2), dtype=np.uint8)
    codes[..., 0::2] = weight & 0xF
    codes[..., 1::2] = weight >> 4
    return codes


def pack_codes(codes: Bytes) -> Bytes:
    """Join codes [..., K] into bytes [..., K/2]; the inverse of `unpack_codes`."""
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4), dtype=np.uint8)


def decode(weight: Bytes, scale: Bytes) -> Floats:
    """Decode a matrix: weight bytes [..., N, K/2] and scale bytes [..., N, K/32] to float32 [..., N, K].

    Exact for every code and scale byte, except that 6 * 2**127 and 4 * 2**127 exceed float32 and give inf.
    """
    if weight.shape[:-1] != scale.shape[:-1] or weight.shape[-1] != scale.shape[-1] * BLOCK_BYTES:
        raise FormatError(
            "format.scale_shape",
            "weight and scale do not describe the same matrix",
            found=f"weight {weight.shape}, scale {scale.shape}",
            needed="weight [..., N, K/2] with scale [..., N, K/32]",
            next_step="give the scale of this very weight, not transposed",
        )
    values = E2M1[unpack_codes(weight)]
    blocks = values.reshape(*scale.shape, BLOCK)
    with np.errstate(over="ignore"):
        blocks *= E8M0[scale][..., None]
    return values


def encode(values: npt.ArrayLike, rule: ScaleRule = "ceil") -> tuple[Bytes, Bytes]:
    """Encode [..., K] finite values as (weight bytes [..., K/2], scale bytes [..., K/32]).

    `rule` chooses the scale from a block's largest magnitude `a`, as producers in the field do:
    `"floor"` (OCP, ggml) 2**(floor(log2 a) - 2), saturating; `"ceil"` (DeepSeek, ModelOpt, triton_kernels)
    2**ceil(log2(a / 6)); `"even"` (Quark, compressed-tensors) floor of `a` rounded at 1.75, minus 2.
    Elements are rounded to nearest, ties to even; what is larger than 6 scales saturates. A block of zeros gets
    scale byte 127, and a negative that rounds to zero is code 0, not -0.

    Raises FormatError `format.not_finite` or `format.block` for values that have no encoding.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise FormatError(
            "format.block",
            "K is not a whole number of blocks",
            found=x.shape,
            needed=f"last axis % {BLOCK} == 0",
            next_step=f"pad the last axis to a multiple of {BLOCK}",
        )
    if not np.isfinite(x).all():
        raise FormatError(
            "format.not_finite",
            "a value to encode is NaN or infinite",
            needed="finite values",
            next_step="repair the values first: MXFP4 has no NaN but in its scales, and no infinity",
        )
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    exponent = np.where(largest > 0, _scale_exponent(largest, rule), 0).clip(-127, 127)
    codes = _round_to_codes(blocks * np.exp2(-exponent)[..., None])
    scale = (exponent + 127).astype(np.uint8)
    return pack_codes(codes.reshape(x.shape)), scale


def _scale_exponent(largest: npt.NDArray[np.float64], rule: ScaleRule) -> npt.NDArray[np.int64]:
    mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2**exponent, mantissa in [0.5, 1)
    if rule == "floor":
        power = exponent - 3
    elif rule == "ceil":  # 6 = 0.75 * 2**3
        power = exponent - 3 + (mantissa > 0.75)
    elif rule == "even":
        power = exponent - 3 + (mantissa >= 0.875)
    else:
        raise FormatError(
            "format.scale_rule",
            "unknown scale rule",
            found=repr(rule),
            needed="'floor', 'ceil' or 'even'",
            next_step="choose one of the three",
        )
    return power.astype(np.int64)


def _round_to_codes(scaled: npt.NDArray[np.float64]) -> Bytes:
    magnitudes = np.array(_MAGNITUDES)
    middles = (magnitudes[:-1] + magnitudes[1:]) / 2
    size = np.abs(scaled)
    below = np.searchsorted(middles, size, side="left")
    above = np.searchsorted(middles, size, side="right")
    # on a midpoint the two differ: take the even code
    code = np.where(below % 2 == 0, below, above).astype(np.uint8)
    return np.asarray(code | (np.signbit(scaled) & (code > 0)).astype(np.uint8) << 3, dtype=np.uint8)
