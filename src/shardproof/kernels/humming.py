"""humming's grouped kernels on packed bytes (humming-kernels 0.1.19), weights upcast to bfloat16 in registers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shardproof.kernels.implementation import Implementation, Runner, refuse_layouts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.experts import Field, Stack
    from shardproof.packed import PackedLayer

LAYOUTS: dict[tuple[Stack, Field], tuple[str, ...]] = {
    (stack, name): (f"humming.{name}@1",) for stack in ("w13", "w2") for name in ("weight", "scale", "bias")
}
_LOCKS, _PLACES = 2048, 64


class Humming(Implementation):
    """bfloat16 activations; the routing weight after w2."""

    name = "humming"
    summary = "humming-kernels' grouped kernels"
    priority = 61
    backend = "humming"
    activation_dtype = "bfloat16"

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other layouts and devices, biases with the weight before w2, and an install without humming."""
        from shardproof.kernels.device.experts import is_importable, refuse_device, refuse_double_weight

        reason = refuse_layouts(layer, LAYOUTS) or refuse_device(device, ["triton"]) or refuse_double_weight(layer)
        if reason is None and not is_importable("humming.transform"):
            return "found no package humming, needed humming-kernels (read at 0.1.19)"
        return reason

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Copy the packed bytes to the device as they are."""
        from shardproof.kernels.device.experts import runner

        return runner(layer, HummingExperts(layer, device))


class _Product:
    """One stack: humming's configuration and its tensors."""

    def __init__(self, layer: PackedLayer, stack: Stack, device: torch.device) -> None:
        import torch
        from humming.config import GemmType, InputQuantizationMode
        from humming.schema import HummingInputSchema, Mxfp4WeightSchema
        from humming.transform import prepare_and_transform_humming_tensors, prepare_layer_config
        from humming.tune import get_heuristics_config

        from shardproof.kernels.device.experts import own_bias, vendor_tensor

        h, i = layer.shape.hidden, layer.shape.intermediate
        n, k = (2 * i, h) if stack == "w13" else (h, i)
        self.rows, self.bias = n, own_bias(layer, stack, device)
        sizes: dict[str, Any] = {
            "shape_n": n, "shape_k": k, "weight_schema": Mxfp4WeightSchema().to_humming_schema(torch.bfloat16),
            "input_schema": HummingInputSchema(input_quant_mode=InputQuantizationMode.Disabled),
            "pad_n_to_multiple": 256, "pad_k_to_multiple": 128, "torch_dtype": torch.bfloat16, "device": device,
        }  # fmt: skip
        blank = {
            "weight": torch.zeros(1, n, k // 2, dtype=torch.uint8, device=device).view(torch.int32),
            "weight_scale": torch.full((1, n, k // 32), 127, dtype=torch.uint8, device=device).view(
                torch.float8_e8m0fnu
            ),
        }
        _, like = prepare_and_transform_humming_tensors(tensors=blank, num_experts=1, **sizes)
        self.config = prepare_layer_config(num_experts=len(layer.experts), has_bias=self.bias is not None, **sizes)
        self.weight = vendor_tensor(layer, (stack, "weight"), like["weight"], device)
        self.scale = vendor_tensor(layer, (stack, "scale"), like["weight_scale"], device)
        kind = GemmType("indexed")
        self.tuning = get_heuristics_config(layer_config=self.config, gemm_type=kind)
        self.tuning_text = json.dumps(self.tuning)
        self.compute = json.dumps({"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": kind.value})

    def places(self, slots: int) -> int:
        """Places a block that humming's heuristics take for this many slots."""
        return next((c["block_shape"][0] for low, high, c in self.tuning if low < slots <= high), _PLACES)

    def run(self, a: Tensor, blocks: Any, top_k: int, slots: int, locks: Tensor) -> Tensor:
        """The product of every slot, bf16 [slots, N]."""
        from humming.forward import humming_forward

        out = a.new_empty(slots, self.rows)
        humming_forward(
            self.config, inputs=a, weight=self.weight, weight_scale=self.scale, bias=self.bias, outputs=out,
            sorted_ids=blocks.slots, expert_ids=blocks.experts, num_tokens_padded=blocks.padded, locks=locks,
            top_k=top_k, valid_shape_m=slots, compute_config=self.compute, tuning_config=self.tuning_text,
        )  # fmt: skip
        return out


class HummingExperts:
    """One packed layer for humming: x bf16 [M, H], ids int32 [M, k], weights float32 [M, k] -> bf16 [M, H]."""

    def __init__(self, layer: PackedLayer, device: torch.device) -> None:
        import torch

        from shardproof.kernels.device.experts import expert_map

        self.experts, self.hidden, self.width = len(layer.experts), layer.spec.hidden, layer.shape.hidden
        self.activation, self.map = layer.spec.activation, expert_map(layer, device)
        self.up, self.down = _Product(layer, "w13", device), _Product(layer, "w2", device)
        self.locks = torch.zeros(_LOCKS, dtype=torch.int32, device=device)

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Both products, the activation between them and the weighted sum over slots."""
        from shardproof.kernels.device.experts import padded_tokens
        from shardproof.kernels.triton.grouped import align, gated, local_ids, sum_routed

        (tokens, top_k), ids = topk_ids.shape, local_ids(topk_ids, self.map)
        slots = tokens * top_k
        sizes = self.up.places(slots), self.down.places(slots)
        blocks = {size: align(ids, self.experts, size) for size in set(sizes)}
        h = self.up.run(padded_tokens(x, self.width), blocks[sizes[0]], top_k, slots, self.locks)
        y = self.down.run(gated(h, self.activation), blocks[sizes[1]], 1, slots, self.locks)
        return sum_routed(y, ids, self.experts, self.hidden, weights=topk_weights)
