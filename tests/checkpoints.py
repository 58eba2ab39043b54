"""Small checkpoints of every format, written by the tests themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Tensor = tuple[str, np.ndarray]  # safetensors dtype, bytes with the tensor's shape (last axis counts elements)
Fill = Callable[[str, str, int, str, tuple[int, ...]], np.ndarray]
ITEM = {"U8": 1, "I8": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4}


def write_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; dtypes that NumPy lacks are given as raw bytes with their own name."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    blobs, position = [], 0
    for name, (dtype, array) in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        shape = list(array.shape)
        if array.dtype == np.uint8 and ITEM[dtype] > 1:
            shape[-1] //= ITEM[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(blob)]}
        blobs.append(blob)
        position += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


@dataclass
class Made:
    """A checkpoint that was made: its folder and every expert's canonical matrices by (layer, expert, projection)."""

    folder: Path
    weight: dict[tuple[str, int, str], np.ndarray] = field(default_factory=dict)
    scale: dict[tuple[str, int, str], np.ndarray] = field(default_factory=dict)
    bias: dict[tuple[str, int, str], np.ndarray] = field(default_factory=dict)


def _matrices(made: Made, layers: int, experts: int, hidden: int, intermediate: int, bias: bool, seed: int) -> None:
    rng, of_biases = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for number in range(layers):
        for expert in range(experts):
            for projection in ("w1", "w3", "w2"):
                rows, columns = (hidden, intermediate) if projection == "w2" else (intermediate, hidden)
                key = (f"layers.{number}", expert, projection)
                made.weight[key] = rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
                made.scale[key] = rng.integers(118, 132, (rows, columns // 32), dtype=np.uint8)
                if bias:
                    made.bias[key] = of_biases.standard_normal(rows).astype(np.float32)


def make(
    folder: Path, kind: str, *, layers: int = 1, experts: int = 4, hidden: int = 64, intermediate: int = 96,
    seed: int = 0, top_k: int = 2, files: int = 2, config: dict[str, Any] | None = None,
    alter: Callable[[dict[str, Tensor]], object] | None = None, fill: Fill | None = None,
) -> Made:  # fmt: skip
    """Write a checkpoint of format `kind` with random experts (and an index over `files` files).

    `alter` may change the tensors by name before they are written: this is how tests break a checkpoint.
    `fill(field, layer, expert, projection, shape)` gives bytes instead of random ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Made(folder)
    _matrices(made, layers, experts, hidden, intermediate, kind == "gpt_oss", seed)
    for name, matrices in (("weight", made.weight), ("scale", made.scale)) if fill is not None else ():
        for key, matrix in matrices.items():
            matrices[key] = fill(name, *key, matrix.shape)
    tensors = _gpt_oss(made, layers, experts) if kind == "gpt_oss" else _per_expert(made, kind)
    tensors["model.embed.weight"] = ("BF16", np.zeros((4, 2 * hidden), dtype=np.uint8))
    if alter is not None:
        alter(tensors)
    names = list(tensors)
    weight_map = {}
    for number in range(files):
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {n: tensors[n] for n in names[number::files]}
        write_file(folder / name, part)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"hidden_size": hidden, "moe_intermediate_size": intermediate, "num_experts_per_tok": min(top_k, experts)}
    (folder / "config.json").write_text(json.dumps({**_CONFIGS[kind](experts), **sizes, **(config or {})}))
    return made


_CONFIGS: dict[str, Any] = {
    "deepseek": lambda e: {
        "model_type": "deepseek_v4", "expert_dtype": "fp4", "n_routed_experts": e, "swiglu_limit": 10.0,
        "quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0"},
    },
    "quark": lambda e: {
        "model_type": "qwen3_moe", "num_experts": e, "quantization_config": {"quant_method": "quark"},
    },
    "ling": lambda e: {
        "model_type": "bailing_hybrid", "num_experts": e,
        "quantization_config": {"quant_method": "fp8", "routed_experts_quant_method": "mxfp4"},
    },
    "modelopt": lambda e: {
        "model_type": "qwen3_moe", "num_experts": e,
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "MXFP4"},
    },
    "compressed_tensors": lambda e: {
        "model_type": "kimi_k3", "num_experts": e,
        "quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
    },
    "gpt_oss": lambda e: {
        "model_type": "gpt_oss", "num_local_experts": e, "quantization_config": {"quant_method": "mxfp4"},
    },
}  # fmt: skip
_NAMES = {
    "deepseek": ("layers.{}.ffn.experts.{}.{}", ("w1", "w3", "w2"), "weight", "scale", "I8", "F8_E8M0"),
    "quark": (
        "model.layers.{}.mlp.experts.{}.{}", ("gate_proj", "up_proj", "down_proj"), "weight", "weight_scale", "U8", "U8",
    ),
    "ling": (
        "model.layers.{}.mlp.experts.{}.{}", ("gate_proj", "up_proj", "down_proj"), "weight", "weight_scale_inv", "U8",
        "U8",
    ),
    "modelopt": (
        "model.layers.{}.mlp.experts.{}.{}", ("gate_proj", "up_proj", "down_proj"), "weight", "weight_scale", "U8", "U8",
    ),
    "compressed_tensors": (
        "language_model.model.layers.{}.block_sparse_moe.experts.{}.{}", ("w1", "w3", "w2"), "weight_packed",
        "weight_scale", "U8", "U8",
    ),
}  # fmt: skip


def _per_expert(made: Made, kind: str) -> dict[str, Tensor]:
    pattern, names, weight, scale, weight_dtype, scale_dtype = _NAMES[kind]
    by_projection = dict(zip(("w1", "w3", "w2"), names, strict=True))
    tensors: dict[str, Tensor] = {}
    for (layer, expert, projection), matrix in made.weight.items():
        head = pattern.format(layer.removeprefix("layers."), expert, by_projection[projection])
        tensors[f"{head}.{weight}"] = (weight_dtype, matrix)
        tensors[f"{head}.{scale}"] = (scale_dtype, made.scale[layer, expert, projection])
    return tensors


def _gpt_oss(made: Made, layers: int, experts: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number in range(layers):
        layer = f"layers.{number}"
        head = f"model.layers.{number}.mlp.experts."
        for source, suffix in ((made.weight, "blocks"), (made.scale, "scales"), (made.bias, "bias")):
            up = [_interleave(source[layer, e, "w1"], source[layer, e, "w3"]) for e in range(experts)]
            down = [source[layer, e, "w2"] for e in range(experts)]
            for stack, parts in (("gate_up_proj", up), ("down_proj", down)):
                array = np.stack(parts)
                if suffix == "blocks":
                    array = array.reshape(*array.shape[:2], -1, 16)
                if suffix == "bias":
                    array = _bf16(array)
                tensors[f"{head}{stack}_{suffix}"] = ({"bias": "BF16"}.get(suffix, "U8"), array)
        for key in [k for k in made.bias if k[0] == layer]:  # what a reader gets back
            made.bias[key] = (_bf16(made.bias[key]).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tensors


def _interleave(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.stack([gate, up], axis=1).reshape(-1, *gate.shape[1:])


def _bf16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bytes by truncation; last axis in bytes."""
    high = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return high.view(np.uint8)
