"""Every byte order restated as plain arithmetic, written from the vendors' code and not from the patterns.

`formula(e, n, k, E, N, K, **parameters)` gives the address in the layout's units: k and K count units along K.
gu, i are a row's half and its row in that half.
"""

from __future__ import annotations

import numpy as np


def up(a, b):
    return -(-a // b) * b


def w16(e, n, k, E, N, K):
    return e * N * K + (n // 16) * 16 * K + (k // 16) * 256 + (n % 16) * 16 + k % 16


def tiles16(n, N):
    gu, i = n // (N // 2), n % (N // 2)
    return (2 * (i // 16) + gu) * 16 + i % 16


def pairs(n, N):
    gu, i = n // (N // 2), n % (N // 2)
    return 2 * i + gu


def up_pairs(n, N):
    gu, i = n // (N // 2), n % (N // 2)
    return 2 * i + 1 - gu


def up_first(n, N):
    return (n + N // 2) % N


def by8(n, N):
    gu, i = n // (N // 2), n % (N // 2)
    return 16 * (i // 8) + 8 * gu + i % 8


def e8(e, n, k, E, N, K):
    K8, r = up(K, 8), e * N + n
    return r // 32 * 32 * K8 + k // 8 * 256 + k % 4 * 64 + r % 16 * 4 + k // 4 % 2 * 2 + r // 16 % 2


def e8_gugu(e, n, k, E, N, K):
    K8, half = up(K, 8), N // 2
    gu, i = n // half, n % half
    return e * N * K8 + i // 16 * 32 * K8 + k // 8 * 256 + k % 4 * 64 + i % 16 * 4 + k // 4 % 2 * 2 + gu


def n32k4(e, n, k, E, N, K):
    return e * N * K + n // 32 * 32 * K + k // 4 * 128 + n % 32 * 4 + k % 4


def n32k8(e, n, k, E, N, K):
    return e * N * K + n // 32 * 32 * K + k // 8 * 256 + n % 32 * 8 + k % 8


def raw(e, n, k, E, N, K):
    return (e * N + n) * K + k


def tile_128x4(rows, columns):
    def formula(e, n, k, E, N, K):
        Np, Kp = up(N, rows), up(K, columns)
        tile = (e * Np // 128 + n // 128) * (Kp // 4) + k // 4
        return (tile * 32 + n % 32) * 16 + n % 128 // 32 * 4 + k % 4

    return formula


def word_bit(q, b):
    """Bit b of the code in slot q of the Hopper word: sign is bit 3, magnitude em is bits 2..0."""
    sign = np.choose(q, [15, 12, 9, 14])
    first = np.choose(q, [6, 3, 0, 0]) + b
    last = np.where(b == 0, 13, 9 + b)  # slot 3: m to bit 13, em >> 1 to bits 11..10
    return np.where(b == 3, sign, np.where(q == 3, last, first))


def hopper_value(rows, columns):
    def formula(e, n, k, E, N, K):
        kb, h, b = k // 8, k % 8 // 4, k % 4
        Np, KB = up(N, rows), up(K // 8, columns)
        r0, wt0, th0, sc0 = n // 16, n % 16 // 8, n % 8 // 2, n % 2
        r1, kt, wt1, th1 = kb // 32, kb % 32 // 8, kb % 8 // 4, kb % 4
        row = 4 * r0 + th0
        word = ((r1 * 2 + sc0) * 4 + th1) * 4 + kt
        byte = (e * (Np // 4) + row) * 4 * KB + word * 4
        return byte * 8 + 16 * h + word_bit(2 * wt1 + wt0, b)

    return formula


def hopper_scale(e, n, k, E, N, K, num_warps=8, kpad=4):
    nw, Np, Kp = num_warps, up(N, 32 * num_warps), up(K, kpad)
    A, p, w, h, r = n // (32 * nw), n // (16 * nw) % 2, n // 16 % nw, n // 8 % 2, n % 8
    row = A * nw + w
    column = ((k // 2 * 2 + p) * 8 + r) * 4 + k % 2 * 2 + h
    return (e * Np // 32 + row) * 32 * Kp + column


def blackwell_value(e, n, k, E, N, K):
    return (e * N + n) * up(K, 128) + k


def blackwell_shuffled(e, n, k, E, N, K):
    KT, NT = up(K, 128) // 64, up(N, 256) // 256
    return (((e * KT + k // 64) * NT + n // 256) * 256 + n % 256) * 64 + k % 64


def cdna4(e, n, k, E, N, K):
    Np, Kp = up(N, 32), up(K, 8)
    return e * Np * Kp + n // 32 * 32 * Kp + ((k // 8 * 4 + k % 4) * 16 + n % 16) * 4 + k % 8 // 4 * 2 + n % 32 // 16


def trtllm_row(n):
    return 32 * (n // 32) + 8 * (n % 4) + n % 32 // 4


def trtllm(e, n, k, E, N, K):
    return (e * N + trtllm_row(n)) * K + k


def trtllm_scale(e, n, k, E, N, K):
    return tile_128x4(128, 4)(e, trtllm_row(n), k, E, N, K)


def sm90(e, n, k, E, N, K):
    kb, h, b, KB = k // 8, k % 8 // 4, k % 4, K // 8
    mma = kb % 32 // 8
    row = 16 * (n // 16) + n % 8 + 8 * (mma % 2)
    byte = 32 * (kb // 32) + 16 * (mma // 2) + 4 * (kb % 4)
    q = 2 * (kb % 8 // 4) + n % 16 // 8
    return ((e * N + row) * KB + byte) * 8 + 16 * h + word_bit(q, b)


def sm90_scale(e, n, k, E, N, K):
    return (((e * N // 64 + n // 64) * (K // 4) + k // 4) * 16 + n % 16) * 16 + n % 64 // 16 * 4 + k % 4


def packed_ue8m0(e, n, k, E, N, K):
    return 4 * ((e * up(K, 4) // 4 + k // 4) * up(N, 4) + n) + k % 4


def utccp(e, n, k, E, N, K):
    row = n // 128 * 128 + 4 * (n % 32) + n % 128 // 32
    return packed_ue8m0(e, row, k, E, N, K)


def marlin_weight(e, n, k, E, N, K):
    t, j = 4 * (n % 8) + k % 8 // 2, n % 64 // 16
    o = 4 * (n % 16 // 8) + k % 2 + 2 * (k % 16 // 8)
    x = np.where(o % 2 == 0, o // 2, 4 + o // 2)
    word = e * (K // 16) * 2 * N + k // 16 * 2 * N + n // 64 * 128 + 4 * t + j
    return word * 8 + x


def marlin_scale(e, n, k, E, N, K):
    p = 8 * (n % 8) + n % 64 // 8
    p = p // 4 * 4 + np.choose(p % 4, [0, 2, 1, 3])
    return (e * K + k) * N + n // 64 * 64 + p


def marlin_weight_a8(e, n, k, E, N, K):
    t, o = 4 * (n % 8) + k % 16 // 4, k % 4 + 4 * (k % 32 // 16)
    x = np.where(o < 4, 2 * o, 2 * (o - 4) + 1)
    word = e * N * K // 8 + (k // 32 * (N // 32) + n // 32) * 128 + 4 * t + 2 * (n % 32 // 16) + n % 16 // 8
    return word * 8 + x


def inside32(n):
    m = n % 32
    return n // 32 * 32 + 8 * (m % 8 // 2) + 2 * (m // 8) + m % 2


def marlin_scale_a8(e, n, k, E, N, K):
    return (e * K + k) * N + inside32(n)


def marlin_bias(e, n, k, E, N, K):
    return (e * N + inside32(n)) * K + k


def humming_scale(e, n, k, E, N, K):
    return (e * K + k) * N + n // 64 * 64 + 8 * (n % 8) + n % 64 // 8


def humming_umma(e, n, k, E, N, K):
    return e * N * K + k // 4 * 4 * N + n // 128 * 512 + n % 32 * 16 + n % 128 // 32 * 4 + k % 4


def gguf_weight(e, n, k, E, N, K):
    return ((e * N + n) * (K // 32) + k // 32) * 34 + 2 + 2 * (k % 16) + k % 32 // 16


def gguf_scale(e, n, k, E, N, K):
    return ((e * N + n) * K + k) * 17


def after(rows, formula):
    """The rows of w13 in another order first."""
    return lambda e, n, k, E, N, K, **p: formula(e, rows(n, N), k, E, N, K, **p)


_TK = {
    "strided_value": raw,
    "strided_scale": raw,
    "hopper_scale": hopper_scale,
    "blackwell_value": blackwell_value,
    "blackwell_value_shuffled": blackwell_shuffled,
    "blackwell_scale": tile_128x4(128, 8),
    "gfx1250_scale": tile_128x4(128, 4),
}
_TK_VERSIONS = {
    "hopper_value@1": hopper_value(16, 32),
    "hopper_value@2": hopper_value(64, 64),
    "cdna4_scale@1": cdna4,
    "cdna4_scale@2": cdna4,
}


def hopper_value(rows):
    """(n, w, b, a) of a row by `rows`; then chunks of 64 x 64 values, lanes of 32 nibbles."""

    def formula(e, n, k, E, N, K):
        chunk, w, b, a = rows(n, N)
        lane = (w * 8 + b) * 4 + k % 8 // 2
        word = (lane * 2 + k % 64 // 32) * 2 + a
        nibble = (word * 2 + k % 2) * 4 + k % 32 // 16 * 2 + k % 16 // 8
        return ((e * (N // 64) + chunk) * (K // 64) + k // 64) * 4096 + nibble

    return formula


def hopper_scale(rows):
    def formula(e, n, k, E, N, K):
        chunk, w, b, a = rows(n, N)
        return ((e * (N // 64) + chunk) * (K // 2) + k // 2) * 128 + ((w * 8 + b) * 2 + k % 2) * 2 + a

    return formula


def gate_beside_up(n, N):
    row = n % (N // 2)
    return row // 32, row % 32 // 8, row % 8, n // (N // 2)


def halves_of_16(n, N):
    return n // 64, n % 64 // 16, n % 8, n % 16 // 8


def cpu_w13(e, n, k, E, N, K):
    half, row = n // (N // 2), n % (N // 2)
    word = ((e * (N // 16) + row // 8) * (K // 16) + k // 16) * 4 + k % 16 // 4
    return ((word * 2 + half) * 8 + row % 8) * 4 + k % 4


def cpu_w13_scale(e, n, k, E, N, K):
    half, row = n // (N // 2), n % (N // 2)
    return (((e * (N // 16) + row // 8) * K + k) * 2 + half) * 8 + row % 8


def cpu_w2(e, n, k, E, N, K):
    word = ((e * (N // 16) + n // 16) * (K // 16) + k // 16) * 4 + k % 16 // 4
    return (word * 16 + n % 16) * 4 + k % 4


def cpu_w2_scale(e, n, k, E, N, K):
    return ((e * (N // 16) + n // 16) * K + k) * 16 + n % 16


FORMULAS = {
    "aiter.w16@1": w16,
    "aiter.w16_gugu@1": after(tiles16, w16),
    "aiter.w16_rowgugu@1": after(pairs, w16),
    "aiter.e8@1": e8,
    "aiter.e8_columns@1": e8,
    "aiter.e8_gugu@1": e8_gugu,
    "aiter.n32k4@1": n32k4,
    "aiter.n32k4_rowgugu@1": after(pairs, n32k4),
    "aiter.n32k8@1": n32k8,
    "aiter.n32k8_rowgugu@1": after(pairs, n32k8),
    "aiter.bias_rowgugu@1": after(pairs, raw),
    **{f"triton_kernels.{name}@1": f for name, f in _TK.items()},
    **{f"triton_kernels.{name}_interleaved@1": after(pairs, f) for name, f in _TK.items()},
    **{f"triton_kernels.{name}": f for name, f in _TK_VERSIONS.items()},
    **{f"triton_kernels.{name.replace('@', '_interleaved@')}": after(pairs, f) for name, f in _TK_VERSIONS.items()},
    "triton_kernels.bias_interleaved@1": after(pairs, raw),
    "cutlass.scale_128x4@1": tile_128x4(128, 4),
    "flashinfer.trtllm_w2@1": trtllm,
    "flashinfer.trtllm_w2_scale@1": trtllm_scale,
    "flashinfer.trtllm_w2_bias@1": trtllm,
    "flashinfer.trtllm_w13@1": after(up_pairs, trtllm),
    "flashinfer.trtllm_w13_scale@1": after(up_pairs, trtllm_scale),
    "flashinfer.trtllm_w13_bias@1": after(up_pairs, trtllm),
    "flashinfer.sm90_w2@1": sm90,
    "flashinfer.sm90_w13@1": after(up_first, sm90),
    "flashinfer.sm90_w2_scale@1": sm90_scale,
    "flashinfer.sm90_w13_scale@1": after(up_first, sm90_scale),
    "flashinfer.up_first_weight@1": after(up_first, raw),
    "flashinfer.up_first_bias@1": after(up_first, raw),
    "flashinfer.up_first_scale_128x4@1": after(up_first, tile_128x4(128, 4)),
    "deepgemm.packed_ue8m0@1": packed_ue8m0,
    "deepgemm.mega_w13@1": after(by8, raw),
    "deepgemm.mega_w13_scale@1": after(by8, utccp),
    "deepgemm.mega_w2_scale@1": utccp,
    "marlin.weight@1": marlin_weight,
    "marlin.scale@1": marlin_scale,
    "marlin.weight_a8@1": marlin_weight_a8,
    "marlin.scale_a8@1": marlin_scale_a8,
    "marlin.bias@1": marlin_bias,
    "humming.weight@1": marlin_weight,
    "humming.bias@1": marlin_bias,
    "humming.scale@1": humming_scale,
    "humming.umma_scale@1": humming_umma,
    "gguf.mxfp4_weight@1": gguf_weight,
    "gguf.mxfp4_scale@1": gguf_scale,
    "mlx.weight@1": raw,
    "shardproof.hopper_w13@1": hopper_value(gate_beside_up),
    "shardproof.hopper_w2@1": hopper_value(halves_of_16),
    "shardproof.hopper_w13_scale@1": hopper_scale(gate_beside_up),
    "shardproof.hopper_w2_scale@1": hopper_scale(halves_of_16),
    "shardproof.cpu_w13@1": cpu_w13,
    "shardproof.cpu_w13_scale@1": cpu_w13_scale,
    "shardproof.cpu_w2@1": cpu_w2,
    "shardproof.cpu_w2_scale@1": cpu_w2_scale,
    "mlx.scale@1": raw,
    "gpt_oss.w13_weight@1": after(pairs, raw),
    "gpt_oss.w13_scale@1": after(pairs, raw),
    "gpt_oss.w13_bias@1": after(pairs, raw),
    "raw.weight@1": raw,
    "raw.scale@1": raw,
    "raw.bias@1": raw,
}
