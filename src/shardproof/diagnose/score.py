"""Score: how well a tensor's pieces stand where one trial order would have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shardproof.diagnose.pieces import Found, Ints, PieceIndex, sampled_columns, sampled_rows
from shardproof.diagnose.trials import Trial
from shardproof.experts import ExpertSpec, Stack
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes

_ADDRESSES = 4096


def _join_nibbles(pieces: Bytes) -> Bytes:
    """Pieces [..., 16] in GGUF's order of nibbles to adjacent pairs."""
    codes = np.concatenate([pieces & 15, pieces >> 4], axis=-1)
    return np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4, dtype=np.uint8)


CODECS: dict[str, Callable[[Bytes], Bytes]] = {
    "": lambda pieces: pieces,
    "gguf_nibbles": _join_nibbles,
    "nibbles_swapped": lambda pieces: np.asarray(pieces << 4 | pieces >> 4, dtype=np.uint8),
}  # fmt: skip
"""What is undone before a piece is looked up, by the name of the mistake."""


@dataclass(frozen=True)
class Score:
    """Pieces in place, as shares: of those met, of the sample, of rows in order; `balance` over columns or rows."""

    good: int
    share: float
    met: float
    in_order: float
    found: Found
    mask: np.ndarray
    balance: float = 0.0

    @property
    def weight(self) -> float:
        """How much speaks for the trial: pieces in place, less where they come from some columns or rows only."""
        return self.good * self.share * (1 + self.balance) / 2


def rows_and_blocks(stack: Stack, shape: tuple[int, int, int], spec: ExpertSpec) -> tuple[list[int], list[int]]:
    """Rows and block columns of a canonical shape that the index can know."""
    _, rows, width = shape
    blocks = width // BLOCK_BYTES
    if stack == "w13":
        return list(range(rows)), [b for b in sampled_columns(spec.hidden // BLOCK) if b < blocks]
    return [r for r in sampled_rows(spec.hidden) if r < rows], list(range(blocks))


def scores(
    trial: Trial, kernel: Bytes, stack: Stack, spec: ExpertSpec, index: PieceIndex, experts: Sequence[int]
) -> Iterator[tuple[str, Score]]:
    """The score of some experts' pieces, as they are and, where nothing is met, with their nibbles reordered."""
    rows, blocks = rows_and_blocks(stack, trial.shape, spec)
    pieces = trial.gather(kernel, experts, rows, blocks)
    for codec, undo in CODECS.items():
        yield (
            codec,
            _score(index.look_up(undo(pieces)), stack, trial.shape[1], np.array(rows), np.array(blocks)),
        )


def loose(trial: Trial, kernel: Bytes, stack: Stack, spec: ExpertSpec) -> float:
    """Of the bytes that are not padding's commonest value, the share that the trial takes for padding, 0..1.

    Counted are padding of H and what the layout itself adds, over some addresses of the whole weight. Padding that
    nobody wrote looks like that too, but then under every trial; others take one expert's bytes for padding of another.
    """
    layout = trial.placed
    at = np.random.default_rng(0).integers(0, kernel.size, _ADDRESSES)
    _, row, unit = layout.element(at * UNITS_PER_BYTE[layout.unit])
    beyond = (row >= spec.hidden) if stack == "w2" else (unit >= spec.hidden // 2 * UNITS_PER_BYTE[layout.unit])
    shared = trial.identity.startswith("gguf.")  # weights and scales share the buffer: holes hold the other field
    padding = beyond & (row >= 0) if shared else beyond | (row < 0)
    values = kernel[at]
    if not padding.any():
        return 0.0
    several = values != mode(values[padding].astype(np.int64))
    return float((several & padding).sum() / max(int(several.sum()), 1))


def mode(values: Ints) -> int:
    """The commonest value."""
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _score(found: Found, stack: Stack, height: int, rows: Ints, blocks: Ints) -> Score:
    hit = found.hit & (found.projection == 2 if stack == "w2" else found.projection < 2)
    total = int(found.hit.sum())
    if not hit.any():
        return Score(0, 0.0, 0.0, 0.0, found, hit)
    mask = hit.copy()
    for local in range(mask.shape[0]):
        if hit[local].any():
            mask[local] &= found.expert[local] == mode(found.expert[local][hit[local]])
    shift = found.block - blocks
    mask &= shift == (mode(shift[hit]) if stack == "w2" else 0)
    good = int(mask.sum())
    return Score(good, good / total, total / mask.size, _in_order(found, mask, stack, height, rows), found, mask)


def _in_order(found: Found, mask: np.ndarray, stack: Stack, height: int, rows: Ints) -> float:
    if not mask.any():
        return 0.0
    at = np.broadcast_to(rows[None, :, None], mask.shape)
    if stack == "w2":
        return float((found.row == at)[mask].mean())
    half = height // 2
    upper = at >= half
    shift = found.row - np.where(upper, at - half, at)
    same = (found.projection == upper) & (shift == mode(shift[mask]))
    return float(same[mask].mean())


def words(found: Found, mask: np.ndarray, stack: Stack, height: int, rows: Ints) -> str:
    """The order of w13's rows as seen after the layout was undone."""
    if stack == "w2" or not mask.any():
        return ""
    best = np.asarray(mask.any(axis=2))
    local = int(best.sum(axis=1).argmax())
    at = rows[best[local]]
    first = mask[local].argmax(axis=1)
    projection = found.projection[local, np.arange(len(rows)), first][best[local]]
    half = height // 2
    if (projection == (at >= half)).all():
        return "separated, gate first"
    if (projection == (at < half)).all():
        return "separated, up first"
    for width in (1, 8, 16, 32, 64):
        if (projection == at // width % 2).all():
            return f"interleaved by {width}"
        if (projection == 1 - at // width % 2).all():
            return f"interleaved by {width}, up first"
    return "mixed"
