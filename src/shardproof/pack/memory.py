"""Memory for packed tensors: private pages, huge where that is faster and free memory allows it.

The first touch of 4 KiB pages is what limits a copy into fresh memory (2.5 against 10 GB/s measured with huge pages);
but when free memory is scarce, the kernel stops to make huge pages, for up to seconds. So they are asked for only
where they are free, unless the caller or SHARDPROOF_HUGE_PAGES (0 or 1) decides.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from shardproof.checkpoint.pages import HUGE_PAGES, advise, wanted
from shardproof.checkpoint.residency import free_memory
from shardproof.mxfp4 import Bytes
from shardproof.pack.native.run import default_threads

__all__ = ["HUGE_PAGES", "anonymous", "arena", "equal"]

_LINE = 64
_TOGETHER = 8 << 20  # bytes compared at a time
_SPARE = 1 << 30

_LIBC = ctypes.CDLL(None)  # its memcmp makes no array of what differs, as NumPy does
_LIBC.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

Name = TypeVar("Name")


def anonymous(size: int, *, huge_pages: bool | None = None) -> Bytes:
    """Fresh private memory of `size` bytes (zero until written), page aligned.

    `huge_pages` None: the environment decides, or else whether that much memory is free with 1 GiB to spare.
    """
    if size == 0:
        return np.empty(0, dtype=np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advise(memory, _huge(size, huge_pages))
    return np.frombuffer(memory, dtype=np.uint8)


def _huge(size: int, asked: bool | None) -> bool:
    decided = wanted(asked)
    return free_memory() > size + _SPARE if decided is None else decided


def arena(sizes: Mapping[Name, int], *, huge_pages: bool | None = None) -> dict[Name, Bytes]:
    """Several tensors in one piece of fresh memory, each starting on a cache line."""
    starts, total = {}, 0
    for name, size in sizes.items():
        starts[name] = total
        total += -(-size // _LINE) * _LINE
    whole = anonymous(total, huge_pages=huge_pages)
    return {name: whole[start : start + sizes[name]] for name, start in starts.items()}


def equal(one: Bytes, other: Bytes) -> bool:
    """Whether two runs of bytes are equal, by all cores."""
    if len(one) != len(other):
        return False
    left, right = np.ascontiguousarray(one), np.ascontiguousarray(other)

    def same(start: int) -> bool:
        size = min(_TOGETHER, len(left) - start)
        return bool(_LIBC.memcmp(left.ctypes.data + start, right.ctypes.data + start, size) == 0)

    with ThreadPoolExecutor(default_threads()) as pool:
        return all(pool.map(same, range(0, len(left), _TOGETHER)))
