"""Memory the layer works in: one set a device and stream, grown on demand, shared by all layers of that stream."""

from __future__ import annotations

import torch

_POOLS: dict[tuple[int, int], dict[str, torch.Tensor]] = {}


def buffer(name: str, size: int, dtype: torch.dtype, device: torch.device, *, zero: bool = False) -> torch.Tensor:
    """At least `size` elements on the current stream; its contents last until the next layer call on that stream.

    Under graph capture a first or larger use allocates in the graph's own pool, so capture after one eager call.
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
