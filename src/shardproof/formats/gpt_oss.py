"""gpt-oss: all experts in one tensor a field, rows of gate and up interleaved, biases beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardproof.checkpoint import Checkpoint, TensorInfo
from shardproof.errors import FormatError
from shardproof.experts import ExpertSpec, Field, Projection
from shardproof.formats.family import Family, read_family
from shardproof.formats.format import Format, no_experts, quantization
from shardproof.formats.model import BIAS_BYTES, Evidence, ExpertModel, LayerExperts, Source, check_sizes, layer_spec
from shardproof.formats.names import check_routers
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES

_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)_(blocks|scales|bias)$", re.ASCII)
_FIELDS: dict[str, Field] = {"blocks": "weight", "scales": "scale", "bias": "bias"}
_DTYPES: dict[Field, tuple[str, ...]] = {"weight": ("U8",), "scale": ("U8", "F8_E8M0"), "bias": ("BF16", "F32")}
_MISSING: dict[Field, str] = {
    "weight": "format.missing_projection", "scale": "format.missing_scale", "bias": "format.missing_bias",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which rows of a fused tensor a projection takes: every `step`-th from `first`."""

    tensor: str
    first: int
    step: int


_ROWS: dict[Projection, _Rows] = {
    "w1": _Rows("gate_up_proj", 0, 2),
    "w3": _Rows("gate_up_proj", 1, 2),
    "w2": _Rows("down_proj", 0, 1),
}


class GptOss(Format):
    """gpt-oss as OpenAI publishes it on the Hugging Face Hub."""

    name = "gpt_oss"
    summary = "gpt-oss: experts.gate_up_proj_blocks (U8 [E, 2I, H/32, 16]) + _scales + _bias, rows interleaved"

    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """`quant_method: mxfp4`."""
        method = quantization(config).get("quant_method")
        return Evidence(method == "mxfp4", "config", f"quant_method is {method!r}") if method else None

    def from_tensors(self, checkpoint: Checkpoint) -> Evidence | None:
        """Fused tensors with the suffixes _blocks and _scales."""
        name = next((n for n in checkpoint.tensors if n.endswith(("gate_up_proj_blocks", "gate_up_proj_scales"))), None)
        return Evidence(True, "tensors", name) if name else None

    def read(self, checkpoint: Checkpoint, evidence: tuple[Evidence, ...]) -> ExpertModel:
        """Every expert as byte ranges; see `Format.read`."""
        family = read_family(checkpoint.config)
        found: dict[int, dict[tuple[str, Field], TensorInfo]] = {}
        for name, tensor in checkpoint.tensors.items():
            match = _NAME.search(name)
            if match:
                slot = (match[2], _FIELDS[match[3]])
                other = found.setdefault(int(match[1]), {}).setdefault(slot, tensor)
                if other is not tensor:
                    raise FormatError(
                        "format.duplicate", "two tensors claim to be the same matrices of one layer", tensor=name,
                        layer=f"layers.{match[1]}", found=other.name, needed="one name",
                        next_step="remove one of the two",
                    )  # fmt: skip
            elif ".experts." in name:
                raise FormatError(
                    "format.extra", "an expert tensor is unknown to format gpt_oss", tensor=name,
                    needed="gate_up_proj or down_proj with _blocks, _scales or _bias",
                    next_step="remove the tensor, or add its name to the format",
                )  # fmt: skip
        if not found:
            raise no_experts(checkpoint, self.name)
        check_routers(checkpoint.tensors, {f"layers.{n}" for n in found})
        layers = {f"layers.{n}": _layer(f"layers.{n}", tensors, family) for n, tensors in sorted(found.items())}
        return ExpertModel(checkpoint, self.name, family.name, layers, evidence, family.guessed)


def _layer(key: str, tensors: dict[tuple[str, Field], TensorInfo], family: Family) -> LayerExperts:
    names: list[Field] = ["weight", "scale", "bias"]
    biased = any(name == "bias" for _, name in tensors)
    for stack in ("gate_up_proj", "down_proj"):
        for name in names if biased else names[:2]:
            if (stack, name) not in tensors:
                raise FormatError(
                    _MISSING[name], f"{stack} has no {name}", layer=key, tensor=f"{key}.mlp.experts.{stack}_*",
                    needed="blocks and scales of both projections, and both biases or none",
                    next_step="finish the download; what is missing would be loaded as zeros",
                )  # fmt: skip
    gate_up = tensors["gate_up_proj", "weight"]
    if len(gate_up.shape) != 4:
        raise FormatError(
            "format.shape", "the fused weight has the wrong shape", layer=key, tensor=gate_up.name, found=gate_up.shape,
            needed="[E, 2I, H/32, 16]", next_step="take the original checkpoint",
        )  # fmt: skip
    experts, rows, blocks, _ = gate_up.shape
    check_sizes(key, family, (blocks * BLOCK, gate_up.name), (rows // 2, gate_up.name))
    spec = layer_spec(key, gate_up, family, experts, blocks * BLOCK, rows // 2, bias=biased)
    if family.experts is not None and family.experts != experts:
        raise FormatError(
            "format.missing_expert" if experts < family.experts else "format.expert_id",
            "config and tensors do not agree on the number of experts", layer=key, tensor=gate_up.name,
            expert=min(experts, family.experts), found=experts, needed=f"{family.experts} (config)",
            next_step="finish the download, or correct num_local_experts in config.json",
        )  # fmt: skip
    for (stack, name), tensor in tensors.items():
        _check(key, stack, name, tensor, spec)
    sources = {
        (projection, name): _source(tensors[rows_of.tensor, name], rows_of, name, spec)
        for projection, rows_of in _ROWS.items()
        for name in (names if biased else names[:2])
    }
    return LayerExperts(key, spec, sources)


def _check(key: str, stack: str, name: Field, tensor: TensorInfo, spec: ExpertSpec) -> None:
    rows, columns = (
        (2 * spec.intermediate, spec.hidden) if stack == "gate_up_proj" else (spec.hidden, spec.intermediate)
    )
    wanted: tuple[int, ...] = {
        "weight": (spec.experts, rows, columns // BLOCK, BLOCK_BYTES),
        "scale": (spec.experts, rows, columns // BLOCK),
        "bias": (spec.experts, rows),
    }[name]
    if tensor.dtype not in _DTYPES[name]:
        raise FormatError(
            "format.dtype", f"a {name} has the wrong dtype", layer=key, tensor=tensor.name, found=tensor.dtype,
            needed=" or ".join(_DTYPES[name]),
            next_step="take the original checkpoint" + (": scales are bytes, never cast" if name == "scale" else ""),
        )  # fmt: skip
    if tensor.shape != wanted:
        transposed = tensor.shape[:1] + tensor.shape[:0:-1] == wanted
        raise FormatError(
            "format.transposed" if transposed else "format.shape",
            f"a {name} is transposed" if transposed else f"a {name} has the wrong shape", layer=key, tensor=tensor.name,
            found=tensor.shape, needed=wanted,
            next_step=f"store it as {list(wanted)}" if transposed else "take the original checkpoint",
        )  # fmt: skip


def _source(tensor: TensorInfo, rows: _Rows, name: Field, spec: ExpertSpec) -> Source:
    total_rows = tensor.shape[1]
    row_bytes = (
        BIAS_BYTES[tensor.dtype] if name == "bias" else (tensor.stop - tensor.start) // (spec.experts * total_rows)
    )
    experts = np.arange(spec.experts, dtype=np.int64)
    return Source(
        file=np.full(spec.experts, tensor.file, dtype=np.int64),
        start=tensor.start + experts * (total_rows * row_bytes) + rows.first * row_bytes,
        rows=total_rows // rows.step, row_bytes=row_bytes, row_stride=row_bytes * rows.step, dtype=tensor.dtype,
        name=lambda _expert: tensor.name,
    )  # fmt: skip
