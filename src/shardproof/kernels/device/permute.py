"""Permute: staged canonical bytes into a kernel's order on a device, by whatever can run there.

On an NVIDIA GPU with cuda-bindings and NVRTC a kernel of `source.py` is built for the layout (once for a shape, kept on
disk). Index arrays (`gather.py`) do it elsewhere: without those packages by Triton, on other devices by torch.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

from shardproof.kernels.cuda.compile import compiled
from shardproof.kernels.cuda.launch import launch, loaded
from shardproof.kernels.device.gather import DeviceGather, device_gather
from shardproof.kernels.device.source import NAME, Kernel, gpu_text, kernel_of
from shardproof.kernels.device.staged import power_of_two
from shardproof.kernels.device.tiles import Tiling, tiling_of
from shardproof.layouts import Placed

if TYPE_CHECKING:
    import torch


class DeviceTiles:
    """The kernel of one placed layout, for destinations of any alignment; every byte is written, holes included."""

    writes_holes = True

    def __init__(self, tiling: Tiling) -> None:
        self._tiling = tiling
        self._kernels: dict[int, tuple[Kernel, str]] = {}

    def kernel(self, alignment: int) -> tuple[Kernel, str]:
        """The kernel and its text for destinations that begin at a multiple of `alignment` bytes."""
        if alignment not in self._kernels:
            made = kernel_of(self._tiling, alignment)
            self._kernels[alignment] = made, gpu_text(made)
        return self._kernels[alignment]

    def run(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """Write `out` from staged bytes `source` (both uint8, contiguous, on one GPU) on the current stream."""
        import torch

        if source.data_ptr() % 16:
            source = source.clone()
        made, text = self.kernel(power_of_two(out.data_ptr()))
        with torch.cuda.device(out.device):
            function = _function(text, out.device.index or 0)
            stream = torch.cuda.current_stream().cuda_stream
            pointers = (ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(out.data_ptr()))
            launch(function, made.blocks, made.threads, 0, stream, False, *pointers)


@functools.lru_cache(maxsize=512)
def _function(text: str, device: int) -> Any:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return loaded(machine_code(text, f"sm_{major}{minor}"), NAME)


def machine_code(text: str, arch: str) -> bytes:
    """The cubin of a kernel's text, from the cache or from NVRTC."""
    return compiled("permute", text, [f"-arch={arch}", "-std=c++17"])


@functools.cache
def can_build() -> bool:
    """Whether cuda-bindings and NVRTC are here, and torch is one for NVIDIA GPUs."""
    import torch

    if torch.version.hip is not None:
        return False
    try:
        from cuda.bindings import nvrtc

        return int(nvrtc.nvrtcVersion()[0]) == 0
    except (ImportError, RuntimeError):  # no package, or no library behind it
        return False


@functools.lru_cache(maxsize=128)
def device_permuter(placed: Placed, device: str) -> DeviceTiles | DeviceGather | None:
    """What permutes a placed layout on a device; None where neither way can. Kept for the layers of the same shape."""
    if device.startswith("cuda") and can_build():
        tiling = tiling_of(placed)
        if tiling is not None:
            return DeviceTiles(tiling)
    return device_gather(placed, device)
