"""Recognise: which layer, experts, rows, blocks and byte order a foreign weight holds, from its bytes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.pieces import Found, Ints, PieceIndex, row_step, sampled_columns, sampled_rows
from shardproof.diagnose.trials import Trial, trials
from shardproof.experts import ExpertSpec, Stack
from shardproof.mistakes import Owners
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes

UNKNOWN = -2
_MET_IF_CERTAIN = 0.4
_NEARLY = 0.98
_LEAST_SHARE = 0.5  # of the pieces that are known at all, those that stand where the trial says


def _join_nibbles(pieces: Bytes) -> Bytes:
    """Pieces [..., 16] in GGUF's order of nibbles to adjacent pairs."""
    codes = np.concatenate([pieces & 15, pieces >> 4], axis=-1)
    return np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4, dtype=np.uint8)


CODECS: dict[str, Callable[[Bytes], Bytes]] = {
    "": lambda pieces: pieces, "gguf_nibbles": _join_nibbles, "nibbles_swapped": lambda pieces: np.asarray(pieces << 4 | pieces >> 4, dtype=np.uint8),
}  # fmt: skip
"""What is undone before a piece is looked up, by the name of the mistake."""


@dataclass(frozen=True)
class Reading:
    """What one weight tensor holds.

    identity, shape   its byte order, on canonical (E, N, bytes a row)
    owners            global expert at each local place; None where it is zero, UNKNOWN where it is no expert's
    start, stop       values [start, stop) of the intermediate axis that were met
    share             of the sampled pieces that are in the checkpoint, how many stand where this reading says
    met               how many pieces of the sample are in the checkpoint at all
    in_order          share of rows that are [w1; w3] in ascending order
    order             words for the order of rows
    """

    stack: Stack
    identity: str
    codec: str
    shape: tuple[int, int, int]
    owners: Owners
    start: int | None
    stop: int | None
    share: float
    met: float
    in_order: float
    order: str
    straight: str = ""
    alike: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    @property
    def hiddens(self) -> tuple[int, ...]:
        """Every padded H that fits."""
        own = [(self.identity, self.shape), *self.alike]
        return tuple(dict.fromkeys(2 * s[2] if self.stack == "w13" else s[1] for _, s in own))

    def resized(self, hidden: int, inner: int) -> Reading | None:
        """The reading that fits as well under other padded sizes; None where there is none."""
        shape = (
            (self.shape[0], 2 * inner, hidden // 2)
            if self.stack == "w13"
            else (self.shape[0], hidden, inner // 2)
        )
        return next(
            (replace(self, identity=i, shape=s, straight=i) for i, s in self.alike if s == shape), None
        )

    def as_good_as(self, other: Reading) -> bool:
        """Whether as much stands in place, in as good an order."""
        return self.share >= _NEARLY * other.share and self.in_order >= _NEARLY * other.in_order

    @property
    def inner(self) -> int:
        """Padded I."""
        return self.shape[1] // 2 if self.stack == "w13" else self.shape[2] * 2

    @property
    def hidden(self) -> int:
        """Padded H."""
        return self.shape[2] * 2 if self.stack == "w13" else self.shape[1]


@dataclass(frozen=True)
class _Score:
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


def read_weight(
    tensor: Foreign,
    stack: Stack,
    spec: ExpertSpec,
    index: PieceIndex,
    *,
    needed: str | None,
    experts: Sequence[int] | None = None,
    hidden: Sequence[int] = (),
    inner: int | None = None,
    least: int = 0,
    usual: int | None = None,
    fits: Callable[[tuple[int, int, int]], bool] = lambda _shape: True,
) -> Reading | None:
    """Find the reading under which most pieces stand where the checkpoint has them; None where none does.

    `experts`, `hidden`, `inner` are sizes that are known, `least` is the least padded I, `usual` the likeliest padded H;
    `fits` says whether the other tensors of the stack can have a shape.
    """
    usual = usual or spec.hidden
    best: tuple[tuple[float, ...], Trial, str, _Score] | None = None
    ordered: tuple[tuple[float, ...], Trial] | None = None
    fitting: list[tuple[float, float, Trial]] = []
    for trial in trials(
        stack,
        tensor.data.size,
        tensor.shape,
        spec,
        needed=needed,
        experts=experts,
        hidden=hidden,
        usual=usual,
    ):
        if (
            (inner is not None and trial.inner(stack) != inner)
            or trial.inner(stack) < least
            or not fits(trial.shape)
        ):
            continue
        sample = _sample_experts(tensor.data, trial.shape[0])
        sample = sorted({*sample[:1], *sample[-1:]})  # the last one shows a wrong size of all before it
        if not sample:
            continue
        empty = 0 if experts and len(experts) == 1 else _empty(tensor.data, trial.shape[0])
        for codec, score in _scores(trial, tensor.data, stack, spec, index, sample):
            if codec and best is not None and best[3].share == 1.0:
                break
            order = round(score.in_order, 3)
            wide = trial.hidden(stack)
            rank = (
                score.weight, -empty, trial.identity == needed, round(order, 1), -abs(wide - usual), not codec,
            )  # fmt: skip
            if score.good and (best is None or _better(rank, best[0])):
                best = (rank, trial, codec, score)
            if score.good and not codec:
                fitting.append((rank[0], order, trial))
            by_order = (score.weight, order)
            if score.good and (ordered is None or _better(by_order, ordered[0])):
                ordered = (by_order, trial)
        expected = 1.0 if stack == "w2" else 1.0 / row_step(spec)
        if (
            best is not None
            and best[1] is trial
            and not best[2]
            and not empty
            and not trial.padded
            and _certain(best[3], expected)
        ):
            break
    if best is None or best[3].share < _LEAST_SHARE:
        return None
    _, trial, codec, _ = best
    reading = _reading(trial, codec, tensor.data, stack, spec, index)
    alike = [
        (t.identity, t.shape)
        for good, order, t in fitting
        if t.shape[0] == trial.shape[0]
        and good >= _NEARLY * best[0][0]
        and order >= _NEARLY * best[3].in_order
    ]
    reading = replace(reading, alike=tuple(alike))
    if ordered is not None and ordered[1].shape == trial.shape:
        return replace(reading, straight=ordered[1].identity)
    return reading


def _certain(score: _Score, expected: float) -> bool:
    """Every known piece stands where the trial says, and rows are in order: no other trial can be better."""
    return (
        score.share == score.in_order == 1.0
        and score.balance > _MET_IF_CERTAIN
        and score.met > _MET_IF_CERTAIN * expected
    )


def _better(new: tuple[float, ...], old: tuple[float, ...]) -> bool:
    """More pieces in place wins; within 2 % the needed layout, then the order of rows."""
    if abs(new[0] - old[0]) > 0.02 * max(new[0], old[0]):
        return new[0] > old[0]
    return new[1:] > old[1:]


def _empty(kernel: Bytes, count: int) -> int:
    """How many of `count` equal parts are zero (of every 257th byte): a sign of too many experts."""
    return int((~kernel.reshape(count, -1)[:, ::257].any(axis=1)).sum()) if kernel.size % count == 0 else 0


def _sample_experts(kernel: Bytes, count: int) -> list[int]:
    """Up to three experts whose part of the buffer is not all zero."""
    size = kernel.size // count
    wanted = dict.fromkeys([0, count // 2, count - 1, *range(count)])
    found = (e for e in wanted if size and kernel[e * size : e * size + min(size, 65536)].any())
    return [e for e, _ in zip(found, range(3), strict=False)]


def _rows_and_blocks(
    stack: Stack, shape: tuple[int, int, int], spec: ExpertSpec
) -> tuple[list[int], list[int]]:
    _, rows, width = shape
    blocks = width // BLOCK_BYTES
    if stack == "w13":
        return list(range(rows)), [b for b in sampled_columns(spec.hidden // BLOCK) if b < blocks]
    return [r for r in sampled_rows(spec.hidden) if r < rows], list(range(blocks))


def _scores(
    trial: Trial, kernel: Bytes, stack: Stack, spec: ExpertSpec, index: PieceIndex, experts: Sequence[int]
) -> Iterable[tuple[str, _Score]]:
    rows, blocks = _rows_and_blocks(stack, trial.shape, spec)
    pieces = trial.gather(kernel, experts, rows, blocks)
    for codec, undo in CODECS.items():
        yield (
            codec,
            _score(index.look_up(undo(pieces)), stack, trial.shape[1], np.array(rows), np.array(blocks)),
        )


def _mode(values: Ints) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _score(found: Found, stack: Stack, height: int, rows: Ints, blocks: Ints) -> _Score:
    hit = found.hit & (found.projection == 2 if stack == "w2" else found.projection < 2)
    total = int(found.hit.sum())
    if not hit.any():
        return _Score(0, 0.0, 0.0, 0.0, found, hit)
    mask = hit.copy()
    for local in range(mask.shape[0]):
        if hit[local].any():
            mask[local] &= found.expert[local] == _mode(found.expert[local][hit[local]])
    shift = found.block - blocks
    mask &= shift == (_mode(shift[hit]) if stack == "w2" else 0)
    good = int(mask.sum())
    return _Score(
        good, good / total, total / mask.size, _in_order(found, mask, stack, height, rows), found, mask
    )


def _in_order(found: Found, mask: np.ndarray, stack: Stack, height: int, rows: Ints) -> float:
    if not mask.any():
        return 0.0
    at = np.broadcast_to(rows[None, :, None], mask.shape)
    if stack == "w2":
        return float((found.row == at)[mask].mean())
    half = height // 2
    upper = at >= half
    shift = found.row - np.where(upper, at - half, at)
    same = (found.projection == upper) & (shift == _mode(shift[mask]))
    return float(same[mask].mean())


def _reading(
    trial: Trial, codec: str, kernel: Bytes, stack: Stack, spec: ExpertSpec, index: PieceIndex
) -> Reading:
    sample = _sample_experts(kernel, trial.shape[0])
    score = dict(_scores(trial, kernel, stack, spec, index, sample)).get(codec)
    assert score is not None
    rows, blocks = (np.array(x) for x in _rows_and_blocks(stack, trial.shape, spec))
    found, mask = score.found, score.mask
    start = stop = None
    if mask.any() and stack == "w2":
        start, stop = int(found.block[mask].min()) * BLOCK, (int(found.block[mask].max()) + 1) * BLOCK
    elif mask.any():
        start, stop = _interval(found, mask, trial.shape[1], rows)
    owners = _owners(trial, codec, kernel, index, found, mask, rows, blocks)
    return Reading(
        stack, trial.identity, codec, trial.shape, owners, start, stop, score.share, score.met, score.in_order,
        _words(found, mask, stack, trial.shape[1], rows),
    )  # fmt: skip


def _interval(found: Found, mask: np.ndarray, height: int, rows: Ints) -> tuple[int, int]:
    """First row met of w1 or w3 (exact where rows are in order) and one past the last."""
    at = np.broadcast_to(rows[None, :, None], mask.shape)
    half = height // 2
    local = np.where(at >= half, at - half, at)
    shift = (found.row - local)[mask]
    common = _mode(shift)
    exact = bool((shift == common).mean() > 0.5)
    lowest, highest = int(found.row[mask].min()), int(found.row[mask].max()) + 1
    return (max(common, 0), highest) if exact else (lowest, highest)


def _owners(
    trial: Trial,
    codec: str,
    kernel: Bytes,
    index: PieceIndex,
    found: Found,
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
            owners.append(_mode(met.expert[met.hit]))
        else:
            owners.append(UNKNOWN if pieces.any() else None)
    return tuple(owners)


def _words(found: Found, mask: np.ndarray, stack: Stack, height: int, rows: Ints) -> str:
    """The order of w13's rows as seen after the layout was undone."""
    if stack == "w2" or not mask.any():
        return ""
    best = mask.any(axis=2)
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
