"""Running jobs on threads of the engine's own, which share the jobs among themselves.

They start at once: a Python thread is waited for until it runs, and the second one could start milliseconds later.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardproof.digest import Digest, column_keys
from shardproof.pack.native.keys import scale_key_bytes, tile_keys
from shardproof.pack.native.library import has_tiles, library
from shardproof.pack.native.library import isa as best_isa
from shardproof.pack.native.structs import AVX512, BatchStruct

Records = npt.NDArray[np.void]

_guard = threading.Lock()
_guarded = 0
SCALE_IS_NAN, VALUE_TOO_HIGH, BUS_ERROR = 1, 2, 3


_in_use: dict[int, object] = {}
"""What threads of a batch read and write: no memory goes before they have ended, whatever interrupts a wait."""
_POLL = 2e-5
_PATIENCE = 50  # ms until a waiting thread looks for Ctrl-C


class Parts(Protocol):
    """Who takes what jobs write, part by part; called from the thread that runs the batch."""

    def has_room(self, part: int) -> bool:
        """Whether the destination of a part is free; asked in order, once more after a "no"."""

    def take(self, part: int) -> None:
        """All jobs of a part are done; in order."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What stopped a run: `kind` of engine.h, the job, the checkpoint row, the address for a bus error."""

    kind: int
    job: int
    row: int
    address: int


@dataclass(frozen=True, slots=True)
class Run:
    """What came out: one digest a total, and a fault where there was one."""

    totals: tuple[Digest, ...]
    fault: Fault | None


def default_threads() -> int:
    """Threads to use: OMP_NUM_THREADS where set, else the cores this process may use (affinity and cgroup quota)."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    return max(1, min(len(os.sched_getaffinity(0)), _quota()))


def _quota() -> int:
    try:
        with open("/sys/fs/cgroup/cpu.max", "rb", buffering=0) as stream:  # noqa: PTH123 - read for every layer
            quota, period = stream.read().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return os.cpu_count() or 1


def run(
    jobs: Records, *, totals: int, columns: int, scratch: tuple[int, int], threads: int | None = None,
    isa: int | None = None, keep: Sequence[Any] = (), parts: Parts | None = None,
    meanwhile: Callable[[], None] | None = None, fresh: bool = False,
) -> Run:  # fmt: skip
    """Run jobs (records of `JOB`) to the end.

    columns   widest checkpoint row in scale bytes, for the digest's keys
    scratch   rows of the largest group, bytes a staged row
    isa       what the programs were compiled for; the fastest of this machine by default
    keep      whatever the jobs' addresses point into
    parts     who takes the destinations of jobs as they are done (the record's `part` counts from 0, in order)
    meanwhile what the calling thread does while the others run, without `parts`
    fresh     whether jobs write pages that nobody has touched yet
    """
    engine = library()
    assert engine is not None
    left = np.bincount(jobs["part"]).astype(np.int64)
    count = max(1, min(threads or default_threads(), len(jobs)))
    weight_keys, scale_keys = column_keys(columns)
    sums = np.zeros((totals, 2), dtype=np.uint64)
    scale_bytes, scale_before = scale_key_bytes(columns)
    used = best_isa() if isa is None else isa
    tiles = tile_keys(columns) if used == AVX512 and has_tiles() else None
    batch = BatchStruct(
        jobs.ctypes.data, len(jobs), 0, 0, sums.ctypes.data, weight_keys.ctypes.data, scale_keys.ctypes.data,
        scale_bytes.ctypes.data, scale_before.ctypes.data, weight_keys.shape[1], used,
        0, 0, 0, 0, 0 if parts else len(jobs), left.ctypes.data if parts else None, 0,
        int(fresh), None if tiles is None else tiles.ctypes.data,
    )  # fmt: skip
    rows, pitch = scratch
    buffers = [np.empty(rows * (8 + pitch) + 64, dtype=np.uint8) for _ in range(count)]
    with _Guard(engine):
        at_hand = meanwhile if parts is None else lambda: _take(batch, left, parts)
        kept = (batch, jobs, left, sums, weight_keys, scale_keys, scale_bytes, scale_before, buffers, keep, parts)
        _on_threads(engine, batch, [_aligned(b) for b in buffers], rows, at_hand, kept)
    fault = Fault(batch.fault, batch.fault_job, batch.fault_row, batch.fault_at) if batch.fault else None
    return Run(tuple(Digest(int(low), int(high)) for low, high in sums), fault)


def _aligned(buffer: npt.NDArray[np.uint8]) -> int:
    return int(-(-buffer.ctypes.data // 64) * 64)


def _on_threads(
    engine: ctypes.CDLL, batch: BatchStruct, scratch: list[int], rows: int, meanwhile: Callable[[], None] | None,
    kept: object,
) -> None:  # fmt: skip
    """Start the threads and wait. What interrupts the wait (Ctrl-C, twice too) stops the batch before it goes on."""
    address, at = ctypes.addressof(batch), (ctypes.c_void_p * len(scratch))(*scratch)
    _in_use[address] = kept
    try:
        engine.sp_start(address, at, len(scratch), rows)
        if meanwhile is not None:
            meanwhile()
        while not engine.sp_wait(address, _PATIENCE):
            pass
    finally:
        try:
            batch.stop = 1  # when all have ended it stops nobody
            engine.sp_wait(address, -1)
        finally:  # a second Ctrl-C came before that wait began
            batch.stop = 1
            if engine.sp_wait(address, -1):
                del _in_use[address]


def _take(batch: BatchStruct, left: npt.NDArray[np.int64], parts: Parts) -> None:
    """Open parts as there is room for them, and hand them over as their jobs end, until all are or a fault stops it."""
    ends = np.cumsum(left)
    opened = done = 0
    while done < len(ends) and not batch.stop:
        before = opened, done
        if opened < len(ends) and parts.has_room(opened):
            batch.open = int(ends[opened])
            opened += 1
        if done < opened and left[done] == 0:
            parts.take(done)
            done += 1
        if before == (opened, done):
            time.sleep(_POLL)


class _Guard:
    """While any run is going on, a read beyond the end of a shrunken file is caught instead of killing the process."""

    def __init__(self, engine: ctypes.CDLL) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        global _guarded  # noqa: PLW0603 - the signal handler is one for the whole process
        with _guard:
            _guarded += 1
            if _guarded == 1:
                self._engine.sp_guard(1)

    def __exit__(self, *_: object) -> None:
        global _guarded  # noqa: PLW0603
        with _guard:
            _guarded -= 1
            if _guarded == 0:
                self._engine.sp_guard(0)
