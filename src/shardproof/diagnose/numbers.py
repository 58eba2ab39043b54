"""Numbers: a layer's output against the reference forward, by expert and by projection.

Bytes may be right and the answer wrong, when the kernel was told something else than the bytes are. Each known way is
computed and compared, so that the one that gives the engine's own output is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shardproof.diagnose.report import Finding
from shardproof.experts import FIELDS, STACKS, ExpertSpec
from shardproof.mistakes import Scene
from shardproof.mxfp4 import Bytes

if TYPE_CHECKING:
    from torch import Tensor

    from shardproof.diagnose.examine import Examination
    from shardproof.diagnose.held import Held
    from shardproof.kernels.reference import Expert, Reference
    from shardproof.mistakes.scene import Slot

_TOLERANCE = 0.02  # relative L2 error that bfloat16 arithmetic may have
_SHOWN = 4


@dataclass(frozen=True)
class Activations:
    """What went into a layer on one rank and what came out.

    x [M, H] and y [M, H] (this rank's partial sum) in any float dtype, topk_ids [M, k] global expert ids,
    topk_weights [M, k]; arrays or torch tensors.
    """

    x: Any
    topk_ids: Any
    topk_weights: Any
    y: Any


def compare_numbers(examination: Examination, given: Activations) -> list[Finding]:
    """Hold an engine's output against the reference; empty where they agree."""
    import torch

    x, weights, y = (torch.as_tensor(v).float() for v in (given.x, given.topk_weights, given.y))
    ids = torch.as_tensor(given.topk_ids).long()
    right = _reference(examination, lambda _held: None)
    expected = right(x, ids, weights)
    error = _error(y, expected)
    if error < _TOLERANCE:
        return []
    findings = [
        Finding(
            name, f"the output is what the layer gives if {words} (relative error {_error(y, made):.2g})",
            ("output",), repair=repair,
        )
        for name, words, repair, made in _variants(examination, right, x, ids, weights)
        if _error(y, made) < _TOLERANCE
    ]  # fmt: skip
    if findings:
        return findings[:1]
    where = _by_expert(right, x, ids, weights, y - expected)
    changed = _by_projection(examination, x, ids, weights, expected)
    text = f"the output differs from the reference by {error:.2g} (relative L2){where}{changed}"
    return [Finding("numbers_wrong", text, ("output",), explanation="No known misunderstanding gives this output.")]


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _reference(examination: Examination, taken: Callable[[Held], Bytes | None]) -> Reference:
    """The reference over the checkpoint's bytes, with those tensors of the dump that `taken` gives."""
    from shardproof.kernels.reference import from_canonical

    situation = examination.situation
    scene: Scene = examination.scene(None)
    experts = situation.plan.experts(situation.key, situation.rank)
    held = {h.slot: h for h in examination.held}
    spec = situation.plan.shape(situation.key).spec
    matrices: dict[Slot, Bytes] = {}
    for stack in STACKS:
        for name in FIELDS if spec.bias else FIELDS[:2]:
            own = held.get((stack, name))
            stacked = taken(own) if own is not None else None
            if stacked is None:
                stacked = np.stack([scene.matrix(e, stack, name) for e in range(len(experts))])
            matrices[stack, name] = stacked
    valid = situation.plan.shape(situation.key).valid(situation.rank)
    return from_canonical(spec, matrices, experts=experts, valid=valid)


def _as_the_kernel_reads(held: Held) -> Bytes | None:
    """The dump's tensor read as the needed layout, right or wrong."""
    identity = held.scene.layout(*held.slot)
    found = [held.views.expert(e, identity) for e in range(held.views.shape[0])]
    if any(f is None for f in found):
        return None
    stacked = np.stack([f for f in found if f is not None])
    return np.minimum(stacked, 254) if held.slot[1] == "scale" else stacked


def _variants(
    examination: Examination, right: Reference, x: Tensor, ids: Tensor, weights: Tensor
) -> Iterator[tuple[str, str, str, Tensor]]:
    """(name, what was misunderstood, repair, the output it gives)."""
    if any(h.wrong for h in examination.held):
        yield (
            "output_of_wrong_bytes", "these bytes are read as the kernel reads them", "repair the bytes first",
            _reference(examination, _as_the_kernel_reads)(x, ids, weights),
        )  # fmt: skip
    yield (
        "kernel_swaps_gate_and_up", "w1 and w3 are exchanged by the kernel", "tell the kernel which half comes first",
        replace(right, get=_swapped(right))(x, ids, weights),
    )  # fmt: skip
    yield from (
        (name, words, repair, replace(right, spec=spec)(x, ids, weights))
        for name, words, repair, spec in _other_specs(right.spec)
    )
    ones = weights.new_ones(weights.shape)
    yield "routing_weight_dropped", "routing weights are ignored", "apply them once", right(x, ids, ones)
    yield (
        "routing_weight_twice",
        "routing weights are applied twice",
        "apply them once",
        right(x, ids, weights * weights),
    )
    first = right.experts[0] if right.experts else 0
    if first:
        yield (
            "local_ids", "local expert ids are taken for global ones", "pass the expert map",
            right(x, ids + first, weights),
        )  # fmt: skip
    if right.spec.bias:
        yield (
            "bias_dropped",
            "biases are left out",
            "pass the biases",
            replace(right, get=_unbiased(right))(x, ids, weights),
        )


def _other_specs(spec: ExpertSpec) -> Iterator[tuple[str, str, str, ExpertSpec]]:
    act = spec.activation
    if act.limit is not None and act.kind == "silu":
        yield (
            "clamp_missing", f"the activation is not clamped at {act.limit:g}", "pass swiglu_limit",
            replace(spec, activation=replace(act, limit=None)),
        )  # fmt: skip
    for kind in ("silu", "swiglu_oai", "situ"):
        if kind != act.kind:
            other = replace(act, kind=kind, limit=act.limit or (7.0 if kind == "swiglu_oai" else None))
            yield (
                "other_activation", f"the activation is {kind} instead of {act.kind}",
                "pass the model's activation", replace(spec, activation=other),
            )  # fmt: skip


def _swapped(right: Reference) -> Callable[[int], Expert]:
    def get(local: int) -> Expert:
        one = right.get(local)
        return replace(one, w1=one.w3, w3=one.w1, b1=one.b3, b3=one.b1)

    return get


def _unbiased(right: Reference) -> Callable[[int], Expert]:
    return lambda local: replace(right.get(local), b1=None, b3=None, b2=None)


def _only(right: Reference, local: int) -> Callable[[int], Expert]:
    return lambda _: right.get(local)


def _one_of(chosen: Held) -> Callable[[Held], Bytes | None]:
    return lambda held: _as_the_kernel_reads(held) if held is chosen else None


def _by_expert(right: Reference, x: Tensor, ids: Tensor, weights: Tensor, residual: Tensor) -> str:
    """Experts whose tokens carry the error, and those whose contribution is missing altogether."""
    shares: list[tuple[float, int]] = []
    missing: list[int] = []
    for local, expert in enumerate(right.experts):
        hit = (ids == expert).any(dim=1)
        if not bool(hit.any()):
            continue
        alone = replace(right, experts=(expert,), get=_only(right, local))(x, ids, weights)
        size = float(alone.square().sum())
        if size and abs(float((residual * alone).sum()) / size + 1) < _TOLERANCE:
            missing.append(expert)
        shares.append((float(residual[hit].square().mean()), expert))
    worst = [str(expert) for share, expert in sorted(shares, reverse=True)[:_SHOWN] if share > 0]
    text = f"; largest for tokens of experts {', '.join(worst)}" if worst else ""
    return text + (f"; experts {', '.join(map(str, missing))} contribute nothing" if missing else "")


def _by_projection(examination: Examination, x: Tensor, ids: Tensor, weights: Tensor, expected: Tensor) -> str:
    """How far each tensor of the dump, put into the reference by itself, moves the output."""
    moved = []
    for held in examination.held:
        if held.wrong:
            made = _reference(examination, _one_of(held))
            moved.append(f"{held.name} {_error(made(x, ids, weights), expected):.2g}")
    return f"; error by tensor: {', '.join(moved)}" if moved else "; the bytes of the dump are right"
