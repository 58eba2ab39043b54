"""Slices: which ranks of which partitions hold an interval of the intermediate axis that was met in a dump."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from shardproof.backends import Recipe
from shardproof.diagnose.reading import Reading
from shardproof.diagnose.trials import MOST_TRIED
from shardproof.experts import ExpertSpec, Stack
from shardproof.mistakes import museum
from shardproof.mxfp4 import BLOCK
from shardproof.partition import POLICIES, Policy, block_intervals, expert_owners
from shardproof.plan import ExpertMap, LayerShape, Plan


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the user knows; None where nothing is known. `rank` is the index among tp * ep ranks, TP fastest."""

    layer: str | None = None
    rank: int | None = None
    tp: int | None = None
    ep: int | None = None
    policy: Policy | None = None
    placement: ExpertMap = "linear"

    def counts(self, experts: int) -> list[int] | None:
        """How many experts a rank may hold; None where ep is not known."""
        if self.ep is None or self.ep > experts:
            return None
        held = [len(row) for row in expert_owners(experts, self.ep, self.placement)]
        if self.rank is not None and self.tp is not None:
            held = held[self.rank // self.tp :][:1] or held
        return sorted(set(held), reverse=True)


@dataclass(frozen=True)
class Slice:
    """One rank of one partition; `also` are others that hold the same blocks."""

    tp: int
    tp_rank: int
    policy: Policy
    legal: bool = True
    also: tuple[Slice, ...] = ()

    def __str__(self) -> str:
        return f"rank {self.tp_rank} of tp {self.tp} ({self.policy})"


def _unusual(spec: ExpertSpec, part: Slice) -> tuple[bool, bool, bool, int]:
    """Powers of two first, then even cuts before uneven ones, then the fewest ranks."""
    return part.policy != "balanced", part.tp & (part.tp - 1) != 0, spec.blocks % part.tp != 0, part.tp


def find_slice(spec: ExpertSpec, readings: Mapping[Stack, Reading], hints: Hints, inner: int) -> Slice:
    """The slice that hints say, or the likeliest one that was met, or one that a known mistake cuts."""
    if hints.tp is not None and hints.rank is not None:
        return Slice(hints.tp, hints.rank % hints.tp, hints.policy or "balanced")
    legal = sorted(_legal(spec, readings, hints, inner), key=lambda s: _unusual(spec, s))
    if legal:
        return replace(legal[0], also=tuple(legal[1:]))
    faulty = next(_faulty(spec, readings, hints, inner), None) if readings else None
    if faulty is not None:
        return faulty
    tp = hints.tp or 1
    return Slice(tp, (hints.rank or 0) % tp, hints.policy or "balanced")


def interval_of(spec: ExpertSpec, part: Slice) -> tuple[int, int]:
    """Blocks [start, stop) of a slice."""
    return block_intervals(spec.blocks, part.tp, part.policy, allow_empty=True)[part.tp_rank]


def _tps(spec: ExpertSpec, hints: Hints) -> list[int]:
    return [hints.tp] if hints.tp else list(range(1, min(MOST_TRIED, spec.blocks) + 1))


def _legal(spec: ExpertSpec, readings: Mapping[Stack, Reading], hints: Hints, inner: int) -> Iterator[Slice]:
    """Partitions in which some rank holds exactly the interval that was met."""
    if not readings:
        return
    for policy in [hints.policy] if hints.policy else POLICIES:
        for tp in _tps(spec, hints):
            for rank, (a, b) in enumerate(block_intervals(spec.blocks, tp, policy, allow_empty=True)):
                own = hints.rank is None or hints.rank % tp == rank
                if (
                    own
                    and 0 < (b - a) * BLOCK <= inner
                    and all(_holds(r, a * BLOCK, b * BLOCK) for r in readings.values())
                ):
                    yield Slice(tp, rank, policy)


def _holds(reading: Reading, start: int, stop: int) -> bool:
    if reading.start is None or reading.stop is None:
        return False
    if reading.stack == "w2":
        return (reading.start, reading.stop) == (start, stop)
    return reading.start == start and stop - BLOCK < reading.stop <= stop


def _faulty(spec: ExpertSpec, readings: Mapping[Stack, Reading], hints: Hints, inner: int) -> Iterator[Slice]:
    """Partitions in which some rank, cut by a known mistake, holds the interval that was met."""
    recipe = Recipe("as found", {})
    for tp in _tps(spec, hints)[1:] if hints.tp is None else [hints.tp]:
        intervals = tuple(block_intervals(spec.blocks, tp, allow_empty=True))
        shape = LayerShape(spec, intervals, ((0,),), spec.hidden, max(inner, BLOCK))
        plan = Plan("", "", "", "", recipe, tp, 1, "balanced", (shape,), {"x": 0})
        for mistake in museum():
            if mistake.cuts is None:
                continue
            for rank in plan.ranks:
                cuts = {stack: mistake.cuts(plan, "x", rank, stack, "weight") for stack in readings}
                if all(_meets(readings[stack], c[0].rows if stack == "w13" else _scaled(c[0].columns))
                       for stack, c in cuts.items() if c) and any(cuts.values()):  # fmt: skip
                    yield Slice(tp, rank.tp_rank, "balanced", legal=False)


def _scaled(columns: tuple[int, int]) -> tuple[int, int]:
    return columns[0] * 2, columns[1] * 2


def _meets(reading: Reading, interval: tuple[int, int]) -> bool:
    start, stop = interval
    if reading.start is None or reading.stop is None or stop <= start:
        return False
    return abs(reading.start - start) < BLOCK and abs(reading.stop - stop) <= BLOCK
