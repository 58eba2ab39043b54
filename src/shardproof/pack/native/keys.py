"""The digest's column keys as AVX-512 (scales) and AMX (weights) multiply them: byte by byte."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shardproof.digest import column_keys

_LINE = 64


@lru_cache(maxsize=8)
def scale_key_bytes(columns: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """Four bytes of each key, uint8 [2 lanes, 4, n + 64], and sums of the unsigned ones before each, uint64 [2, n + 1].

    A key is two signed halves (`column_keys`). The low byte of a half is unsigned, the high one signed. 64 bytes more a
    row, so that the eight rows do not meet in one set of the first-level cache.
    """
    halves = column_keys(columns)[1]
    parts = np.ascontiguousarray(halves).view(np.uint8).reshape(*halves.shape, 2)
    unsigned = parts[..., 0].astype(np.uint64)
    sums = np.zeros((2, halves.shape[2] + 1), dtype=np.uint64)
    sums[:, 1:] = np.cumsum(unsigned[:, 0] + (unsigned[:, 1] << np.uint64(16)), axis=1)
    count = halves.shape[2]
    room = np.zeros(8 * (count + _LINE) + _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    held = room[start : start + 8 * (count + _LINE)].reshape(2, 4, count + _LINE)
    held[..., :count] = parts.transpose(0, 1, 3, 2).reshape(2, 4, -1)
    return held, sums


@lru_cache(maxsize=8)
def tile_keys(columns: int) -> npt.NDArray[np.uint8]:
    """What each byte of a word of weights counts in each of 16 columns (see engine.h): uint8 [words + 16, 16, 4].

    16 words more than there are columns: the last tile may reach beyond.
    """
    words = column_keys(columns)[0]
    of_words = words.astype("<u4").view(np.uint8).reshape(2, -1, 4)
    count = words.shape[1]
    room = np.zeros((count + 17) * _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    held = room[start : start + (count + 16) * _LINE].reshape(-1, 16, 4)
    for lane in range(2):
        for byte in range(4):
            held[:count, 8 * lane + byte : 8 * lane + byte + 4, byte] = of_words[lane]
    return held
