"""Stage: the buffers through which bytes go up, in turns.

Of each buffer there is a pinned one on the host and one on the device. While the CPU fills one, the one before is
copied up and the one before that is permuted: copies and permutations have a stream each.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shardproof.mxfp4 import Bytes
from shardproof.pack.native.run import default_threads

if TYPE_CHECKING:
    import torch

_BUFFERS = 4


class Stage:
    """`scratch` bytes pinned on the host and as many on the device, in four buffers, and the threads that fill them.

    A buffer grows where one piece of work is larger than a quarter of `scratch`. On the CPU both sides are one.
    """

    def __init__(self, device: str, scratch: int, threads: int | None) -> None:
        import torch

        self.each, self.threads, self._device = (
            max(1, scratch // _BUFFERS),
            threads or default_threads(),
            device,
        )
        self.pool = ThreadPoolExecutor(self.threads, "shardproof-pack") if self.threads > 1 else None
        self._cuda = torch.device(device).type == "cuda"
        self._streams: list[Any] = []
        if self._cuda:
            self._streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
            for stream in self._streams:
                stream.wait_stream(torch.cuda.current_stream(device))
        self._host: list[torch.Tensor | None] = [None] * _BUFFERS
        self._there: list[torch.Tensor | None] = [None] * _BUFFERS
        self._free: list[Any] = [None] * _BUFFERS
        self._turn = -1

    def next(self, size: int) -> Bytes:
        """A pinned buffer of `size` bytes that the GPU no longer reads."""
        import torch

        self._turn = turn = (self._turn + 1) % _BUFFERS
        if self._free[turn] is not None:
            self._free[turn].synchronize()
        held = self._host[turn]
        if held is None or held.numel() < size:
            room = max(size, self.each if self._cuda else size)
            self._host[turn] = held = torch.empty(room, dtype=torch.uint8, pin_memory=self._cuda)
            self._there[turn] = (
                torch.empty(room, dtype=torch.uint8, device=self._device) if self._cuda else held
            )
            for stream in self._streams:  # memory that torch had for other work
                stream.wait_stream(torch.cuda.current_stream(self._device))
        data: Bytes = held.numpy()[:size]
        return data

    def fill(self, target: torch.Tensor, value: int) -> None:
        """Fill a destination before what is permuted into it."""
        import torch

        if not self._cuda:
            target.fill_(value)
            return
        with torch.cuda.stream(self._streams[1]):
            target.fill_(value)

    def up(self, permuter: Any, size: int, target: torch.Tensor) -> None:
        """Copy the current pinned buffer up and permute it into `target`."""
        import torch

        host, there = self._host[self._turn], self._there[self._turn]
        assert host is not None
        assert there is not None
        if not self._cuda:
            permuter.run(there[:size], target)
            return
        copying, permuting = self._streams
        with torch.cuda.stream(copying):
            there[:size].copy_(host[:size], non_blocking=True)
        permuting.wait_stream(copying)
        with torch.cuda.stream(permuting):
            permuter.run(there[:size], target)
            self._free[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._free[self._turn].record(permuting)

    def finish(self) -> None:
        """Wait for all that was started, and end the threads."""
        import torch

        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)
            stream.synchronize()
        if self.pool is not None:
            self.pool.shutdown()
