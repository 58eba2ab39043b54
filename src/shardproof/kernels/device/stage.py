"""Stage: the buffers through which bytes go up, in turns.

Of each buffer there is a pinned one on the host and one on the device. While the CPU fills some, the one before is
copied up and the one before that is permuted: copies and permutations have a stream each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

BUFFERS = 4


class Permuter(Protocol):
    """What brings staged bytes into a kernel's order (`permute.py`)."""

    def run(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """Write `out` from `source`, on the current stream."""


@dataclass(frozen=True)
class Piece:
    """One piece of work: `size` staged bytes, permuted into `target`."""

    permuter: Permuter
    size: int
    target: torch.Tensor


class Stage:
    """Buffers for pieces of work on one device, as the `Parts` of a native run. On the CPU both sides are one."""

    def __init__(self, device: str, pieces: Sequence[Piece]) -> None:
        import torch

        self._device, self._pieces = device, pieces
        self._cuda = torch.device(device).type == "cuda"
        room, count = max(p.size for p in pieces), min(BUFFERS, len(pieces))
        self._host = [torch.empty(room, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(count)]
        self._there = self._host
        self._free: list[Any] = [None] * len(pieces)
        self._streams: list[Any] = []
        if self._cuda:
            self._there = [torch.empty(room, dtype=torch.uint8, device=device) for _ in range(count)]
            self._streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
            for stream in self._streams:  # the caller's work on its tensors, and on memory that torch hands on
                stream.wait_stream(torch.cuda.current_stream(device))

    def address(self, part: int) -> int:
        """Where the staged bytes of a piece go on the host."""
        return int(self._host[part % len(self._host)].data_ptr())

    def has_room(self, part: int) -> bool:
        """Whether the GPU no longer needs the buffers of a piece."""
        before = part - len(self._host)
        if before < 0:
            return True
        if self._cuda:
            return self._free[before] is not None and bool(self._free[before].query())
        return self._free[before] is not None

    def take(self, part: int) -> None:
        """Copy a piece up and permute it."""
        import torch

        piece, turn = self._pieces[part], part % len(self._host)
        host, there = self._host[turn][: piece.size], self._there[turn][: piece.size]
        if not self._cuda:
            piece.permuter.run(there, piece.target)
            self._free[part] = True
            return
        copying, permuting = self._streams
        with torch.cuda.stream(copying):
            there.copy_(host, non_blocking=True)
        permuting.wait_stream(copying)
        with torch.cuda.stream(permuting):
            piece.permuter.run(there, piece.target)
            self._free[part] = permuting.record_event()

    def finish(self) -> None:
        """Wait for all that was started; the caller's stream goes on after it."""
        for stream in self._streams:
            stream.synchronize()
