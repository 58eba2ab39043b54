"""The proof that a plan takes every checkpoint byte exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from shardproof.errors import PartitionError
from shardproof.experts import STACKS, Field
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES
from shardproof.partition import Rank
from shardproof.plan.shape import Cut, LayerShape


def prove_cover(shape: LayerShape, group: Sequence[Rank], bias_item: int) -> Iterator[str]:
    """Show the cover of one layer shape by the ranks of a tensor-parallel group, from the cuts themselves.

    Shown is that each byte is taken once and lands inside, that a rank's weights, scales and biases stand for the
    same blocks in the same places, and that every expert is held. Yields what was shown. Raises PartitionError
    `plan.cover`.
    """
    spec = shape.spec
    sizes = {
        "w1": (spec.intermediate, spec.hidden),
        "w3": (spec.intermediate, spec.hidden),
        "w2": (spec.hidden, spec.intermediate),
    }
    names: tuple[Field, ...] = ("weight", "scale", "bias") if spec.bias else ("weight", "scale")
    for stack in STACKS:
        for name in names:
            per_rank = [shape.cuts(rank, stack, name, bias_item) for rank in group]
            for projection in ("w1", "w3") if stack == "w13" else ("w2",):
                rows, columns = sizes[projection]
                unit = {"weight": BLOCK_BYTES, "scale": 1}.get(name)
                width = bias_item if unit is None else columns // BLOCK * unit
                cuts = [c for cuts in per_rank for c in cuts if c.projection == projection]
                _cover(cuts, rows, width, f"{projection} {name}")
            inside = shape.matrix_shape(stack, name, bias_item)
            for rank, landing in zip(group, per_rank, strict=True):
                _destinations(landing, inside, rank, f"{stack} {name}")
    for rank in group:
        _agree(shape, rank, names, bias_item)
    yield (
        f"{spec.experts} experts of [{spec.intermediate}, {spec.hidden}]: every byte of w1, w3 and w2 is taken by "
        f"exactly one of {len(group)} tensor-parallel ranks; every expert is on {_owners(shape)}"
    )


def _owners(shape: LayerShape) -> str:
    held, there = set[int]().union(*shape.owners), range(shape.spec.experts)
    left_out = (expert for expert in there if expert not in held)  # the first: a damaged file's number has no end
    wrong = sorted([*islice(left_out, 1), *(expert for expert in held if expert not in there)])
    if wrong:
        what = "an expert is on no rank" if wrong[0] in there else "a rank holds an expert that does not exist"
        raise uncovered(what, expert=wrong[0], needed=f"0..{shape.spec.experts - 1}, each at least once")
    copies = sum(map(len, shape.owners)) - shape.spec.experts
    if copies:
        return f"at least one rank ({copies} replicas)"
    return f"exactly one of {len(shape.owners)} expert-parallel ranks"


def _agree(shape: LayerShape, rank: Rank, names: Sequence[Field], bias_item: int) -> None:
    """A rank's fields stand for the same blocks: a weight that meets another block's scale is silent garbage."""
    for stack in STACKS:
        weights = shape.cuts(rank, stack, "weight", bias_item)
        blocks = [_in_blocks(cut, BLOCK_BYTES) for cut in weights]
        if blocks != [_in_blocks(cut, 1) for cut in shape.cuts(rank, stack, "scale", bias_item)]:
            raise _disagree(f"weights and scales of {stack} are cut at different places", rank, blocks)
        starts = {"w1": 0, "w3": shape.intermediate, "w2": 0}
        for cut in weights:
            if cut.at_column or cut.at_row != starts[cut.projection]:
                raise _disagree(f"{cut.projection} starts at the wrong place of {stack}", rank, cut)
    rows = {(c.projection, *c.rows, c.at_row) for c in shape.cuts(rank, "w13", "weight", bias_item)}
    if "bias" in names and rows != {
        (c.projection, *c.rows, c.at_row) for c in shape.cuts(rank, "w13", "bias", bias_item)
    }:
        raise _disagree("weights and biases of w13 are cut at different places", rank, rows)
    values = {cut.rows for cut in shape.cuts(rank, "w13", "weight", bias_item)}
    columns = {(a * 2, b * 2) for cut in shape.cuts(rank, "w2", "weight", bias_item) for a, b in [cut.columns]}
    if values != columns:
        raise _disagree("w13 and w2 of a rank hold different intermediate values", rank, (values, columns))


def _in_blocks(cut: Cut, unit: int) -> tuple[object, ...]:
    columns = (*cut.columns, cut.at_column)
    return cut.projection, cut.rows, cut.at_row, tuple(divmod(c, unit) for c in columns)


def uncovered(what: str, **where: object) -> PartitionError:
    """The refusal of a plan that is none; `where` holds an error's fields."""
    step = "report it with the model and the sizes; a plan that was read from a file: pack again"
    return PartitionError("plan.cover", what, next_step=step, **where)


def _disagree(what: str, rank: Rank, found: object) -> PartitionError:
    return uncovered(what, rank=rank, found=found, needed="one interval of blocks for all fields of a rank")


def _cover(cuts: Sequence[Cut], rows: int, width: int, what: str) -> None:
    """Exact cover: the rectangles lie inside, do not overlap, and their areas sum to the whole."""
    for i, a in enumerate(cuts):
        if not (0 <= a.rows[0] < a.rows[1] <= rows and 0 <= a.columns[0] < a.columns[1] <= width):
            raise uncovered(f"a cut of {what} lies outside the checkpoint", found=a)
        for b in cuts[:i]:
            if _meet(a.rows, b.rows) and _meet(a.columns, b.columns):
                raise uncovered(f"two ranks take the same bytes of {what}", found=f"{a} and {b}")
    area = sum(c.area for c in cuts)
    if area != rows * width:
        raise uncovered(f"bytes of {what} are taken by no rank", found=area, needed=rows * width)


def _destinations(cuts: Sequence[Cut], inside: tuple[int, int], rank: Rank, what: str) -> None:
    landed: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for cut in cuts:
        rows = (cut.at_row, cut.at_row + cut.rows[1] - cut.rows[0])
        columns = (cut.at_column, cut.at_column + cut.columns[1] - cut.columns[0])
        if min(cut.at_row, cut.at_column) < 0 or rows[1] > inside[0] or columns[1] > inside[1]:
            raise uncovered(f"a cut of {what} does not fit its rank", rank=rank, found=cut, needed=inside)
        if any(_meet(rows, r) and _meet(columns, c) for r, c in landed):
            raise uncovered(f"two cuts of {what} land on the same bytes", rank=rank, found=cut)
        landed.append((rows, columns))


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]
