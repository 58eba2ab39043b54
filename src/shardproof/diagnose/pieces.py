"""Pieces: real weights are their own address labels. 16 bytes of a checkpoint almost always stand in one place only.

An index holds some rows and columns of every expert of a layer - enough to be met by any shard of any expert - so it
stays small: a tensor that was laid out rightly for a trial order shows the same rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.experts import PROJECTIONS, ExpertSpec, Projection
from shardproof.formats import ExpertModel
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_SHIFT = np.uint64(29)
_ROWS_INDEXED = 128  # of w1 and w3, at most this far apart that every shard of >= 32 rows holds one
W2_ROWS = 24
COLUMNS = 3


def keys(pieces: Bytes) -> Keys:
    """One 64-bit key a piece: uint8 [..., 16] to uint64 [...]."""
    halves = np.ascontiguousarray(pieces).view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = halves[..., 0] * _LANES[0] ^ (halves[..., 1] + _LANES[0]) * _LANES[1]
        return np.asarray((mixed ^ (mixed >> _SHIFT)) * _LANES[1], dtype=np.uint64)


def sampled_columns(blocks: int) -> list[int]:
    """Block columns of w13 that are indexed."""
    return sorted({0, blocks // 2, blocks - 1})[:COLUMNS]


def sampled_rows(rows: int) -> list[int]:
    """Rows of w2 that are indexed."""
    return sorted({int(r) for r in np.linspace(0, rows - 1, W2_ROWS)})


def row_step(spec: ExpertSpec) -> int:
    """Every how manieth row of w1 and w3 is indexed."""
    return max(1, min(BLOCK, spec.intermediate // _ROWS_INDEXED or 1))


@dataclass(frozen=True)
class Found:
    """Where pieces stand in the checkpoint; -1 where they are not in the index or stand in several places."""

    projection: Ints
    expert: Ints
    row: Ints
    block: Ints

    @property
    def hit(self) -> npt.NDArray[np.bool_]:
        """Which pieces were found."""
        return self.projection >= 0


@dataclass(frozen=True)
class PieceIndex:
    """Sorted keys of the indexed pieces of one layer, and the place of each."""

    keys: Keys
    places: Ints
    spec_sizes: tuple[int, int, int]  # experts, rows, blocks: radices of `places`

    def look_up(self, pieces: Bytes) -> Found:
        """Find pieces uint8 [..., 16]."""
        wanted = keys(pieces)
        at = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        if not len(self.keys):
            missing = np.full(wanted.shape, -1, dtype=np.int64)
            return Found(missing, missing, missing, missing)
        place = np.where(self.keys[at] == wanted, self.places[at], -1)
        experts, rows, blocks = self.spec_sizes
        rest, block = place // blocks, place % blocks
        rest, row = rest // rows, rest % rows
        projection, expert = rest // experts, rest % experts
        return Found(*(np.where(place < 0, -1, part) for part in (projection, expert, row, block)))


def index_layer(model: ExpertModel, key: str, *, experts: list[int] | None = None) -> PieceIndex:
    """Index a layer's pieces (of some experts only, where a layer has to be found among many)."""
    layer = model.layer(key)
    spec = layer.spec
    rows = max(spec.hidden, spec.intermediate)
    blocks = max(spec.hidden, spec.intermediate) // BLOCK
    step = row_step(spec)
    parts: list[Bytes] = []
    places: list[Ints] = []
    for number, projection in enumerate(PROJECTIONS):
        if projection == "w2":
            at_rows, at_blocks = np.array(sampled_rows(spec.hidden)), np.arange(spec.blocks)
        else:
            at_rows, at_blocks = (
                np.arange(0, spec.intermediate, step),
                np.array(sampled_columns(spec.hidden // BLOCK)),
            )
        for expert in experts if experts is not None else range(spec.experts):
            taken = take(model, key, projection, expert, at_rows, at_blocks)
            base = (number * spec.experts + expert) * rows
            parts.append(taken.reshape(-1, BLOCK_BYTES))
            places.append(((base + at_rows)[:, None] * blocks + at_blocks).reshape(-1))
    pieces, at = np.concatenate(parts), np.concatenate(places)
    useful = (pieces != pieces[:, :1]).any(axis=1)  # sixteen equal bytes label nothing
    return _sorted(keys(pieces[useful]), at[useful], (spec.experts, rows, blocks))


def take(model: ExpertModel, key: str, projection: Projection, expert: int, rows: Ints, blocks: Ints) -> Bytes:
    """Pieces of one expert's weight at rows x blocks, uint8 [rows, blocks, 16]."""
    matrix = model.layer(key).sources[projection, "weight"].matrix(model.checkpoint, expert)
    columns = blocks[:, None] * BLOCK_BYTES + np.arange(BLOCK_BYTES)
    return np.ascontiguousarray(matrix[rows[:, None, None], columns[None]])


def _sorted(found: Keys, places: Ints, sizes: tuple[int, int, int]) -> PieceIndex:
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    twin = np.zeros(len(ordered), dtype=np.bool_)
    same = ordered[1:] == ordered[:-1]
    twin[1:] |= same
    twin[:-1] |= same
    return PieceIndex(ordered[~twin], places[order][~twin], sizes)
