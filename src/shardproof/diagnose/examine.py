"""Examine: one layer of a dump - recognise, settle, compare, explain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from shardproof.backends import Recipe
from shardproof.diagnose.compare import Comparison, compare, padding_mistake
from shardproof.diagnose.dequantised import examine_numbers
from shardproof.diagnose.dynamic import expert_mistake, other_layout, other_tp_rank
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.layer_search import LayerSearch
from shardproof.diagnose.recognise import UNKNOWN, Reading, read_weight
from shardproof.diagnose.report import Finding, LayerReport, Row, finding
from shardproof.diagnose.scales import scale_bytes, scale_layout
from shardproof.diagnose.settle import Hints, Situation, Slot, settle, with_layout
from shardproof.diagnose.trials import possible
from shardproof.diagnose.unknown import describe_unknown
from shardproof.errors import DiagnoseError
from shardproof.experts import FIELDS, STACKS, Stack
from shardproof.formats import ExpertModel
from shardproof.layouts import find
from shardproof.mistakes import (
    Explanation,
    Mistake,
    Owners,
    Scene,
    Views,
    changes,
    explain,
    find_mistake,
    museum,
)
from shardproof.mxfp4 import BLOCK
from shardproof.verify import scene_of

_ONE_PERCENT = 0.01
_BOTH_WAYS: tuple[tuple[Stack, Stack], ...] = (("w13", "w2"), ("w2", "w13"))
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass
class Held:
    """One tensor while it is examined."""

    slot: Slot
    tensor: Foreign
    views: Views
    scene: Scene
    comparison: Comparison
    against_plan: Comparison | None = None
    explanation: Explanation | None = None
    found_layout: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`w13.weight`"""
        return ".".join(self.slot)

    @property
    def wrong(self) -> bool:
        """Whether content differs, or nothing could be compared."""
        return self.comparison.wrong > 0


class Examination:
    """The work on one layer. `report` runs it; `held` and `situation` stay for repair."""

    def __init__(
        self,
        model: ExpertModel,
        tensors: Sequence[Foreign],
        hints: Hints,
        recipe: Recipe | None,
        *,
        most: int = 2,
    ) -> None:
        self.model, self.hints, self.most = model, hints, most
        self.recipe = _normal(recipe)
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.tensors = self._slots(tensors)
        self.search = LayerSearch(model)
        self.rows: list[Row] = []
        self.strays: dict[Stack, str | None] = {}
        self.readings: dict[Stack, Reading] = {}
        self.key = self._layer(tensors)
        self.readings = self._same_size(self.readings)
        self.situation = self._settle(self.readings)
        self.held: list[Held] = []

    # -- what is there -------------------------------------------------------------------------------------

    def _slots(self, tensors: Sequence[Foreign]) -> dict[Slot, Foreign]:
        slots: dict[Slot, Foreign] = {}
        for tensor in tensors:
            if tensor.stack is None or tensor.field is None:
                continue
            slot = (tensor.stack, tensor.field)
            if slot in slots:
                raise DiagnoseError(
                    "diagnose.names", "two tensors of the dump claim to be the same part of a layer", tensor=tensor.name,
                    found=slots[slot].name, needed="one tensor each of w13 and w2, weight, scale and bias",
                    next_step="dump one layer under the names w13.weight, w13.scale, w2.weight, w2.scale",
                )  # fmt: skip
            slots[slot] = tensor
        known = self.hints.tp is not None and self.hints.rank is not None
        if not any(name == "weight" or (name == "scale" and known) for _, name in slots):
            raise DiagnoseError(
                "diagnose.too_little", "there is too little to decide", found=", ".join(map(".".join, slots)) or "no names",
                needed="w13.weight or w2.weight; or scales with --tp and --rank",
                next_step="scale bytes repeat, so they cannot say where they belong: dump the layer's weights too",
            )  # fmt: skip
        order = [(stack, name) for stack in STACKS for name in FIELDS]
        cast = dict(slots)
        for slot, tensor in slots.items():
            if slot[1] == "scale":
                cast[slot], name = scale_bytes(tensor)
                if name:
                    self.findings.append(finding(find_mistake(name), [".".join(slot)], {}))
        return {slot: cast[slot] for slot in order if slot in cast}

    def _layer(self, tensors: Sequence[Foreign]) -> str:
        """The layer that the name or the hint says, or the one that the bytes say where they disagree."""
        said = self.hints.layer or next((t.layer for t in tensors if t.layer), None)
        weights = {
            stack: t for (stack, name), t in self.tensors.items() if name == "weight" and t.numbers is None
        }
        if said is not None:
            self.model.layer(said)
            self.readings = self._read(said, weights)
        elif len(self.model.layers) == 1:
            said = next(iter(self.model.layers))
            self.readings = self._read(said, weights)
        if said is not None and (self.readings or not any(t.data.any() for t in weights.values())):
            return said
        found = self.search.find(weights, {slot: self._needed(slot) for slot in self.tensors}, skip=said)
        if found is None:
            if said is None:
                raise DiagnoseError(
                    "diagnose.layer", "the layer is not known and the bytes do not show it",
                    found="no layer in the names, and no piece of the dump in the checkpoint",
                    needed="a layer number in the names, or --layer", next_step="give --layer, or another checkpoint",
                )  # fmt: skip
            return said
        self.readings = self._read(found, weights)
        if said is not None and self.readings:
            words = {"found_layer": found, "layer": said}
            self.findings.append(
                finding(find_mistake("other_layer"), sorted(f"{s}.weight" for s in self.readings), words)
            )
        return found

    def _needed(self, slot: Slot) -> str | None:
        return self.recipe.layouts.get(slot) if self.recipe else None

    def _read(self, key: str, weights: Mapping[Stack, Foreign]) -> dict[Stack, Reading]:
        """Read each weight; where the two disagree on the padded I, read one again under the other's."""
        found: dict[Stack, Reading] = {}
        for stack in weights:
            reading = self._read_one(key, stack, weights[stack], found)
            if reading is not None:
                found[stack] = reading
        missing = next((s for s in weights if s not in found and found and weights[s].data.any()), None)
        if missing is not None:
            alone = self._read_one(key, missing, weights[missing], {})
            other: Stack = "w2" if missing == "w13" else "w13"
            again = self._read_one(key, other, weights[other], {missing: alone}) if alone is not None else None
            if alone is not None and again is not None and again.as_good_as(found[other]):
                return {missing: alone, other: again}
        if len(found) == 2 and found["w13"].inner != found["w2"].inner:
            agreed = []
            for stack, other in _BOTH_WAYS:
                again = self._read_one(key, stack, weights[stack], found, inner=found[other].inner)
                if again is not None and again.as_good_as(found[stack]):
                    agreed.append({**found, stack: again})
            return max(agreed, key=lambda pair: pair["w13"].inner, default=found)
        return found

    def _read_one(
        self, key: str, stack: Stack, tensor: Foreign, found: Mapping[Stack, Reading], inner: int | None = None
    ) -> Reading | None:
        spec = self.model.layer(key).spec
        first = next(iter(found.values()), None)
        counts = self.hints.counts(spec.experts)
        beside = [(name, self.tensors[stack, name].data.size) for name in FIELDS[1:] if (stack, name) in self.tensors]

        def fits(shape: tuple[int, int, int]) -> bool:
            return all(possible(name, stack, size, shape) for name, size in beside)

        def read(fits: Callable[[tuple[int, int, int]], bool]) -> Reading | None:
            return read_weight(
                tensor, stack, spec, self.search.index(key), needed=self._needed((stack, "weight")),
                experts=[first.shape[0]] if first else counts, hidden=first.hiddens if first else (), inner=inner,
                least=spec.intermediate // self.hints.tp if self.hints.tp else 0,
                usual=-(-spec.hidden // self.recipe.align_hidden) * self.recipe.align_hidden if self.recipe else None,
                fits=fits,
            )  # fmt: skip

        return read(fits) or read(lambda _shape: True)

    def _same_size(self, readings: dict[Stack, Reading]) -> dict[Stack, Reading]:
        """Where padding leaves the sizes open, those under which most scales are right."""
        sizes = [{(2 * s[2], s[1] // 2) if r.stack == "w13" else (s[1], 2 * s[2]) for _, s in r.alike}
                 for r in readings.values()]  # fmt: skip
        common = set.intersection(*sizes) if sizes else set()
        best: tuple[float, dict[Stack, Reading]] = (-1.0, readings)
        for hidden, inner in sorted(common, key=lambda size: (-size[1], size[0])):
            tried = {stack: r.resized(hidden, inner) or r for stack, r in readings.items()}
            situation = settle(self.model, self.key, self.tensors, tried, self.hints, self.recipe)
            scene = self.scene(situation)
            share = sum(
                scale_layout(scene, slot, tensor, name=slot[1])[1]
                for slot, tensor in self.tensors.items()
                if slot[1] != "weight"
            )
            if share > best[0]:
                best = (share, tried)
        return best[1]

    def _settle(self, readings: Mapping[Stack, Reading]) -> Situation:
        situation = settle(self.model, self.key, self.tensors, readings, self.hints, self.recipe)
        if self.recipe is None:
            for slot, tensor in self.tensors.items():
                if slot[1] != "weight":
                    identity, _ = scale_layout(self.scene(situation), slot, tensor, name=slot[1])
                    situation = with_layout(situation, slot, identity)
        return situation

    # -- comparing and explaining --------------------------------------------------------------------------

    def scene(self, situation: Situation | None, owners: Owners | None = None) -> Scene:
        situation = situation or self.situation
        return scene_of(self.model, situation.plan, situation.key, situation.rank, owners)

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
                row, found = examine_numbers(self, slot[0], tensor)
                self.rows.append(row)
                self.findings += found
                continue
            shape = plan.canonical_shape(self.key, rank, *slot)
            if slot[1] == "bias":
                tensor = self._bias(slot, tensor)
            views = Views(tensor.data, shape)
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

    def _experts(self) -> None:
        plan, key, rank = self.situation.plan, self.key, self.situation.rank
        planned = plan.experts(key, rank)
        others = {e for row in plan.shape(key).owners for e in row} - set(planned)
        seen: dict[str, list[str]] = {}
        shown: dict[str, str] = {}
        for held in self.held:
            owners = held.scene.owners
            if owners is None or held.slot[1] != "weight":
                continue
            scale = next((h for h in self.held if h.slot == (held.slot[0], "scale")), None)
            absent = [i for i, e in enumerate(owners) if e is None]
            zero = scale is None or _all_zero(scale, absent)
            mistake = expert_mistake(owners, planned, others, scales_too=zero)
            if mistake is None:
                continue
            seen.setdefault(mistake.name, []).append(held.name)
            if scale is not None and scale.scene.owners is not None and (zero or not absent):
                seen[mistake.name].append(scale.name)
            shown[mistake.name] = _expert_words(owners, planned)
        for name, tensors in seen.items():
            if len(planned) and not self._all_absent(tensors):
                self.findings.append(finding(find_mistake(name), tensors, {"experts": shown[name]}))

    def _all_absent(self, tensors: Sequence[str]) -> bool:
        """Whether these tensors are zero altogether: then the cut is the question, not the experts."""
        named = [h for h in self.held if h.name in tensors]
        return all(h.comparison.zero for h in named if h.slot[1] == "weight")

    def _explain(self) -> None:
        known = [m for m in museum() if m.fill is None and m.experts is None and m.layer is None]
        plan, rank = self.situation.plan, self.situation.rank
        others = [other_tp_rank(r) for r in plan.ranks[rank.ep_rank * plan.tp :][: plan.tp] if r != rank]
        tried: list[tuple[Mistake, ...]] = []
        for held in self.held:
            if held.comparison.zero:
                held.scene = replace(held.scene, owners=None)
                held.comparison = compare(held.scene, held.slot, held.views)
            if not held.wrong:
                continue
            reading = self.readings.get(held.slot[0]) if held.slot[1] == "weight" else None
            extra = [other_layout(held.slot, i) for i in self._other_layouts(held, reading)]
            sample = self._sample(held)
            scenes = [held.scene]
            if held.slot[1] != "weight" and held.scene.owners is not None:
                scenes.append(self.scene(None))  # scales may be there where weights are not
            for scene in scenes:
                held.explanation = explain(
                    scene, held.slot, held.views, [*known, *others, *extra], most=self.most, sample=sample, first=tried
                )
                if held.explanation is not None:
                    held.scene = scene
                    break
            if held.explanation is not None:
                tried = [*held.explanation.all, *tried]
                held.found_layout = held.scene.layout(*held.slot, held.explanation.mistakes)
        self._prefer()
        self._choose()
        for held in self.held:
            if held.wrong and held.explanation is None:
                self.findings.append(self._unexplained(held))

    def _other_layouts(self, held: Held, reading: Reading | None) -> list[str]:
        if reading is not None:
            return [i for i in dict.fromkeys((reading.identity, reading.straight)) if "@" in i]
        if held.slot[1] == "weight":
            return []
        return [scale_layout(held.scene, held.slot, held.tensor, name=held.slot[1])[0]]

    def _sample(self, held: Held) -> list[int]:
        """Experts to hold mistakes against: wrong ones first, and not those that were never loaded."""
        owners = held.scene.experts()
        wrong = [e for e in held.comparison.experts if owners[e] is not None] or list(range(len(owners)))
        return sorted({wrong[0], wrong[len(wrong) // 2], wrong[-1]}, key=lambda e: e != wrong[0])

    def _prefer(self) -> None:
        """Of mistakes that give the same bytes, those that leave right tensors alone and show in most wrong ones."""
        wrong = [h for h in self.held if h.explanation is not None]
        right = [h for h in self.held if not h.wrong]

        def weight(combo: tuple[Mistake, ...]) -> tuple[int, int]:
            harmed = sum(any(changes(h.scene, h.slot, m) for m in combo) for h in right)
            names = {m.name for m in combo}
            return harmed, -sum(any(names <= {m.name for m in c} for c in h.explanation.all) for h in wrong)  # type: ignore[union-attr]

        for held in wrong:
            assert held.explanation is not None
            if held.explanation.also:
                held.explanation = held.explanation.prefer(min(held.explanation.all, key=weight))

    def _choose(self) -> None:
        """One finding a mistake, over all tensors where it shows."""
        shows: dict[str, list[Held]] = {}
        mistakes: dict[str, Mistake] = {}
        for held in self.held:
            for mistake in held.explanation.mistakes if held.explanation else ():
                shows.setdefault(mistake.name, []).append(held)
                mistakes[mistake.name] = mistake
        for name, where in shows.items():
            combos = [combo for h in where for combo in (h.explanation.also if h.explanation else ())]
            also = sorted({m.name for combo in combos for m in combo})
            words = self._words(where[0], mistakes[name])
            made = finding(
                mistakes[name], [h.name for h in where], words, [n for n in also if n not in shows]
            )
            if all(h.comparison.zero for h in where):
                made = replace(made, sentence=f"all zero: {made.sentence}")
            self.findings.append(made)

    def _words(self, held: Held, mistake: Mistake) -> dict[str, Any]:
        plan, rank = self.situation.plan, self.situation.rank
        shape = plan.shape(self.key)
        blocks = shape.spec.blocks
        return {
            "padded": shape.intermediate, "valid": shape.valid(rank), "rank": rank.tp_rank, "tp": plan.tp,
            "layout": plan.recipe.layouts[held.slot], "found_layout": held.scene.layout(*held.slot, (mistake,)), "policy": plan.policy,
            "floor": shape.spec.intermediate // plan.tp,
            "blocks": blocks, "dropped": blocks % plan.tp, "waste": shape.intermediate - shape.valid(rank),
            "layer": self.key,
        }  # fmt: skip

    def _unexplained(self, held: Held) -> Finding:
        if held.slot[1] == "bias" and not held.scene.content(0, *held.slot).any():
            return finding(find_mistake("uninitialised_padding"), [held.name], {"padding_values": "several"})
        reading = self.readings.get(held.slot[0])
        elsewhere = self._elsewhere(held)
        if elsewhere is not None:
            return elsewhere
        if held.slot[1] == "weight":
            made = describe_unknown(self, held, foreign=reading is None or reading.met < _ONE_PERCENT)
            if made is not None:
                return made
        share = 100 * held.comparison.share
        return Finding(
            "unexplained", f"{held.comparison.wrong} bytes are wrong ({share:.4g} % are right), by no known mistake",
            (held.name,), explanation="The table shows the first byte; `--bundle` writes a report to attach to an issue.",
        )  # fmt: skip

    def _elsewhere(self, held: Held) -> Finding | None:
        """A stack whose pieces are another layer's."""
        stack = held.slot[0]
        tensor = self.tensors.get((stack, "weight"))
        if tensor is None or stack in self.readings or tensor.numbers is not None:
            return None
        if stack not in self.strays:
            needed = {slot: self._needed(slot) for slot in self.tensors}
            self.strays[stack] = self.search.find({stack: tensor}, needed, skip=self.key)
        found = self.strays[stack]
        if found is None:
            return None
        return finding(find_mistake("other_layer"), [held.name], {"found_layer": found, "layer": self.key})

    def _padding(self) -> None:
        seen: dict[tuple[str, bool], list[Held]] = {}
        for held in self.held:
            combo = held.explanation.mistakes if held.explanation else ()
            result = compare(held.scene, held.slot, held.views, combo) if combo else held.comparison
            if combo and result.wrong:
                held.notes.append(
                    f"{len(result.experts)} experts are not explained by {', '.join(m.name for m in combo)}"
                )
            if held.wrong and not combo:
                continue
            for own, counted in ((False, result.padding), (True, result.layout_padding)):
                name = padding_mistake(held.slot[1], counted)
                if name:
                    seen.setdefault((name, own), []).append(held)
                    held.notes.append(_padding_note(counted, own=own))
        for (name, own), where in seen.items():
            values = len(
                {v for h in where for v in (h.comparison.layout_padding if own else h.comparison.padding)}
            )
            made = finding(find_mistake(name), [h.name for h in where], {"padding_values": values})
            harmless = own and name != "nan_padding"
            self.findings.append(replace(made, severity="note") if harmless else made)

    # -- reporting -----------------------------------------------------------------------------------------

    def report(self) -> LayerReport:
        """Run, and say what was found."""
        self.run()
        situation = self.situation
        self.findings = _merged(self.findings)
        shape = situation.plan.shape(self.key)
        start, stop = (b * BLOCK for b in shape.intervals[situation.rank.tp_rank])
        where: dict[str, Any] = {
            "tp": situation.plan.tp, "ep": situation.plan.ep, "policy": situation.plan.policy,
            "intermediate": f"{start}..{stop} of {shape.spec.intermediate}, padded to {shape.intermediate}",
            "hidden": f"{shape.spec.hidden}, padded to {shape.hidden}", "backend": situation.plan.recipe.backend,
            "kernel padding": ", ".join(f"{k} {v}" for k, v in situation.plan.kernel_padding(self.key, situation.rank).items()),
        }  # fmt: skip
        if self.recipe is None:
            self.notes.append(
                "no backend was named: the byte order that was found is taken as the one that is needed"
            )
        if situation.also:
            self.notes.append(f"the same slice is also {', '.join(situation.also)}: --tp decides")
        return LayerReport(
            self.key, str(situation.rank), where, tuple(self.findings), (*self.rows, *(self._row(h) for h in self.held)),
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
        return Row(
            held.tensor.name, held.name, result.share, found, needed, result.wrong, result.total, result.first,
            result.address, result.expected, result.found, held.explanation.names if held.explanation else (), tuple(notes),
        )  # fmt: skip


def _normal(recipe: Recipe | None) -> Recipe | None:
    """The recipe with full layout ids."""
    if recipe is None:
        return None
    layouts = {}
    for slot, identity in recipe.layouts.items():
        layout, parameters = find(identity)
        layouts[slot] = layout.identity(parameters)
    return replace(recipe, layouts=layouts)


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that say the same of several tensors become one."""
    found: dict[tuple[str, str], Finding] = {}
    for one in findings:
        key = (one.name, one.sentence)
        tensors = (*found[key].tensors, *one.tensors) if key in found else one.tensors
        found[key] = replace(one, tensors=tuple(dict.fromkeys(tensors)))
    return list(found.values())


def _all_zero(held: Held, places: Sequence[int]) -> bool:
    if held.comparison.zero:
        return True
    identity = held.scene.layout(*held.slot)
    found = [held.views.expert(local, identity) for local in places]
    return all(f is not None and not f.any() for f in found)


def _expert_words(owners: Owners, planned: Sequence[int]) -> str:
    absent = [p for o, p in zip(owners, planned, strict=True) if o is None]
    if absent:
        return _short(absent)
    moved = [f"{p} holds {o}" for o, p in zip(owners, planned, strict=True) if o != p]
    return "place of expert " + _short(moved)


def _short(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:6]))
    return shown if len(items) <= 6 else f"{shown} and {len(items) - 6} more"


def _padding_note(counted: Mapping[int, int], *, own: bool) -> str:
    values = ", ".join(f"{v} x {c}" for v, c in sorted(counted.items(), key=lambda i: -i[1])[:4])
    more = f" and {len(counted) - 4} other values" if len(counted) > 4 else ""
    return f"{'padding of the layout' if own else 'padding'} holds {values}{more}"
