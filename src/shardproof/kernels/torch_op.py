"""`torch.ops.shardproof.gpu_moe`: a prepared GPU layer as a torch operator, so that torch.compile leaves it whole.

A layer is named by a number (`register`); the operator keeps no layer alive. Fake tensors give the result's shape and
dtype without running anything.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch

from shardproof.errors import KernelError

_HANDLES = itertools.count(1)
_LAYERS: weakref.WeakValueDictionary[int, Callable[..., torch.Tensor]] = weakref.WeakValueDictionary()


def register(layer: Callable[..., torch.Tensor]) -> int:
    """A number that names the layer to the operator for as long as the layer is held elsewhere."""
    handle = next(_HANDLES)
    _LAYERS[handle] = layer
    return handle


@torch.library.custom_op("shardproof::gpu_moe", mutates_args=())
def gpu_moe(x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, handle: int) -> torch.Tensor:
    """Run the layer named by `handle`: x bf16 [M, H], ids int32 [M, k], weights float32 [M, k] -> bf16 [M, H].

    Raises KernelError `kernel.handle` for a layer that is gone, else what the layer raises.
    """
    layer = _LAYERS.get(handle)
    if layer is None:
        raise KernelError(
            "kernel.handle", "the layer of this call is gone", found=f"handle {handle}", needed="a layer that is held",
            next_step="keep the prepared layer for as long as a compiled or exported function calls it",
        )  # fmt: skip
    return layer(x, topk_ids, topk_weights)


@gpu_moe.register_fake
def _(x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, handle: int) -> torch.Tensor:  # noqa: ARG001
    """Shape, dtype and device of the result; the checks that need no data."""
    if x.dim() != 2 or topk_ids.dim() != 2 or topk_weights.shape != topk_ids.shape:
        raise KernelError(
            "kernel.shape", "x, topk_ids or topk_weights has the wrong shape",
            found=f"x {list(x.shape)}, topk_ids {list(topk_ids.shape)}, topk_weights {list(topk_weights.shape)}",
            needed="[M, H], [M, k] and [M, k]", next_step="flatten batch and sequence into M",
        )  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def run(handle: int, layer: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
    """The layer called directly, or through the operator where torch is tracing."""
    if torch.compiler.is_compiling():
        result: torch.Tensor = gpu_moe(*inputs, handle)
        return result
    return layer(*inputs)
