"""Cut and LayerShape: one rank's slice of one layer, in integers."""

from __future__ import annotations

from dataclasses import dataclass

from shardproof.experts import ExpertSpec, Field, Projection, Stack
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES
from shardproof.partition import Rank


@dataclass(frozen=True, slots=True)
class Cut:
    """One rectangle: rows and byte columns of a projection's checkpoint matrix, and where they land in the stack."""

    projection: Projection
    rows: tuple[int, int]
    columns: tuple[int, int]
    at_row: int
    at_column: int

    @property
    def area(self) -> int:
        """Bytes of one expert that this cut moves."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class LayerShape:
    """How every layer of one spec is dealt and padded.

    intervals      blocks [start, stop) of each tensor-parallel rank
    owners         global expert ids of each expert-parallel rank, in local order
    hidden         padded H; intermediate is the padded I of a rank, the same on all ranks
    """

    spec: ExpertSpec
    intervals: tuple[tuple[int, int], ...]
    owners: tuple[tuple[int, ...], ...]
    hidden: int
    intermediate: int

    def valid(self, rank: Rank) -> int:
        """Intermediate values that a rank really holds; the rest, up to `intermediate`, is padding."""
        start, stop = self.intervals[rank.tp_rank]
        return (stop - start) * BLOCK

    def matrix_shape(self, stack: Stack, name: Field, bias_item: int = 4) -> tuple[int, int]:
        """(rows, bytes a row) of one expert's padded matrix in canonical form."""
        rows, columns = (2 * self.intermediate, self.hidden) if stack == "w13" else (self.hidden, self.intermediate)
        if name == "bias":
            return rows, bias_item
        return rows, columns // BLOCK * (BLOCK_BYTES if name == "weight" else 1)

    def cuts(self, rank: Rank, stack: Stack, name: Field, bias_item: int = 4) -> tuple[Cut, ...]:
        """The rectangles that fill one expert's padded matrix on a rank. w2's bias stands on one rank only."""
        start, stop = self.intervals[rank.tp_rank]
        if start == stop:
            return ()
        unit = {"weight": BLOCK_BYTES, "scale": 1, "bias": 0}[name]
        rows = (start * BLOCK, stop * BLOCK)
        if stack == "w13":
            width = self.spec.hidden // BLOCK * unit if unit else bias_item
            return (Cut("w1", rows, (0, width), 0, 0), Cut("w3", rows, (0, width), self.intermediate, 0))
        everything = (0, self.spec.hidden)
        if name == "bias":
            return (Cut("w2", everything, (0, bias_item), 0, 0),) if rank.tp_rank == 0 else ()
        return (Cut("w2", everything, (start * unit, stop * unit), 0, 0),)
