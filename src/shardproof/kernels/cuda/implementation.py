"""The Hopper kernels as implementations of `moe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from shardproof.kernels.implementation import Implementation, Runner, refuse_layouts

if TYPE_CHECKING:
    import torch

    from shardproof.experts import Field, Stack
    from shardproof.kernels.cuda.layer import HopperExperts, Precision
    from shardproof.packed import PackedLayer

LAYOUTS: dict[tuple[Stack, Field], tuple[str, ...]] = {
    ("w13", "weight"): ("shardproof.hopper_w13@1",),
    ("w13", "scale"): ("shardproof.hopper_w13_scale@1",),
    ("w2", "weight"): ("shardproof.hopper_w2@1",),
    ("w2", "scale"): ("shardproof.hopper_w2_scale@1",),
}


class _Hopper(Implementation):
    backend = "shardproof_gpu"
    precision: ClassVar[Precision]

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other layouts, devices that are no Hopper GPU, and an install without cuda-bindings."""
        from shardproof.kernels.cuda.layer import refuse_arch
        from shardproof.kernels.device.experts import refuse_device

        return refuse_layouts(layer, LAYOUTS) or refuse_device(device, ["cuda.bindings.nvrtc"]) or refuse_arch(device)

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Copy the packed bytes to the device as they are; what is derived beside them is made there."""
        from shardproof.kernels.device.experts import runner

        return runner(layer, self.experts(layer, device))

    def experts(self, layer: PackedLayer, device: torch.device) -> HopperExperts:
        """The layer itself, whose geometries can be chosen by hand."""
        from shardproof.kernels.cuda.layer import HopperExperts
        from shardproof.kernels.device.experts import bias, expert_map, tensor

        return HopperExperts(
            tensor(layer, "w13", device), tensor(layer, "w13", device, scale=True), tensor(layer, "w2", device),
            tensor(layer, "w2", device, scale=True), bias(layer, "w13", device), _hidden_bias(layer, device),
            experts=len(layer.experts), hidden=layer.spec.hidden, intermediate=layer.shape.intermediate,
            activation=layer.spec.activation, weight_before_w2=layer.spec.weight_before_w2, precision=self.precision,
            expert_map=expert_map(layer, device),
        )  # fmt: skip


def layer_of(name: str, layer: PackedLayer, device: torch.device) -> HopperExperts:
    """The layer as the Hopper implementation of that name runs it."""
    kinds = {kind.name: kind for kind in (HopperW4A16, HopperW4A8)}
    return kinds[name]().experts(layer, device)


def _hidden_bias(layer: PackedLayer, device: torch.device) -> torch.Tensor | None:
    from shardproof.kernels.device.experts import bias

    found = bias(layer, "w2", device)
    return None if found is None else found[:, : layer.spec.hidden]


class HopperW4A16(_Hopper):
    """bfloat16 activations."""

    name = "shardproof_hopper"
    summary = "own CUDA kernels for Hopper, bfloat16 activations"
    priority = 30
    activation_dtype = "bfloat16"
    precision = "w4a16"


class HopperW4A8(_Hopper):
    """e4m3 activations with one power-of-two scale for 128 values."""

    name = "shardproof_hopper_w4a8"
    summary = "own CUDA kernels for Hopper, e4m3 activations"
    priority = 31
    activation_dtype = "fp8"
    precision = "w4a8"
