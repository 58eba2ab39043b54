"""Launching what comes before the layer kernel: sorting the slots, and rounding x where activations are rounded."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from shardproof.kernels.cuda import launch

if TYPE_CHECKING:
    import torch

    from shardproof.kernels.cuda.geometry import Build
    from shardproof.kernels.cuda.layer import HopperExperts

ONE_BLOCK = 1024  # slots that one block sorts as fast as a cluster does
CLUSTER = 8  # SORTERS of csrc/route.cuh
ROUNDED_EACH = 8192  # values of x a rounding block takes at least


def run(
    layer: HopperExperts, build: Build, args: launch.Args, x: torch.Tensor, rounded: torch.Tensor | None, stream: int
) -> None:
    """Sorts the slots; x goes to `args.xq` and `args.xs` if the build takes e4m3, or to `rounded` if given."""
    sorters = CLUSTER if args.tokens * args.top_k > ONE_BLOCK else 1
    rounds = build.fp8 or rounded is not None
    rounders = -(-x.numel() // (ROUNDED_EACH * sorters)) if rounds else 0  # in units of `sorters` blocks
    room = max(1, layer.processors // sorters - 1)  # one wave, if the GPU (or its slice) holds more than the sorters
    grid = sorters * (1 + min(rounders, room))
    args.x = x.data_ptr()
    target = ctypes.c_void_p(0 if rounded is None else rounded.data_ptr())
    function = launch.function("route.cu", build, layer.device.index or 0)
    shared = 16 * layer.experts + 384  # sort_slots of csrc/route.cuh
    launch.launch(function, grid, 1024, shared, stream, False, args, target, cluster=sorters)
