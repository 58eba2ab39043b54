"""Dialects that keep each expert's projections as tensors of their own: a table of suffixes and dtypes.

A name is read from its end, `<layer path>.experts.<id>.<projection>.<suffix>`, so each takes constant time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from shardproof.checkpoint import Checkpoint, TensorInfo
from shardproof.errors import FormatError
from shardproof.experts import PROJECTIONS, ExpertSpec, Field, Projection
from shardproof.formats.family import Family, read_family
from shardproof.formats.format import Format
from shardproof.formats.model import BIAS_BYTES, Evidence, ExpertModel, LayerExperts, Source
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES

PROJECTION_NAMES: dict[str, Projection] = {
    "w1": "w1", "w3": "w3", "w2": "w2", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2",
}  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(layers|mtp)\.(\d+)\.(?:\w+\.)*?experts$")

Slot = tuple[Projection, Field]


@dataclass
class _Layer:
    """Tensors of one layer while names are read: (projection, field) -> expert id -> tensor."""

    path: str
    tensors: dict[Slot, dict[int, TensorInfo]] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)


class PerExpertFormat(Format):
    """Base of the table-driven dialects: subclasses name suffixes, dtypes and what their config says."""

    suffixes: ClassVar[Mapping[str, Field]]
    ignored: ClassVar[frozenset[str]] = frozenset()
    dtypes: ClassVar[Mapping[Field, tuple[str, ...]]]

    def from_tensors(self, checkpoint: Checkpoint) -> Evidence | None:
        """Speaks for the dialect where expert tensors carry its suffix for scales."""
        scale = next(suffix for suffix, name in self.suffixes.items() if name == "scale")
        weight = next(suffix for suffix, name in self.suffixes.items() if name == "weight")
        seen = dict.fromkeys((scale, weight), "")
        for name in checkpoint.tensors:
            head, _, suffix = name.rpartition(".")
            if suffix in seen and not seen[suffix] and _split(head + ".x") is not None:
                seen[suffix] = name
                if all(seen.values()):
                    break
        if not seen[scale]:
            return None
        if seen[weight]:
            return Evidence(True, "tensors", f"{seen[weight]} with .{scale}")
        return Evidence(False, "tensors", f"{seen[scale]} without .{weight}")

    def read(self, checkpoint: Checkpoint, evidence: tuple[Evidence, ...]) -> ExpertModel:
        """Every expert as byte ranges; see `Format.read`."""
        family = read_family(checkpoint.config)
        layers = {}
        for key, found in _collect(checkpoint, self).items():
            experts = _expert_count(key, found, family)
            _check_complete(key, found, experts)
            layers[key] = _layer(key, found, experts, family, self)
        return ExpertModel(checkpoint, self.name, family.name, layers, evidence)


def _split(name: str) -> tuple[str, str, Projection, str] | None:
    """(layer path, expert id as text, projection, suffix) of an expert tensor's name; None for another tensor."""
    parts = name.rsplit(".", 3)
    if len(parts) != 4 or not parts[0].endswith("experts") or parts[2] not in PROJECTION_NAMES:
        return None
    return parts[0], parts[1], PROJECTION_NAMES[parts[2]], parts[3]


def _collect(checkpoint: Checkpoint, dialect: PerExpertFormat) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    by_path: dict[str, _Layer | None] = {}
    strange: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        if "experts." not in name:
            continue
        head, dot, tail = name.partition("experts.")
        path = head + dot[:-1]
        if path not in by_path:
            match = _LAYER.search(path)
            by_path[path] = layers.setdefault(f"{match[1]}.{match[2]}", _Layer(path)) if match else None
        layer = by_path[path]
        if layer is None:
            continue
        parts = tail.split(".")
        if len(parts) == 3 and parts[1] in PROJECTION_NAMES and parts[2] in dialect.suffixes and parts[0].isdecimal():
            slot = (PROJECTION_NAMES[parts[1]], dialect.suffixes[parts[2]])
            other = layer.tensors.setdefault(slot, {}).setdefault(int(parts[0]), tensor)
            if other is not tensor:
                raise FormatError(
                    "format.duplicate", "two tensors claim to be the same matrix of one expert",
                    tensor=name, layer=layer.path, expert=int(parts[0]), found=other.name, needed="one name",
                )  # fmt: skip
        elif parts[-1] not in dialect.ignored:
            strange.append(name)
    if strange:
        raise FormatError(
            "format.extra", f"{len(strange)} expert tensors are unknown to format {dialect.name}",
            tensor=strange[0], found=", ".join(n.partition("experts.")[2] for n in strange[:4]),
            needed=f"<id>.<{'|'.join(PROJECTION_NAMES)}>.<{'|'.join(dialect.suffixes)}>",
            next_step="remove the tensors, or add their names to the format",
        )  # fmt: skip
    found = {key: layer for key, layer in layers.items() if layer.tensors}
    return dict(sorted(found.items(), key=lambda item: _layer_order(item[0])))


def _layer_order(key: str) -> tuple[str, int]:
    kind, _, number = key.rpartition(".")
    return kind, int(number)


def _expert_count(key: str, layer: _Layer, family: Family) -> int:
    present = {expert for by_id in layer.tensors.values() for expert in by_id}
    expected = family.experts if family.experts is not None and not key.startswith("mtp") else max(present) + 1
    outside = sorted(e for e in present if e >= expected)
    if outside:
        slot = next(by_id for by_id in layer.tensors.values() if outside[0] in by_id)
        raise FormatError(
            "format.expert_id", "an expert id is out of range", tensor=slot[outside[0]].name, layer=key,
            expert=outside[0], found=outside[0], needed=f"0..{expected - 1} (the config has {expected} experts)",
        )  # fmt: skip
    return expected


def _check_complete(key: str, layer: _Layer, experts: int) -> None:
    names: list[Field] = ["weight", "scale"]
    for expert in range(experts):
        missing = [(p, f) for p in PROJECTIONS for f in names if expert not in layer.tensors.get((p, f), {})]
        if not missing:
            continue
        if len(missing) == len(PROJECTIONS) * len(names):
            raise FormatError(
                "format.missing_expert", "an expert is not in the checkpoint", layer=key, expert=expert,
                tensor=f"{layer.path}.{expert}.*", found="no tensor", needed=f"{experts} experts",
                next_step="finish the download; a missing expert would be loaded as zeros",
            )  # fmt: skip
        projection, name = missing[0]
        code, what = (
            ("missing_scale", "a weight has no scale") if name == "scale"
            else ("missing_projection", "w2 is missing" if projection == "w2" else "half of w13 is missing")
        )  # fmt: skip
        raise FormatError(
            f"format.{code}", what, layer=key, expert=expert, tensor=f"{layer.path}.{expert}.{projection}",
            found=f"no {name} of {projection}", needed="weight and scale of w1, w3 and w2",
            next_step="finish the download; what is missing would be loaded as zeros",
        )  # fmt: skip
    with_bias = {p: layer.tensors[p, "bias"] for p in PROJECTIONS if (p, "bias") in layer.tensors}
    if with_bias and (len(with_bias) != 3 or any(len(b) != experts for b in with_bias.values())):
        raise FormatError(
            "format.missing_bias", "some experts have a bias and some have none", layer=key,
            found=", ".join(f"{p}: {len(b)}" for p, b in with_bias.items()),
            needed=f"none, or {experts} of each projection",
        )  # fmt: skip


def _layer(key: str, layer: _Layer, experts: int, family: Family, dialect: PerExpertFormat) -> LayerExperts:
    hidden, intermediate = _sizes(key, layer, family)
    spec = ExpertSpec(
        family.name, experts, hidden, intermediate, min(family.top_k, experts), family.activation,
        bias=("w1", "bias") in layer.tensors, weight_before_w2=family.weight_before_w2,
    )  # fmt: skip
    sources: dict[Slot, Source] = {}
    for slot, by_id in layer.tensors.items():
        ordered = [by_id[e] for e in range(experts)]
        _check_matrices(key, slot, ordered, spec, dialect)
        sources[slot] = _source(ordered, slot)
    return LayerExperts(key, spec, sources)


def _sizes(key: str, layer: _Layer, family: Family) -> tuple[int, int]:
    """H and I as most tensors have them; a config that says otherwise is a conflict."""
    down, gate = layer.tensors["w2", "scale"], layer.tensors["w1", "scale"]
    hidden = _most_common(t.shape[0] for t in down.values() if len(t.shape) == 2)
    intermediate = _most_common(t.shape[0] for t in gate.values() if len(t.shape) == 2)
    for what, found, wanted in (("hidden", hidden, family.hidden), ("intermediate", intermediate, family.intermediate)):
        if wanted is not None and found and found != wanted:
            raise FormatError(
                "format.size", f"config and tensors do not agree on the {what} size", layer=key, found=found,
                needed=f"{wanted} (config)", tensor=next(iter((down if what == "hidden" else gate).values())).name,
            )  # fmt: skip
    return hidden or family.hidden or 0, intermediate or family.intermediate or 0


def _most_common(values: Iterable[int]) -> int:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else 0


def _check_matrices(
    key: str, slot: Slot, tensors: list[TensorInfo], spec: ExpertSpec, dialect: PerExpertFormat
) -> None:
    projection, name = slot
    rows, columns = (spec.hidden, spec.intermediate) if projection == "w2" else (spec.intermediate, spec.hidden)
    wanted: tuple[int, ...] = {
        "weight": (rows, columns // BLOCK * BLOCK_BYTES), "scale": (rows, columns // BLOCK), "bias": (rows,),
    }[name]  # fmt: skip
    allowed = dialect.dtypes[name]
    for expert, tensor in enumerate(tensors):
        if tensor.dtype in allowed and tensor.shape == wanted:
            continue
        if tensor.dtype not in allowed:
            raise FormatError(
                "format.dtype", f"a {name} has the wrong dtype", tensor=tensor.name, layer=key, expert=expert,
                found=tensor.dtype, needed=" or ".join(allowed),
                next_step="scales are E8M0 bytes: a scale that was cast to a number lost its meaning"
                if name == "scale" else "this is not an MXFP4 tensor",
            )  # fmt: skip
        transposed = tensor.shape == wanted[::-1]
        raise FormatError(
            "format.transposed" if transposed else "format.shape",
            f"a {name} is transposed" if transposed else f"a {name} has the wrong shape",
            tensor=tensor.name, layer=key, expert=expert, found=tensor.shape, needed=wanted,
        )  # fmt: skip


def _source(tensors: list[TensorInfo], slot: Slot) -> Source:
    first = tensors[0]
    row_bytes = BIAS_BYTES[first.dtype] if slot[1] == "bias" else first.shape[1]
    names = [t.name for t in tensors]
    return Source(
        file=np.array([t.file for t in tensors], dtype=np.int64),
        start=np.array([t.start for t in tensors], dtype=np.int64),
        rows=first.shape[0], row_bytes=row_bytes, row_stride=row_bytes, dtype=first.dtype, name=names.__getitem__,
    )  # fmt: skip
