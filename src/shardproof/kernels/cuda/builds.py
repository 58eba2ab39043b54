"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, widths=(8,), each=4, w_depth=3, x_depth=4, narrow=True)
WIDE = Build("wide", wgs=4, mw=1, kw=1, widths=(8, 16), each=4, w_depth=4, x_depth=5, narrow=True)
WIDEN = Build("widen", wgs=4, mw=1, kw=1, widths=(8, 16), each=4, w_depth=4, x_depth=5, narrow=True, stagger=False)
MID = Build("mid", wgs=4, mw=1, kw=1, widths=(32, 64), w_depth=6, x_depth=4, consumer_regs=104, producer_regs=64)
LARGE = Build(
    "large", wgs=2, mw=2, kw=1, widths=(96, 112), each=2, pair=2, w_depth=5, x_depth=3, overlap=True, once=False,
    consumer_regs=232, producer_regs=40,
)
MID8 = Build(
    "mid8", wgs=2, mw=2, kw=1, widths=(32, 64), w_depth=7, x_depth=6, fp8=True, consumer_regs=208, producer_regs=80
)
LARGE8 = Build(
    "large8", wgs=2, mw=2, kw=1, widths=(96, 112), w_depth=6, x_depth=5, fp8=True, once=False, consumer_regs=224, producer_regs=56
)
BUILDS = {b.name: b for b in (SMALL, WIDE, WIDEN, MID, LARGE, MID8, LARGE8)}


def choose(tokens_each: float, a8: bool, exact8: bool) -> Build:
    """The geometry for `tokens_each` expected tokens an expert; `exact8` where e4m3
    activations are wanted (`a8`) and e4m3 holds every weight exactly."""
    if tokens_each <= (0.05 if a8 else 1):
        return SMALL
    if tokens_each <= 10:
        return WIDE
    if tokens_each <= 40:
        return MID8 if exact8 else MID
    return LARGE8 if exact8 else LARGE
