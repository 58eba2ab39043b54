"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import replace
from pathlib import Path

from shardproof.kernels.cuda.compile import Build

SMALL = Build("small", wgs=4, mw=1, kw=4, widths=(8,), each=4, w_depth=3, x_depth=4, narrow=True)
WIDE = Build("wide", wgs=4, mw=1, kw=1, widths=(8, 16), each=4, w_depth=4, x_depth=5, narrow=True)
MID = Build("mid", wgs=4, mw=1, kw=1, widths=(32, 64), w_depth=6, x_depth=4, consumer_regs=104, producer_regs=64)
LARGE = Build(
    "large",
    wgs=2,
    mw=2,
    kw=1,
    widths=(96, 112),
    each=2,
    pair=2,
    w_depth=5,
    x_depth=3,
    overlap=True,
    once=False,
    consumer_regs=232,
    producer_regs=40,
)
MID8 = Build(
    "mid8",
    wgs=2,
    mw=2,
    kw=1,
    widths=(32, 64),
    w_depth=7,
    x_depth=6,
    fp8=True,
    consumer_regs=208,
    producer_regs=80,
)
LARGE8 = Build(
    "large8",
    wgs=2,
    mw=2,
    kw=1,
    widths=(96, 112),
    w_depth=6,
    x_depth=5,
    fp8=True,
    once=False,
    consumer_regs=224,
    producer_regs=56,
)
MANY = Build(
    "many", wgs=4, mw=1, kw=1, widths=(88, 96, 104, 112), w_depth=4, x_depth=4, once=False, many=True,
    consumer_regs=112, producer_regs=32,
)  # fmt: skip
MANY24 = replace(
    MANY, name="many24", widths=(16, 24, 32, 40), w_depth=5, once=True, consumer_regs=104, producer_regs=64
)
MANY2 = replace(
    MANY, name="many2", wgs=2, widths=(192, 208, 224, 240), w_depth=3, consumer_regs=216, producer_regs=72
)
MANY3 = replace(MANY, name="many3", wgs=3, widths=(176, 192), w_depth=3, consumer_regs=152, producer_regs=56)
MANY8 = replace(
    MANY, name="many8", wgs=3, widths=(88, 96, 104), fp8=True, w_depth=6, consumer_regs=152, producer_regs=56
)
MANY82 = replace(
    MANY, name="many82", wgs=2, widths=(144, 160, 176, 192), fp8=True, w_depth=5, consumer_regs=232, producer_regs=40
)
MANY824 = replace(MANY24, name="many824", widths=(24, 32, 40, 48), fp8=True, w_depth=7)
_ALL = (SMALL, WIDE, MID, LARGE, MID8, LARGE8, MANY, MANY24, MANY2, MANY3, MANY8, MANY82, MANY824)
BUILDS = {b.name: b for b in _ALL}


@functools.cache
def table(device_name: str) -> dict[str, list[tuple[float, str]]]:
    """The tuning table of a GPU by its name, else the one of all ("*"): rows (most tokens an expert, build).

    The table of tuning.json was measured on an NVIDIA H100 80GB HBM3; `SHARDPROOF_TUNING` names a file that
    extends it.
    """
    tables = json.loads((Path(__file__).parent / "tuning.json").read_text())
    extra = os.environ.get("SHARDPROOF_TUNING")
    if extra:
        tables |= json.loads(Path(extra).read_text())
    chosen = tables.get(device_name, tables["*"])
    return {k: [(float("inf") if top is None else top, name) for top, name in rows] for k, rows in chosen.items()}


def choose(tokens_each: float, precision: str, device_name: str = "*") -> Build:
    """The build for `tokens_each` expected tokens an expert.

    `precision` is "w4a16", "w4a8", or "w4a8 exact" where e4m3 holds every weight of the layer exactly.
    """
    return next(BUILDS[name] for top, name in table(device_name)[precision] if tokens_each <= top)
