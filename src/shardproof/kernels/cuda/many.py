"""Launching the kernel for many tokens: its memory and its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardproof.kernels.cuda import launch, route, workspace

if TYPE_CHECKING:
    from shardproof.kernels.cuda.geometry import Build
    from shardproof.kernels.cuda.layer import HopperExperts


def _args(
    layer: HopperExperts, build: Build, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> launch.Args:
    args = layer.plain_args(build, ids, weights, out)
    slots = ids.numel()
    most_tiles = min(slots, layer.experts + slots // build.nmax)
    rows = 8 * (slots // 8 + min(slots, layer.experts))  # each expert's tokens rounded up to 8
    values = 64 * build.each  # of K in a stage
    hidden = -(-layer.padded_hidden // values) * build.token_bytes  # bytes of a token in a tile
    inter = -(-layer.padded_intermediate // values) * build.token_bytes

    def take(name: str, size: int, dtype: torch.dtype = torch.uint8, *, zero: bool = False) -> int:
        return workspace.buffer(f"many_{name}", size, dtype, layer.device, zero=zero).data_ptr()

    args.x_pitch = 2 * layer.hidden
    args.round_h = int(layer.precision == "w4a8" and not build.fp8)
    remade = build.fp8 or args.round_h
    args.h_pitch = layer.padded_intermediate
    args.xq = take("x", rows * hidden)
    args.h = take("h", rows * (2 * layer.padded_intermediate if remade else inter))
    args.hq = take("hq", rows * inter) if remade else None
    args.y = take("y", 2 * slots * layer.padded_hidden)
    args.sync = take("sync", 4 + 3 * most_tiles, torch.int32, zero=True)
    args.tiles = take("tiles", 4 * most_tiles, torch.int32)
    args.slots = take("slots", slots, torch.int32)
    args.groups = take("groups", rows // 8, torch.int32)
    args.tile_count = take("tile_count", 2, torch.int32)
    return args


def _route(layer: HopperExperts, build: Build, args: launch.Args, x: torch.Tensor, stream: int) -> None:
    """Sorts the slots and rounds x; then `args` names the rows of x that go into token tiles."""

    def take(name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        return workspace.buffer(f"many_{name}", size, dtype, layer.device)

    tiles, rounded = args.xq, None
    if build.fp8:
        args.x_pitch = -(-layer.hidden // 128) * 128
        args.xq = take("codes", x.shape[0] * args.x_pitch, torch.uint8).data_ptr()
        args.xs = take("scales", x.shape[0] * args.x_pitch // 128, torch.float32).data_ptr()
    elif args.round_h:
        rounded = take("rounded", x.numel(), torch.bfloat16)
    route.run(layer, build, args, x, rounded, stream)
    args.x = args.xq if build.fp8 else (x if rounded is None else rounded).data_ptr()
    args.xq = tiles


def run(
    layer: HopperExperts, build: Build, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> None:
    """Launches the layer with a geometry of csrc/many.cu into `out` [M, H]."""
    device, stream = layer.device.index or 0, torch.cuda.current_stream(layer.device).cuda_stream
    args = _args(layer, build, ids, weights, out)
    _route(layer, build, args, x, stream)
    kernel = launch.function("many.cu", build, device)
    grid = layer.processors // build.cluster * build.cluster
    params = (args, layer.boxes(build))
    launch.launch(kernel, grid, build.threads, build.shared_bytes, stream, True, *params, cluster=build.cluster)
