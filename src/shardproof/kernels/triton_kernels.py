"""OpenAI's triton_kernels on packed bytes, Hopper's order: generation 3.5.1 (matmul_ogs) and that of 2026 (matmul)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardproof.kernels.implementation import Implementation, Runner, refuse_layouts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.experts import Activation, Field, Stack
    from shardproof.packed import PackedLayer

SCALE = "hopper_scale{}@1(kpad=4,num_warps=8)"
GENERATIONS = {"triton_kernels.matmul_ogs": "@1", "triton_kernels.matmul": "@2"}
"""Which module a generation has, and the version of the value layout that it reads."""


def generation() -> str | None:
    """The module of the installed generation, or None."""
    from shardproof.kernels.device.experts import is_importable

    return next((module for module in GENERATIONS if is_importable(module)), None)


def _layouts(rows: str, version: str) -> dict[tuple[Stack, Field], tuple[str, ...]]:
    return {
        ("w13", "weight"): (f"triton_kernels.hopper_value{rows}{version}",),
        ("w13", "scale"): (f"triton_kernels.{SCALE.format(rows)}",),
        ("w2", "weight"): (f"triton_kernels.hopper_value{version}",),
        ("w2", "scale"): (f"triton_kernels.{SCALE.format('')}",),
    }


class _TritonKernels(Implementation):
    activation_dtype = "bfloat16"
    rows: str

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:
        """Refuses other layouts, devices that are no Hopper GPU, and an install without triton_kernels."""
        from shardproof.kernels.cuda.layer import refuse_arch
        from shardproof.kernels.device.experts import refuse_device, refuse_double_weight

        found = [refuse_layouts(layer, _layouts(self.rows, version)) for version in GENERATIONS.values()]
        reason = found[0] if all(found) else refuse_device(device, ["triton"]) or refuse_arch(device)
        reason = reason or refuse_double_weight(layer)
        if reason:
            return reason
        module = generation()
        if module is None:
            return "found no package triton_kernels, needed 3.5.1 or 1.0.0.post20260510 (read at these)"
        if refusal := refuse_layouts(layer, _layouts(self.rows, GENERATIONS[module])):
            return f"{refusal}, which is what the installed {module} reads"
        return None

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:  # noqa: ARG002
        """Copy the packed bytes to the device as they are."""
        from shardproof.kernels.device.experts import runner

        made = OgsExperts if generation() == "triton_kernels.matmul_ogs" else MatmulExperts
        return runner(layer, made(layer, device, fused=bool(self.rows)))


class TritonKernels(_TritonKernels):
    """The activation fused into the first product; gate and up rows alternate."""

    name = "triton_kernels"
    summary = "OpenAI's triton_kernels, activation fused"
    priority = 62
    backend = "triton"
    rows = "_interleaved"


class TritonKernelsUnfused(_TritonKernels):
    """The activation as a kernel of its own; rows [gate; up]."""

    name = "triton_kernels_unfused"
    summary = "OpenAI's triton_kernels, activation apart"
    priority = 63
    backend = "triton_unfused"
    rows = ""


class _Experts:
    """One packed layer: x bf16 [M, H], ids int32 [M, k], weights float32 [M, k] -> bf16 [M, H]."""

    def __init__(self, layer: PackedLayer, device: torch.device, *, fused: bool) -> None:
        import torch

        from shardproof.kernels.device.experts import expert_map, own_bias

        self.experts, self.hidden, self.width = len(layer.experts), layer.spec.hidden, layer.shape.hidden
        self.inner, self.activation, self.fused = layer.shape.intermediate, layer.spec.activation, fused
        self.map = expert_map(layer, device)
        self.edges = torch.arange(self.experts + 1, dtype=torch.int32, device=device)
        self.biases = (own_bias(layer, "w13", device), own_bias(layer, "w2", device))
        self.weights = (self._weight(layer, "w13", device), self._weight(layer, "w2", device))

    def _weight(self, layer: PackedLayer, stack: Stack, device: torch.device) -> tuple[Any, Any]:
        """The vendor's tensor and precision configuration that hold the packed bytes."""
        import torch
        from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor

        from shardproof.kernels.device.experts import vendor_tensor

        n, k = (2 * self.inner, self.width) if stack == "w13" else (self.width, self.inner)
        blank = torch.zeros(1, n, k // 2, dtype=torch.uint8, device=device).mT
        scales = torch.zeros(1, n, -(-k // 128) * 4, dtype=torch.uint8, device=device).mT
        (value_layout, value_how), (scale_layout, scale_how) = self._vendor_layouts()
        value = convert_layout(wrap_torch_tensor(blank, dtype=FP4), value_layout, **value_how)
        scale = convert_layout(wrap_torch_tensor(scales), scale_layout, **scale_how)
        for made, name in ((value, "weight"), (scale, "scale")):
            made.storage.data = vendor_tensor(layer, (stack, name), made.storage.data, device)  # type: ignore[arg-type]
            made.shape[0] = made.shape_max[0] = self.experts
        return value, self._precision(scale)

    def _vendor_layouts(self) -> tuple[tuple[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
        raise NotImplementedError

    def _precision(self, scale: Any) -> Any:
        raise NotImplementedError

    def _products(self, x: Tensor, order: Tensor, back: Tensor, edges: Tensor, top_k: int) -> Tensor:
        """The second product's rows, sorted by expert: bf16 [slots, H]."""
        raise NotImplementedError

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Slots sorted by expert (those of none go to expert 0 and are not summed), products, the weighted sum."""
        import torch

        from shardproof.kernels.device.experts import padded_tokens
        from shardproof.kernels.triton.grouped import local_ids, sum_routed

        ids = local_ids(topk_ids, self.map)
        flat = ids.reshape(-1)
        keys, order = torch.where(flat < self.experts, flat, 0).sort(stable=True)
        edges = torch.searchsorted(keys, self.edges, out_int32=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        y = self._products(padded_tokens(x, self.width), order.int(), back.int(), edges, ids.shape[1])
        return sum_routed(y, ids, self.experts, self.hidden, weights=topk_weights, at=back)


class OgsExperts(_Experts):
    """Generation 3.5.1, as vLLM 0.33 carries it."""

    def _vendor_layouts(self) -> tuple[tuple[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
        from triton_kernels.matmul_ogs_details.opt_flags import update_opt_flags_constraints
        from triton_kernels.tensor_details import layout

        update_opt_flags_constraints({"split_k": 1})  # as vLLM does on sm90
        return (
            layout.make_default_matmul_mxfp4_w_layout(mx_axis=1),
            layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=8),
        )

    def _precision(self, scale: Any) -> Any:
        from triton_kernels.matmul_ogs import FlexCtx, PrecisionConfig
        from triton_kernels.numerics import InFlexData

        return PrecisionConfig(weight_scale=scale, flex_ctx=FlexCtx(rhs_data=InFlexData()))

    def _products(self, x: Tensor, order: Tensor, back: Tensor, edges: Tensor, top_k: int) -> Tensor:
        from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, matmul_ogs
        from triton_kernels.routing import GatherIndx, RoutingData, compute_expt_data

        from shardproof.kernels.triton.grouped import gated

        slots, counts = order.numel(), edges[1:] - edges[:-1]
        data = compute_expt_data(counts, self.experts, slots)
        routed = RoutingData(None, counts, self.experts, top_k, data)
        (w13, c13), (w2, c2) = self.weights
        first: dict[str, Any] = {
            "gather_indx": GatherIndx(src_indx=order, dst_indx=back),
            "precision_config": c13,
        }
        h = x.new_empty(1, slots, self.inner if self.fused else 2 * self.inner)
        if self.fused:
            name, function, parameters, values = fused_activation(self.activation)
            first["fused_activation"] = FusedActivation(FnSpecs(name, function, parameters), values, 2)
        matmul_ogs(x, w13, self.biases[0], routed, y=h, **first)
        h = h[0] if self.fused else gated(h[0], self.activation)
        y = x.new_empty(1, slots, self.width)
        matmul_ogs(h, w2, self.biases[1], routed, precision_config=c2, y=y)
        return y[0]


class MatmulExperts(_Experts):
    """The generation of 2026 (tokenspeed-triton-kernels 1.0.0.post20260510)."""

    def _vendor_layouts(self) -> tuple[tuple[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
        from triton_kernels.matmul_details.opt_flags import update_opt_flags_constraints
        from triton_kernels.tensor_details import layout

        update_opt_flags_constraints({"split_k": 1})
        return (
            (layout.make_default_matmul_mxfp4_w_layout(mx_axis=-2), {}),
            (layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=-2, num_warps=8), {}),
        )

    def _precision(self, scale: Any) -> Any:
        from triton_kernels.matmul import PrecisionConfig

        return PrecisionConfig(b_mx_scale=scale, b_microblock_size=32)

    def _products(self, x: Tensor, order: Tensor, back: Tensor, edges: Tensor, top_k: int) -> Tensor:  # noqa: ARG002
        from triton_kernels.matmul import FnSpecs, FusedActivation, matmul
        from triton_kernels.tensor import make_ragged_tensor_metadata

        from shardproof.kernels.triton.grouped import gated

        ragged = make_ragged_tensor_metadata(edges[1:] - edges[:-1], order.numel())
        (w13, c13), (w2, c2) = self.weights
        token = (order // top_k).int()
        first: dict[str, Any] = {}
        if self.fused:
            name, function, parameters, values = fused_activation(self.activation)
            first["fused_activation"] = FusedActivation(FnSpecs(name, function, parameters, reduction_n=2), values)
        h = matmul(x, w13, self.biases[0], ragged, None, token, None, c13, **first)
        h = h if self.fused else gated(h, self.activation)
        y: Tensor = matmul(h, w2, self.biases[1], ragged, None, None, None, c2)
        return y


def fused_activation(activation: Activation) -> tuple[str, Any, tuple[str, ...], tuple[float, ...]]:
    """What triton_kernels' FnSpecs takes for an activation: name, function, its parameters, their values."""
    from shardproof.kernels.triton.grouped import alternating

    limit = float("inf") if activation.limit is None else activation.limit
    values = (limit, activation.alpha, activation.beta, activation.linear_beta)
    names = ("limit", "alpha", "beta", "linear_beta")
    return f"shardproof_{activation.kind}", alternating[activation.kind], names, values
