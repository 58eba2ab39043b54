"""Memory the layer works in: a set for each device and stream, grown on demand, shared by its layers."""

from __future__ import annotations

import torch

_POOLS: dict[tuple[int, int], dict[str, torch.Tensor]] = {}


def buffer(name: str, size: int, dtype: torch.dtype, device: torch.device, *, zero: bool = False) -> torch.Tensor:
    """At least `size` elements for the current stream; the contents last until its next layer call.

    Under graph capture a first or larger use allocates in the graph's own pool: capture after an eager call.
    """
    stream = torch.cuda.current_stream(device).cuda_stream
    pool = _POOLS.setdefault((device.index or 0, stream), {})
    held = pool.get(name)
    if held is None or held.numel() < size or held.dtype != dtype:
        held = (torch.zeros if zero else torch.empty)(max(size, 1), dtype=dtype, device=device)
        pool[name] = held
    return held


def release() -> None:
    """Forgets every buffer. No layer call or captured graph that used one may run afterwards."""
    _POOLS.clear()
