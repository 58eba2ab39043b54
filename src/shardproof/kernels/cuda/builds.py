"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, widths=(8, 16), w_depth=6, x_depth=4)
MID = Build("mid", wgs=4, mw=1, kw=1, widths=(16, 64), w_depth=6, x_depth=4, consumer_regs=104, producer_regs=64)
LARGE = Build(
    "large", wgs=2, mw=2, kw=1, widths=(64, 96, 112, 128), w_depth=8, x_depth=5, consumer_regs=224, producer_regs=56
)
MID8 = Build("mid8", wgs=2, mw=2, kw=1, widths=(16, 32, 64), w_depth=7, x_depth=6, fp8=True, consumer_regs=224, producer_regs=56)
LARGE8 = Build(
    "large8", wgs=2, mw=2, kw=1, widths=(64, 96, 128), w_depth=6, x_depth=4, fp8=True, consumer_regs=224, producer_regs=56
)
BUILDS = {b.name: b for b in (SMALL, MID, LARGE, MID8, LARGE8)}


def choose(tokens_each: float, fp8: bool) -> Build:
    """The geometry for `tokens_each` expected tokens an expert; `fp8` where e4m3 holds every weight exactly."""
    if tokens_each <= 4:
        return SMALL
    if tokens_each <= 40:
        return MID8 if fp8 else MID
    return LARGE8 if fp8 else LARGE
