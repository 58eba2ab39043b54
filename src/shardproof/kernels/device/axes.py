"""Axes: the digits of a placed layout as a GPU sees them, with a stride in the source and one in the order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardproof.layouts import Placed


@dataclass(frozen=True, slots=True)
class Axis:
    """A digit, or a part of one: it moves the source by `source` bits and the kernel's address by `target`.

    `step` is the digit's number where the address goes through a table (then `target` is 0).
    """

    size: int
    source: int
    target: int
    step: int = -1

    def split(self, inner: int) -> tuple[Axis, Axis]:
        """The lower part, which counts to `inner`, and the upper part."""
        upper = replace(self, size=self.size // inner, source=self.source * inner, target=self.target * inner)
        return replace(self, size=inner), upper


def axes_of(placed: Placed, bits: int) -> list[Axis]:
    """The digits with their strides, those of size 1 left out."""
    along = [math.prod(placed.padded[axis + 1 :]) for axis in range(len(placed.padded))]
    steps = placed.strides.steps
    return [
        Axis(s.size, s.weight * along[s.axis] * bits, s.stride * bits, -1 if s.group is None else number)
        for number, s in enumerate(steps)
        if s.size > 1 or s.group is not None
    ]


def merged(axes: list[Axis]) -> list[Axis]:
    """Neighbours on both sides become one digit."""
    found: list[Axis] = []
    for axis in sorted(axes, key=lambda a: a.source):
        low = found[-1] if found else None
        joined = low and low.step == axis.step == -1
        if low and joined and axis.source == low.source * low.size and axis.target == low.target * low.size:
            found[-1] = replace(low, size=low.size * axis.size)
        else:
            found.append(axis)
    return found


def whole_bytes(axes: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """Digits inside bytes or tables, and those that move whole bytes on both sides."""
    piece, free = [], []
    for axis in axes:
        if axis.step >= 0:
            piece.append(axis)
            continue
        inner = next(
            f for f in range(1, axis.size + 1)
            if axis.size % f == 0 and (f == axis.size or (axis.source * f % 8 == 0 and axis.target * f % 8 == 0))
        )  # fmt: skip
        if inner == axis.size and (axis.source % 8 == 0 and axis.target % 8 == 0):
            inner = 1
        lower, upper = axis.split(inner)
        piece += [lower] if lower.size > 1 else []
        free += [upper] if upper.size > 1 else []
    return piece, free


def take(axis: Axis, part: int, taken: list[Axis], free: list[Axis]) -> list[Axis]:
    """Move the lower part of a digit to `taken`; what is free after that."""
    if part == 1:
        return free
    lower, upper = axis.split(part)
    taken.append(lower)
    return [a for a in free if a is not axis] + ([upper] if upper.size > 1 else [])


def covered(axes: list[Axis], bits: int) -> int:
    """Bits that digits count to, in units of `bits`."""
    return math.prod(a.size for a in axes) * bits


def divisors(size: int) -> list[int]:
    """All of them, ascending."""
    low = [f for f in range(1, math.isqrt(size) + 1) if size % f == 0]
    return low + [size // f for f in reversed(low) if f * f != size]


def source_run(axes: Sequence[Axis], bits: int) -> int:
    """Bits of the source that follow one another."""
    run = bits
    for axis in sorted(axes, key=lambda a: a.source):
        if axis.source == run:
            run *= axis.size
    return run


def target_run(placed: Placed, axes: Sequence[Axis], bits: int) -> int:
    """Bits of the kernel's order that follow one another."""
    known = [(abs(a.target), a.size) for a in axes if a.step < 0]
    known += [(g.stride * bits, len(g.table)) for g in placed.strides.groups]
    run = bits
    for target, size in sorted(known):
        if target == run:
            run *= size
    return run
