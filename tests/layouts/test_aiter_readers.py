"""AITER's readers: where each kernel family fetches its operands, restated from the kernels' sources.

A 16x16x128 matrix instruction takes the fp4 operand so: lane l holds row l % 16, bytes 64 ku + 16 (l // 16) .. + 15 of
its K = 128 step ku, and the scale of block 4 ku + l // 16. Each reader below lists, for every lane and loop index, the
address it reads and the element it must find there. Elements are unique numbers, so one wrong address is seen.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shardproof.layouts import find
from shardproof.layouts.aiter import HIDDEN_8192, SCALE_MOE

E, MID, H = 2, 384, 512
LANES = np.arange(64)
ROW, GROUP = LANES % 16, LANES // 16


def numbered(shape):
    return np.arange(np.prod(shape)).reshape(shape)


def laid_out(name, shape):
    """What stands at each kernel byte: the canonical index of the byte, found by packing its three byte planes."""
    placed = find(name)[0].place(shape)
    index = numbered(shape)
    planes = [placed.pack((index >> 8 * p & 255).astype(np.uint8)).astype(np.int64) for p in range(3)]
    return planes[0] | planes[1] << 8 | planes[2] << 16


def gugu_row(tile, intermediate):
    """The canonical first row of a 16-row tile where tiles of gate and up alternate."""
    return tile % 2 * intermediate + tile // 2 * 16


def right(buffer, reads, shape):
    """Share of reads that find their element; `reads` yields (addresses, e, rows, columns)."""
    index, hits, total = numbered(shape), 0, 0
    for where, e, rows, columns in reads:
        hits += int((buffer[where] == index[e, rows, columns]).sum())
        total += np.size(where)
    return hits / total


def all_of(n, *ranges):
    return itertools.product(range(n), *map(range, ranges))


class Mixed:
    """FlyDSL mixed gemm1 and gemm2, and a16wmix with its standard layout; `gugu` for the `_gui` kernels."""

    @staticmethod
    def weight(N, KB, gugu=False):
        for e, t, ku in all_of(E, N // 16, KB // 64):
            at = (e * N + 16 * t) // 16 * (KB // 64) * 1024 + ku * 1024 + GROUP * 256 + ROW * 16
            first = gugu_row(t, N // 2) if gugu else 16 * t
            for b in (0, 15):
                yield at + b, e, first + ROW, 64 * ku + 16 * GROUP + b

    @staticmethod
    def scale(N, KS, gugu=False, chunks=None):
        k1 = -(-KS // 8) if chunks is None else chunks
        for e, t, ku in all_of(E, N // 16, KS // 4):
            dword = (e * N + 16 * t) // 32 * k1 * 64 + ku // 2 * 64 + LANES
            first = gugu_row(t, N // 2) if gugu else 16 * t
            yield dword * 4 + 2 * (ku % 2) + t % 2, e, first + ROW, 4 * ku + GROUP


class MxMoe1:
    """mxmoe g1: BK = 256, wave w, tile j, half h."""

    @staticmethod
    def tiles(N, KB, interleave):
        for e, nb, w, j, kt, h in all_of(E, N // 256, 4, 4, KB // 128, 2):
            t = nb * 16 + 4 * w + j
            tile = t if interleave else (t & 1) * N // 32 + (t >> 1)
            first = gugu_row(t, N // 2)
            yield e, nb, w, j, kt, h, tile, first

    @classmethod
    def weight(cls, N, KB, interleave):
        for e, _, _, _, kt, h, tile, first in cls.tiles(N, KB, interleave):
            at = (e * N + tile * 16) * KB + GROUP * 256 + ROW * 16 + kt * 2048 + h * 1024
            yield at, e, first + ROW, 128 * kt + 64 * h + 16 * GROUP

    @classmethod
    def scale(cls, N, KB, interleave, pointers=None):
        kc = KB // 128
        for e, nb, w, j, kt, h, _, first in cls.tiles(N, KB, interleave):
            up = 0 if interleave else (j & 1) * N // 64
            group = nb * 8 + 2 * w + j // 2 if interleave else nb * 4 + w + up
            byte = 2 * h + (j % 2 if interleave else j // 2)
            chunk = kt if pointers is None else 16 * min(kt // 16, pointers - 1) + kt % 16
            dword = e * (N // 32) * kc * 64 + group * kc * 64 + chunk * 64 + GROUP * 16 + ROW
            yield dword * 4 + byte, e, first + ROW, 8 * kt + 4 * h + GROUP


class MxMoe2:
    """mxmoe g2 on w2: rows in order, halves beyond the real I skipped."""

    @staticmethod
    def weight(N, KB, real):
        for e, nb, w, j, kt, h in all_of(E, N // 256, 4, 4, KB // 128, 2):
            if 2 * kt + h < -(-real // 128):
                row = nb * 256 + 64 * w + 16 * j
                at = (e * N + row) * KB + GROUP * 256 + ROW * 16 + kt * 2048 + h * 1024
                yield at, e, row + ROW, 128 * kt + 64 * h + 16 * GROUP

    @staticmethod
    def scale(N, KB, real):
        kc = KB // 128
        for e, nb, w, j, kt, h in all_of(E, N // 256, 4, 4, kc, 2):
            if 2 * kt + h < -(-real // 128):
                group, byte = nb * 8 + 2 * w + j // 2, 2 * h + j % 2
                dword = e * (N // 32) * kc * 64 + group * kc * 64 + kt * 64 + GROUP * 16 + ROW
                yield dword * 4 + byte, e, nb * 256 + 64 * w + 16 * j + ROW, 8 * kt + 4 * h + GROUP


class V2Stage2:
    """v2 stage 2 with BK = 128 or 256: native I = 384."""

    @staticmethod
    def weight(N, KB, bk):
        for e, t, kt, h in all_of(E, N // 16, 2 * KB // bk, bk // 128):
            step = kt * bk // 128 + h
            yield (
                (e * N + 16 * t) * KB + step * 1024 + GROUP * 256 + ROW * 16,
                e,
                16 * t + ROW,
                64 * step + 16 * GROUP,
            )

    @staticmethod
    def scale(N, KS):
        kc = -(-KS // 8)
        for e, t, kt in all_of(E, N // 16, KS // 4):
            dword = (e * N + 16 * t) // 32 * kc * 64 + kt // 2 * 64 + LANES
            yield dword * 4 + 2 * (kt % 2) + t % 2, e, 16 * t + ROW, 4 * kt + GROUP


class A16wMixGugu:
    """a16wmix, layout "guinterleave"."""

    @staticmethod
    def weight(N, KB):
        for e, n0, gu, ku in all_of(E, N // 32, 2, KB // 64):
            block = e * N // 16 + 2 * n0 + gu
            at = block * (KB // 64) * 1024 + ku * 1024 + GROUP * 256 + ROW * 16
            yield at, e, gu * N // 2 + 16 * n0 + ROW, 64 * ku + 16 * GROUP

    @staticmethod
    def scale(N, KS):
        for e, n0, gu, ku in all_of(E, N // 32, 2, KS // 4):
            dword = (e * N // 32 + n0) * -(-KS // 8) * 64 + ku // 2 * 64 + LANES
            yield dword * 4 + 2 * (ku % 2) + gu, e, gu * N // 2 + 16 * n0 + ROW, 4 * ku + GROUP


class Gfx1250:
    """The TDM loads of the grouped kernels: super-rows of 16 (weights) and 32 (scales); `pairs` for w13."""

    @staticmethod
    def row(n, N, pairs):
        return n % 2 * (N // 2) + n // 2 if pairs else n

    @classmethod
    def weight(cls, N, KB, pairs=False):
        for e, s, g in all_of(E, N // 16, KB // 16):
            n = 16 * s + np.arange(16)
            yield (e * N + 16 * s) * KB + g * 256 + np.arange(16) * 16, e, cls.row(n, N, pairs), g * 16

    @classmethod
    def scale(cls, N, KS, pairs=False):
        for e, s, k128, b in all_of(E, N // 32, KS // 4, 4):
            n = 32 * s + np.arange(32)
            at = (e * N + 32 * s) * KS + (k128 * 32 + n % 32) * 4 + b
            yield at, e, cls.row(n, N, pairs), 4 * k128 + b


W13, W13S, W2, W2S = (E, 2 * MID, H // 2), (E, 2 * MID, H // 32), (E, H, MID // 2), (E, H, MID // 32)
W2P, W2PS = (E, H, 256), (E, H, 16)  # I = 384 stored as 512
W13P, W13PS = (E, 512, H // 2), (E, 512, H // 32)  # 2I a multiple of 256 for mxmoe

GOOD = [
    ("mixed gemm1", "aiter.w16", W13, lambda: Mixed.weight(2 * MID, H // 2)),
    ("mixed gemm1", "aiter.e8", W13S, lambda: Mixed.scale(2 * MID, H // 32)),
    ("mixed gemm1 gui", "aiter.w16_gugu", W13, lambda: Mixed.weight(2 * MID, H // 2, gugu=True)),
    ("mixed gemm1 gui", "aiter.e8_gugu", W13S, lambda: Mixed.scale(2 * MID, H // 32, gugu=True)),
    ("mixed gemm2", "aiter.w16", W2, lambda: Mixed.weight(H, MID // 2)),
    ("mixed gemm2", "aiter.e8", W2S, lambda: Mixed.scale(H, MID // 32)),
    ("mixed gemm2", "aiter.e8_columns", W2S, lambda: Mixed.scale(H, MID // 32)),
    ("mxmoe g1 separated", "aiter.w16", W13P, lambda: MxMoe1.weight(512, H // 2, False)),
    ("mxmoe g1 separated", "aiter.e8", W13PS, lambda: MxMoe1.scale(512, H // 2, False)),
    ("mxmoe g1 interleaved", "aiter.w16_gugu", W13P, lambda: MxMoe1.weight(512, H // 2, True)),
    ("mxmoe g1 interleaved", "aiter.e8_gugu", W13PS, lambda: MxMoe1.scale(512, H // 2, True)),
    ("mxmoe g2", "aiter.w16", W2P, lambda: MxMoe2.weight(H, 256, 384)),
    ("mxmoe g2", "aiter.e8", W2PS, lambda: MxMoe2.scale(H, 256, 384)),
    ("v2 stage 2, BK 128", "aiter.w16", W2, lambda: V2Stage2.weight(H, MID // 2, 128)),
    ("v2 stage 2, BK 256", "aiter.w16", W2P, lambda: V2Stage2.weight(H, 256, 256)),
    ("v2 stage 2", "aiter.e8", W2S, lambda: V2Stage2.scale(H, MID // 32)),
    ("a16wmix", "aiter.w16_gugu", W13, lambda: A16wMixGugu.weight(2 * MID, H // 2)),
    ("a16wmix", "aiter.e8_gugu", W13S, lambda: A16wMixGugu.scale(2 * MID, H // 32)),
    ("gfx1250 w13", "aiter.w16_rowgugu", W13, lambda: Gfx1250.weight(2 * MID, H // 2, pairs=True)),
    ("gfx1250 w13", "aiter.n32k4_rowgugu", W13S, lambda: Gfx1250.scale(2 * MID, H // 32, pairs=True)),
    ("gfx1250 w2", "aiter.w16", W2, lambda: Gfx1250.weight(H, MID // 2)),
    ("gfx1250 w2", "aiter.n32k4", W2S, lambda: Gfx1250.scale(H, MID // 32)),
]
BAD = [
    ("tiles that alternate, read as separated", "aiter.w16_gugu", W13, GOOD[0][3]),
    ("separated tiles, read as alternating", "aiter.w16", W13, GOOD[2][3]),
    ("scales that alternate, read as separated", "aiter.e8_gugu", W13S, GOOD[1][3]),
    ("separated scales, read as alternating", "aiter.e8", W13S, GOOD[3][3]),
    ("raw weights", "raw.weight", W13, GOOD[0][3]),
    ("raw scales", "raw.scale", W13S, GOOD[1][3]),
    ("K / 256 rounded down", "aiter.e8", W2S, lambda: Mixed.scale(H, MID // 32, chunks=MID // 256)),
    ("gfx1250 rows separated", "aiter.w16", W13, GOOD[18][3]),
    ("gfx1250 kwidth 8 for 4", "aiter.n32k8", W13S, lambda: Gfx1250.scale(2 * MID, H // 32)),
    ("mxmoe g1 fed the other order", "aiter.w16", W13P, GOOD[9][3]),
]


@pytest.mark.parametrize(("kernel", "layout", "shape", "reads"), GOOD, ids=[f"{g[0]}-{g[1]}" for g in GOOD])
def test_the_kernel_finds_every_element(kernel, layout, shape, reads, held):
    assert right(laid_out(layout, shape), reads(), shape) == 1.0
    held(f"{layout}@1", "reader formula")


@pytest.mark.parametrize(("mistake", "layout", "shape", "reads"), BAD, ids=[b[0] for b in BAD])
def test_a_wrong_layout_is_seen(mistake, layout, shape, reads):
    assert right(laid_out(layout, shape), reads(), shape) < 0.6


def test_every_element_is_read_once():
    """The readers cover the tensors: otherwise "finds every element" would say little."""
    for _, _, shape, reads in (GOOD[1], GOOD[3], GOOD[5], GOOD[7 + 1]):
        seen = np.zeros(shape, dtype=int)
        for _, e, rows, columns in reads():
            np.add.at(seen, (e, rows, columns), 1)
        assert (seen == 1).all()


def test_mxmoe_g1_beyond_8192_reads_wrong_scales_and_the_defect_says_so():
    for hidden, wrong in ((8192, False), (8448, True)):
        shape = (E, 512, hidden // 32)
        share = right(laid_out("aiter.e8", shape), MxMoe1.scale(512, hidden // 2, False, pointers=2), shape)
        assert (share < 1.0) == wrong
        assert HIDDEN_8192.concerns(E, 512, hidden, arch="gfx950") == wrong
    assert not HIDDEN_8192.concerns(E, 512, 8448, arch="gfx942")


def test_shuffle_scale_moe_defect_needs_blocks_that_are_no_multiple_of_8():
    assert SCALE_MOE.concerns(384, 7168, 384, arch="gfx950")
    assert not SCALE_MOE.concerns(384, 7168, 512, arch="gfx950")


TRITON = [
    ("aiter.e8_columns", (E, 96, 16), (3, 2, 4, 16, 2, 2, 1), (0, 5, 3, 1, 4, 2, 6)),
    ("triton_kernels.cdna4_scale@1", (E, 96, 16), (3, 2, 4, 16, 2, 2, 1), (0, 5, 3, 1, 4, 2, 6)),
    ("triton_kernels.cdna4_scale@2", (E, 96, 16), (3, 2, 4, 16, 2, 2, 1), (0, 5, 3, 1, 4, 2, 6)),
    ("aiter.w16", (E, 96, 64), (6, 2, 2, 16, 16), (0, 3, 1, 2, 4)),
    ("aiter.n32k4", (E, 96, 16), (3, 4, 32, 4), (0, 2, 1, 3)),
]
READ = {find(name)[0].identity() for name in [g[1] for g in GOOD] + [t[0] for t in TRITON]}
"""Every layout that a reader formula stands behind."""


@pytest.mark.parametrize(("layout", "shape", "view", "order"), TRITON, ids=[t[0] for t in TRITON])
def test_tritons_unshuffle_gives_back_the_canonical_matrix(layout, shape, view, order, held):
    buffer = laid_out(layout, shape).reshape(E, -1)
    for e in range(E):
        matrix = buffer[e].reshape(view).transpose(order).reshape(shape[1:])
        assert (matrix == numbered(shape)[e]).all()
    held(find(layout)[0].identity(), "reader formula")
