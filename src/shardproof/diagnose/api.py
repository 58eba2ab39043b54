"""What users call: `diagnose` for a dump, `put_back` to make a wrong one on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shardproof.arguments import expect, path_of, whole_number
from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.diagnose.examine import Examination
from shardproof.diagnose.foreign import Foreign, read_dump
from shardproof.diagnose.numbers import Activations
from shardproof.diagnose.padding import only_padding
from shardproof.diagnose.report import Diagnosis
from shardproof.diagnose.slices import Hints
from shardproof.errors import DiagnoseError
from shardproof.formats import ExpertModel, read_experts
from shardproof.mistakes import Mistake
from shardproof.partition import POLICIES, Policy, Rank, block_intervals, expert_owners, ranks
from shardproof.plan import ExpertMap, Plan
from shardproof.verify import scene_of


def diagnose(
    dump: Any,
    checkpoint: str | Path | ExpertModel,
    *,
    layer: str | int | None = None,
    rank: int | None = None,
    tp: int | None = None,
    ep: int | None = None,
    policy: Policy | None = None,
    placement: ExpertMap = "linear",
    recipe: Recipe | None = None,
    most: int = 2,
    repair: str | Path | None = None,
    activations: Activations | None = None,
) -> Diagnosis:
    """Say what the tensors of a dump are, where they differ from what a kernel needs, and why.

    dump        a safetensors, .npz, .npy or .pt file, a mapping of names to arrays or torch tensors, or a module
    checkpoint  a checkpoint's folder, or its experts as `read_experts` gives them
    layer ...   what is known; None is recognised from the bytes. `rank` counts all tp * ep ranks, TP fastest,
                and needs `tp`
    recipe      what the backend needs; without it the order that is found is taken as the needed one
    most        how many mistakes at once are looked for in one tensor
    repair      a safetensors file to write the tensors to, in the recipe's order
    activations a layer's input and output, to hold against the reference forward (one layer in the dump)

    Raises DiagnoseError: dump, empty, names, too_little, layer, rank; and repair_lost or repair_backend. PartitionError
    for tp, ep, policy or placement that cannot be, ArgumentError.
    """
    if recipe is not None:
        expect("recipe", recipe, Recipe, "give what a decision holds: decision.recipe")
    if layer is not None and not isinstance(layer, str):
        layer = whole_number("layer", layer, least=0)
    most = whole_number("most", most, least=1)
    rank = None if rank is None else whole_number("rank", rank)
    model = checkpoint
    if not isinstance(model, ExpertModel):
        model = read_experts(Checkpoint.open(path_of("checkpoint", model)))
    named = f"layers.{layer}" if isinstance(layer, int) or (layer or "").isdecimal() else layer
    if rank is not None and tp is None:
        raise DiagnoseError(
            "diagnose.rank", "a rank says nothing without the number of tensor-parallel ranks", rank=rank,
            needed="tp beside rank, and ep where it is not 1",
            next_step="give --tp (and --ep), or leave --rank out: it is recognised",
        )  # fmt: skip
    if rank is not None and rank < 0:
        raise DiagnoseError(
            "diagnose.rank", "no such rank", rank=rank, needed="0 or more", next_step="ranks count from 0, TP fastest"
        )
    _check_partition(tp, ep, policy, placement)
    hints = Hints(layer=named, rank=rank, tp=tp, ep=ep, policy=policy, placement=placement)
    tensors = read_dump(dump)
    groups = _by_layer(tensors, hints)
    padding = only_padding(model, groups, hints, recipe)
    examinations = [
        Examination(model, group, hints, recipe, most=most)
        for group, padded in zip(groups, padding, strict=True) if padded is None
    ]  # fmt: skip
    examined = iter(examinations)
    reports = tuple(padded or next(examined).report(activations) for padded in padding)
    if repair is not None:
        if len(examinations) < len(groups):
            raise DiagnoseError(
                "diagnose.repair_lost", "there is nothing to repair: the tensors hold padding only",
                needed="tensors that hold blocks of the checkpoint", next_step="pack the rank from the checkpoint",
            )  # fmt: skip
        from shardproof.diagnose.repair import write_repaired

        write_repaired(examinations, Path(repair))
    return Diagnosis(str(model.checkpoint.root), model.checkpoint.identity, reports, recipe.notes if recipe else ())


def _check_partition(tp: int | None, ep: int | None, policy: Policy | None, placement: ExpertMap) -> None:
    """Refuse what no plan could be made with, whatever the dump holds; only layers say how many experts there are."""
    ranks(1 if tp is None else tp, 1 if ep is None else ep)
    block_intervals(1, 1, policy or POLICIES[0])
    if isinstance(placement, str):
        expert_owners(1, 1, placement)


def _by_layer(tensors: Sequence[Foreign], hints: Hints) -> list[list[Foreign]]:
    if not tensors:
        raise DiagnoseError(
            "diagnose.names", "no tensor of the dump has the name of an expert weight",
            needed="names with w13 or gate_up, w2 or down, and scale or bias",
            next_step="rename, e.g. w13.weight, w2.scale",
        )  # fmt: skip
    groups: dict[str | None, list[Foreign]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.layer, []).append(tensor)
    chosen = {k: g for k, g in groups.items() if hints.layer is None or k in {None, hints.layer}}
    if not chosen:
        raise DiagnoseError(
            "diagnose.layer", "the dump does not hold this layer", layer=hints.layer,
            found=", ".join(sorted(str(k) for k in groups)), needed=hints.layer,
            next_step="choose one of the layers found, or leave the layer open",
        )  # fmt: skip
    return list(chosen.values())


def put_back(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, mistakes: Sequence[Mistake] = ()
) -> dict[str, np.ndarray]:
    """One layer of a rank as kernel bytes with known mistakes made on purpose, for tests and demonstrations.

    Names are `layers.L.experts.w13.weight` and so on; arrays are flat uint8, or numbers where a mistake casts.
    """
    scene = scene_of(model, plan, key, rank)
    made: dict[str, np.ndarray] = {}
    for stack, name in plan.fields(key):
        concerned = [m for m in mistakes if name in m.fields]
        data: np.ndarray = scene.kernel(stack, name, concerned)
        for mistake in concerned:
            if mistake.dtype is not None:
                data = data.astype(mistake.dtype)
        made[f"{key}.experts.{stack}.{name}"] = data
    return made
