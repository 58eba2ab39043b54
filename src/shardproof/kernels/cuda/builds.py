"""The geometries of the layer kernel that ship, and which one serves a batch."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path

from shardproof.kernels.cuda.geometry import Build
from shardproof.kernels.cuda.tuning import Table, read

NARROW = Build(
    "narrow", wgs=4, mw=1, kw=1, widths=(8,), w_depth=4, x_depth=4, narrow=True, consumer_regs=88, producer_regs=48
)
SMALL = replace(NARROW, name="small", kw=4, each=4, w_depth=3)
SHORT = replace(NARROW, name="short", kw=4, each=1, w_depth=12, x_depth=8)
HALF = replace(NARROW, name="half", kw=2, widths=(8, 16), each=2, w_depth=6, x_depth=6)
WIDE = replace(NARROW, name="wide", widths=(8, 16, 24, 32), each=4, w_depth=3, x_depth=3, results=True)
MID = replace(NARROW, name="mid", widths=(32,), each=4, w_depth=3, x_depth=3, narrow=False, results=True)
MID8 = replace(MID, name="mid8", widths=(24, 32), x_depth=4, fp8=True)
# Of e4m3 products the unpacking is what limits: these place codes as they are and scale products.
FEW16_8 = replace(MID8, name="few16_8", widths=(8, 16), w_depth=4, direct=True, results=False)
FEW24_8 = replace(FEW16_8, name="few24_8", widths=(16, 24), x_depth=3, results=True)
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
LARGE64 = replace(LARGE, name="large64", widths=(48, 64), w_depth=6, x_depth=4)
LARGE64_8 = replace(LARGE8, name="large64_8", widths=(48, 64))
# csrc/many.cu: tiles of 64 rows a warpgroup; as many widths as one kernel holds, so that few columns are padding.
_FOUR = Build(
    "four",
    wgs=4,
    mw=1,
    kw=1,
    widths=(88, 96, 104, 112),
    w_depth=4,
    x_depth=4,
    once=False,
    many=True,
    consumer_regs=112,
    producer_regs=32,
)
MANY112 = replace(_FOUR, name="many112", cluster=2)
MANY40 = replace(
    _FOUR,
    name="many40",
    widths=(16, 24, 32, 40),
    each=4,
    w_depth=4,
    once=True,
    consumer_regs=104,
    producer_regs=64,
)
MANY72 = replace(_FOUR, name="many72", widths=(48, 56, 64, 72), each=4, w_depth=3)
MANY144 = replace(_FOUR, name="many144", wgs=3, widths=(120, 128, 136, 144), consumer_regs=152, producer_regs=56)
MANY240 = replace(
    _FOUR,
    name="many240",
    wgs=2,
    cluster=2,
    widths=(192, 208, 224, 240),
    w_depth=3,
    consumer_regs=216,
    producer_regs=72,
)
MANY48_8 = replace(
    _FOUR,
    name="many48_8",
    widths=(24, 32, 40, 48),
    each=4,
    fp8=True,
    consumer_regs=104,
    producer_regs=64,
)
MANY72_8 = replace(MANY48_8, name="many72_8", wgs=3, widths=(48, 56, 64, 72), consumer_regs=152, producer_regs=56)
MANY144_8 = replace(
    _FOUR,
    name="many144_8",
    wgs=2,
    widths=(120, 128, 136, 144),
    fp8=True,
    w_depth=6,
    consumer_regs=232,
    producer_regs=40,
)
MANY112_8 = replace(
    MANY144_8,
    name="many112_8",
    wgs=3,
    cluster=2,
    widths=(88, 96, 104, 112),
    w_depth=7,
    consumer_regs=152,
    producer_regs=56,
)
MANY192_8 = replace(MANY144_8, name="many192_8", cluster=2, widths=(96, 112, 176, 192), w_depth=5)
MANY224_8 = replace(MANY192_8, name="many224_8", widths=(208, 224))
_MANY = (MANY40, MANY72, MANY112, MANY144, MANY240, MANY48_8, MANY72_8, MANY112_8, MANY144_8, MANY192_8, MANY224_8)
_ALL = (SMALL, SHORT, HALF, WIDE, MID, LARGE64, LARGE, FEW16_8, FEW24_8, MID8, LARGE64_8, LARGE8, *_MANY)
BUILDS = {b.name: b for b in _ALL}


def tables() -> dict[str, Table]:
    """All tuning tables, GPU -> precision -> rows; of rows that stand in both files, the user's.

    Raises KernelError `kernel.tuning` for a file that a layer could not choose by.
    """
    every = read(Path(__file__).parent / "tuning.json", BUILDS)
    extra = os.environ.get("SHARDPROOF_TUNING")
    mine = read(Path(extra), BUILDS) if extra else {}
    return every | {gpu: {**every.get(gpu, {}), **rows} for gpu, rows in mine.items()}


@functools.cache
def table(device_name: str) -> dict[str, list[tuple[float, str]]]:
    """The tuning table of a GPU: rows (most tokens an expert, build), those of its name before those of all ("*").

    The table of tuning.json was measured on an NVIDIA H100 80GB HBM3 and an NVIDIA H200; `SHARDPROOF_TUNING` names a
    file that extends it. Raises KernelError `kernel.tuning`.
    """
    every = tables()
    chosen = {**every["*"], **every.get(device_name, {})}
    return {k: [(float("inf") if top is None else top, name) for top, name in rows] for k, rows in chosen.items()}


def shape_class(experts: int, intermediate: int) -> str:
    """The class of a layer in the tuning table: "short" rows of w2, "few" experts, or "" for all others."""
    return "short" if intermediate <= 512 else "few" if experts <= 64 else ""


def choose(tokens_each: float, precision: str, device_name: str = "*", shape: str = "") -> Build:
    """The build for `tokens_each` expected tokens an expert.

    `precision` is "w4a16", "w4a8", or "w4a8 exact" where e4m3 holds every weight of the layer exactly; `shape` is
    what `shape_class` says. The table's rows of "PRECISION SHAPE" come before those of "PRECISION", and those of
    "w4a8", whose products are bf16, before those of "w4a16".
    """
    keys = [f"{precision} {shape}", precision, *(["w4a16"] if precision == "w4a8" else [])]
    rows = table(device_name)
    return next(BUILDS[name] for key in keys for top, name in rows.get(key, []) if tokens_each <= top)
