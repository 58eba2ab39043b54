"""Triton kernels of the portable MoE layer: grouped products on canonical MXFP4 bytes, the sum over slots."""

# Triton reads a kernel's own source: its arguments are typed at launch, not here.
# mypy: ignore-errors
# ruff: noqa: E741, ANN001, ANN202, ANN201, RET505

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _values(code, scale):
    """float32 values of e2m1 codes times 2^(scale - 127); exact, without subnormal intermediates."""
    magnitude = (code & 7).to(tl.int32)
    twice = tl.where(magnitude < 4, magnitude, tl.where(magnitude < 6, 2 * magnitude - 4, 4 * magnitude - 16))
    bits = tl.where(scale == 0, 0x00400000, scale.to(tl.int32) << 23)
    bits = tl.where(scale == 255, 0x7FC00000, bits)
    value = twice.to(tl.float32) * 0.5 * bits.to(tl.float32, bitcast=True)
    return tl.where((code & 8) != 0, -value, value)


@triton.jit
def _product(acc, w, s, x, xs, MODE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Adds W [BN, BK] times x [BM, BK] transposed to acc [BN, BM]; weights first, Hopper's register side.

    MODE "scaled": the target's own block-scaled product (x bf16, xs unused). "scaled8": x e4m3, e8m0 scales
    xs [BM, BK / 32]. "float32": every number spelled out, for the interpreter.
    """
    if MODE == "float32":
        scale = tl.reshape(tl.broadcast_to(s[:, :, None], (BN, BK // 32, 32)), (BN, BK))
        codes = tl.reshape(tl.join(w & 15, w >> 4), (BN, BK))
        return acc + tl.dot(_values(codes, scale), tl.trans(x.to(tl.float32)), input_precision="ieee")
    elif MODE == "scaled8":
        return tl.dot_scaled(w, s, "e2m1", tl.trans(x), xs, "e4m3", acc)
    else:
        return tl.dot_scaled(w, s, "e2m1", tl.trans(x), None, "bf16", acc)


@triton.jit
def _weight_tile(weight, scale, row, rows, k, K, BK: tl.constexpr):
    """Codes [BN, BK / 2] and scale bytes [BN, BK / 32] of rows `row`; zeros and 2^0 outside."""
    byte, block = k // 2 + tl.arange(0, BK // 2), k // 32 + tl.arange(0, BK // 32)
    inside = row[:, None] < rows
    at = row[:, None].to(tl.int64)
    w = tl.load(weight + at * (K // 2) + byte[None, :], mask=inside & (byte[None, :] < K // 2), other=0)
    s = tl.load(scale + at * (K // 32) + block[None, :], mask=inside & (block[None, :] < K // 32), other=127)
    return w, s


@triton.jit
def _token_tile(x, xs, source, live, k, K, x_pitch, MODE: tl.constexpr, BK: tl.constexpr):
    """X [BM, BK] of rows `source`, zeros outside, and its e8m0 scales [BM, BK / 32] where MODE needs them."""
    column, block = k + tl.arange(0, BK), k // 32 + tl.arange(0, BK // 32)
    at = source[:, None].to(tl.int64)
    v = tl.load(x + at * x_pitch + column[None, :], mask=live[:, None] & (column[None, :] < K), other=0.0)
    e = block
    if MODE == "scaled8":
        inside = live[:, None] & (block[None, :] < K // 32)
        e = tl.load(xs + at * (x_pitch // 32) + block[None, :], mask=inside, other=127)
    return v, e


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def _tanh(v):
    return 2.0 * _sigmoid(2.0 * v) - 1.0


@triton.jit
def _activate(g, u, limit, alpha, beta, linear_beta, ACTIVATION: tl.constexpr):
    """h(g, u) of shardproof.experts.Activation: 0 silu, 1 swiglu_oai, 2 situ."""
    if ACTIVATION == 2:
        return beta * _tanh(g / beta) * _sigmoid(g) * linear_beta * _tanh(u / linear_beta)
    else:
        g = tl.where(g > limit, limit, g)
        u = tl.where(u > limit, limit, tl.where(u < -limit, -limit, u))
        if ACTIVATION == 1:
            return (u + 1.0) * g * _sigmoid(alpha * g)
        else:
            return g * _sigmoid(g) * u


@triton.jit
def _tile(tiles, slots, BM: tl.constexpr):
    """This program's token tile: expert, sorted positions, which of them exist, and their routed slots."""
    at = tl.program_id(0) * 3
    expert, start, count = tl.load(tiles + at), tl.load(tiles + at + 1), tl.load(tiles + at + 2)
    place = start + tl.arange(0, BM)
    live = tl.arange(0, BM) < count
    return expert, count, place, live, tl.load(slots + place, mask=live, other=0)


@triton.jit
def gate_up(
    x, xs, weight, scale, bias, h, tiles, slots, route, top_k, H, I, x_pitch, limit, alpha, beta, linear_beta,
    ACTIVATION: tl.constexpr, WEIGHT_FIRST: tl.constexpr, BIAS: tl.constexpr, MODE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes h [slots, I], sorted by expert: the activation of w13 x.

    Times the routing weight if it goes first.
    """
    expert, count, place, live, slot = _tile(tiles, slots, BM)
    if count == 0:
        return
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    weight += expert.to(tl.int64) * 2 * I * (H // 2)
    scale += expert.to(tl.int64) * 2 * I * (H // 32)
    g, u = tl.zeros((BN, BM), tl.float32), tl.zeros((BN, BM), tl.float32)
    for k in range(0, H, BK):
        v, e = _token_tile(x, xs, slot // top_k, live, k, H, x_pitch, MODE, BK)
        w, s = _weight_tile(weight, scale, column, I, k, H, BK)
        g = _product(g, w, s, v, e, MODE, BN, BK)
        w, s = _weight_tile(weight + I.to(tl.int64) * (H // 2), scale + I.to(tl.int64) * (H // 32), column, I, k, H, BK)
        u = _product(u, w, s, v, e, MODE, BN, BK)
    inside = column < I
    if BIAS:
        g += tl.load(bias + expert * 2 * I + column, mask=inside, other=0.0)[:, None]
        u += tl.load(bias + expert * 2 * I + I + column, mask=inside, other=0.0)[:, None]
    value = _activate(g, u, limit, alpha, beta, linear_beta, ACTIVATION)
    if WEIGHT_FIRST:
        value *= tl.load(route + slot, mask=live, other=0.0)[None, :]
    at = h + place[None, :].to(tl.int64) * I + column[:, None]
    tl.store(at, value.to(h.dtype.element_ty), mask=inside[:, None] & live[None, :])


@triton.jit
def down(
    h, hs, weight, scale, bias, y, tiles, slots, route, H, I, h_pitch,
    WEIGHT_FIRST: tl.constexpr, BIAS: tl.constexpr, MODE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes y [slots, H] by routed slot: w2 h plus bias, times the routing weight unless it went first."""
    expert, count, place, live, slot = _tile(tiles, slots, BM)
    if count == 0:
        return
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    weight += expert.to(tl.int64) * H * (I // 2)
    scale += expert.to(tl.int64) * H * (I // 32)
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(0, I, BK):
        v, e = _token_tile(h, hs, place, live, k, I, h_pitch, MODE, BK)
        w, s = _weight_tile(weight, scale, column, H, k, I, BK)
        acc = _product(acc, w, s, v, e, MODE, BN, BK)
    inside = column < H
    if BIAS:
        acc += tl.load(bias + expert * H + column, mask=inside, other=0.0)[:, None]
    if not WEIGHT_FIRST:
        acc *= tl.load(route + slot, mask=live, other=0.0)[None, :]
    tl.store(y + slot[None, :].to(tl.int64) * H + column[:, None], acc, mask=inside[:, None] & live[None, :])


@triton.jit
def sum_slots(y, local, out, H, top_k, BLOCK: tl.constexpr):
    """Writes out [M, H]: a token's rows of y summed in float32 and slot order.

    Absent slots (local < 0) left out.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for j in range(top_k):
        present = tl.load(local + token * top_k + j) >= 0
        acc += tl.load(y + (token * top_k + j) * H + column, mask=present & (column < H), other=0.0)
    tl.store(out + token * H + column, acc.to(out.dtype.element_ty), mask=column < H)
