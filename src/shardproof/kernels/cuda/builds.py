"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, nmax=16, grain=8, w_depth=6, x_depth=4)
MID = Build("mid", wgs=4, mw=1, kw=1, nmax=64, grain=8, w_depth=6, x_depth=4, consumer_regs=112, producer_regs=32)
LARGE = Build(
    "large", wgs=2, mw=2, kw=1, nmax=128, grain=16, w_depth=8, x_depth=5, consumer_regs=232, producer_regs=40
)
MID8 = Build("mid8", wgs=4, mw=1, kw=1, nmax=48, grain=8, w_depth=4, x_depth=4, fp8=True, consumer_regs=112, producer_regs=32)
LARGE8 = Build(
    "large8", wgs=2, mw=2, kw=1, nmax=112, grain=16, w_depth=6, x_depth=5, fp8=True, consumer_regs=232, producer_regs=40
)
BUILDS = {b.name: b for b in (SMALL, MID, LARGE, MID8, LARGE8)}
