"""The digest of logical content: equal for every layout, padding, and number of ranks.

Each block (32 codes and their scale) is hashed together with its place in the model - layer, expert, projection,
row, block - and the hashes are added modulo 2**64 in two independent lanes. A sum does not depend on order, so ranks
add up to the whole. The mixing is the 64-bit finaliser of MurmurHash3: a check against mistakes, not against an enemy.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.experts import Projection
from shardproof.mxfp4 import BLOCK_BYTES, Bytes

U64 = npt.NDArray[np.uint64]
_M1, _M2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))
_SHIFT = np.uint64(33)
_ROW = np.uint64(1 << 24)
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Digest:
    """128 bits that add: `a + b` is the digest of the two contents together."""

    low: int = 0
    high: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.low + other.low & _MASK, self.high + other.high & _MASK)

    def __str__(self) -> str:
        return f"{self.high:016x}{self.low:016x}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read what `str` wrote. Raises ValueError for any other text."""
        if not re.fullmatch(r"[0-9a-f]{32}", text):
            raise ValueError(f"not a digest: {text[:40]!r}")
        return cls(int(text[16:], 16), int(text[:16], 16))


def _mix(x: U64) -> U64:
    x = (x ^ (x >> _SHIFT)) * _M1
    x = (x ^ (x >> _SHIFT)) * _M2
    return x ^ (x >> _SHIFT)


def _place(layer: str, expert: int, projection: Projection, kind: str) -> np.uint64:
    named = f"{layer}/{expert}/{projection}/{kind}".encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little"))


def _sum(place: np.uint64, rows: U64, columns: U64, words: list[U64]) -> Digest:
    position = rows[:, None] * _ROW + columns[None, :]
    lanes = []
    for lane in _LANES:
        state = _mix(position * lane ^ place)
        for word in words:
            state = _mix(state + lane ^ word)
        lanes.append(int(state.sum(dtype=np.uint64)))
    return Digest(lanes[0], lanes[1])


def blocks_digest(
    layer: str, expert: int, projection: Projection, weight: Bytes, scale: Bytes, *, row: int = 0, block: int = 0
) -> Digest:
    """Digest of a rectangle of blocks: weight uint8 [R, C * 16], scale uint8 [R, C], standing at (row, block)."""
    rows, columns = scale.shape
    if not rows or not columns:
        return Digest()
    halves = np.ascontiguousarray(weight).reshape(rows, columns, BLOCK_BYTES).view(np.uint64)
    with np.errstate(over="ignore"):
        return _sum(
            _place(layer, expert, projection, "blocks"),
            np.arange(row, row + rows, dtype=np.uint64),
            np.arange(block, block + columns, dtype=np.uint64),
            [halves[..., 0], halves[..., 1], scale.astype(np.uint64)],
        )


def bias_digest(
    layer: str, expert: int, projection: Projection, bias: npt.NDArray[np.float32], *, row: int = 0
) -> Digest:
    """Digest of a run of biases, float32 [R], standing at `row`."""
    if not bias.size:
        return Digest()
    words = bias.astype(np.float32).view(np.uint32).astype(np.uint64)[:, None]
    with np.errstate(over="ignore"):
        return _sum(
            _place(layer, expert, projection, "bias"),
            np.arange(row, row + bias.size, dtype=np.uint64), np.zeros(1, dtype=np.uint64), [words],
        )  # fmt: skip
