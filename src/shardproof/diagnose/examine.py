"""Examine: one layer of a dump - taken in, compared, explained, reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from shardproof.diagnose.compare import compare
from shardproof.diagnose.dequantised import examine_numbers
from shardproof.diagnose.explaining import Explaining
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.held import Held
from shardproof.diagnose.numbers import Activations, compare_numbers
from shardproof.diagnose.reading import UNKNOWN
from shardproof.diagnose.report import Finding, LayerReport, Row, finding
from shardproof.experts import Stack
from shardproof.mistakes import Owners, Views, find_mistake
from shardproof.mistakes.scene import Slot
from shardproof.mxfp4 import BLOCK
from shardproof.pack.unpack import unpack

_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


class Examination(Explaining):
    """The work on one layer. `report` runs it; `held` and `situation` stay for repair."""

    def _owners(self, stack: Stack) -> Owners | None:
        """The experts that were recognised in a stack; places that hold no expert's bytes keep the plan's."""
        reading = self.readings.get(stack)
        planned = self.situation.plan.experts(self.situation.key, self.situation.rank)
        if reading is None or len(reading.owners) != len(planned):
            return None
        return tuple(p if o == UNKNOWN else o for o, p in zip(reading.owners, planned, strict=True))

    def run(self) -> None:
        """Compare every tensor, then explain what differs."""
        plan, rank = self.situation.plan, self.situation.rank
        for slot, tensor in self.tensors.items():
            if slot not in plan.recipe.layouts:
                self.notes.append(f"{'.'.join(slot)}: the backend does not take this tensor")
                continue
            if tensor.numbers is not None and slot[1] == "weight":
                row, found, self.shard = examine_numbers(self, slot[0], tensor)
                self.rows.append(row)
                self.findings += found
                continue
            shape = plan.canonical_shape(self.key, rank, *slot)
            if slot[1] == "bias":
                tensor = self._bias(slot, tensor)
            views = Views(tensor.data, shape, unpack)
            scene = self.scene(self.situation, self._owners(slot[0]))
            held = Held(slot, tensor, views, scene, compare(scene, slot, views))
            if held.wrong and slot[1] != "weight":
                held = self._plan_order(held)
            self.held.append(held)
            owners, planned = held.scene.owners, plan.experts(self.key, rank)
            if owners is not None and owners != planned:
                held.against_plan = compare(self.scene(self.situation), slot, views)
        self._experts()
        self._explain()
        self._padding()

    def _bias(self, slot: Slot, tensor: Foreign) -> Foreign:
        """A bias in the dtype that the backend takes; another one is a finding, not a difference in every byte."""
        wanted = self.situation.plan.recipe.bias_dtype
        numbers = tensor.numbers
        if numbers is None or _DTYPES[wanted] == tensor.dtype:
            return tensor
        made = finding(find_mistake("bias_dtype"), [".".join(slot)], {"found": tensor.dtype, "needed": wanted})
        self.findings.append(made)
        kind = np.float32 if wanted == "float32" else ml_dtypes.bfloat16
        return replace(tensor, data=numbers.reshape(-1).astype(kind).view(np.uint8), dtype=_DTYPES[wanted])

    def _plan_order(self, held: Held) -> Held:
        """Scales and biases may stand in the plan's order although their weights do not."""
        scene = self.scene(self.situation)
        comparison = compare(scene, held.slot, held.views)
        return replace(held, scene=scene, comparison=comparison) if not comparison.wrong else held

    def report(self, activations: Activations | None = None) -> LayerReport:
        """Run, and say what was found."""
        self.run()
        if activations is not None:
            self.findings += compare_numbers(self, activations)
        situation = self.situation
        self.findings = _merged(self.findings)
        shape = situation.plan.shape(self.key)
        start, stop = (b * BLOCK for b in shape.intervals[situation.rank.tp_rank])
        padding = situation.plan.kernel_padding(self.key, situation.rank)
        where: dict[str, Any] = {
            "tp": situation.plan.tp, "ep": situation.plan.ep, "policy": situation.plan.policy,
            "intermediate": f"{start}..{stop} of {shape.spec.intermediate}, padded to {shape.intermediate}",
            "hidden": f"{shape.spec.hidden}, padded to {shape.hidden}", "backend": situation.plan.recipe.backend,
            "kernel padding": ", ".join(f"{name} {size}" for name, size in padding.items()),
        }  # fmt: skip
        name = str(situation.rank)
        if self.shard is not None and not self.held:
            name, (start, stop) = f"{self.shard.rank} of {self.shard.tp}", self.shard.interval
            where = {
                "tp": self.shard.tp,
                "intermediate": f"{start}..{stop} of {shape.spec.intermediate}, dequantised",
            }
        elif self.recipe is None:
            self.notes.append("no backend was named: the byte order that was found is taken as the one that is needed")
        if situation.also:
            self.notes.append(f"the same slice is also {', '.join(situation.also)}: --tp decides")
        return LayerReport(
            self.key, name, where, tuple(self.findings), (*self.rows, *(self._row(h) for h in self.held)),
            situation.recognised, tuple(self.notes),
        )  # fmt: skip

    def _row(self, held: Held) -> Row:
        result = held.against_plan or held.comparison
        reading = self.readings.get(held.slot[0]) if held.slot[1] == "weight" else None
        needed = self.situation.plan.recipe.layouts[held.slot]
        found = held.found_layout or (reading.identity if reading else needed if not held.wrong else "?")
        notes = [*held.notes]
        if reading is not None and reading.order:
            notes.append(f"rows {reading.order}")
        names = held.explanation.names if held.explanation else ()
        return Row(
            held.tensor.name, held.name, result.share, found, needed, result.wrong, result.total, result.first,
            result.address, result.expected, result.found, names, tuple(notes),
        )  # fmt: skip


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that say the same of several tensors become one."""
    found: dict[tuple[str, str], Finding] = {}
    for one in findings:
        key = (one.name, one.sentence)
        tensors = (*found[key].tensors, *one.tensors) if key in found else one.tensors
        found[key] = replace(one, tensors=tuple(dict.fromkeys(tensors)))
    return list(found.values())
