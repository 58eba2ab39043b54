"""The CPU kernels as an implementation of `moe`: packed bytes are used where they are mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from shardproof.errors import KernelError
from shardproof.experts import Field, Stack
from shardproof.kernels.implementation import Implementation, Runner, local_experts, refuse_layouts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.kernels.cpu.layer import Precision
    from shardproof.mxfp4 import Bytes
    from shardproof.packed import PackedLayer

LAYOUTS: dict[tuple[Stack, Field], tuple[str, ...]] = {
    ("w13", "weight"): ("shardproof.cpu_w13@1",),
    ("w13", "scale"): ("shardproof.cpu_w13_scale@1",),
    ("w2", "weight"): ("shardproof.cpu_w2@1",),
    ("w2", "scale"): ("shardproof.cpu_w2_scale@1",),
}

_READ = ("torch.float32", "torch.bfloat16", "torch.float16")
"""Dtypes that the kernels read themselves; the sum is float32 in any case."""


class _CpuKernels(Implementation):
    backend = "shardproof_cpu"
    precision: Precision

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other devices, other layouts, and an install without the compiled kernels."""
        from shardproof.kernels.cpu.library import library

        if device.type != "cpu":
            return f"found device {device}, needed cpu"
        if reason := refuse_layouts(layer, LAYOUTS):
            return reason
        try:
            library()
        except KernelError as missing:
            return f"found {missing.what}"
        return None

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Point the kernels at the packed bytes; nothing is copied."""
        from shardproof.kernels.cpu.layer import CpuExperts

        held = layer.tensors
        experts = CpuExperts(
            held["w13", "weight"], held["w13", "scale"], _bias(layer, "w13"), held["w2", "weight"],
            held["w2", "scale"], _bias(layer, "w2"), experts=len(layer.experts), hidden=layer.shape.hidden,
            intermediate=layer.shape.intermediate, activation=layer.spec.activation,
            weight_before_w2=layer.spec.weight_before_w2, precision=self.precision, expert_map=local_experts(layer),
        )  # fmt: skip

        def run(x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
            x = (x if str(x.dtype) in _READ else x.float()).contiguous()
            weights = topk_weights.float().contiguous()
            out = weights.new_empty(x.shape)
            return cast("Tensor", experts.forward(x, topk_ids.contiguous(), weights, out))

        return run


def _bias(layer: PackedLayer, stack: Stack) -> Bytes | None:
    raw = layer.tensors.get((stack, "bias"))
    return None if raw is None else raw.view(np.float32)


class CpuInt8(_CpuKernels):
    """int8 activations with one scale per 32: fastest."""

    name = "shardproof_cpu"
    summary = "own C kernels, int8 activations"
    priority = 20
    activation_dtype = "int8"
    precision = "int8"


class CpuInt16(_CpuKernels):
    """int16 activations with one scale per 32: about bfloat16's quality."""

    name = "shardproof_cpu_int16"
    summary = "own C kernels, int16 activations"
    priority = 21
    activation_dtype = "int16"
    precision = "int16"


class CpuFloat32(_CpuKernels):
    """float32 activations: the reference's twin."""

    name = "shardproof_cpu_float32"
    summary = "own C kernels, float32 activations"
    priority = 22
    activation_dtype = "float32"
    precision = "float32"
