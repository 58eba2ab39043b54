"""Explaining: from differences to findings - experts, mistakes, padding, and what no mistake explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardproof.diagnose.compare import compare, padding_mistake
from shardproof.diagnose.dynamic import expert_mistake, other_layout, other_tp_rank
from shardproof.diagnose.held import Held
from shardproof.diagnose.intake import Intake
from shardproof.diagnose.reading import Reading
from shardproof.diagnose.report import Finding, finding
from shardproof.diagnose.scales import scale_layout
from shardproof.diagnose.unknown import describe_unknown
from shardproof.mistakes import Mistake, Owners, changes, explain, find_mistake, museum

_ONE_PERCENT = 0.01


class Explaining(Intake):
    """The findings of a layer whose tensors were compared."""

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
                    scene,
                    held.slot,
                    held.views,
                    [*known, *others, *extra],
                    most=self.most,
                    sample=sample,
                    first=tried,
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
                mistakes.setdefault(mistake.name, mistake)
        for name, where in shows.items():
            combos = [combo for h in where for combo in (h.explanation.also if h.explanation else ())]
            also = sorted({m.name for combo in combos for m in combo})
            words = self._words(where[0], mistakes[name])
            made = finding(mistakes[name], [h.name for h in where], words, [n for n in also if n not in shows])
            if all(h.comparison.zero for h in where):
                made = replace(made, sentence=f"all zero: {made.sentence}")
            self.findings.append(made)

    def _words(self, held: Held, mistake: Mistake) -> dict[str, Any]:
        plan, rank = self.situation.plan, self.situation.rank
        shape = plan.shape(self.key)
        blocks = shape.spec.blocks
        return {
            "padded": shape.intermediate, "valid": shape.valid(rank), "rank": rank.tp_rank, "tp": plan.tp,
            "layout": plan.recipe.layouts[held.slot], "policy": plan.policy,
            "found_layout": held.scene.layout(*held.slot, (mistake,)),
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
            (held.name,), explanation="The table shows the first byte; `--bundle` writes a report for an issue.",
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
            values = len({v for h in where for v in (h.comparison.layout_padding if own else h.comparison.padding)})
            made = finding(find_mistake(name), [h.name for h in where], {"padding_values": values})
            harmless = own and name != "nan_padding"
            self.findings.append(replace(made, severity="note") if harmless else made)


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
