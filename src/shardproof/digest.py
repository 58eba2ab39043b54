"""The digest of logical content: equal for every layout, padding, and number of ranks.

Each checkpoint byte is weighed by its place in the model - layer, expert, projection, row, column - and the products
are added modulo 2**64 in two independent lanes. A sum does not depend on order, so ranks add up to the whole:

    sum over rows r:  R[r] * (sum over words c of row r:  C[c] * word[c])

R is an odd 64-bit number from layer, expert, projection, field and r; C is an odd 32-bit number from c. A word is 4
bytes of weights (little endian), one scale byte, or one bias as float32. One wrong word changes both lanes for certain,
words in each other's places but for a chance below 2**-32 a lane: a check against mistakes, not against an enemy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shardproof.experts import Field, Projection
from shardproof.mxfp4 import Bytes

U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]
I16: TypeAlias = npt.NDArray[np.int16]
_M1, _M2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LANES = ("low", "high")
_SHIFT = np.uint64(33)
_MASK = (1 << 64) - 1
_WORDS_A_BLOCK = 4
_AT_ONCE = 1 << 18  # words weighed at a time: bounds the memory of the wide products


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
    """The 64-bit finaliser of MurmurHash3."""
    x = (x ^ (x >> _SHIFT)) * _M1
    x = (x ^ (x >> _SHIFT)) * _M2
    return x ^ (x >> _SHIFT)


@lru_cache(maxsize=1 << 12)
def place(layer: str, expert: int, projection: Projection, name: Field) -> tuple[int, int]:
    """One 64-bit number a lane for a field of a projection of an expert."""
    named = f"{layer}/{expert}/{projection}/{name}".encode()
    both = hashlib.blake2b(named, digest_size=16).digest()
    return int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")


def row_keys(seed: int, first: int, count: int) -> U64:
    """R of rows `first` .. `first + count`, uint64, all odd."""
    with np.errstate(over="ignore"):
        rows = np.arange(first, first + count, dtype=np.uint64)
        return _mix(np.uint64(seed) + rows * _GOLDEN) | np.uint64(1)


def column_keys(blocks: int) -> tuple[U32, I16]:
    """C for rows of up to `blocks` blocks (rounded up): weights uint32 [2 lanes, 4n], scales int16 [2 lanes, 2, 4n].

    A scale's key comes in two signed halves, key = half[0] + 65536 * half[1], as the native engine multiplies them.
    """
    return _column_keys(1 << max(10, (blocks - 1).bit_length()))


@lru_cache(maxsize=8)
def _column_keys(blocks: int) -> tuple[U32, I16]:
    lanes = []
    for kind in ("weight", "scale"):
        for lane in _LANES:
            seed = int.from_bytes(hashlib.blake2b(f"{kind}/{lane}".encode(), digest_size=8).digest(), "little")
            lanes.append(row_keys(seed, 0, blocks * _WORDS_A_BLOCK) >> np.uint64(32) | np.uint64(1))
    halves = np.stack(lanes[2:]).astype(np.uint32).view(np.int16).reshape(2, -1, 2)
    return np.stack(lanes[:2]).astype(np.uint32), np.ascontiguousarray(halves.transpose(0, 2, 1))


@lru_cache(maxsize=8)
def _scale_keys(blocks: int) -> U64:
    """C of scales as numbers modulo 2**64, [2 lanes, 4n]."""
    halves = column_keys(blocks)[1].astype(np.int64)
    return np.asarray(halves[:, 0] + (halves[:, 1] << 16)).astype(np.uint64)


def _weigh(words: npt.NDArray[np.unsignedinteger], keys: npt.NDArray[np.unsignedinteger], rows: list[U64]) -> Digest:
    """Words [R, W] against keys [2, W] and row keys [R] of each lane."""
    count, width = words.shape
    step = max(1, _AT_ONCE // max(width, 1))
    total = Digest()
    with np.errstate(over="ignore"):
        for begin in range(0, count, step):
            part = words[begin : begin + step].astype(np.uint64)
            lanes = [
                int(((part * keys[lane].astype(np.uint64)).sum(axis=1) * rows[lane][begin : begin + step]).sum())
                for lane in range(2)
            ]
            total += Digest(lanes[0], lanes[1])
    return total


def matrix_digest(
    layer: str,
    expert: int,
    projection: Projection,
    name: Field,
    matrix: Bytes,
    *,
    row: int = 0,
    column: int = 0,
) -> Digest:
    """Digest of a rectangle of weights or scales, uint8 [R, bytes], whose first byte stands at (row, column).

    Columns of weights are counted in bytes and whole blocks (16); those of scales in blocks of 32 values (1).
    """
    rows, width = matrix.shape
    if not rows or not width:
        return Digest()
    item = 4 if name == "weight" else 1
    blocks = -(-(column + width) // (16 if name == "weight" else 1))
    keys = column_keys(blocks)[0] if name == "weight" else _scale_keys(blocks)
    words = np.ascontiguousarray(matrix).view("<u4") if name == "weight" else matrix
    first, stop = column // item, (column + width) // item
    seeds = place(layer, expert, projection, name)
    return _weigh(words, keys[:, first:stop], [row_keys(seed, row, rows) for seed in seeds])


def bias_digest(
    layer: str, expert: int, projection: Projection, bias: npt.NDArray[np.float32], *, row: int = 0
) -> Digest:
    """Digest of a run of biases, float32 [R], standing at `row`."""
    return biases_digest(layer, [expert], projection, bias.reshape(1, -1), row=row)


def biases_digest(
    layer: str, experts: Sequence[int], projection: Projection, biases: npt.NDArray[np.float32], *, row: int = 0
) -> Digest:
    """Digest of runs of biases, float32 [E, R], one of each of `experts`, all standing at `row`."""
    if not biases.size:
        return Digest()
    words = biases.astype(np.float32).view(np.uint32).astype(np.uint64)
    seeds = np.array([place(layer, e, projection, "bias") for e in experts], dtype=np.uint64)
    rows = np.arange(row, row + biases.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mix(np.asarray(seeds.T[:, :, None] + rows * _GOLDEN, dtype=np.uint64))
        keys = mixed | np.uint64(1)
        sums = (keys * words).sum(axis=(1, 2)) * _scale_keys(1)[:, 0]
    return Digest(int(sums[0]), int(sums[1]))
