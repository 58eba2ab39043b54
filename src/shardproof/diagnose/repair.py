"""Repair: the tensors of a dump, from their own bytes, in the layout that the backend needs - or a refusal.

Where each nibble of the dump comes from is found by sending numbered nibbles through the same mistakes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shardproof.errors import DiagnoseError, PackError
from shardproof.experts import PROJECTIONS, Field
from shardproof.layouts import find
from shardproof.mistakes import Scene, declared_fill
from shardproof.mxfp4 import Bytes, pack_codes, unpack_codes
from shardproof.plan import Cut

if TYPE_CHECKING:
    from shardproof.diagnose.examine import Examination
    from shardproof.diagnose.held import Held

Ints = npt.NDArray[np.int64]
_DIGITS = 9  # hexadecimal digits of a nibble's number


def write_repaired(examinations: Sequence[Examination], path: Path) -> None:
    """Write all examined tensors to a safetensors file, flat uint8 in kernel order, with their layouts' names.

    Raises DiagnoseError `diagnose.repair_backend` without a backend, `diagnose.repair_lost` where bytes are not there,
    PackError `pack.io`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors: dict[str, Bytes] = {}
    layouts: dict[str, str] = {}
    for examination in examinations:
        if examination.recipe is None:
            raise DiagnoseError(
                "diagnose.repair_backend", "a repair needs to know which backend will read the tensors",
                needed="--backend NAME", next_step="`shardproof explain CKPT` lists the backends",
            )  # fmt: skip
        for held in examination.held:
            named = f"{examination.key}.experts.{held.name}"
            tensors[named] = repaired(examination, held)
            layouts[named] = examination.situation.plan.recipe.layouts[held.slot]
    rank = str(examinations[0].situation.rank) if examinations else ""
    if path.exists() and not path.is_file():  # `save_file` puts a file in its place, also of /dev/null
        raise PackError(
            "pack.io", "the output cannot be written", file=path, found="not a file", needed="a new or regular file",
            next_step="choose another place",
        )  # fmt: skip
    try:
        save_file(tensors, path.resolve(), metadata={"layouts": json.dumps(layouts), "rank": rank})
    except SafetensorError as reason:
        raise PackError(
            "pack.io", "the output cannot be written", file=path, found=str(reason),
            next_step="choose another place, or make room",
        ) from reason  # fmt: skip


def repaired(examination: Examination, held: Held) -> Bytes:
    """One tensor as the backend needs it, flat uint8. Raises DiagnoseError `diagnose.repair_lost`."""
    if held.wrong and held.explanation is None:
        raise _lost(held, "where its bytes come from is not known")
    plan, rank = examination.situation.plan.aligned(), examination.situation.rank
    planned = plan.experts(examination.key, rank)
    places = {expert: place for place, expert in enumerate(held.scene.experts()) if expert is not None}
    missing = [e for e in planned if e not in places]
    if missing:
        raise _lost(held, f"expert {missing[0]} is not in the dump", expert=missing[0])
    mistakes = held.explanation.mistakes if held.explanation else ()
    identity = held.scene.layout(*held.slot, mistakes)
    reader = next((m for m in mistakes if m.read is not None), None)
    scene = replace(held.scene, owners=None)
    needed, there = _origins(replace(scene, plan=plan), held, ()), _origins(scene, held, mistakes)
    at = _positions(held, needed, there)
    stacked, proof = [], examination.scene(replace(examination.situation, plan=plan))
    for index, expert in enumerate(planned):
        found = held.views.expert(places[expert], identity, reader)
        if found is None:
            raise _lost(held, "its byte order cannot be undone")
        codes = unpack_codes(found).reshape(-1)[at]
        fill = declared_fill(held.slot[1])
        pad = np.tile(np.array([fill & 15, fill >> 4], dtype=np.uint8), needed.size // 2)
        whole = np.where(needed.reshape(-1) > 0, codes, pad).astype(np.uint8)
        stacked.append(pack_codes(whole.reshape(needed.shape)))
        expected = proof.matrix(index, *held.slot)
        if not np.array_equal(stacked[-1], expected):  # a value that was cast away cannot come back
            raise _lost(held, f"values of expert {expert} were changed, not only moved", expert=expert)
    canonical = np.stack(stacked)
    layout, parameters = find(plan.recipe.layouts[held.slot])
    return layout.place((canonical.shape[0], canonical.shape[1], canonical.shape[2]), parameters).pack(canonical)


def _origins(scene: Scene, held: Held, mistakes: Sequence[Any]) -> Ints:
    """The number of the checkpoint nibble at each canonical nibble, 0 for padding: int64 [N, 2 * bytes a row]."""
    stack, name = held.slot
    total: Ints | None = None
    for digit in range(_DIGITS):
        numbered = replace(scene, read=_digit_reader(scene, digit), owners=None)
        moved = tuple(m for m in mistakes if m.layout is None and m.write is None)
        codes = unpack_codes(numbered.matrix(0, stack, name, moved, fill=0)).astype(np.int64)
        total = codes << (4 * digit) if total is None else total + (codes << (4 * digit))
    assert total is not None
    return total


def _digit_reader(scene: Scene, digit: int) -> Any:
    spec = scene.plan.shape(scene.key).spec
    rows = max(spec.hidden, spec.intermediate)

    def read(_key: str, cut: Cut, name: Field, _expert: int) -> Bytes:
        width = scene.plan.bias_item if name == "bias" else max(spec.hidden, spec.intermediate)
        base = PROJECTIONS.index(cut.projection) * rows
        row = (base + np.arange(*cut.rows))[:, None]
        number = (row * width + np.arange(*cut.columns)) * 2 + 1
        low, high = number >> (4 * digit) & 15, (number + 1) >> (4 * digit) & 15
        return np.asarray(low | high << 4, dtype=np.uint8)

    return read


def _positions(held: Held, needed: Ints, there: Ints) -> Ints:
    """For each needed nibble its place in the dump's canonical matrix (0 for padding)."""
    flat = there.reshape(-1)
    order = np.argsort(flat, kind="stable")
    wanted = needed.reshape(-1)
    at = np.minimum(np.searchsorted(flat[order], wanted), flat.size - 1)
    absent = (flat[order[at]] != wanted) & (wanted > 0)
    if absent.any():
        row = int(np.flatnonzero(absent)[0]) // needed.shape[1]
        lost = int(absent.sum()) // 2
        raise _lost(held, f"{lost} bytes of each expert are not in the dump, the first in row {row}")
    return np.where(wanted > 0, order[at], 0)


def _lost(held: Held, why: str, *, expert: int | None = None) -> DiagnoseError:
    return DiagnoseError(
        "diagnose.repair_lost", f"the tensor cannot be repaired from its own bytes: {why}", tensor=held.tensor.name,
        expert=expert, needed="every byte of the rank in the dump",
        next_step="pack the rank from the checkpoint instead",
    )  # fmt: skip
