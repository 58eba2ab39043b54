"""vLLM's Marlin MoE kernel on packed bytes, weights upcast to bfloat16 in registers.

The operator is that of vLLM 0.33 (torch.ops._moe_C.moe_wna16_marlin_gemm). Its library is loaded from an installed vllm
without importing vllm, or from the file that SHARDPROOF_VLLM_OPS names.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardproof.kernels.implementation import Implementation, Runner, refuse_layouts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.experts import Field, Stack
    from shardproof.packed import PackedLayer

LAYOUTS: dict[tuple[Stack, Field], tuple[str, ...]] = {
    (stack, name): (f"marlin.{name}@1",) for stack in ("w13", "w2") for name in ("weight", "scale", "bias")
}
LIBRARY = "_moe_C_stable_libtorch.abi3.so"
_E2M1 = 562949953487106
"""vLLM's number of the scalar type float4 e2m1."""
_BLOCKS, _FULL = (8, 16, 32, 48, 64), 0.9
"""Places a block: the first size that an expert's tokens would fill less than this part of."""


@cache
def operator() -> Any:
    """The Marlin operator, or None where no library has it."""
    import torch

    vendor = getattr(torch.ops, "_moe_C")  # noqa: B009 - the vendor's own name for its operators
    found = getattr(vendor, "moe_wna16_marlin_gemm", None)
    if found is None:
        vllm = importlib.util.find_spec("vllm")
        folders = vllm.submodule_search_locations if vllm and vllm.submodule_search_locations else []
        files = [
            os.environ.get("SHARDPROOF_VLLM_OPS", ""),
            *(str(Path(folder) / LIBRARY) for folder in folders),
        ]
        for file in filter(os.path.isfile, files):
            torch.ops.load_library(file)  # type: ignore[no-untyped-call]
        found = getattr(vendor, "moe_wna16_marlin_gemm", None)
    return found


class Marlin(Implementation):
    """bfloat16 activations; the routing weight after w2."""

    name = "marlin"
    summary = "vLLM's Marlin MoE kernel"
    priority = 60
    backend = "marlin"
    activation_dtype = "bfloat16"

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other layouts and devices, biases with the weight before w2, and an install without the operator."""
        from shardproof.kernels.device.experts import refuse_device, refuse_double_weight

        reason = refuse_layouts(layer, LAYOUTS) or refuse_device(device, ["triton"]) or refuse_double_weight(layer)
        if reason is None and operator() is None:
            return "found no operator _moe_C.moe_wna16_marlin_gemm, needed vllm 0.33 (read at 0.33.0)"
        return reason

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Copy the packed bytes to the device as they are."""
        from shardproof.kernels.device.experts import runner

        return runner(layer, MarlinExperts(layer, device))


class MarlinExperts:
    """One packed layer for Marlin: x bf16 [M, H], ids int32 [M, k], weights float32 [M, k] -> bf16 [M, H]."""

    def __init__(self, layer: PackedLayer, device: torch.device) -> None:
        import torch

        from shardproof.kernels.device.experts import expert_map, own_bias, tensor

        e, h, i = len(layer.experts), layer.shape.hidden, layer.shape.intermediate
        self.experts, self.hidden, self.width, self.inner = e, layer.spec.hidden, h, i
        self.activation, self.map, self.gemm = layer.spec.activation, expert_map(layer, device), operator()
        self.weights = [
            tensor(layer, stack, device).view(torch.int32).view(e, k // 16, 2 * n) for stack, k, n in self._sizes()
        ]
        self.scales = [
            tensor(layer, stack, device, scale=True).view(torch.float8_e8m0fnu).view(e, k // 32, n)
            for stack, k, n in self._sizes()
        ]
        self.biases = [own_bias(layer, stack, device) for stack, _, _ in self._sizes()]
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.workspace = torch.zeros(processors * 4, dtype=torch.int32, device=device)

    def _sizes(self) -> tuple[tuple[Stack, int, int], tuple[Stack, int, int]]:
        return ("w13", self.width, 2 * self.inner), ("w2", self.inner, self.width)

    def _product(self, which: int, a: Tensor, out: Tensor, blocks: Any, weights: Tensor, top_k: int, size: int) -> None:
        _, k, n = self._sizes()[which]
        self.gemm(
            a, out, self.weights[which], self.biases[which], self.scales[which], None, None, None, self.workspace,
            blocks.slots, blocks.experts, blocks.padded, weights, size, top_k, bool(which), _E2M1, a.shape[0], n, k,
            False, True, False, -1, -1, -1,
        )  # fmt: skip

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Both products, the activation between them and the sum over slots."""
        from shardproof.kernels.device.experts import padded_tokens
        from shardproof.kernels.triton.grouped import align, gated, local_ids, sum_routed

        (tokens, top_k), ids = topk_ids.shape, local_ids(topk_ids, self.map)
        each = tokens * top_k / self.experts
        size = next((b for b in _BLOCKS if each / b < _FULL), _BLOCKS[-1])
        blocks = align(ids, self.experts, size)
        x = padded_tokens(x, self.width)
        h = x.new_empty(tokens * top_k, 2 * self.inner)
        self._product(0, x, h, blocks, topk_weights, top_k, size)
        y = x.new_empty(tokens * top_k, self.width)
        self._product(1, gated(h, self.activation), y, blocks, topk_weights, 1, size)
        return sum_routed(y, ids, self.experts, self.hidden)
