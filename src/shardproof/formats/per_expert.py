"""Dialects that keep each expert's projections as tensors of their own: a table of suffixes and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from shardproof.checkpoint import Checkpoint, TensorInfo
from shardproof.errors import FormatError
from shardproof.experts import PROJECTIONS, ExpertSpec, Field
from shardproof.formats.family import Family, read_family
from shardproof.formats.format import Format, no_experts
from shardproof.formats.model import BIAS_BYTES, Evidence, ExpertModel, LayerExperts, Source, check_sizes, layer_spec
from shardproof.formats.names import NamedLayer, Slot, collect, split
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES


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
            if suffix in seen and not seen[suffix] and split(head + ".x") is not None:
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
        layers, notes = {}, [*family.guessed]
        if family.experts is None:
            notes.append("experts were counted from tensor names, for no config says how many there are")
        for key, found in collect(checkpoint.tensors, self.name, self.suffixes, self.ignored).items():
            if _is_left_unquantised(found, self):
                notes.append(f"{key}: experts are not MXFP4 ({found.first.dtype}) and were left out")
                continue
            experts = _expert_count(key, found, family)
            _check_complete(key, found, experts)
            if family.experts is not None and experts != family.experts:
                notes.append(f"{key}: {experts} experts, counted from tensor names (the config: {family.experts})")
            layers[key] = _layer(key, found, experts, family, self)
        if not layers:
            raise no_experts(checkpoint, self.name)
        return ExpertModel(checkpoint, self.name, family.name, layers, evidence, tuple(notes))


def _is_left_unquantised(layer: NamedLayer, dialect: PerExpertFormat) -> bool:
    """Quantisers leave whole layers (often the MTP layer) in BF16: weights of a wider dtype, and not one scale."""
    weights = [t for (_, name), by_id in layer.tensors.items() if name == "weight" for t in by_id.values()]
    scaled = any(name == "scale" for _, name in layer.tensors)
    return not scaled and bool(weights) and not any(t.dtype in dialect.dtypes["weight"] for t in weights)


def _expert_count(key: str, layer: NamedLayer, family: Family) -> int:
    present = {expert for by_id in layer.tensors.values() for expert in by_id}
    expected = family.experts if family.experts is not None and not key.startswith("mtp") else max(present) + 1
    outside = sorted(e for e in present if e >= expected)
    if outside:
        slot = next(by_id for by_id in layer.tensors.values() if outside[0] in by_id)
        raise FormatError(
            "format.expert_id", "an expert id is out of range", tensor=slot[outside[0]].name, layer=key,
            expert=outside[0], found=outside[0], needed=f"0..{expected - 1} (the config has {expected} experts)",
            next_step="correct the config, or remove the tensors of experts it does not have",
        )  # fmt: skip
    return expected


def _check_complete(key: str, layer: NamedLayer, experts: int) -> None:
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
            ("format.missing_scale", "a weight has no scale") if name == "scale"
            else ("format.missing_projection", "w2 is missing" if projection == "w2" else "half of w13 is missing")
        )  # fmt: skip
        raise FormatError(
            code, what, layer=key, expert=expert, tensor=f"{layer.path}.{expert}.{projection}",
            found=f"no {name} of {projection}", needed="weight and scale of w1, w3 and w2",
            next_step="finish the download; what is missing would be loaded as zeros",
        )  # fmt: skip
    with_bias = {p: layer.tensors[p, "bias"] for p in PROJECTIONS if (p, "bias") in layer.tensors}
    if with_bias and (len(with_bias) != 3 or any(len(b) != experts for b in with_bias.values())):
        raise FormatError(
            "format.missing_bias", "some experts have a bias and some have none", layer=key,
            found=", ".join(f"{p}: {len(b)}" for p, b in with_bias.items()),
            needed=f"none, or {experts} of each projection",
            next_step="finish the download; a missing bias would be loaded as zeros",
        )  # fmt: skip


def _layer(key: str, layer: NamedLayer, experts: int, family: Family, dialect: PerExpertFormat) -> LayerExperts:
    hidden, intermediate = _sizes(key, layer, family)
    spec = layer_spec(key, layer.first, family, experts, hidden, intermediate, bias=("w1", "bias") in layer.tensors)
    sources: dict[Slot, Source] = {}
    for slot, by_id in layer.tensors.items():
        ordered = [by_id[e] for e in range(experts)]
        _check_matrices(key, slot, ordered, spec, dialect)
        sources[slot] = _source(ordered, slot)
    return LayerExperts(key, spec, sources)


def _sizes(key: str, layer: NamedLayer, family: Family) -> tuple[int, int]:
    """H and I as most tensors have them; a config that says otherwise is a conflict."""
    down, gate = layer.tensors["w2", "scale"], layer.tensors["w1", "scale"]
    hidden = _most_common(t.shape[0] for t in down.values() if len(t.shape) == 2)
    intermediate = _most_common(t.shape[0] for t in gate.values() if len(t.shape) == 2)
    names = (next(iter(down.values())).name, next(iter(gate.values())).name)
    check_sizes(key, family, (hidden, names[0]), (intermediate, names[1]))
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
            next_step=f"store it as {list(wanted)}" if transposed else "take the original checkpoint",
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
