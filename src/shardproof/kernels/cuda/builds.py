"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, widths=(8, 16), w_depth=6, x_depth=4)
HALF = Build("half", wgs=4, mw=1, kw=2, widths=(8, 16), w_depth=6, x_depth=6)
WIDE = Build("wide", wgs=4, mw=1, kw=1, widths=(8, 16), w_depth=6, x_depth=8, consumer_regs=104, producer_regs=64)
MID = Build("mid", wgs=4, mw=1, kw=1, widths=(32, 64), w_depth=6, x_depth=4, consumer_regs=104, producer_regs=64)
LARGE = Build(
    "large", wgs=2, mw=2, kw=1, widths=(96, 128), w_depth=8, x_depth=5, consumer_regs=224, producer_regs=56
)
WIDE8 = Build(
    "wide8", wgs=2, mw=2, kw=1, widths=(8, 16), w_depth=8, x_depth=8, fp8=True, consumer_regs=208, producer_regs=80
)
MID8 = Build(
    "mid8", wgs=2, mw=2, kw=1, widths=(32, 64), w_depth=7, x_depth=6, fp8=True, consumer_regs=208, producer_regs=80
)
LARGE8 = Build(
    "large8", wgs=2, mw=2, kw=1, widths=(96, 112), w_depth=6, x_depth=5, fp8=True, consumer_regs=224, producer_regs=56
)
BUILDS = {b.name: b for b in (SMALL, HALF, WIDE, MID, LARGE, WIDE8, MID8, LARGE8)}


def choose(tokens_each: float, fp8: bool) -> Build:
    """The geometry for `tokens_each` expected tokens an expert; `fp8` where e4m3 holds every weight exactly."""
    if tokens_each <= 0.1:
        return SMALL
    if tokens_each <= 1:
        return HALF
    if tokens_each <= 10:
        return MID8 if fp8 else WIDE
    if tokens_each <= 40:
        return MID8 if fp8 else MID
    return LARGE8 if fp8 else LARGE
