"""Moves of a tile for AVX-512: pieces of rows are gathered in a block, and whole lines are put together from it.

A register of 64 bytes is one line. A *term* brings any bytes of 128 bytes of the block to any places of the line; for
units below a byte it also takes, for each byte, 8 bits from any bit of its 64 on, of which a mask keeps some. Where
bits of one byte go different ways, it multiplies each byte by an 8 x 8 matrix of bits instead; eight bytes share one,
so such a line is put together in an order of its own, and one more step brings its bytes to their places.

Most cheaply, bits change places inside the 64 bits that they are in: bytes are brought first, then each takes 8 bits
from any bit of its 64 on, of which a mask keeps some. Where such 64 bits are cut by the lines, but not by those of the
block, the block's lines are *folded* like that as they are gathered, and only bytes are left to bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shardproof.pack.digits import LINE
from shardproof.pack.moves import Moves
from shardproof.pack.native import structs as s
from shardproof.pack.tile import Tile

_WINDOW = 128
_MOST_BLOCK = 2048  # as engine.h says
_SHIFT_WORK, _MATRIX_WORK = 3, 3  # instructions a term
_TWICE = 2  # as engine.h says
_NOTHING = (0, 0, 0, 0, 0, 0, 0, 0)  # a plain term that brings no byte
_MOST_TERMS = 256  # so that their tables stay in the first-level cache

Line = dict[int, dict[tuple[int, int], int]]
"""Of each byte of a line: (byte of the block, shift to the left in bits) -> bits of the line's byte."""


def lines(tile: Tile) -> Moves | None:
    """Pieces and terms; None where a byte is filled only in part, or where the tables would be too large."""
    return _lines(tile.of_row.tobytes(), tile.source.tobytes(), tile.target.tobytes(), tile.bits, tile.span)


@lru_cache(maxsize=64)
def _lines(of_row: bytes, source: bytes, target: bytes, bits: int, span: int) -> Moves | None:
    """The same for the places of a tile, which are alike for a layout on most shapes."""
    nothing = np.zeros(0, dtype=np.int64)
    row, taken, to = (np.frombuffer(part, dtype=np.int64) for part in (of_row, source, target))
    tile = Tile(nothing, nothing, row, taken, to, 0, bits, 0, span)
    size, cut = tile.pieces()
    block = -(-len(cut) * size // _WINDOW) * _WINDOW
    if block > _MOST_BLOCK:
        return None
    pieces = [(number * size, row, column, size, 0, 0, 0) for number, (row, column) in enumerate(cut)]
    place = {(row, column + i): number * size + i for number, (row, column) in enumerate(cut) for i in range(size)}
    vectors: dict[bytes, int] = {bytes(LINE): 0}
    terms, whole, halves = [], True, False
    cut_lines = _cut_in_lines(tile, place)
    fold = None if bits == 8 or size != LINE else _fold([line for _, line in cut_lines], block, vectors)
    paired = None if bits == 8 or size < LINE // 2 or fold else _paired([line for _, line in cut_lines], vectors)
    if fold is not None:
        cut_lines, bits = [(at, line) for (at, _), line in zip(cut_lines, fold[1], strict=True)], 8
    for number, (at, line) in enumerate(cut_lines):
        if any(_sum(sources.values()) != 255 for sources in line.values()):
            return None
        if tile.span:
            filled = min(LINE, tile.span - at)
            store = (1 << filled) - 1
            whole &= filled in (LINE, LINE // 2)
            halves |= filled < LINE
        else:
            store = _sum(1 << byte for byte in line)
            whole &= len(line) == LINE and at % LINE == 0
        found = _matrices(line) if bits < 8 else None
        steps = _steps(line, block)
        if paired is not None:
            terms.append((at, *paired[1][number], store))
        elif bits < 8 and (again := _again(line, block, vectors)) is not None:
            terms += [(at, *term, store) for term in again]
        elif found is not None and _MATRIX_WORK * len(found[0]) + 1 < _SHIFT_WORK * len(steps):
            terms += [(at, *term, store) for term in _matrix_terms(*found, vectors)]
        elif steps:
            terms += [(at, *_term(*step, vectors, plain=bits == 8), store) for step in steps]
        else:
            terms.append((at, *_NOTHING, store))
    if len(terms) > _MOST_TERMS:
        return None
    return Moves(
        s.LINES, masks=np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(-1, LINE),
        pieces=np.array(pieces, dtype=s.PART), terms=np.array(terms, dtype=s.TERM), word=size, block=block,
        whole_lines=int(whole) + int(whole and halves), fold=(fold or paired or ((0, 0, 0),))[0],
    )  # fmt: skip


def _sum(numbers: object) -> int:
    return sum(numbers)  # type: ignore[call-overload, no-any-return]


def _cut_in_lines(tile: Tile, place: dict[tuple[int, int], int]) -> list[tuple[int, Line]]:
    """The tile's bytes in lines of 64, each starting at the first byte that no earlier line holds.

    With a span all of its lines, one beside the other.
    """
    per_byte, bits = 8 // tile.bits, tile.bits
    found: list[tuple[int, Line]] = []
    if tile.span:
        found = [(at, {}) for at in range(0, tile.span, LINE)]
    for row, source, target in zip(tile.of_row.tolist(), tile.source.tolist(), tile.target.tolist(), strict=True):
        byte = target // per_byte
        if not tile.span and (not found or byte >= found[-1][0] + LINE):
            found.append((byte, {}))
        at, line = found[byte // LINE if tile.span else -1]
        shift = (target % per_byte - source % per_byte) * bits
        sources = line.setdefault(byte - at, {})
        key = (place[row, source // per_byte], shift)
        sources[key] = sources.get(key, 0) + ((1 << bits) - 1 << target % per_byte * bits)
    return found


Step = tuple[int, list[tuple[int, int, int, int]]]
"""A window and what one term brings from it: (byte, place in the window, shift, bits)."""


def _steps(line: Line, block: int) -> list[Step]:
    """Windows of 128 bytes that do not overlap; or, where fewer do, windows of 64 that begin where bytes are needed."""
    turns: list[list[tuple[int, int, int, int]]] = []
    slots: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for byte, sources in sorted(line.items()):
        met: dict[int, int] = {}
        for turn, ((at, shift), bits) in enumerate(sorted(sources.items())):
            turns += [[]] if turn == len(turns) else []
            turns[turn].append((at, byte, shift, bits))
            window = at // _WINDOW * _WINDOW
            apart = met[window] = met.get(window, -1) + 1
            slots.setdefault((window, apart), []).append((byte, at - window, shift, bits))
    own: list[Step] = []
    for taken in turns:
        first = min(min(taken)[0], block - LINE)
        if max(taken)[0] >= first + LINE:
            break
        own.append((first, [(byte, at - first, shift, bits) for at, byte, shift, bits in taken]))
    fixed = [(window, slot) for (window, _), slot in sorted(slots.items())]
    narrow = all(max(at for _, at, _, _ in slot) < LINE for _, slot in fixed)
    return own if len(own) == len(turns) and (len(own) < len(fixed) or not narrow) else fixed


def _again(line: Line, block: int, vectors: dict[bytes, int]) -> list[tuple[int, ...]] | None:
    """Two terms: each byte from where its bits stand right, then the others from the same 64; None if they cannot."""
    own = {byte: at for byte, sources in line.items() for at, shift in sources if shift == 0}
    first = min(min(own.values(), default=0), block - LINE)
    if own.keys() != line.keys() or max(own.values()) >= first + LINE:
        return None
    control, keep = np.zeros(LINE, dtype=np.uint8), np.zeros(LINE, dtype=np.uint8)
    for byte, sources in line.items():
        eight = range(byte // 8 * 8, byte // 8 * 8 + 8)
        for (at, shift), bits in sources.items():
            if at == own[byte] and shift == 0:
                continue
            where = next((place for place in eight if own.get(place) == at), None)
            if where is None or keep[byte]:
                return None
            control[byte], keep[byte] = (where % 8 * 8 - shift) % 64, bits
    slot = [(byte, at - first, 0, 255) for byte, at in own.items()]
    return [
        _term(first, slot, vectors, plain=True),
        (-1, 0, 0, _number(vectors, control), _number(vectors, keep), 0, 0, 0),
    ]


Fold = tuple[int, int, int]
"""Vectors (index, control, keep) that fold a line of the block; all 0: none."""


def _fold(cut: Sequence[Line], block: int, vectors: dict[bytes, int]) -> tuple[Fold, list[Line]] | None:
    """How to fold the lines of the block, and what is left of the tile's; None where it does not come to bytes alone.

    Two bytes that exchange half of their bits come to stand side by side; each line of the block must be alike.
    """
    made = {tuple(sorted(sources.items())) for line in cut for sources in line.values()}
    pairs = sorted({tuple(at for (at, _), _ in sources) for sources in made})
    if any(len(pair) != 2 for pair in pairs) or len(pairs) * 2 != block or len(made) != block:
        return None
    folded: list[Line] = [{} for _ in range(block // LINE)]
    places: dict[tuple[tuple[tuple[int, int], int], ...], int] = {}
    for number, pair in enumerate(pairs):
        for sources in sorted(
            (m for m in made if tuple(at for (at, _), _ in m) == pair), key=lambda m: m[0][0][1] != 0
        ):
            place = 2 * number + (sources[0][0][1] != 0)
            start = place // LINE * LINE
            places[sources] = place
            folded[start // LINE][place - start] = {(at - start, shift): bits for (at, shift), bits in sources}
    if any(line != folded[0] for line in folded) or len(folded[0]) != LINE:
        return None
    if (terms := _again(folded[0], LINE, vectors)) is None:
        return None
    left = [{byte: {(places[tuple(sorted(s.items()))], 0): 255} for byte, s in line.items()} for line in cut]
    return (terms[0][2], terms[1][3], terms[1][4]), left


Vector = npt.NDArray[np.uint8]


def _paired(cut: Sequence[Line], vectors: dict[bytes, int]) -> tuple[Fold, list[tuple[int, ...]]] | None:
    """How to fold the lines of the block, and of each line of the tile its term; None where that does not do.

    Where bytes of the line mix the low halves of the same four bytes of the block, or their high halves, two pairs of
    those exchange halves first, and two products a line are enough, of bytes that need not be brought.
    """
    fold: set[tuple[bytes, bytes]] = set()
    terms: list[tuple[int, ...]] = []
    for line in cut:
        window = min(at for sources in line.values() for at, _ in sources) // LINE * LINE
        made = _pairs({b: {(at - window, s): n for (at, s), n in sources.items()} for b, sources in line.items()})
        if made is None:
            return None
        control, keep, first, second, order = made
        fold.add((control.tobytes(), keep.tobytes()))
        numbers = [_number(vectors, vector) for vector in (second, first, order)]
        terms.append((window, _TWICE, numbers[0], 0, 0, numbers[1], numbers[2], 0))
    if len(fold) != 1:
        return None
    control_and_keep = [_number(vectors, np.frombuffer(v, dtype=np.uint8)) for v in fold.pop()]
    return (0, control_and_keep[0], control_and_keep[1]), terms


def _pairs(line: Line) -> tuple[Vector, Vector, Vector, Vector, Vector] | None:
    """Of a line of 64 bytes: how its bytes are folded (control, keep), the matrices of both halves, and the order."""
    half = LINE // 2
    families = _families(line)
    if any(len(f) != 4 or f[2:] != [f[0] + half, f[1] + half] or f[0] // 8 != f[1] // 8 for f in families):
        return None
    control, keep, order = (np.zeros(LINE, dtype=np.uint8) for _ in range(3))
    other: dict[int, int] = {}
    for low, high in (pair for family in families for pair in (family[:2], family[2:])):
        other[low], other[high] = high, low
        control[low], keep[low] = (8 * high - 4) % 64, 0xF0
        control[high], keep[high] = (8 * low + 4) % 64, 0x0F
    classes: list[bytes] = []
    for byte, sources in sorted(line.items()):
        matrices, upper = bytearray(16), set()
        for (at, shift), bits in sources.items():
            for bit in (bit for bit in range(8) if bits >> bit & 1):
                upper.add((bit - shift) // 4)
                matrices[8 * (at // half) + 7 - bit] |= 1 << (bit - shift) % 4 + 4 * (at > other[at])
        if bytes(matrices) not in classes:
            classes.append(bytes(matrices))
        if len(upper) != 1:
            return None
        low = min(sources)[0] % half
        low = min(low, other[low])
        order[byte] = half * classes.index(bytes(matrices)) + (other[low] if upper == {1} else low)
    if len(classes) != 2 or sorted(order.tolist()) != list(range(LINE)):
        return None
    first, second = (
        np.frombuffer(b"".join(both[turn : turn + 8] * (half // 8) for both in classes), dtype=np.uint8)
        for turn in (0, 8)
    )
    return control, keep, first, second, order


def _families(line: Line) -> list[list[int]]:
    """Bytes of the block that meet in a byte of the line, or by way of others that do."""
    found: list[set[int]] = []
    for sources in line.values():
        met = {at for at, _ in sources}
        apart = [family for family in found if not family & met]
        found = [*apart, met.union(*(family for family in found if family & met))]
    return sorted(sorted(family) for family in found)


Matrices = dict[tuple[int, int], dict[int, tuple[int, bytes]]]
"""Of each term (window, turn): of each byte of the line its place in the window and its matrix."""


def _matrices(line: Line) -> tuple[Matrices, list[int]] | None:
    """Terms that multiply and the order of bytes that they make; None where eight bytes do not share matrices."""
    slots: Matrices = {}
    alike: dict[tuple[tuple[int, int, bytes], ...], list[int]] = {}
    for byte, sources in sorted(line.items()):
        rows: dict[int, bytearray] = {}
        for (at, shift), bits in sources.items():
            matrix = rows.setdefault(at, bytearray(8))
            for bit in range(8):
                if bits >> bit & 1:
                    matrix[7 - bit] |= 1 << bit - shift  # the instruction's rows stand from the highest bit down
        met: dict[int, int] = {}
        held = []
        for at, matrix in sorted(rows.items()):
            window = at // _WINDOW * _WINDOW
            turn = met[window] = met.get(window, -1) + 1
            slots.setdefault((window, turn), {})[byte] = (at - window, bytes(matrix))
            held.append((window, turn, bytes(matrix)))
        alike.setdefault(tuple(held), []).append(byte)
    if any(len(together) % 8 for together in alike.values()):
        return None
    return slots, [byte for together in alike.values() for byte in together]


def _matrix_terms(
    slots: Matrices, order: Sequence[int], vectors: dict[bytes, int]
) -> list[tuple[int, int, int, int, int, int, int, int]]:
    places = np.zeros(LINE, dtype=np.uint8)
    places[list(order)] = np.arange(len(order))
    terms = []
    for (window, _), taken in sorted(slots.items()):
        wide, skip = _reach([at for at, _ in taken.values()])
        index, matrices = np.zeros(LINE, dtype=np.uint8), np.zeros((LINE // 8, 8), dtype=np.uint8)
        for place, byte in enumerate(order):
            if byte in taken:
                index[place] = taken[byte][0] - skip
                matrices[place // 8] = np.frombuffer(taken[byte][1], dtype=np.uint8)
        numbers = (_number(vectors, v) for v in (index, matrices, places))
        picked, matrix, ordered = numbers
        terms.append((window + skip, int(wide), picked, 0, 0, matrix, ordered, 0))
    return terms


def _reach(places: Sequence[int]) -> tuple[bool, int]:
    """Whether places in a window need both its registers, and where the one that they need begins."""
    wide = min(places) < LINE <= max(places)
    return wide, LINE if min(places) >= LINE else 0


def _term(
    window: int, slot: Sequence[tuple[int, int, int, int]], vectors: dict[bytes, int], *, plain: bool
) -> tuple[int, int, int, int, int, int, int, int]:
    """(window, wide, index, control, keep, matrix, order, in) of a term; vectors are numbered as they are met."""
    wide, skip = _reach([at for _, at, _, _ in slot])
    index, keep = np.zeros(LINE, dtype=np.uint8), np.zeros(LINE, dtype=np.uint8)
    control = np.ones(LINE, dtype=np.uint8)  # never all zero: vector 0 means none
    inside = 0
    for byte, at, shift, bits in slot:
        index[byte], keep[byte] = at - skip, bits
        control[byte] = (byte % 8 * 8 - shift) % 64
        inside |= 1 << byte
    number, taken, kept = (_number(vectors, v) for v in (index, control, keep))
    return window + skip, int(wide), number, 0 if plain else taken, 0 if plain else kept, 0, 0, inside


def _number(vectors: dict[bytes, int], vector: npt.NDArray[np.uint8]) -> int:
    """Where the vector stands among them, in bytes."""
    return vectors.setdefault(vector.tobytes(), LINE * len(vectors))
