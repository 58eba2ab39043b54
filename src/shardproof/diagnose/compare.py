"""Compare: one tensor against what the kernel needs, byte by byte and expert by expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shardproof.layouts import Placed, find
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mistakes import Mistake, Scene, Views, stands_alone
from shardproof.mistakes.scene import Slot
from shardproof.mxfp4 import SCALE_NAN, Bytes


@dataclass
class Comparison:
    """What differs in one tensor.

    wrong, total   bytes of content that differ, of all bytes of content
    experts        local places of experts with wrong content
    first          place of the first wrong byte in words; `address` is its byte in the tensor
    padding        how often each byte stands in a plan's padding where another is declared
    layout_padding the same for padding that the layout itself adds
    zero           whether all of the tensor is zero
    """

    wrong: int = 0
    total: int = 0
    experts: list[int] = field(default_factory=list)
    first: str = ""
    address: int | None = None
    expected: int | None = None
    found: int | None = None
    padding: Counter[int] = field(default_factory=Counter)
    layout_padding: Counter[int] = field(default_factory=Counter)
    zero: bool = False
    readable: bool = True

    @property
    def share(self) -> float:
        """Share of content bytes that are right."""
        return 1.0 if not self.total else (self.total - self.wrong) / self.total


def compare(scene: Scene, slot: Slot, views: Views, mistakes: Sequence[Mistake] = ()) -> Comparison:
    """Hold every expert of one tensor against the checkpoint, as needed or as the mistakes would have it."""
    result = Comparison(zero=not views.kernel.any())
    identity = scene.layout(*slot, mistakes)
    readers = [m for m in mistakes if m.read is not None]
    content: np.ndarray | None = None
    for local in range(views.shape[0]):
        found = views.expert(local, identity, readers[0] if readers else None)
        if found is None:
            result.readable = False
            result.total, result.wrong = views.kernel.size, views.kernel.size
            return result
        matrix = scene.matrix(local, *slot, mistakes)
        if content is None or scene.experts(mistakes)[local] is None:
            content = scene.content(local, *slot, mistakes)
            if slot[1] == "bias" and not content.any():
                content = np.ones_like(content)  # a bias that stands where there should be none adds to the result
        same = found == matrix
        result.total += int(content.sum())
        if not same.all():
            _differences(result, scene, slot, views, identity, local, found, matrix, content, same)
        if scene.experts(mistakes)[local] is None:
            content = None
    if not readers:
        _layout_padding(result, views, identity)
    return result


def _differences(
    result: Comparison, scene: Scene, slot: Slot, views: Views, identity: str, local: int, found: Bytes, matrix: Bytes,
    content: np.ndarray, same: np.ndarray,
) -> None:  # fmt: skip
    bad = ~same & content
    count = int(bad.sum())
    if count:
        if not result.experts:
            _first(result, scene, slot, views, identity, local, found, matrix, bad)
        result.wrong += count
        result.experts.append(local)
    outside = found[~same & ~content]
    result.padding.update(_counted(outside))


def _counted(values: Bytes) -> dict[int, int]:
    return {int(v): int(c) for v, c in zip(*np.unique(values, return_counts=True), strict=True)}


def _first(
    result: Comparison, scene: Scene, slot: Slot, views: Views, identity: str, local: int, found: Bytes, matrix: Bytes,
    bad: np.ndarray,
) -> None:  # fmt: skip
    row, column = (int(x[0]) for x in np.nonzero(bad))
    layout, parameters = find(identity)
    placed = layout.place(views.shape, parameters)
    per_byte = UNITS_PER_BYTE[placed.unit]
    result.address = int(placed.address(local, row, column * per_byte)) // per_byte
    result.expected, result.found = int(matrix[row, column]), int(found[row, column])
    result.first = _source(scene, slot, local, row, column)


def _source(scene: Scene, slot: Slot, local: int, row: int, column: int) -> str:
    stack, name = slot
    expert = scene.experts()[local]
    unit = "block" if name == "scale" else "byte"
    for cut in scene.plan.cuts(scene.key, scene.rank, stack, name):
        r, c = row - cut.at_row, column - cut.at_column
        if 0 <= r < cut.rows[1] - cut.rows[0] and 0 <= c < cut.columns[1] - cut.columns[0]:
            return f"expert {expert} {cut.projection} row {cut.rows[0] + r} {unit} {cut.columns[0] + c}"
    return f"expert {expert} {stack} row {row} {unit} {column}"


def _layout_padding(result: Comparison, views: Views, identity: str) -> None:
    """Bytes that the layout itself adds: they must hold the declared value."""
    layout, parameters = find(identity)
    experts, rows, columns = views.shape
    placed = layout.place(views.shape, parameters)
    if placed.units == experts * rows * columns * UNITS_PER_BYTE[placed.unit]:
        return
    if layout.name.startswith("gguf."):
        return  # weights and scales share the buffer: holes hold the other field
    if stands_alone(layout):
        single = layout.place((1, rows, columns), parameters)
        size = single.nbytes
        for local in range(experts):
            _holes(result, single, views.kernel[local * size : (local + 1) * size])
    else:
        _holes(result, placed, views.kernel)


def _holes(result: Comparison, placed: Placed, kernel: Bytes) -> None:
    again = placed.pack(placed.unpack(kernel))
    result.layout_padding.update(_counted(kernel[again != kernel]))


def padding_mistake(name: str, padding: Counter[int]) -> str | None:
    """Name of the mistake that explains padding which differs from what is declared; None where there is none."""
    if not padding:
        return None
    values = set(padding)
    if name == "scale" and SCALE_NAN in values:
        return "nan_padding"
    if name == "scale" and values <= {0, 1} and len(values) == 1:
        return f"scale_padding_{values.pop()}"
    return "uninitialised_padding"
