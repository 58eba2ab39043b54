"""Intake: what a dump of one layer is - tensors by role, layer, readings - and the plan to hold it against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shardproof.backends import Recipe
from shardproof.diagnose.dequantised import Shard
from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.held import Held
from shardproof.diagnose.layer_search import LayerSearch
from shardproof.diagnose.reading import Reading
from shardproof.diagnose.recognise import Known, read_weight
from shardproof.diagnose.report import Finding, Row, finding
from shardproof.diagnose.scales import scale_bytes, scale_layout
from shardproof.diagnose.settle import Situation, settle, with_layout
from shardproof.diagnose.slices import Hints
from shardproof.diagnose.trials import possible
from shardproof.errors import DiagnoseError, LayoutError
from shardproof.experts import FIELDS, STACKS, Stack
from shardproof.formats import ExpertModel
from shardproof.layouts import find
from shardproof.mistakes import Owners, Scene, find_mistake
from shardproof.mistakes.scene import Slot
from shardproof.plan import Plan
from shardproof.verify import scene_of

_IN_ORDER = 0.9  # of the rows of a reading that is beyond doubt
_HARDLY = 0.05  # of the sample
_BOTH_WAYS: tuple[tuple[Stack, Stack], ...] = (("w13", "w2"), ("w2", "w13"))


class Intake:
    """One layer of a dump, taken in: `situation` is the plan and rank it is held against."""

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
        self.shard: Shard | None = None
        self.strays: dict[Stack, str | None] = {}
        self.readings: dict[Stack, Reading] = {}
        self.key = self._layer(tensors)
        self.readings = self._planned(self._same_size(self.readings))
        self.situation = self._settle(self.readings)
        self.held: list[Held] = []

    def _slots(self, tensors: Sequence[Foreign]) -> dict[Slot, Foreign]:
        slots: dict[Slot, Foreign] = {}
        for tensor in tensors:
            if tensor.stack is None or tensor.field is None:
                continue
            slot = (tensor.stack, tensor.field)
            if slot in slots:
                raise DiagnoseError(
                    "diagnose.names", "two tensors of the dump claim to be the same part of a layer",
                    tensor=tensor.name,
                    found=slots[slot].name, needed="one tensor each of w13 and w2, weight, scale and bias",
                    next_step="dump one layer under the names w13.weight, w13.scale, w2.weight, w2.scale",
                )  # fmt: skip
            slots[slot] = tensor
        known = self.hints.tp is not None and self.hints.rank is not None
        if not any(name == "weight" or (name == "scale" and known) for _, name in slots):
            raise DiagnoseError(
                "diagnose.too_little", "there is too little to decide",
                found=", ".join(map(".".join, slots)) or "no names",
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
        weights = {stack: t for (stack, name), t in self.tensors.items() if name == "weight" and t.numbers is None}
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
        self,
        key: str,
        stack: Stack,
        tensor: Foreign,
        found: Mapping[Stack, Reading],
        inner: int | None = None,
    ) -> Reading | None:
        spec = self.model.layer(key).spec
        first = next(iter(found.values()), None)
        counts = self.hints.counts(spec.experts)
        beside = [(name, self.tensors[stack, name].data.size) for name in FIELDS[1:] if (stack, name) in self.tensors]

        def fits(shape: tuple[int, int, int]) -> bool:
            return all(possible(name, stack, size, shape) for name, size in beside)

        known = Known(
            needed=self._needed((stack, "weight")), experts=[first.shape[0]] if first else counts,
            hidden=first.hiddens if first else (), inner=inner, fits=fits,
            least=spec.intermediate // self.hints.tp if self.hints.tp else 0,
            usual=-(-spec.hidden // self.recipe.align_hidden) * self.recipe.align_hidden if self.recipe else None,
        )  # fmt: skip
        index = self.search.index(key)
        anyway = replace(known, fits=lambda _shape: True)
        return read_weight(tensor, stack, spec, index, known) or read_weight(tensor, stack, spec, index, anyway)

    def _same_size(self, readings: dict[Stack, Reading]) -> dict[Stack, Reading]:
        """Where padding leaves the sizes open, those under which most scales are right."""
        sizes = [{(2 * s[2], s[1] // 2) if r.stack == "w13" else (s[1], 2 * s[2]) for _, s in r.alike}
                 for r in readings.values()]  # fmt: skip
        common = set.intersection(*sizes) if sizes else set()
        best: tuple[float, dict[Stack, Reading]] = (-1.0, readings)
        for hidden, inner in sorted(common, key=lambda size: (abs(size[0] - self._usual()), -size[1])):
            tried = {stack: r.resized(hidden, inner) or r for stack, r in readings.items()}
            situation = settle(self.model, self.key, self.tensors, tried, self.hints, self.recipe)
            scene = self.scene(situation)
            share = sum(
                scale_layout(scene, slot, tensor, name=slot[1], only=self._needed(slot))[1]
                for slot, tensor in self.tensors.items()
                if slot[1] != "weight"
            )
            if share > best[0]:
                best = (share, tried)
        return best[1]

    def _planned(self, readings: dict[Stack, Reading]) -> dict[Stack, Reading]:
        """Readings of other sizes than planned are dropped where they are doubtful and the planned sizes fit too."""
        if self.recipe is None or self.hints.tp is None:
            return readings
        plain = settle(self.model, self.key, self.tensors, {}, self.hints, self.recipe).plan
        shape = plain.shape(self.key)
        sizes = (shape.intermediate, shape.hidden)
        odd = [r for r in readings.values() if (r.inner, r.hidden) != sizes]
        doubtful = all(r.share < 1.0 or r.in_order < _IN_ORDER or r.met < _HARDLY for r in odd)
        fits = all(
            _planned_bytes(plain, self.key, stack) == self.tensors[stack, "weight"].data.size for stack in readings
        )
        return {} if odd and doubtful and fits else readings

    def _usual(self) -> int:
        """The padded H that the backend asks for."""
        hidden = self.model.layer(self.key).spec.hidden
        step = self.recipe.align_hidden if self.recipe else 1
        return -(-hidden // step) * step

    def _settle(self, readings: Mapping[Stack, Reading]) -> Situation:
        situation = settle(self.model, self.key, self.tensors, readings, self.hints, self.recipe)
        if self.recipe is None:
            for slot, tensor in self.tensors.items():
                if slot[1] != "weight":
                    situation = with_layout(situation, slot, self._order(situation, slot, tensor))
        return situation

    def _order(self, situation: Situation, slot: Slot, tensor: Foreign) -> str:
        """The layout of a scale or bias; where the given rank's content is in none, that of the rank that was read."""
        identity, share = scale_layout(self.scene(situation), slot, tensor, name=slot[1])
        if share or self.hints.rank is None or not self.readings:
            return identity
        read = settle(self.model, self.key, self.tensors, self.readings, replace(self.hints, rank=None), self.recipe)
        return scale_layout(self.scene(read), slot, tensor, name=slot[1])[0]

    def scene(self, situation: Situation | None, owners: Owners | None = None) -> Scene:
        """The layer as the plan would pack it, with the plan's experts or those found."""
        situation = situation or self.situation
        return scene_of(self.model, situation.plan, situation.key, situation.rank, owners)


def _normal(recipe: Recipe | None) -> Recipe | None:
    """The recipe with full layout ids."""
    if recipe is None:
        return None
    layouts = {}
    for slot, identity in recipe.layouts.items():
        layout, parameters = find(identity)
        layouts[slot] = layout.identity(parameters)
    return replace(recipe, layouts=layouts)


def _planned_bytes(plan: Plan, key: str, stack: Stack) -> int | None:
    """Bytes of a planned weight; None where the layout cannot hold the planned sizes."""
    try:
        return plan.placed(key, plan.ranks[0], stack, "weight").nbytes
    except LayoutError:
        return None
