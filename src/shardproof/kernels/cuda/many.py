"""Launching the kernel for many tokens: its memory and its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardproof.kernels.cuda import launch, workspace

if TYPE_CHECKING:
    from shardproof.kernels.cuda.compile import Build
    from shardproof.kernels.cuda.layer import HopperExperts


def _args(
    layer: HopperExperts, build: Build, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> launch.Args:
    args = layer.plain_args(build, ids, weights, out)
    slots = ids.numel()
    most_tiles = min(slots, layer.experts + slots // build.nmax)
    rows = 8 * (slots // 8 + min(slots, layer.experts))  # each expert's tokens rounded up to 8
    atom = 128 if build.fp8 else 64
    hidden = -(-layer.padded_hidden // atom) * 128  # bytes of a row of a token tile
    inter = -(-layer.padded_intermediate // atom) * 128

    def take(name: str, size: int, dtype: torch.dtype = torch.uint8, *, zero: bool = False) -> int:
        return workspace.buffer(f"many_{name}", size, dtype, layer.device, zero=zero).data_ptr()

    args.x = x.data_ptr()
    args.round_h = int(layer.precision == "w4a8" and not build.fp8)
    remade = build.fp8 or args.round_h
    args.h_pitch = layer.padded_intermediate
    args.xq = take("x", rows * hidden)
    args.h = take("h", rows * 2 * layer.padded_intermediate)
    args.hq = take("hq", rows * inter) if remade else None
    if build.fp8:
        args.xs, args.hs = take("xs", rows * hidden // 32), take("hs", rows * inter // 32)
    args.y = take("y", 2 * slots * layer.padded_hidden)
    args.sync = take("sync", 4 + 3 * most_tiles, torch.int32, zero=True)
    args.tiles = take("tiles", 4 * most_tiles, torch.int32)
    args.slots = take("slots", slots, torch.int32)
    args.groups = take("groups", rows // 8, torch.int32)
    args.tile_count = take("tile_count", 2, torch.int32)
    args.ahead = 2 * layer.processors
    return args


def run(
    layer: HopperExperts, build: Build, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> None:
    """Launches the layer with a geometry of csrc/many.cu into `out` [M, H]."""
    device, stream = layer.device.index or 0, torch.cuda.current_stream(layer.device).cuda_stream
    args = _args(layer, build, x, ids, weights, out)
    route = launch.function("many_route.cu", build, device)
    launch.launch(route, 1, 1024, 8 * layer.experts, stream, False, args)
    kernel = launch.function("many.cu", build, device)
    launch.launch(kernel, layer.processors, build.threads, build.shared_bytes, stream, True, args)
