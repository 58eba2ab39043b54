"""Tensor- and expert-parallel forward on torch.distributed: one rank a process, one float32 all-reduce a layer."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from shardproof.arguments import expect
from shardproof.errors import KernelError
from shardproof.moe import A_LAYER, PreparedLayer
from shardproof.packed import PackedExperts, PackedLayer, load


def load_rank(folder: str | Path, group: dist.ProcessGroup | None = None) -> PackedExperts:
    """Map this process's rank of a packed folder (TP rank fastest, then EP, as process ranks count).

    Raises PackedError for a folder that does not hold it, KernelError `kernel.group` where there is no process
    group, or one of another size.
    """
    packed = load(folder, _place(group)[0])
    _check_group(packed.rank.index, packed.rank.world, group)
    return packed


class DistributedLayer:
    """One MoE layer over a process group: every process holds one rank and sees all tokens.

    Each process computes its partial sum in float32; one all-reduce adds them, in float32 also for 16-bit inputs, and
    the result is rounded once. The bias of w2 stands on the first tensor-parallel rank only, so it is counted once;
    an expert that stands on several ranks is served by one of them for each token (`moe.served_ids`).

    Raises KernelError `kernel.group` unless the process group is the plan's; `implementation`, `device` and `keep`
    are those of `moe.PreparedLayer`. With NCCL give a CUDA device; gloo runs on the CPU.
    """

    def __init__(
        self, layer: PackedLayer, group: dist.ProcessGroup | None = None, *, implementation: str | None = None,
        device: torch.device | str = "cpu", keep: bool = False,
    ) -> None:  # fmt: skip
        expect("layer", layer, PackedLayer, A_LAYER)
        _check_group(layer.rank.index, layer.rank.world, group)
        self.group = group
        self.local = PreparedLayer(layer, implementation=implementation, device=device, keep=keep)

    @property
    def layer(self) -> PackedLayer:
        """This process's packed layer."""
        return self.local.layer

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """The whole layer's result, [M, H] in x's dtype, the same on all ranks; inputs as in `moe.moe`."""
        total = self.local.partial(x, topk_ids, topk_weights).contiguous()
        if total.numel():
            dist.all_reduce(total, group=self.group)
        return total.to(x.dtype)


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        raise KernelError(
            "kernel.group", "there is no process group", found="torch.distributed was not initialised",
            needed="one process a rank", next_step="start with torchrun and call torch.distributed.init_process_group, "
            "or give all ranks to moe in this process",
        )  # fmt: skip
    return dist.get_rank(group), dist.get_world_size(group)


def _check_group(index: int, world: int, group: dist.ProcessGroup | None) -> None:
    found = _place(group)
    if found != (index, world):
        raise KernelError(
            "kernel.group", "the process group is not the one that the experts were packed for", rank=index,
            found=f"process {found[0]} of {found[1]}", needed=f"process {index} of {world}",
            next_step="start one process a rank; process rank = ep_rank * tp + tp_rank",
        )  # fmt: skip
