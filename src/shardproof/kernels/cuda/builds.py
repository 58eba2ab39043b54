"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, widths=(8, 16), w_depth=6, x_depth=4, narrow=True)
HALF = Build("half", wgs=4, mw=1, kw=2, widths=(8, 16), w_depth=6, x_depth=6, narrow=True)
WIDE = Build("wide", wgs=4, mw=1, kw=1, widths=(8, 16), w_depth=6, x_depth=8, narrow=True)
BROAD = Build("broad", wgs=4, mw=2, kw=1, widths=(16, 32), w_depth=3, x_depth=6, narrow=True)
MIDN = Build("midn", wgs=2, mw=2, kw=1, widths=(16, 32), w_depth=6, x_depth=6, narrow=True)
SMALL4 = Build("small4", wgs=4, mw=1, kw=4, widths=(8,), each=4, w_depth=3, x_depth=4, narrow=True)
WIDE4 = Build("wide4", wgs=4, mw=1, kw=1, widths=(8, 16), each=4, w_depth=3, x_depth=4, narrow=True)
MID = Build("mid", wgs=4, mw=1, kw=1, widths=(32, 64), w_depth=6, x_depth=4, consumer_regs=104, producer_regs=64)
LARGE = Build(
    "large", wgs=2, mw=2, kw=1, widths=(96, 128), each=1, w_depth=8, x_depth=5, overlap=True,
    consumer_regs=224, producer_regs=56,
)
LARGE3 = Build(
    "large3", wgs=3, mw=1, kw=1, widths=(96, 128), each=1, w_depth=8, x_depth=6, consumer_regs=152, producer_regs=56
)
LARGE3V = Build(
    "large3v", wgs=3, mw=1, kw=1, widths=(96, 128), each=2, w_depth=5, x_depth=3, overlap=True, consumer_regs=152,
    producer_regs=56,
)
LARGE4 = Build(
    "large4", wgs=4, mw=1, kw=1, widths=(64, 96), each=1, w_depth=8, x_depth=6, consumer_regs=112, producer_regs=32
)
MID8 = Build(
    "mid8", wgs=2, mw=2, kw=1, widths=(32, 64), w_depth=7, x_depth=6, fp8=True, consumer_regs=208, producer_regs=80
)
LARGE8 = Build(
    "large8", wgs=2, mw=2, kw=1, widths=(96, 112), w_depth=6, x_depth=5, fp8=True, consumer_regs=224, producer_regs=56
)
MID48 = Build(
    "mid48", wgs=4, mw=1, kw=1, widths=(32, 64), each=4, w_depth=3, x_depth=4, fp8=True, consumer_regs=112, producer_regs=32
)
BUILDS = {b.name: b for b in (SMALL, HALF, WIDE, BROAD, MIDN, SMALL4, WIDE4, MID, LARGE, LARGE3, LARGE3V, LARGE4, MID8, LARGE8, MID48)}


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
