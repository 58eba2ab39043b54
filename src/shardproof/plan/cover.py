"""The proof that a plan takes every checkpoint byte exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardproof.errors import PartitionError
from shardproof.experts import Field, Stack
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES
from shardproof.partition import Rank
from shardproof.plan.shape import Cut, LayerShape


def prove_cover(shape: LayerShape, group: Sequence[Rank], bias_item: int) -> Iterator[str]:
    """Show the cover of one layer shape by the ranks of a tensor-parallel group, from the cuts themselves.

    Yields what was shown. Raises PartitionError `plan.cover`.
    """
    spec = shape.spec
    sizes = {
        "w1": (spec.intermediate, spec.hidden),
        "w3": (spec.intermediate, spec.hidden),
        "w2": (spec.hidden, spec.intermediate),
    }
    stacks: tuple[Stack, ...] = ("w13", "w2")
    names: tuple[Field, ...] = ("weight", "scale", "bias") if spec.bias else ("weight", "scale")
    for stack in stacks:
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
    held = set().union(*shape.owners)
    if held != set(range(spec.experts)):
        raise PartitionError("plan.cover", "an expert is on no rank", expert=min(set(range(spec.experts)) - held))
    copies = sum(map(len, shape.owners)) - spec.experts
    yield (
        f"{spec.experts} experts of [{spec.intermediate}, {spec.hidden}]: every byte of w1, w3 and w2 is taken by "
        f"exactly one of {len(group)} tensor-parallel ranks; every expert is on "
        + (
            f"exactly one of {len(shape.owners)} expert-parallel ranks"
            if not copies
            else f"at least one rank ({copies} replicas)"
        )
    )


def _cover(cuts: Sequence[Cut], rows: int, width: int, what: str) -> None:
    """Exact cover: the rectangles lie inside, do not overlap, and their areas sum to the whole."""
    for i, a in enumerate(cuts):
        if not (0 <= a.rows[0] < a.rows[1] <= rows and 0 <= a.columns[0] < a.columns[1] <= width):
            raise PartitionError("plan.cover", f"a cut of {what} lies outside the checkpoint", found=a)
        for b in cuts[:i]:
            if _meet(a.rows, b.rows) and _meet(a.columns, b.columns):
                raise PartitionError("plan.cover", f"two ranks take the same bytes of {what}", found=f"{a} and {b}")
    area = sum(c.area for c in cuts)
    if area != rows * width:
        raise PartitionError("plan.cover", f"bytes of {what} are taken by no rank", found=area, needed=rows * width)


def _destinations(cuts: Sequence[Cut], inside: tuple[int, int], rank: Rank, what: str) -> None:
    landed: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for cut in cuts:
        rows = (cut.at_row, cut.at_row + cut.rows[1] - cut.rows[0])
        columns = (cut.at_column, cut.at_column + cut.columns[1] - cut.columns[0])
        if rows[1] > inside[0] or columns[1] > inside[1]:
            raise PartitionError(
                "plan.cover", f"a cut of {what} does not fit its rank", rank=rank, found=cut, needed=inside
            )
        if any(_meet(rows, r) and _meet(columns, c) for r, c in landed):
            raise PartitionError("plan.cover", f"two cuts of {what} land on the same bytes", rank=rank, found=cut)
        landed.append((rows, columns))


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]
