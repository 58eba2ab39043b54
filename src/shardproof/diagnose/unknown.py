"""Unknown orders: where every unit went, found from its own content, and the pattern behind it where there is one.

A unit - 16 bytes, a byte, a nibble - is told by its value in several experts at once, since all of them were moved
alike. The map from addresses to elements is then read as mixed-radix digits and written in the layouts' notation.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shardproof.diagnose.report import Finding
from shardproof.mxfp4 import BLOCK_BYTES, Bytes, unpack_codes

if TYPE_CHECKING:
    from shardproof.diagnose.held import Held
    from shardproof.diagnose.intake import Intake

Ints = npt.NDArray[np.int64]
_UNITS = (("16 bytes", 16, 1), ("byte", 1, 1), ("nibble", 1, 2))
_MOST_EXPERTS = 32
_ENOUGH = 0.95
_AGREE = 0.999
_LARGEST = 1 << 25
_LANE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Order:
    """A map from unit addresses of one expert's buffer to canonical unit indices (-1 where unknown)."""

    unit: str
    source: Ints
    row_units: int
    pattern: str | None

    @property
    def known(self) -> float:
        """Share of addresses whose element was found."""
        return float((self.source >= 0).mean())


def find_order(found: Bytes, canonical: Bytes, columns: int) -> Order | None:
    """How `found` uint8 [experts, bytes] was made from `canonical` uint8 [experts, bytes] of rows of `columns` bytes.

    None where no unit can be told: other content, or too few experts to tell one unit from another.
    """
    experts = min(len(found), len(canonical), _MOST_EXPERTS)
    for name, size, per_byte in _UNITS:
        if columns % size or found.shape[1] % size or found.shape[1] * per_byte > _LARGEST:
            continue
        source = _match(_keys(found[:experts], size, per_byte), _keys(canonical[:experts], size, per_byte))
        if (source >= 0).mean() >= _ENOUGH:
            row_units = columns // size * per_byte
            return Order(name, source, row_units, infer_pattern(source, row_units, size))
    return None


def _keys(data: Bytes, size: int, per_byte: int) -> npt.NDArray[np.uint64]:
    """One key a unit, from its value in all experts."""
    units = unpack_codes(data) if per_byte == 2 else data.reshape(len(data), -1, size)
    columns = units.reshape(len(data), units.shape[1], -1)
    key = np.zeros(columns.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for values in columns:
            for position in range(values.shape[1]):
                key = (key ^ values[:, position]) * _LANE
                key ^= key >> np.uint64(29)
    return key


def _match(found: npt.NDArray[np.uint64], canonical: npt.NDArray[np.uint64]) -> Ints:
    order = np.argsort(canonical, kind="stable")
    ordered = canonical[order]
    at = np.minimum(np.searchsorted(ordered, found), len(ordered) - 1)
    twin = np.zeros(len(ordered), dtype=np.bool_)
    twin[1:] |= ordered[1:] == ordered[:-1]
    twin[:-1] |= ordered[1:] == ordered[:-1]
    return np.where((ordered[at] == found) & ~twin[at], order[at], -1)


def infer_pattern(source: Ints, row_units: int, unit_bytes: int = 1) -> str | None:
    """The line of notation whose map is `source`, for rows of `row_units` units; None where there is none.

    `unit_bytes` > 1 adds the digit of bytes inside a unit, so that the line counts bytes.
    """
    digits = list(_digits(source))
    total = np.zeros(len(source), dtype=np.int64)
    base = sum(-step * (size - 1) for _, size, step in digits if step < 0)
    for stride, size, step in digits:
        total += np.arange(len(source)) // stride % size * step
    known = source >= 0
    if not known.any() or ((total + base) == source)[known].mean() < _AGREE:
        return None
    pieces = [piece for digit in digits for piece in _by_axis(*digit, row_units)]
    return _write(pieces, row_units, len(source) // row_units, unit_bytes)


def _digits(source: Ints) -> Iterator[tuple[int, int, int]]:
    """(address stride, size, step in the canonical index) of each digit, least significant first."""
    count, stride = len(source), 1
    while stride < count:
        bases = np.unique(np.linspace(0, min(stride, count) - 1, 64).astype(np.int64))
        bases = bases[source[bases] >= 0]
        repeats = np.arange(count // stride)
        at = bases[:, None] + repeats * stride
        shifts = np.where(source[at] >= 0, source[at] - source[bases][:, None], np.iinfo(np.int64).min)
        seen = [row[1:2][0] for row in shifts if row[1] != np.iinfo(np.int64).min]
        if not len(bases) or not seen:
            return
        step = int(np.bincount(np.unique(seen, return_inverse=True)[1]).argmax())
        step = int(np.unique(seen)[step])
        unknown = shifts == np.iinfo(np.int64).min
        agree = ((shifts == repeats * step) | unknown).mean(axis=0) > 0.5
        run = int(np.argmin(agree)) if not agree.all() else len(repeats)
        size = next((s for s in range(run, 0, -1) if len(repeats) % s == 0), 1)
        if size <= 1 or not step:
            return
        yield stride, size, step
        stride *= size


def _by_axis(stride: int, size: int, step: int, row_units: int) -> Iterator[tuple[int, int, int]]:
    """A digit that runs along k and on into the next rows is two digits."""
    weight = abs(step)
    if weight < row_units < weight * size and row_units % weight == 0 and size % (row_units // weight) == 0:
        inner = row_units // weight
        yield stride, inner, step
        yield stride * inner, size // inner, step * inner
    else:
        yield stride, size, step


def _write(pieces: list[tuple[int, int, int]], row_units: int, rows: int, unit_bytes: int) -> str | None:
    """Left side by weight on each axis, right side by address, most significant first."""
    names = iter(c for c in string.ascii_lowercase if c not in "enkb")
    axes: dict[str, list[tuple[int, int, str]]] = {"n": [], "k": []}
    right: list[tuple[int, str]] = []
    for stride, size, step in pieces:
        axis, weight = ("n", abs(step) // row_units) if abs(step) >= row_units else ("k", abs(step))
        name = next(names)
        axes[axis].append((weight, size, name))
        right.append((stride, f"~{name}" if step < 0 else name))
    left = []
    for axis, extent in (("n", rows), ("k", row_units)):
        ordered = sorted(axes[axis])
        reached = 1
        for weight, size, _ in ordered:
            if weight != reached:
                return None
            reached *= size
        if reached != extent:
            return None
        group = [f"{size}{name}" for _, size, name in reversed(ordered)] or [f"1{next(names)}"]
        if axis == "k" and unit_bytes > 1:
            group.append(f"{unit_bytes}b")
        left.append(f"({' '.join(group)})" if len(group) > 1 else group[0])
        if not ordered:
            right.append((1 << 62, group[0][1:]))
    tail = " b" if unit_bytes > 1 else ""
    return f"e {' '.join(left)} -> e {' '.join(name for _, name in sorted(right, reverse=True))}{tail}"


def describe_unknown(examination: Intake, held: Held, *, foreign: bool) -> Finding | None:
    """What can be said of a weight that no layout of the catalogue explains; `foreign` if no piece of it was met."""
    experts, rows, columns = held.views.shape
    share = 0.0
    if held.tensor.data.size == experts * rows * columns:
        scene = examination.scene(None)
        canonical = np.stack([scene.matrix(e, *held.slot) for e in range(min(experts, _MOST_EXPERTS))])
        found = held.tensor.data.reshape(experts, -1)[:_MOST_EXPERTS]
        order = find_order(found, canonical.reshape(len(canonical), -1), columns)
        if order is not None:
            return _unknown_order(order, held)
        share = _common_pieces(found, canonical.reshape(len(canonical), -1))
    if not foreign:
        return None
    return Finding(
        "other_checkpoint",
        f"{100 * share:.3g} % of the tensor's 16-byte pieces are in this layer of the checkpoint: it comes from "
        "another checkpoint, or was quantised differently",
        (held.name,), explanation="Real weights are their own labels; almost none of these was found.",
        repair="give the checkpoint that the engine loaded; `shardproof inspect` shows what this one holds",
    )  # fmt: skip


def _unknown_order(order: Order, held: Held) -> Finding:
    if order.pattern:
        shown = f'"{order.pattern}" (counted in {"nibbles" if order.unit == "nibble" else "bytes"})'
    else:
        pairs = ", ".join(
            f"{a} <- row {s // order.row_units}, {order.unit} {s % order.row_units}"
            for a, s in enumerate(order.source[:6].tolist()) if s >= 0
        )  # fmt: skip
        shown = f"no pattern; the first addresses are {pairs}"
    return Finding(
        "unknown_order",
        f"all bytes are there, in an order of no known kernel: {shown}; "
        f"{100 * order.known:.4g} % of the units were placed",
        (held.name,), explanation="The map from addresses to elements was found from the content itself.",
        repair="if a kernel reads this order, add it to the catalogue; else lay out for the kernel that runs",
    )  # fmt: skip


def _common_pieces(found: Bytes, canonical: Bytes) -> float:
    from shardproof.diagnose.pieces import keys

    if found.shape[1] % BLOCK_BYTES or canonical.shape[1] % BLOCK_BYTES:
        return 0.0
    here = np.unique(keys(canonical.reshape(-1, BLOCK_BYTES)))
    there = keys(found.reshape(-1, BLOCK_BYTES))
    at = np.minimum(np.searchsorted(here, there), len(here) - 1)
    return float((here[at] == there).mean())
