"""What the GPU implementations of `moe` share: why a device is refused, tensors on it, inputs as kernels take them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from shardproof.errors import KernelError
from shardproof.experts import Field, Stack
from shardproof.kernels import torch_op
from shardproof.kernels.implementation import Runner, local_experts
from shardproof.packed import PackedLayer

GpuLayer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x bf16 [M, H], global ids int32 [M, k], weights float32 [M, k]), all contiguous, to bf16 [M, H]."""


def refuse_device(device: torch.device, packages: Sequence[str]) -> str | None:
    """Why no GPU kernel can run here: no GPU, or a package (by its module's name) that is missing; or None."""
    if device.type != "cuda":
        return f"found device {device}, needed a GPU (cuda)"
    if not torch.cuda.is_available():
        return "found no GPU that torch can use, needed one"
    for name in packages:
        if not is_importable(name):
            return f"found no package {name}, needed one that can be imported"
    return None


def is_importable(name: str) -> bool:
    """Whether a module is there, without importing it (its parents are)."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def tensor(layer: PackedLayer, stack: Stack, device: torch.device, *, scale: bool = False) -> Tensor:
    """A stack's weights or scales on a device, flat uint8 in kernel order."""
    return layer.torch(stack, "scale" if scale else "weight").to(device)


def bias(layer: PackedLayer, stack: Stack, device: torch.device) -> Tensor | None:
    """A stack's biases in canonical order, float32 [E, N] with the padded N, or None."""
    if (stack, "bias") not in layer.tensors:
        return None
    raw = layer.canonical(stack, "bias")
    numbers = np.ascontiguousarray(raw).view(np.float32 if raw.shape[-1] == 4 else ml_dtypes.bfloat16)
    return torch.from_numpy(numbers.astype(np.float32).reshape(raw.shape[:2])).to(device)


def expert_map(layer: PackedLayer, device: torch.device) -> Tensor | None:
    """Global expert id -> local one, int32, on a device; None where every expert is held in order."""
    if layer.experts == tuple(range(layer.spec.experts)):
        return None
    return torch.from_numpy(local_experts(layer)).to(device)


def runner(layer: PackedLayer, experts: GpuLayer) -> Runner:
    """`experts` behind `moe`: x is rounded to bfloat16, ids and weights are converted, the result is bfloat16."""
    handle = torch_op.register(experts)
    if not layer.experts or not layer.valid:
        hidden = layer.spec.hidden
        return lambda x, _ids, _weights: torch.zeros(x.shape[0], hidden, dtype=torch.bfloat16, device=x.device)

    def run(x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        return torch_op.run(
            handle, experts, x.to(torch.bfloat16).contiguous(), topk_ids.int().contiguous(),
            topk_weights.float().contiguous(),
        )  # fmt: skip

    return run


def vendor_tensor(layer: PackedLayer, slot: tuple[Stack, Field], like: Tensor, device: torch.device) -> Tensor:
    """A field's bytes on a device as a vendor's kernel holds them.

    `like` is what the vendor's own code makes of one expert: its shape (expert first), strides and dtype are taken.
    Raises KernelError `kernel.tensor` where the sizes differ.
    """
    held, strides = layer.torch(*slot), like.stride()
    count, size = len(layer.experts), like.numel() * like.element_size()
    order = sorted(range(1, like.ndim), key=lambda axis: -strides[axis])
    if held.numel() != count * size:
        raise KernelError(
            "kernel.tensor", "the packed bytes are not as many as the vendor's own code makes", tensor=".".join(slot),
            layer=layer.key, found=f"{held.numel()} bytes", needed=f"{count} x {size} bytes",
            next_step="pack with the version of the package that is installed: --with PACKAGE=VERSION",
        )  # fmt: skip
    order = [0, *order]
    shape = [count, *(like.shape[axis] for axis in order[1:])]
    back = [order.index(axis) for axis in range(like.ndim)]
    return held.to(device).view(like.dtype).view(shape).permute(back)


def own_bias(layer: PackedLayer, stack: Stack, device: torch.device) -> Tensor | None:
    """A stack's biases in the kernel's own order and dtype, [E, N] with the padded N, or None."""
    if (stack, "bias") not in layer.tensors:
        return None
    dtype = torch.float32 if layer.plan.bias_item == 4 else torch.bfloat16
    return layer.torch(stack, "bias").to(device).view(dtype).view(len(layer.experts), -1)


def padded_tokens(x: Tensor, hidden: int) -> Tensor:
    """Tokens [M, H] with zeros up to `hidden` columns."""
    return x if x.shape[1] == hidden else torch.nn.functional.pad(x, (0, hidden - x.shape[1]))


def refuse_double_weight(layer: PackedLayer) -> str | None:
    """For kernels that weight after w2: where that differs from weighting before it."""
    if layer.spec.bias and layer.spec.weight_before_w2:
        return "found biases and the routing weight before w2, needed one of them at most"
    return None
