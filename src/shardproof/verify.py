"""Verify: proves packed experts against their checkpoint, byte for byte, and names the mistake where one is known.

Every byte of every tensor is computed again from the checkpoint by the plan that the rank file carries, and
compared; padding is compared as well. The plan itself must be for this checkpoint and must prove its cover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardproof.callable_module import make_callable
from shardproof.digest import Digest
from shardproof.errors import VerifyError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel, check_model
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mistakes import Mistake, Owners, Scene, Slot, Views, explain, find_mistake, museum
from shardproof.mistakes.extent import telling_experts, wrong_experts
from shardproof.mxfp4 import Bytes
from shardproof.pack import pack_layer
from shardproof.pack.matrices import read_cut
from shardproof.pack.memory import arena, equal
from shardproof.pack.unpack import unpack
from shardproof.packed import (
    MANIFEST,
    PackedExperts,
    PackedLayer,
    differing,
    load,
    rank_file,
    read_manifest,
    read_plan,
)  # fmt: skip
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan
from shardproof.repack import PackedFolder

_SMALL = 1 << 20  # bytes of a tensor up to which three mistakes at once are looked for
_IN_VAIN = 2  # unexplained tensors of a field after which only single mistakes, and those found before, are looked for


@dataclass(frozen=True, slots=True)
class Difference:
    """One packed tensor that is not what its checkpoint says, with its first differing bytes."""

    rank: int
    tensor: str
    wrong: int
    total: int
    first: tuple[str, ...]
    mistake: str | None = None
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {s: list(v) if isinstance(v := getattr(self, s), tuple) else v for s in self.__slots__}

    def __str__(self) -> str:
        lines = [f"rank {self.rank}: {self.tensor}: {self.wrong} of {self.total} bytes are wrong"]
        lines += [f"  {line}" for line in self.first]
        if self.sentence:
            lines.append(f"  {self.sentence}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome: differences (none when all is right), digests, and what was compared."""

    differences: tuple[Difference, ...]
    ranks: tuple[int, ...]
    bytes_compared: int
    digest: str | None
    statements: tuple[str, ...]
    missing: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every byte is right."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "ok": self.ok, "ranks": list(self.ranks), "missing": list(self.missing),
            "bytes_compared": self.bytes_compared, "digest": self.digest, "statements": list(self.statements),
            "differences": [d.to_dict() for d in self.differences],
        }  # fmt: skip


@dataclass
class Causes:
    """What explained the tensors so far, to be tried first, and how many of each field nothing explained."""

    found: list[tuple[Mistake, ...]] = field(default_factory=list)
    in_vain: Counter[Slot] = field(default_factory=Counter)

    def most(self, slot: Slot, size: int) -> int:
        """How many mistakes at once to look for in a tensor of `size` bytes: a search in vain is not repeated."""
        return 1 if self.in_vain[slot] >= _IN_VAIN else 3 if size < _SMALL else 2


Report = Callable[[int, str, int, int], None]
"""Called after each layer with (rank, layer, bytes done, bytes in all)."""


def verify(folder: str | Path, model: ExpertModel, *, report: Report | None = None) -> Proof:
    """Prove all ranks of a packed folder against their checkpoint.

    Raises PackedError for a folder that cannot be read, VerifyError `verify.checkpoint` for another checkpoint and
    `verify.itself` for the folder itself, FormatError `format.model` for a path instead of a model.
    """
    check_model(model)
    manifest = read_manifest(Path(folder))
    plan = read_plan(manifest, Path(folder) / MANIFEST)
    _same_checkpoint(Path(folder), plan, model)
    statements = plan.prove()
    differences: list[Difference] = []
    held = [r.index for r in plan.ranks if rank_file(r) in manifest["ranks"]]
    total, done, digest = sum(plan.rank_bytes(plan.ranks[i]) for i in held), 0, Digest()
    room: dict[Slot, Bytes] = {}
    causes = Causes()
    for index in held:
        packed = load(folder, index)
        found = Digest()
        for layer in packed:
            room = _room(layer, room)
            wrong, part = verify_layer(model, layer, room, causes)
            differences += wrong
            found += part
            done += sum(t.nbytes for t in layer.tensors.values())
            if report:
                report(index, layer.key, done, total)
        digest += found
        if packed.digest is not None and packed.digest != found:
            differences.append(_digest_difference(packed, found))
    missing = tuple(r.index for r in plan.ranks if r.index not in held)
    whole = None if missing else str(digest)
    return Proof(tuple(differences), tuple(held), done, whole, tuple(statements), missing)


def _same_checkpoint(folder: Path, plan: Plan, model: ExpertModel) -> None:
    """Refuse another model, and a packed folder as its own proof."""
    if isinstance(model.checkpoint, PackedFolder) and model.checkpoint.folder.resolve() == folder.resolve():
        raise VerifyError(
            "verify.itself", "a packed folder compared with itself proves nothing", file=folder,
            needed="the checkpoint it was packed from, or another packing of it",
            next_step=f"shardproof verify {folder} --against {plan.source}",
        )  # fmt: skip
    for key, index in plan.layers.items():
        spec = plan.shapes[index].spec
        held = model.layers[key].spec if key in model.layers else None
        if held == spec:
            continue
        pairs = list(differing(held.to_dict(), spec.to_dict())) if held else [("layer", "no such layer", key)]
        raise VerifyError(
            "verify.checkpoint", "the packed experts come from another model", layer=key,
            found=", ".join(f"{name} {value}" for name, value, _ in pairs),
            needed=", ".join(f"{name} {value}" for name, _, value in pairs),
            next_step=f"give the checkpoint they were packed from ({plan.source})",
        )  # fmt: skip


def _digest_difference(packed: PackedExperts, found: Digest) -> Difference:
    text = f"recorded {packed.digest}, the checkpoint gives {found}"
    return Difference(packed.rank.index, "(digest)", 0, 0, (text,), None, "the checkpoint's data changed since packing")


def _room(layer: PackedLayer, before: dict[Slot, Bytes]) -> dict[Slot, Bytes]:
    """Memory for a layer's tensors: that of the layer before where it has their sizes, for fresh pages are slow."""
    sizes = {slot: layer.placed(*slot).nbytes for slot in layer.tensors}
    return before if {slot: data.nbytes for slot, data in before.items()} == sizes else arena(sizes)


def verify_layer(
    model: ExpertModel,
    layer: PackedLayer,
    room: Mapping[Slot, Bytes] | None = None,
    causes: Causes | None = None,
) -> tuple[list[Difference], Digest]:
    """Compare one packed layer with the checkpoint; returns its differences and the digest of its content.

    `room`: memory of the size of the layer's tensors, every byte of which is overwritten; fresh by default.
    `causes`: what other layers' differences came from.
    """
    expected = _room(layer, {}) if room is None else room
    digest = pack_layer(model, layer.plan, layer.key, layer.rank, expected)
    bad = {s: layer.tensors[s] != expected[s] for s in expected if not equal(layer.tensors[s], expected[s])}
    if not bad:
        return [], digest
    cause = _explain(model, layer, bad, causes or Causes())
    return [
        _difference(model, layer, slot, mask, expected[slot], cause.get(slot, ())) for slot, mask in bad.items()
    ], digest


def scene_of(model: ExpertModel, plan: Plan, key: str, rank: Rank, owners: Owners | None = None) -> Scene:
    """A layer of a rank over the checkpoint's bytes, in which mistakes can be done again."""

    def read(layer: str, cut: Cut, name: Field, expert: int) -> Bytes:
        return read_cut(model, model.layer(layer), cut, name, expert, plan)

    return Scene(plan, key, rank, read, owners)


def _explain(
    model: ExpertModel, layer: PackedLayer, bad: Mapping[Slot, np.ndarray], causes: Causes
) -> dict[Slot, tuple[Mistake, ...]]:
    """For each wrong tensor the known mistakes - one, or two or three at once - that give exactly its bytes."""
    found: dict[Slot, tuple[Mistake, ...]] = {}
    for slot, mask in bad.items():
        views = Views(layer.tensors[slot], layer.placed(*slot).shape, unpack)
        loaded = _loaded(layer, slot, views)
        scene = scene_of(model, layer.plan, layer.key, layer.rank)
        if None in loaded and any(e is not None for e in loaded):
            found[slot] = (find_mistake("zero_experts"),)
            scene = scene_of(model, layer.plan, layer.key, layer.rank, loaded)
        sample = telling_experts(wrong_experts(layer.placed(*slot), mask), loaded)
        if not sample:
            continue
        most = causes.most(slot, views.kernel.size)
        cause = explain(scene, slot, views, museum(), most=most, sample=sample, first=causes.found, exact=True)
        if cause is None:
            causes.in_vain[slot] += 1
            continue
        found[slot] = (*found.get(slot, ()), *cause.mistakes)
        causes.found[:] = [cause.mistakes, *(combo for combo in causes.found if combo != cause.mistakes)]
    return found


def _loaded(layer: PackedLayer, slot: Slot, views: Views) -> Owners:
    """The layer's experts, None for those whose matrix is all zero."""
    identity = layer.plan.recipe.layouts[slot]
    found = [views.expert(local, identity) for local in range(len(layer.experts))]
    zero = [matrix is not None and not matrix.any() for matrix in found]
    return tuple(None if empty else e for e, empty in zip(layer.experts, zero, strict=True))


def _difference(
    model: ExpertModel,
    layer: PackedLayer,
    slot: Slot,
    mask: np.ndarray,
    expected: Bytes,
    causes: tuple[Mistake, ...],
) -> Difference:
    stack, name = slot
    at = np.flatnonzero(mask)
    found = layer.tensors[slot]
    first = tuple(_where(model, layer, slot, int(a), int(found[a]), int(expected[a])) for a in at[:4])
    zero = "" if found.any() or not causes else f"rank {layer.rank.index}: {stack} is all zero: "
    sentence = zero + "; and ".join(_sentence(layer, slot, cause) for cause in causes)
    named = f"{layer.key}.experts.{stack}.{name}"
    names = " + ".join(cause.name for cause in causes) or None
    return Difference(layer.rank.index, named, len(at), mask.size, first, names, sentence)


def _sentence(layer: PackedLayer, slot: Slot, cause: Mistake) -> str:
    stack, name = slot
    shape, rank = layer.shape, layer.rank
    views = Views(layer.tensors[slot], layer.placed(stack, name).shape, unpack)
    words = {
        "padded": shape.intermediate, "valid": layer.valid, "rank": rank.tp_rank, "tp": rank.tp, "layer": layer.key,
        "layout": layer.plan.recipe.layouts[slot], "policy": layer.plan.policy,
        "found_layout": cause.layout(layer.plan, stack, name) if cause.layout else "",
        "found_layer": cause.layer(layer.plan, layer.key) if cause.layer else "",
        "floor": shape.spec.intermediate // rank.tp, "blocks": shape.spec.blocks,
        "dropped": shape.spec.blocks % rank.tp,
        "waste": shape.intermediate - layer.valid, "padding_values": "several",
        "experts": ", ".join(
            str(e) for e, held in zip(layer.experts, _loaded(layer, slot, views), strict=True) if held is None
        ) or ", ".join(map(str, cause.experts(layer.plan, layer.key, rank) if cause.experts else ())),
    }  # fmt: skip
    see = f"; see {', '.join(cause.issues)}" if cause.issues else ""
    return f"{cause.sentence.format(**words)}{see}. Repair: {cause.repair}"


def _where(
    model: ExpertModel, layer: PackedLayer, slot: tuple[Stack, Field], address: int, found: int, expected: int
) -> str:
    stack, name = slot
    placed = layer.placed(stack, name)
    per_byte = UNITS_PER_BYTE[placed.unit]
    expert, row, unit = (int(x) for x in placed.element(address * per_byte))
    values = f"found {found:#04x}, expected {expected:#04x}"
    if expert < 0:
        return f"byte {address} (layout padding): {values}"
    column = unit // per_byte
    projection, source_row, source_byte = _source_place(layer, stack, name, row, column)
    if projection is None:
        return f"byte {address} (padding of expert {layer.experts[expert]}, row {row}): {values}"
    named = model.layer(layer.key).sources[projection, name].name(layer.experts[expert])
    unit_name = {"weight": "byte", "scale": "block", "bias": "byte"}[name]
    where = f"{named} expert {layer.experts[expert]} row {source_row} {unit_name} {source_byte}"
    return f"byte {address} = {where}: {values}"


def _source_place(layer: PackedLayer, stack: Stack, name: Field, row: int, column: int) -> tuple[Any, int, int]:
    for cut in layer.plan.cuts(layer.key, layer.rank, stack, name):
        r, c = row - cut.at_row, column - cut.at_column
        if 0 <= r < cut.rows[1] - cut.rows[0] and 0 <= c < cut.columns[1] - cut.columns[0]:
            return cut.projection, cut.rows[0] + r, cut.columns[0] + c
    return None, 0, 0


make_callable(__name__, verify)
