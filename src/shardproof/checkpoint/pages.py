"""Huge pages (2 MiB) for weights: whether they are wanted, and how the kernel is asked for them.

A kernel that reads weights once a token is bound by memory, and with 4 KiB pages it loses time to address translation
(measured: benchmarks/notes/moe_cpu.md). Fresh private memory gets huge pages only where it is asked for before it is
touched. Mapped files get them from the page cache, in whatever pieces the file system reads; asked for before it is
touched, a file comes in pieces of 2 MiB where the file system has such (measured: ext4 on Linux 6.18). Elsewhere
asking changes nothing.
"""

from __future__ import annotations

import contextlib
import mmap

from shardproof.arguments import variable

HUGE_PAGES = "SHARDPROOF_HUGE_PAGES"
HUGE = 2 << 20


def wanted(asked: bool | None = None) -> bool | None:
    """What the caller decides, else SHARDPROOF_HUGE_PAGES (0 or 1); None: nobody did.

    Raises ArgumentError `argument.value`.
    """
    if asked is None and (found := variable(HUGE_PAGES, "0", "1")):
        return found == "1"
    return asked


def advise(memory: mmap.mmap, huge: bool) -> None:
    """Ask for huge pages, or for none; to be called before the memory is touched. Bytes never change."""
    if len(memory) >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
