"""A dense FFN as a Mixtral-style MXFP4 checkpoint on disk: the same function, cut into experts.

w1 and w3 are cut by rows and w2 by columns into E experts; a router of zeros sends every token to all E of them with
weight 1/E, and w2 times E makes up for it. With E a power of two both are exact: E8M0 bytes of w2 are raised by log2 E.
So the sum over experts is the dense FFN, and any difference in the text is somebody's mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shardproof.errors import FormatError
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, SCALE_NAN, Bytes, ScaleRule, decode, encode

if TYPE_CHECKING:
    from torch import nn

Array: TypeAlias = npt.NDArray[Any]
SCALE_RULE: ScaleRule = "ceil"
DENSE_FILE = "model-dense.safetensors"
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def write_checkpoint(model: nn.Module, folder: Path, experts: int, files: int = 3) -> dict[str, Any]:
    """Write a Llama's weights as a Mixtral-style checkpoint with Quark MXFP4 experts; returns its config.

    The experts stand in `files` files, everything else, in float32, in one of its own. The model's FFN weights are
    replaced by what MXFP4 kept of them, so that the dense model is the yardstick of all that follows.
    Raises FormatError `format.block` where the FFN cannot be cut into that many experts.
    """
    config: Any = model.config
    if experts < 1 or experts & (experts - 1) or config.intermediate_size % (experts * BLOCK):
        raise FormatError(
            "format.block", "the FFN cannot be cut into that many experts of whole blocks", found=experts,
            needed=f"a power of two that leaves a multiple of {BLOCK} of {config.intermediate_size}",
            next_step="choose another number of experts",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    layers = list(model.get_submodule("model.layers").children())
    parts = np.array_split(np.arange(len(layers)), min(files, len(layers)))
    for number, part in enumerate(parts, 1):
        tensors: dict[str, Array] = {}
        for layer in part.tolist():
            tensors.update(_cut_layer(layers[layer].get_submodule("mlp"), layer, experts))
        _save(folder, f"model-experts-{number:05d}-of-{len(parts):05d}.safetensors", tensors, weight_map)
    _save(folder, DENSE_FILE, dict(_dense(model, experts, len(layers))), weight_map)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    moe_config = _config(config, experts)
    (folder / "config.json").write_text(json.dumps(moe_config, indent=1), encoding="utf-8")
    return moe_config


def _cut_layer(mlp: nn.Module, layer: int, experts: int) -> Iterator[tuple[str, Array]]:
    import torch

    for projection in _PROJECTIONS:
        parameter = mlp.get_parameter(f"{projection}.weight")
        weight, scale = encode(parameter.detach().numpy(), SCALE_RULE)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(decode(weight, scale)))
        for expert in range(experts):
            head = f"model.layers.{layer}.mlp.experts.{expert}.{projection}"
            part = _slice(weight, scale, projection, expert, experts)
            yield f"{head}.weight", part[0]
            yield f"{head}.weight_scale", part[1]


def _slice(weight: Bytes, scale: Bytes, projection: str, expert: int, experts: int) -> tuple[Bytes, Bytes]:
    if projection != "down_proj":
        run = weight.shape[0] // experts
        rows = slice(expert * run, (expert + 1) * run)
        return weight[rows], scale[rows]
    blocks = scale.shape[1] // experts
    columns = slice(expert * blocks * BLOCK_BYTES, (expert + 1) * blocks * BLOCK_BYTES)
    raise_by = experts.bit_length() - 1
    chosen = scale[:, expert * blocks : (expert + 1) * blocks]
    if int(chosen.max()) + raise_by >= SCALE_NAN:
        raise FormatError(
            "format.scale_range",
            "a scale of w2 is too large to be multiplied",
            found=int(chosen.max()),
            next_step="choose fewer experts",
        )
    return weight[:, columns], chosen + np.uint8(raise_by)


def _dense(model: nn.Module, experts: int, layers: int) -> Iterator[tuple[str, Array]]:
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for name, tensor in model.state_dict().items():
        if ".mlp." not in name and not (tied and name == "lm_head.weight"):
            yield name, tensor.numpy()
    config: Any = model.config
    for layer in range(layers):
        yield f"model.layers.{layer}.mlp.gate.weight", np.zeros((experts, config.hidden_size), np.float32)


def _save(folder: Path, file: str, tensors: Mapping[str, Array], weight_map: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / file, {"format": "pt"})
    weight_map.update(dict.fromkeys(tensors, file))


def _config(dense: Any, experts: int) -> dict[str, Any]:
    keys = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
        "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id",
        "eos_token_id", "pad_token_id", "hidden_act",
    )  # fmt: skip
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "dtype": "float32",
        **{key: value for key in keys if (value := getattr(dense, key, None)) is not None},
        "intermediate_size": dense.intermediate_size // experts, "num_local_experts": experts,
        "num_experts_per_tok": experts, "sliding_window": None,
        "quantization_config": {
            "quant_method": "quark", "export": {"pack_method": "order"},
            "global_quant_config": {
                "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": BLOCK, "scale_format": "e8m0"},
            },
        },
    }  # fmt: skip


def load_moe(folder: Path) -> Any:
    """A Mixtral from the checkpoint's config and float32 tensors; its experts are empty, to be replaced."""
    import torch
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")  # the experts are shardproof's to read
    made = MixtralConfig(**config)
    with torch.device("meta"):
        model: Any = MixtralForCausalLM(made)
    model.load_state_dict(load_file(folder / DENSE_FILE), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(made)  # its buffers are in no checkpoint
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta and ".experts." not in name]
    if left:
        raise FormatError(
            "format.missing",
            "the checkpoint lacks a tensor of the model",
            file=folder,
            tensor=left[0],
            next_step="finish the download, or write the demo's checkpoint again",
        )
    return model.eval()
