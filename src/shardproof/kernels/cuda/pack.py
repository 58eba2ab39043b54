"""The byte order of the Hopper kernel and what is derived from it, in torch.

Weight, in nibbles (low nibble first; canonical rows are [w1; w3]):
    w13   "e (2a n 4w 8b) (k 2c 2d 2f 4q 2z) -> e n k w b q c a z d f"
    w2    "e (n 4w 2a 8b) (k 2c 2d 2f 4q 2z) -> e n k w b q c a z d f"
Scale, in bytes:
    w13   "e (2a n 4w 8b) (k 2c) -> e n k w b c a"
    w2    "e (n 4w 2a 8b) (k 2c) -> e n k w b c a"

A chunk is 64 rows by 64 values: 2,048 contiguous bytes of weights and 128 of scales. Lane 4b + q of warp w
finds its whole part of the chunk in 16 bytes: one 32-bit word for each block of 32 (c) and each half (a) of
16 rows. In w13 the halves are gate and up, so one thread holds both numbers of an activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from shardproof.experts import Stack

ALIGN = 64
BEHIND = 15 * 128  # a stage has at most 16 chunks, of 128 multipliers
SPAN8 = 14  # an e4m3 number holds an e2m1 number times 2^-8 .. 2^6: fifteen exponents


def pad_to(size: int) -> int:
    """`size` rounded up to the layout's alignment of 64."""
    return -(-size // ALIGN) * ALIGN


def _rows(t: torch.Tensor, stack: Stack) -> torch.Tensor:
    """[E, N, ...] -> [E, n, w, b, a, ...], canonical rows split into the layout's digits."""
    e, n = t.shape[:2]
    if stack == "w13":
        return t.reshape(e, 2, n // 64, 4, 8, *t.shape[2:]).movedim(1, 4)
    return t.reshape(e, n // 64, 4, 2, 8, *t.shape[2:]).movedim(3, 4)


def pack_weight(weight: torch.Tensor, stack: Stack) -> torch.Tensor:
    """Canonical uint8 [E, N, K/2] (low nibble = even k; N, K multiples of 64) -> packed, same shape."""
    e, n, half = weight.shape
    out = torch.empty_like(weight)
    for i in range(e):
        codes = torch.stack([weight[i : i + 1] & 15, weight[i : i + 1] >> 4], -1).reshape(1, n, 2 * half)
        t = _rows(codes, stack).reshape(1, n // 64, 4, 8, 2, half // 32, 2, 2, 2, 4, 2)  # e n w b a k c d f q z
        t = t.permute(0, 1, 5, 2, 3, 9, 6, 4, 10, 7, 8).reshape(n, half, 2)
        out[i] = t[..., 0] | (t[..., 1] << 4)
    return out


def pack_scale(scale: torch.Tensor, stack: Stack) -> torch.Tensor:
    """Canonical uint8 E8M0 [E, N, K/32] -> packed, same shape and dtype."""
    e, n, g = scale.shape
    t = _rows(scale, stack).reshape(e, n // 64, 4, 8, 2, g // 2, 2)  # e n w b a k c
    return t.permute(0, 1, 5, 2, 3, 6, 4).reshape(e, n, g).contiguous()


def pack_bias(bias: torch.Tensor, stack: Stack) -> torch.Tensor:
    """Canonical [E, N] -> float32 in packed row order 64n + 16w + 8a + b."""
    return _rows(bias.float(), stack).transpose(-1, -2).reshape(bias.shape).contiguous()


class Derived(NamedTuple):
    """What the kernel reads beside the codes: a multiplier field a block, a factor a row; both exact.

    multiplier  uint8, packed scale order: 253 - (row's largest scale - scale), a bf16 exponent field; behind the last
                lie `BEHIND` bytes more, as kernels read whole stages
    row_scale   float32 [E, N], packed row order: 2^(largest - 127), NaN where a scale byte is 255
    exact8      no row's scales span more than 14 binades (zero blocks aside): e4m3 holds every weight
    """

    multiplier: torch.Tensor
    row_scale: torch.Tensor
    exact8: bool


def derive(weight: torch.Tensor, scale: torch.Tensor, experts: int, rows: int, columns: int) -> Derived:
    """From packed `weight` and `scale` of [experts, rows, columns]; waits for the device once (`exact8`)."""
    n, k = rows // 64, columns // 64
    size = experts * rows * columns // 32
    stored = torch.full((size + BEHIND,), 253, dtype=torch.uint8, device=weight.device)
    multiplier = stored[:size].view(experts, rows, columns // 32)
    row_scale = torch.empty(experts, rows, dtype=torch.float32, device=weight.device)
    spread = torch.zeros((), dtype=torch.int32, device=weight.device)
    words = weight.reshape(experts, -1).view(torch.int32).view(experts, n, k, 4, 8, 4, 2, 2)
    scales = scale.reshape(experts, n, k, 4, 8, 2, 2)
    for e in range(experts):
        s = scales[e].to(torch.int32)  # n k w b c a
        used = ((words[e] & 0x77777777) != 0).any(4)
        live = torch.where(used, s, -1).amax((1, 4), keepdim=True)
        top = torch.where(live < 0, 127, live)
        below = torch.where(used, top - s, 0)
        spread = torch.maximum(spread, below.max())
        multiplier[e] = (253 - below).clamp(min=0).to(torch.uint8).reshape(rows, -1)
        factor = torch.exp2((top - 127).double()).float()
        factor = torch.where((s == 255).any(1, keepdim=True).any(4, keepdim=True), torch.nan, factor)
        row_scale[e] = factor.reshape(n, 4, 8, 2).transpose(-1, -2).reshape(rows)
    return Derived(multiplier, row_scale, int(spread) <= SPAN8)
