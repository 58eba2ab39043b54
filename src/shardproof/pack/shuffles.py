"""Moves of a tile for AVX2: every 16-byte vector is put together from 16-byte windows of rows."""

from __future__ import annotations

import numpy as np

from shardproof.pack.digits import LINE
from shardproof.pack.moves import Moves
from shardproof.pack.native import structs as s
from shardproof.pack.tile import Tile

_MOST_SHUFFLES = 20  # a vector: beyond it single bytes are as fast


def shuffles(tile: Tile) -> Moves | None:
    """One part for every 16-byte window that a vector takes bytes from; None where bytes do not come in vectors."""
    vectors = _vectors(tile)
    if vectors is None:
        return None
    masks: dict[bytes, int] = {b"": 0}  # mask 0 means none
    parts = []
    for at in vectors:
        found = min((_windows(tile, at, low) for low in (False, True)), key=len)
        if len(found) > _MOST_SHUFFLES * (8 // tile.bits):
            return None
        for row, column, shift, mask, keep in found:
            index, kept = (masks.setdefault(m, len(masks)) for m in (mask, keep))
            parts.append((at, row, column, 16, index, kept, shift))
    stacked = np.frombuffer(b"".join(m.ljust(16, b"\x80") for m in masks), dtype=np.uint8).reshape(-1, 16)
    lines = 64 if tile.size % LINE == 0 and len(vectors) * 16 == tile.size else 16
    return Moves(s.SHUFFLE, np.array(parts, dtype=s.PART), masks=stacked, word=lines)


def _vectors(tile: Tile) -> list[int] | None:
    """Where the 16-byte vectors of the tile begin; None where its bytes do not come in whole vectors."""
    filled = np.bincount(tile.target * tile.bits // 8)
    if ((filled != 0) & (filled != 8 // tile.bits)).any():
        return None
    edges = np.flatnonzero(np.diff(np.concatenate(([0], filled, [0])) != 0))
    runs = edges.reshape(-1, 2)
    if ((runs[:, 1] - runs[:, 0]) % 16).any():
        return None
    return [at for first, stop in runs.tolist() for at in range(first, stop, 16)]


def _windows(tile: Tile, vector: int, low: bool) -> list[tuple[int, int, int, bytes, bytes]]:
    """What one vector takes: (row, first byte of a 16-byte window, shift, byte mask, bits kept or b"").

    Bits move in 16-bit lanes. A source byte is first brought to the byte of the lane where its bits go, or, with
    `low`, always to the lane's low byte: whichever needs fewer windows.
    """
    bits = tile.bits
    begin = vector * 8
    inside = np.flatnonzero((tile.target * bits >= begin) & (tile.target * bits < begin + 128))
    to, at = tile.target[inside] * bits - begin, tile.source[inside] * bits
    byte = at // 8
    place = to // 16 * 2 if low else to // 8
    shift = to - place * 8 - at % 8
    keyed: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for row, b, p, bit, by in zip(tile.of_row[inside], byte, place, to, shift, strict=True):
        keyed.setdefault((int(row), int(by)), []).append((int(b), int(p), int(bit)))
    found = []
    for (row, by), moves in sorted(keyed.items()):
        waiting = sorted(moves)
        while waiting:
            first, left = waiting[0][0], []
            mask, keep = bytearray(b"\x80" * 16), bytearray(16)
            for b, p, bit in waiting:
                if b < first + 16 and mask[p] in (0x80, b - first):
                    mask[p] = b - first
                    keep[bit // 8] |= (1 << bits) - 1 << bit % 8
                else:
                    left.append((b, p, bit))
            plain = by == 0 and all(k in (0, 255) for k in keep)
            found.append((row, first, by, bytes(mask), b"" if plain else bytes(keep)))
            waiting = left
    return found
