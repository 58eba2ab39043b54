"""Settle: from hints and readings to one plan - which layer, whose slice, padded how - against which bytes are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shardproof.backends import Recipe
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.reading import Reading
from shardproof.diagnose.slices import Hints, Slice, find_slice, interval_of
from shardproof.diagnose.trials import trials
from shardproof.errors import DiagnoseError, ShardproofError
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.formats import ExpertModel
from shardproof.layouts import find
from shardproof.mistakes import Owners
from shardproof.mxfp4 import BLOCK
from shardproof.partition import Rank, block_intervals, expert_owners
from shardproof.plan import LayerShape, Plan

Slot = tuple[Stack, Field]


@dataclass(frozen=True)
class Situation:
    """One layer of one rank: the plan to compare with, and what of it was recognised and not given."""

    key: str
    plan: Plan
    rank: Rank
    recognised: tuple[str, ...]
    also: tuple[str, ...] = ()


def settle(
    model: ExpertModel, key: str, tensors: Mapping[Slot, Foreign], readings: Mapping[Stack, Reading], hints: Hints,
    recipe: Recipe | None,
) -> Situation:  # fmt: skip
    """Decide plan and rank. Raises DiagnoseError `diagnose.rank` for hints that contradict each other."""
    spec = model.layer(key).spec
    if hints.rank is not None and hints.tp is not None and hints.rank >= hints.tp * (hints.ep or spec.experts):
        raise _no_rank(hints.rank, hints.tp, hints.ep or 1)
    count, inner, hidden = _sizes(spec, tensors, readings, hints, recipe)
    owners = _owner_map(readings)
    ep = hints.ep or max(1, -(-spec.experts // count))
    part = find_slice(spec, readings, hints, inner)
    ep_rank = _ep_rank(spec, owners, hints, part, ep)
    rows = _placement(spec, ep, ep_rank, count, owners, hints)
    intervals = block_intervals(spec.blocks, part.tp, part.policy, allow_empty=True)
    longest = max(b - a for a, b in intervals) * BLOCK
    shape = LayerShape(
        spec, tuple(intervals), rows, max(hidden, spec.hidden), max(inner, min(longest, inner or longest))
    )
    same = {k: 0 for k, layer in model.layers.items() if layer.spec == spec}
    plan = Plan(
        model.format, model.family, str(model.checkpoint.root), model.checkpoint.identity,
        _recipe(recipe, tensors, readings), part.tp, ep, part.policy, (shape,), same,
    )  # fmt: skip
    index = ep_rank * part.tp + part.tp_rank
    if index >= len(plan.ranks):
        raise _no_rank(index, part.tp, ep)
    given = {"tp": hints.tp, "rank": hints.rank, "ep": hints.ep, "layer": hints.layer, "backend": recipe}
    missing = tuple(name for name, value in given.items() if value is None)
    own = interval_of(spec, part)
    also = tuple(str(s) for s in part.also if interval_of(spec, s) == own and s.policy == "balanced")
    return Situation(key, plan, plan.ranks[index], missing, also)


def _no_rank(rank: int, tp: int, ep: int) -> DiagnoseError:
    return DiagnoseError(
        "diagnose.rank", "no such rank", rank=rank, needed=f"0..{tp * ep - 1} for tp {tp}, ep {ep}",
        next_step="correct --rank, --tp or --ep",
    )  # fmt: skip


def _sizes(
    spec: ExpertSpec, tensors: Mapping[Slot, Foreign], readings: Mapping[Stack, Reading], hints: Hints,
    recipe: Recipe | None,
) -> tuple[int, int, int]:  # fmt: skip
    """(experts, padded I, padded H) from the readings, or from the sizes of what could not be read."""
    if readings:
        reading = readings.get("w13") or readings["w2"]
        experts, rows, width = reading.shape
        inner, hidden = (rows // 2, 2 * width) if reading.stack == "w13" else (2 * width, rows)
        return experts, inner, hidden
    longest = spec.intermediate
    if hints.tp:
        longest = max(b - a for a, b in block_intervals(spec.blocks, hints.tp, allow_empty=True)) * BLOCK
    inner = -(-longest // recipe.align_intermediate) * recipe.align_intermediate if recipe else longest
    hidden = -(-spec.hidden // recipe.align_hidden) * recipe.align_hidden if recipe else spec.hidden
    count = -(-spec.experts // (hints.ep or 1))
    for stack in ("w13", "w2"):
        tensor = tensors.get((stack, "weight"))
        if tensor is None or tensor.numbers is not None:
            continue
        needed = recipe.layouts.get((stack, "weight")) if recipe else "raw.weight@1"
        fits = [t.shape for t in trials(stack, tensor.data.size, tensor.shape, spec, needed=needed,
                                        experts=[count] if hints.ep else None)]  # fmt: skip
        whole = [(e, n // 2, 2 * w) if stack == "w13" else (e, 2 * w, n) for e, n, w in fits]
        near = sorted(whole, key=lambda s: (s[2] != hidden, s[0] != count, s[1] < longest, abs(s[1] - inner)))
        if near:
            return near[0]
    return count, inner, hidden


def _owner_map(readings: Mapping[Stack, Reading]) -> Owners:
    reading = readings.get("w2") or readings.get("w13")
    return () if reading is None else reading.owners


def _ep_rank(spec: ExpertSpec, owners: Owners, hints: Hints, part: Slice, ep: int) -> int:
    if hints.rank is not None and hints.tp is not None and hints.rank >= part.tp * ep:
        raise _no_rank(hints.rank, part.tp, ep)
    if hints.rank is not None and (hints.tp is not None or ep == 1):
        return hints.rank // part.tp if ep > 1 else 0
    if ep == 1 or not owners:
        return 0
    rows = expert_owners(spec.experts, ep, "linear")
    overlap = [len(set(row) & {o for o in owners if o is not None}) for row in rows]
    return overlap.index(max(overlap))


def _placement(
    spec: ExpertSpec, ep: int, ep_rank: int, count: int, owners: Owners, hints: Hints
) -> tuple[tuple[int, ...], ...]:
    """The experts of every rank: linear or as hinted; round robin or as found where only that fits."""
    named = [hints.placement, "linear", "round_robin"] if hints.ep is None else [hints.placement]
    valid = [o for o in owners if o is not None and o >= 0]
    for placement in named:
        rows = expert_owners(spec.experts, ep, placement) if ep <= spec.experts else []
        if rows and len(rows[ep_rank]) == count and (hints.ep is not None or set(valid) <= set(rows[ep_rank])):
            return tuple(rows)
    rows = [tuple(range(spec.experts))[:count] for _ in range(ep)]
    if len(valid) == len(owners) and valid:
        rows[ep_rank] = tuple(valid)
    if len(rows[ep_rank]) < count:
        rows[ep_rank] = tuple(e % spec.experts for e in range(count))
    return tuple(rows)


def _recipe(recipe: Recipe | None, tensors: Mapping[Slot, Foreign], readings: Mapping[Stack, Reading]) -> Recipe:
    """The backend's recipe, or one that says `as found`: the order that was recognised is taken as the one needed."""
    if recipe is not None:
        return recipe
    layouts: dict[Slot, str] = {}
    for stack, name in tensors:
        reading = readings.get(stack)
        identity = f"raw.{name}@1"
        if name == "weight" and reading is not None and _in_catalogue(reading.identity):
            identity = reading.identity
        layouts[stack, name] = identity
    halves = any(name == "bias" and tensor.dtype == "BF16" for (_, name), tensor in tensors.items())
    return Recipe("as found", layouts, bias_dtype="bfloat16" if halves else "float32")


def _in_catalogue(identity: str) -> bool:
    try:
        find(identity)
    except ShardproofError:
        return False
    return True


def with_layout(situation: Situation, slot: Slot, identity: str) -> Situation:
    """The same situation with another needed layout for one tensor."""
    recipe = situation.plan.recipe
    changed = replace(recipe, layouts={**recipe.layouts, slot: identity})
    return replace(situation, plan=replace(situation.plan, recipe=changed))
