"""Row orders of w13, and their composition with a layout: first reorder the rows, then lay them out.

`in_rows(layout, "interleaved")` is the layout that a kernel with a fused gated activation reads: its pattern is
derived digit by digit, so address, inverse and pictures follow as for any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from shardproof.errors import LayoutError
from shardproof.layouts.layout import Evidence, Layout
from shardproof.layouts.notation import Digit, Place, Slot, parse
from shardproof.layouts.sizing import Size

RowOrder: TypeAlias = Literal[
    "separated", "up_first", "interleaved", "interleaved8", "interleaved16", "up_first_interleaved"
]

BLOCK_ROWS: Mapping[RowOrder, int | None] = {
    "separated": None,
    "up_first": None,
    "interleaved": 1,
    "interleaved8": 8,
    "interleaved16": 16,
    "up_first_interleaved": 1,
}
"""How many rows of one half stand together before those of the other half; None: all of them."""

WORDS: Mapping[RowOrder, str] = {
    "separated": "rows of w13 [gate; up]",
    "up_first": "rows of w13 [up; gate]",
    "interleaved": "rows of gate and up alternate",
    "interleaved8": "blocks of 8 rows of gate and up alternate",
    "interleaved16": "blocks of 16 rows of gate and up alternate",
    "up_first_interleaved": "rows of up and gate alternate",
}


def in_rows(
    layout: Layout,
    order: RowOrder,
    name: str,
    *,
    held_against: tuple[Evidence, ...] = ("index formula",),
    golden: tuple[str, ...] = (),
) -> Layout:
    """The layout of w13 whose rows stand in `order` when `layout` (axes e, n, k) lays them out.

    Padding of the rows falls on each half by itself. Raises LayoutError `layout.compose` where the order cuts
    through a digit of the layout.
    """
    pattern = compose(order, layout.pattern)
    cuts = BLOCK_ROWS[order] is None
    pad: dict[str, Size] = dict(layout.pad)
    multiple: dict[str, Size] = dict(layout.multiple)
    if "n" in pad and cuts:
        multiple["n"] = pad.pop("n")
    elif "n" in pad:
        pad["n"] = _half(layout, pad["n"])
    if "n" in multiple and not cuts:
        multiple["n"] = _half(layout, multiple["n"])
    return dataclasses.replace(
        layout,
        name=name,
        pattern=pattern,
        pad=pad,
        multiple=multiple,
        stacks=("w13",),
        summary=f"{layout.summary}; {WORDS[order]}",
        held_against=held_against,
        golden=golden,
    )


def _refused(what: str, **where: object) -> LayoutError:
    step = "give the kernel's own row order as a pattern with the axes e h n k; see layouts/notation.py"
    return LayoutError("layout.compose", what, next_step=step, **where)


def _half(layout: Layout, size: Size) -> Size:
    first, *rest = [size] if isinstance(size, int) else size.split("*")
    if int(first) % 2:
        raise _refused("half of an odd number of rows", found=f"{layout.name}: {size}")
    return int(first) // 2 if not rest else "*".join([str(int(first) // 2), *rest])


def compose(order: RowOrder, pattern: str) -> str:
    """The line for "rows in `order`, then `pattern`" (axes e, n, k), with the axes e, h, n, k.

    Raises LayoutError `layout.compose`.
    """
    inner = parse(pattern)
    if inner.axes != ("e", "n", "k"):
        raise _refused("only a layout with the axes e n k can take a row order", found=pattern)
    used = {d.name for axis in inner.digits for d in axis}
    half, low = [name for name in "hijlouvxyz" if name not in used][:2]
    cut, parts = _cut(inner.digits[1], BLOCK_ROWS[order], low, pattern)
    rows = [d for digit in inner.digits[1] for d in (parts if digit.name == cut else (digit,))]
    names = [d.name for d in parts]
    at = 0 if BLOCK_ROWS[order] is None else len([name for name in names if name != low])
    names.insert(at, f"{'~' if order.startswith('up_first') else ''}{half}")
    replaced = " ".join(names)
    left = " ".join([_group(inner.digits[0]), f"2{half}", _group(rows), _group(inner.digits[2])])
    return f"{left} -> {_places(inner.places, cut, replaced)}"


def _cut(rows: Sequence[Digit], block: int | None, low: str, pattern: str) -> tuple[str, tuple[Digit, ...]]:
    """The row digit in which the half's digit stands, and what is left of it above and below."""
    if block is None:
        if rows[0].size is not None:
            raise _refused("the rows need a first digit without a size", found=pattern)
        return rows[0].name, (rows[0],)
    weight = 1
    for digit in reversed(rows):
        size = digit.size
        if isinstance(size, str):
            raise _refused("the halves would meet inside a parameter", found=pattern)
        inside, odd = divmod(block, weight)
        if size is None or block < weight * size:
            if odd or (size is not None and size % (2 * inside)):
                raise _refused("the row order cuts through a digit", found=pattern, needed=block)
            above = Digit(digit.name, None if size is None else size // (2 * inside))
            parts = [above] if above.size != 1 else []
            return digit.name, tuple([*parts, Digit(low, inside)] if inside > 1 else parts)
        weight *= size
    raise _refused("the layout's rows are fewer than one block", found=pattern, needed=block)


def _group(digits: Sequence[Digit]) -> str:
    text = [f"{{{d.size}}}{d.name}" if isinstance(d.size, str) else f"{d.size or ''}{d.name}" for d in digits]
    return text[0] if len(text) == 1 else f"({' '.join(text)})"


def _places(places: Sequence[Place | Slot], cut: str, replaced: str) -> str:
    texts = []
    for place in places:
        if isinstance(place, Slot):
            texts.append(f"{place.pitch}+{place.offset}{{{_places(place.inside, cut, replaced)}}}")
            continue
        names = " ".join(replaced if name == cut else name for name in place.digits)
        if cut in place.digits and place.reverse:
            raise _refused("the halves would meet inside a reversed digit", found=cut)
        texts.append(f"{place.table}[{names}]" if place.table else f"{'~' if place.reverse else ''}{names}")
    return " ".join(texts)
