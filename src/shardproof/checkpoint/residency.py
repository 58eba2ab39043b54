"""How much of a checkpoint is in the page cache, and how much memory is free."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from shardproof.checkpoint.checkpoint import Checkpoint
    from shardproof.checkpoint.reader import Span

_WINDOW = 4 << 20
_WINDOWS = 64


def resident(checkpoint: Checkpoint, spans: Sequence[Span]) -> float:
    """The share of the spans' pages that are in the page cache, 0..1, from up to 64 windows of 4 MiB; 1 if unknown."""
    windows = [(s.file, a, min(a + _WINDOW, s.stop)) for s in spans for a in range(s.start, s.stop, _WINDOW)]
    chosen = windows[:: max(1, len(windows) // _WINDOWS)]
    counts = [_mincore(checkpoint, *window) for window in chosen]
    known = [c for c in counts if c is not None]
    pages = sum(total for _, total in known)
    return sum(found for found, _ in known) / pages if pages else 1.0


def _mincore(checkpoint: Checkpoint, file: int, start: int, stop: int) -> tuple[int, int] | None:
    base = checkpoint.memory(file).ctypes.data
    first = (base + start) // mmap.PAGESIZE * mmap.PAGESIZE
    length = base + stop - first
    pages = np.zeros(-(-length // mmap.PAGESIZE), dtype=np.uint8)
    call = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    if call is None or call(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_void_p(pages.ctypes.data)):
        return None
    return int((pages & 1).sum()), len(pages)


def available_memory() -> int:
    """Bytes that can be had without swapping (MemAvailable); a very large number where that is unknown."""
    return _meminfo("MemAvailable")


def free_memory() -> int:
    """Bytes that hold nothing at all: MemFree, or less where a control group limits this process; 2**62 if unknown."""
    return min([_meminfo("MemFree"), *_group_room()])


def _group_room(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limit less use of this process's memory control group and those above it (version 1 or 2), where there is one.

    Page cache counts as used: where it fills a group, each huge page has to push some of it out first.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if "memory" in controllers.split(","):
            top, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            top, names = groups, ("memory.max", "memory.current")
        else:
            continue
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            found += _room(*(group / name for name in names))
            if group == top:
                break
    return found


def _room(limit: Path, used: Path) -> list[int]:
    try:
        return [int(limit.read_text()) - int(used.read_text())]
    except (OSError, ValueError):  # not there, or no limit ("max")
        return []


def _meminfo(name: str) -> int:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 1 << 62
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else 1 << 62
