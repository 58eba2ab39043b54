"""HopperExperts: one MoE layer on an NVIDIA Hopper GPU, from packed bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from shardproof.errors import KernelError
from shardproof.kernels.cuda import builds, launch, many, route, workspace
from shardproof.kernels.cuda.compile import KINDS
from shardproof.kernels.cuda.pack import Derived, derive, pack_bias, pad_to

if TYPE_CHECKING:
    from shardproof.experts import Activation
    from shardproof.kernels.cuda.geometry import Build

Precision = Literal["w4a16", "w4a8"]


def refuse_arch(device: torch.device) -> str | None:
    """Why the kernels cannot run on this GPU, or None."""
    if torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0):
        return None
    return f"found {torch.cuda.get_device_name(device)}, needed an NVIDIA Hopper GPU (sm90)"


def _padded_bias(bias: torch.Tensor | None, parts: int, size: int) -> torch.Tensor | None:
    if bias is None:
        return None
    b = bias.float().reshape(bias.shape[0], parts, -1)
    b = torch.nn.functional.pad(b, (0, size - b.shape[-1])).reshape(bias.shape[0], parts * size)
    return pack_bias(b, "w13" if parts == 2 else "w2")


class HopperExperts:
    """One MoE layer whose weights are in the order of `shardproof.kernels.cuda.pack`.

    w13_weight, w13_scale: uint8, packed from [E, 2I', H'/2] and [E, 2I', H'/32]; w2_weight, w2_scale: from
    [E, H', I'/2] and [E, H', I'/32]; I' and H' are I and H rounded up to 64 (weights 0, any scale). Biases
    are canonical, [E, 2I]
    ([w1; w3]) and [E, H], or None. `expert_map` [global experts] int32 gives the local expert or -1.
    `w4a8` rounds activations to e4m3 with one power-of-two scale for 128 values, as DeepSeek-V4 does.
    """

    def __init__(
        self,
        w13_weight: torch.Tensor,
        w13_scale: torch.Tensor,
        w2_weight: torch.Tensor,
        w2_scale: torch.Tensor,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
        *,
        experts: int,
        hidden: int,
        intermediate: int,
        activation: Activation,
        weight_before_w2: bool = False,
        precision: Precision = "w4a16",
        expert_map: torch.Tensor | None = None,
    ) -> None:
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.padded_hidden, self.padded_intermediate = pad_to(hidden), pad_to(intermediate)
        self.precision, self.activation, self.weight_before_w2 = precision, activation, weight_before_w2
        self.device = w13_weight.device
        h, i = self.padded_hidden, self.padded_intermediate
        self._check("w13_weight", w13_weight, experts * i * h)
        self._check("w13_scale", w13_scale, experts * i * h // 16)
        self._check("w2_weight", w2_weight, experts * i * h // 2)
        self._check("w2_scale", w2_scale, experts * i * h // 32)
        self.weights = (w13_weight, w2_weight)
        self.derived: tuple[Derived, Derived] = (
            derive(w13_weight, w13_scale, experts, 2 * i, h),
            derive(w2_weight, w2_scale, experts, h, i),
        )
        self.exact8 = self.derived[0].exact8 and self.derived[1].exact8
        self.biases = (_padded_bias(w13_bias, 2, i), _padded_bias(w2_bias, 1, h))
        self._boxes: dict[tuple[int, int], launch.Boxes] = {}
        self.row_scales8 = [d.row_scale * 2.0**-6 for d in self.derived]
        self.expert_map = None if expert_map is None else expert_map.to(self.device, torch.int32).contiguous()
        properties = torch.cuda.get_device_properties(self.device)
        self.processors, self.device_name = properties.multi_processor_count, properties.name

    def _check(self, name: str, t: torch.Tensor, size: int) -> None:
        if t.dtype != torch.uint8 or not t.is_contiguous() or t.numel() != size or not t.is_cuda:
            raise KernelError(
                "kernel.tensor",
                "a packed tensor is not what the Hopper kernel reads",
                tensor=name,
                found=f"{t.dtype} {tuple(t.shape)} on {t.device}, contiguous: {t.is_contiguous()}",
                needed=f"{size} contiguous uint8 on a CUDA device",
                next_step="pack for the backend shardproof_gpu, which pads hidden and intermediate to 64",
            )
        if reason := refuse_arch(t.device):
            raise KernelError(
                "kernel.device",
                f"the GPU cannot run the Hopper kernel: {reason}",
                tensor=name,
                next_step="pack for another backend: `shardproof explain` says which ones this GPU runs",
            )

    def _check_call(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        wanted = (
            ("x", x, torch.bfloat16, (ids.shape[0], self.hidden)),
            ("topk_ids", ids, torch.int32, tuple(ids.shape[:2])),
            ("topk_weights", weights, torch.float32, tuple(ids.shape)),
        )
        for name, t, dtype, shape in wanted:
            if t.dtype != dtype or tuple(t.shape) != shape or t.device != self.device or not t.is_contiguous():
                raise KernelError(
                    "kernel.tensor",
                    "an argument of the layer call is not what the kernel reads",
                    tensor=name,
                    found=f"{t.dtype} {tuple(t.shape)} on {t.device}, contiguous: {t.is_contiguous()}",
                    needed=f"contiguous {dtype} {shape} on {self.device}",
                    next_step=f"convert it: {name}.to({str(self.device)!r}, {dtype}).contiguous()",
                )

    def build_for(self, tokens: int, top_k: int) -> Build:
        """The geometry that serves this batch."""
        reachable = self.experts if self.expert_map is None else self.expert_map.numel()
        exact = self.precision == "w4a8" and self.exact8
        precision = "w4a8 exact" if exact else self.precision
        shape = builds.shape_class(self.experts, self.intermediate)
        return builds.choose(tokens * top_k / reachable, precision, self.device_name, shape)

    def __call__(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """Runs the layer: x bf16 [M, H], topk_ids int32 [M, k], topk_weights float32 [M, k] -> bf16 [M, H].

        Ids are global, -1 for none. Raises KernelError "kernel.tensor" for a wrong dtype, shape or device.
        """
        self._check_call(x, topk_ids, topk_weights)
        out = torch.empty_like(x)
        if x.shape[0]:
            self.run(self.build_for(*topk_ids.shape), x, topk_ids, topk_weights, out)
        return out

    def run(self, build: Build, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Launches the layer with one geometry into `out` [M, H]."""
        device = self.device.index or 0
        stream = torch.cuda.current_stream(self.device).cuda_stream
        build = replace(build, activation=KINDS[self.activation.kind])
        if build.many:
            many.run(self, build, x, ids, weights, out)
            return
        args, rounded = self._args(build, x, ids, weights, out)
        if not args.small_route:
            route.run(self, build, args, x, rounded, stream)
            args.x = x.data_ptr() if rounded is None else rounded.data_ptr()
        layer = launch.function("moe.cu", build, device)
        params = (args, self.boxes(build)) if build.boxes else (args,)
        launch.launch(layer, self.processors, build.threads, build.shared_bytes, stream, not args.small_route, *params)

    def _chunks(self, which: int) -> tuple[int, int]:
        """64-row groups and 64-value chunks of K of w13 (0) or w2 (1)."""
        h, i = self.padded_hidden // 64, self.padded_intermediate // 64
        return ((2 * i, h), (h, i))[which]

    def boxes(self, build: Build) -> launch.Boxes:
        """Tensor maps of the codes and multipliers, a box of which is a stage of a tile; made once."""
        key = (build.chunks, build.row64)
        if key not in self._boxes:
            made = launch.Boxes()
            for which in (0, 1):
                row64s, chunks = self._chunks(which)
                sizes, box = (self.experts, row64s, chunks), (build.row64, build.chunks)
                whole = -(-chunks // build.chunks) * build.chunks
                codes, scales = self.weights[which], self.derived[which].multiplier
                made.weight[which] = launch.tensor_map(codes.data_ptr(), 2048, sizes, chunks, box)
                made.scale[which] = launch.tensor_map(scales.data_ptr(), 128, sizes, whole, box)
            self._boxes[key] = made
        return self._boxes[key]

    def _gemm(self, which: int, build: Build) -> launch.GemmArgs:
        row64s, chunks = self._chunks(which)
        d, bias = self.derived[which], self.biases[which]
        factors = self.row_scales8[which] if build.fp8 and not build.direct else d.row_scale
        return launch.GemmArgs(
            weight=self.weights[which].data_ptr(),
            scale=d.multiplier.data_ptr(),
            row_scale=factors.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            row64s=row64s,
            chunks=chunks,
            row_tiles=-(-row64s // (build.row64 * build.cluster)) * build.cluster,
        )

    def plain_args(self, build: Build, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> launch.Args:
        """The parameters of a launch that need no working memory."""
        m, k = ids.shape
        args = launch.Args(tokens=m, top_k=k, experts=self.experts, hidden=self.hidden, intermediate=self.intermediate)
        args.gemm[0], args.gemm[1] = self._gemm(0, build), self._gemm(1, build)
        args.map_size = self.experts if self.expert_map is None else self.expert_map.numel()
        args.expert_map = None if self.expert_map is None else self.expert_map.data_ptr()
        args.y_pitch = self.padded_hidden
        args.weight_first = int(self.weight_before_w2)
        act = self.activation
        args.limit = float("inf") if act.limit is None else act.limit
        args.alpha, args.beta, args.linear_beta = act.alpha, act.beta, act.linear_beta
        args.powers[:] = (4096, 256, 64, 16, 4, 8)
        args.exponent_one = 1 << 23
        args.ids, args.weights, args.out = ids.data_ptr(), weights.data_ptr(), out.data_ptr()
        return args

    def _args(
        self, build: Build, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
    ) -> tuple[launch.Args, torch.Tensor | None]:
        (m, k), dev = ids.shape, self.device
        slots = m * k
        a8 = self.precision == "w4a8"
        h_pitch = -(-self.intermediate // 128) * 128 if build.fp8 else self.padded_intermediate
        x_pitch = -(-self.hidden // 128) * 128 if build.fp8 else self.hidden
        args = self.plain_args(build, ids, weights, out)
        args.x_pitch, args.h_pitch = x_pitch, h_pitch
        rounds_before = a8 and build.kw == 1
        args.round_x = int(a8 and not rounds_before)
        args.small_route = int(slots <= build.small_slots and self.experts <= 1024 and not rounds_before)
        args.round_h = int(rounds_before and not build.fp8)

        def take(name: str, size: int, dtype: torch.dtype, *, zero: bool = False) -> torch.Tensor:
            return workspace.buffer(name, size, dtype, dev, zero=zero)

        rounded = take("rounded", x.numel(), torch.bfloat16) if args.round_h else None
        args.x = x.data_ptr()
        args.h = take("h", slots * h_pitch, torch.bfloat16).data_ptr()
        args.y = take("y", slots * self.padded_hidden * (2 if build.kw > 1 else 1), torch.bfloat16).data_ptr()
        args.sync = take("sync", 4 + slots, torch.int32, zero=True).data_ptr()
        args.tiles = take("tiles", 4 * slots, torch.int32).data_ptr()
        args.slots = take("slots", slots, torch.int32).data_ptr()
        args.tile_count = take("tile_count", 2, torch.int32).data_ptr()
        if build.fp8:
            args.xq = take("xq", m * x_pitch, torch.uint8).data_ptr()
            args.xs = take("xs", m * x_pitch // 128, torch.float32).data_ptr()
            args.hs = take("hs", slots * h_pitch // 128, torch.float32).data_ptr()
        return args, rounded
