"""The Triton kernels as implementations of `moe`: canonical bytes on any GPU that Triton compiles for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from shardproof.kernels.implementation import Implementation, Runner, refuse_layouts

if TYPE_CHECKING:
    import torch

    from shardproof.experts import Field, Stack
    from shardproof.packed import PackedLayer

LAYOUTS: dict[tuple[Stack, Field], tuple[str, ...]] = {
    ("w13", "weight"): ("raw.weight@1",),
    ("w13", "scale"): ("raw.scale@1",),
    ("w2", "weight"): ("raw.weight@1",),
    ("w2", "scale"): ("raw.scale@1",),
}


class _Triton(Implementation):
    backend = "shardproof_gpu"
    precision: ClassVar[Literal["w4a16", "w4a8"]]

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other layouts, devices that are no GPU or one before sm80, and an install without Triton."""
        from shardproof.kernels.device.experts import refuse_device
        from shardproof.kernels.triton.device import refuse_arch

        return refuse_layouts(layer, LAYOUTS) or refuse_device(device, ["triton"]) or refuse_arch(device)

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Copy the packed bytes to the device as they are."""
        from shardproof.kernels.device.experts import bias, expert_map, runner, tensor
        from shardproof.kernels.triton.layer import TritonExperts

        e, h, i = len(layer.experts), layer.shape.hidden, layer.shape.intermediate
        experts = TritonExperts(
            tensor(layer, "w13", device).view(e, 2 * i, h // 2),
            tensor(layer, "w13", device, scale=True).view(e, 2 * i, h // 32),
            tensor(layer, "w2", device).view(e, h, i // 2),
            tensor(layer, "w2", device, scale=True).view(e, h, i // 32),
            bias(layer, "w13", device), bias(layer, "w2", device),
            experts=e, hidden=h, intermediate=i, activation=layer.spec.activation,
            weight_before_w2=layer.spec.weight_before_w2, precision=self.precision,
            expert_map=expert_map(layer, device),
        )  # fmt: skip
        return runner(layer, experts)


class TritonW4A16(_Triton):
    """bfloat16 activations."""

    name = "shardproof_triton"
    summary = "own Triton kernels, canonical bytes, bfloat16 activations"
    priority = 40
    activation_dtype = "bfloat16"
    precision = "w4a16"


class TritonW4A8(_Triton):
    """e4m3 activations with one power-of-two scale for 128 values."""

    name = "shardproof_triton_w4a8"
    summary = "own Triton kernels, canonical bytes, e4m3 activations"
    priority = 41
    activation_dtype = "fp8"
    precision = "w4a8"
