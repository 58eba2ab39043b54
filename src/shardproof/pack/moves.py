"""Moves: what a kernel of the engine does inside one tile."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardproof.pack.native import structs as s

Records = npt.NDArray[np.void]


def _no_parts() -> Records:
    return np.zeros(0, dtype=s.PART)


@dataclass(frozen=True)
class Moves:
    """A kernel of engine.h and its tables; `word` is what `Program.word` says there."""

    kernel: int
    parts: Records = field(default_factory=_no_parts)
    masks: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 16), np.uint8))
    tables: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros((0, 256), np.uint32))
    pieces: Records = field(default_factory=_no_parts)
    terms: Records = field(default_factory=lambda: np.zeros(0, dtype=s.TERM))
    word: int = 1
    block: int = 0
    whole_lines: int = 0
    fold: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Back:
    """Moves from a tile to its rows: directly, or to a block of `block` bytes whose `pieces` go to the rows.

    Pieces are `piece` bytes each; none where the moves reach the rows.
    """

    moves: Moves
    pieces: Records = field(default_factory=_no_parts)
    piece: int = 1
    block: int = 0
