"""`torch.ops.shardproof.cpu_moe`: the layer as a torch operator, so that torch.compile and export see one node.

The operator takes tensors and numbers only, and keeps nothing between calls: a model that is dropped is freed.
Fake tensors give the result's shape and dtype without running anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from shardproof.errors import KernelError
from shardproof.experts import Activation
from shardproof.kernels.cpu.layer import CpuExperts

if TYPE_CHECKING:
    from shardproof.experts import ActivationKind
    from shardproof.kernels.cpu.layer import Precision


@torch.library.custom_op("shardproof::cpu_moe", mutates_args=(), device_types="cpu")
def cpu_moe(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    w13_weight: torch.Tensor,
    w13_scale: torch.Tensor,
    w13_bias: torch.Tensor | None,
    w2_weight: torch.Tensor,
    w2_scale: torch.Tensor,
    w2_bias: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    experts: int,
    intermediate: int,
    activation: str,
    limit: float | None,
    alpha: float,
    beta: float,
    linear_beta: float,
    weight_before_w2: bool,
    precision: str,
) -> torch.Tensor:
    """Run one MoE layer: x [M, H] -> [M, H] of x's dtype. Arguments and errors: see `CpuExperts`."""
    layer = CpuExperts(
        w13_weight,
        w13_scale,
        w13_bias,
        w2_weight,
        w2_scale,
        w2_bias,
        experts=experts,
        hidden=x.shape[1],
        intermediate=intermediate,
        activation=Activation(cast("ActivationKind", activation), limit, alpha, beta, linear_beta),
        weight_before_w2=weight_before_w2,
        precision=cast("Precision", precision),
        expert_map=expert_map,
    )
    result = layer.forward(x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous())
    return cast("torch.Tensor", result)


@cpu_moe.register_fake
def _(x: torch.Tensor, topk_ids: torch.Tensor, *_: object) -> torch.Tensor:
    """Shape and dtype of the result; the checks that need no data."""
    if x.dim() != 2 or topk_ids.dim() != 2:
        raise KernelError(
            "kernel.shape",
            "x or topk_ids has the wrong number of dimensions",
            found=f"x {list(x.shape)}, topk_ids {list(topk_ids.shape)}",
            needed="[M, H] and [M, k]",
            next_step="flatten batch and sequence into M",
        )
    return torch.empty_like(x, memory_format=torch.contiguous_format)
