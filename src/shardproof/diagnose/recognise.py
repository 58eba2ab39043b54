"""Recognise: which layer, experts, rows, blocks and byte order a foreign weight holds, from its bytes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.pieces import Found, Ints, PieceIndex, row_step
from shardproof.diagnose.reading import NEARLY, UNKNOWN, Reading
from shardproof.diagnose.score import CODECS, Score, loose, mode, rows_and_blocks, scores, words
from shardproof.diagnose.trials import Trial, trials
from shardproof.experts import ExpertSpec, Stack
from shardproof.mistakes import Owners
from shardproof.mxfp4 import BLOCK, Bytes

_MET_IF_CERTAIN = 0.4
_LEAST_SHARE = 0.5  # of the pieces that are known at all, those that stand where the trial says


@dataclass(frozen=True, kw_only=True)
class Known:
    """What narrows a reading: sizes that are known, and the layout that the backend needs.

    `experts` and `hidden` list possible counts and padded H, `inner` is the padded I and `least` its least value,
    `usual` is the likeliest padded H; `fits` says whether the other tensors of the stack can have a shape.
    """

    needed: str | None = None
    experts: Sequence[int] | None = None
    hidden: Sequence[int] = ()
    inner: int | None = None
    least: int = 0
    usual: int | None = None
    fits: Callable[[tuple[int, int, int]], bool] = lambda _shape: True

    def allows(self, trial: Trial, stack: Stack) -> bool:
        """Whether a trial has such sizes."""
        inner = trial.inner(stack)
        return self.inner in {None, inner} and inner >= self.least and self.fits(trial.shape)


@dataclass(frozen=True)
class _Candidate:
    trial: Trial
    codec: str
    score: Score
    empty: int
    loose: float

    def rank(self, stack: Stack, needed: str | None, usual: int) -> tuple[float, ...]:
        """More pieces in place wins; then no empty expert, uniform padding, the needed layout, rows, the usual size."""
        aside = abs(self.trial.hidden(stack) - usual)
        own = self.trial.identity == needed
        left = -round(self.loose, 1)
        return self.score.weight, -self.empty, left, own, round(self.score.in_order, 1), -aside, not self.codec


def read_weight(
    tensor: Foreign, stack: Stack, spec: ExpertSpec, index: PieceIndex, known: Known | None = None
) -> Reading | None:
    """Find the reading under which most pieces stand where the checkpoint has them; None where none does."""
    known = known or Known()
    found = _candidates(tensor, stack, spec, index, known)
    if not found:
        return None
    usual = known.usual or spec.hidden
    best = _best(found, lambda c: c.rank(stack, known.needed, usual))
    if best.score.share < _LEAST_SHARE:
        return None
    straight = _best(found, lambda c: (c.score.weight, -round(c.loose, 1), round(c.score.in_order, 3)))
    alike = tuple(
        (c.trial.identity, c.trial.shape)
        for c in found
        if not c.codec
        and c.trial.shape[0] == best.trial.shape[0]
        and c.score.weight >= NEARLY * best.score.weight
        and c.score.in_order >= NEARLY * best.score.in_order
    )
    reading = _reading(best.trial, best.codec, tensor.data, stack, spec, index)
    same = straight.trial.shape == best.trial.shape
    return replace(reading, alike=alike, straight=straight.trial.identity if same else "")


def _candidates(tensor: Foreign, stack: Stack, spec: ExpertSpec, index: PieceIndex, known: Known) -> list[_Candidate]:
    """Every trial under which some piece stands in place; the search ends at one that cannot be bettered."""
    found: list[_Candidate] = []
    expected = 1.0 if stack == "w2" else 1.0 / row_step(spec)
    kernel = tensor.data
    for trial in trials(
        stack, kernel.size, tensor.shape, spec,
        needed=known.needed, experts=known.experts, hidden=known.hidden, usual=known.usual,
    ):  # fmt: skip
        sample = _sample_experts(kernel, trial.shape[0]) if known.allows(trial, stack) else []
        if not sample:
            continue
        ends = sorted({*sample[:1], *sample[-1:]})  # the last one shows a wrong size of all before it
        counted = known.experts is not None and len(known.experts) == 1
        empty = 0 if counted else _empty(kernel, trial.shape[0])
        unexplained: float | None = None
        for codec, score in scores(trial, kernel, stack, spec, index, ends):
            if codec and any(c.score.share == 1.0 for c in found):
                break
            if score.good:
                if unexplained is None:
                    unexplained = loose(trial, kernel, stack, spec)
                found.append(_Candidate(trial, codec, score, empty, unexplained))
                if not (codec or empty or unexplained or trial.padded) and _certain(score, expected):
                    return found
    return found


def _best(found: Sequence[_Candidate], rank: Callable[[_Candidate], tuple[float, ...]]) -> _Candidate:
    """The candidate of highest rank; the first number counts only where it differs by more than 2 %."""
    best = found[0]
    for candidate in found[1:]:
        new, old = rank(candidate), rank(best)
        much = abs(new[0] - old[0]) > (1 - NEARLY) * max(new[0], old[0])
        if (new[0] > old[0]) if much else (new[1:] > old[1:]):
            best = candidate
    return best


def _certain(score: Score, expected: float) -> bool:
    """Every known piece stands where the trial says, and rows are in order: no other trial can be better."""
    in_place = score.share == score.in_order == 1.0 and score.balance > _MET_IF_CERTAIN
    return in_place and score.met > _MET_IF_CERTAIN * expected


def _empty(kernel: Bytes, count: int) -> int:
    """How many of `count` equal parts are zero (of every 257th byte): a sign of too many experts."""
    return int((~kernel.reshape(count, -1)[:, ::257].any(axis=1)).sum()) if kernel.size % count == 0 else 0


def _sample_experts(kernel: Bytes, count: int) -> list[int]:
    """Up to three experts whose part of the buffer is not all zero."""
    size = kernel.size // count
    wanted = dict.fromkeys([0, count // 2, count - 1, *range(count)])
    found = (e for e in wanted if size and kernel[e * size : e * size + min(size, 65536)].any())
    return [e for e, _ in zip(found, range(3), strict=False)]


def _reading(trial: Trial, codec: str, kernel: Bytes, stack: Stack, spec: ExpertSpec, index: PieceIndex) -> Reading:
    sample = _sample_experts(kernel, trial.shape[0])
    score = dict(scores(trial, kernel, stack, spec, index, sample)).get(codec)
    assert score is not None
    rows, blocks = (np.array(x) for x in rows_and_blocks(stack, trial.shape, spec))
    found, mask = score.found, score.mask
    start = stop = None
    if mask.any() and stack == "w2":
        start, stop = int(found.block[mask].min()) * BLOCK, (int(found.block[mask].max()) + 1) * BLOCK
    elif mask.any():
        start, stop = _interval(found, mask, trial.shape[1], rows)
    owners = _owners(trial, codec, kernel, index, mask, rows, blocks)
    return Reading(
        stack, trial.identity, codec, trial.shape, owners, start, stop, score.share, score.met, score.in_order,
        words(found, mask, stack, trial.shape[1], rows),
    )  # fmt: skip


def _interval(found: Found, mask: np.ndarray, height: int, rows: Ints) -> tuple[int, int]:
    """First row met of w1 or w3 (exact where rows are in order) and one past the last."""
    at = np.broadcast_to(rows[None, :, None], mask.shape)
    half = height // 2
    local = np.where(at >= half, at - half, at)
    shift = (found.row - local)[mask]
    common = mode(shift)
    exact = bool((shift == common).mean() > 0.5)
    lowest, highest = int(found.row[mask].min()), int(found.row[mask].max()) + 1
    return (max(common, 0), highest) if exact else (lowest, highest)


def _owners(
    trial: Trial,
    codec: str,
    kernel: Bytes,
    index: PieceIndex,
    mask: np.ndarray,
    rows: Ints,
    blocks: Ints,
) -> Owners:
    """The expert at every local place, from a few rows that are in the index."""
    useful = np.flatnonzero(mask.any(axis=(0, 2)))
    chosen = useful[np.linspace(0, len(useful) - 1, min(8, len(useful))).astype(int)]
    keep = blocks if len(blocks) <= 4 else blocks[np.flatnonzero(mask.any(axis=(0, 1)))][:4]
    owners: list[int | None] = []
    for local in range(trial.shape[0]):
        pieces = trial.gather(kernel, [local], rows[chosen].tolist(), keep.tolist())
        met = index.look_up(CODECS[codec](pieces))
        if met.hit.any():
            owners.append(mode(met.expert[met.hit]))
        else:
            owners.append(UNKNOWN if pieces.any() else None)
    return tuple(owners)
