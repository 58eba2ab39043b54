"""Words: how 32 bits of the kernel's order are put together from bytes in registers, as C text.

Whole bytes take byte permutations. Bits and nibbles take one word of four source bytes, in the order of bytes for
which the fewest rotations are needed, and one rotation and mask for all bits that turn by the same amount.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Byte = tuple[str, int]
"""A register of 32 bits and the number of one of its bytes."""
_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Moved:
    """`bits` bits: from bit `at` of source byte `byte` to bit `to` of the word."""

    byte: Byte
    at: int
    to: int
    bits: int


def word(name: str, moves: Sequence[Moved]) -> list[str]:
    """Declarators that end with the one of word `name`."""
    whole = _whole_bytes(moves)
    if whole is not None:
        return [f"{name} = {gathered(whole)}"]
    held = sorted({m.byte for m in moves})
    lines, parts = [], []
    for number, first in enumerate(range(0, len(held), 4)):
        some = held[first : first + 4]
        order, turns = _turned([m for m in moves if m.byte in some], some)
        base = f"{name}_{number}"
        lines.append(f"{base} = {gathered(order)}")
        parts += [_masked(f"turned({base}, {turn})" if turn else base, mask) for turn, mask in sorted(turns.items())]
    return [*lines, f"{name} = {' | '.join(parts)}"]


def _masked(value: str, mask: int) -> str:
    return value if mask == _ALL else f"({value} & 0x{mask:x}u)"


def _whole_bytes(moves: Sequence[Moved]) -> list[Byte | None] | None:
    """The source byte of each of the word's bytes, where bytes move as they are."""
    filled: list[dict[int, tuple[Byte, int]]] = [{} for _ in range(4)]
    for move in moves:
        for bit in range(move.bits):
            filled[(move.to + bit) // 8][(move.to + bit) % 8] = (move.byte, move.at + bit)
    found: list[Byte | None] = []
    for bits in filled:
        if not bits:
            found.append(None)
            continue
        byte = bits[min(bits)][0]
        if bits != {i: (byte, i) for i in range(8)}:
            return None
        found.append(byte)
    return found


def gathered(wanted: Sequence[Byte | None]) -> str:
    """Four bytes, lowest first, as byte permutations; what stands where None is wanted is not defined."""
    registers = list(dict.fromkeys(b[0] for b in wanted if b))
    if len(registers) == 1:
        if all(b is None or b[1] == i for i, b in enumerate(wanted)):
            return registers[0]
        return f"permuted({registers[0]}, {registers[0]}, {_selector([b[1] if b else 0 for b in wanted])})"
    if len(registers) == 2:
        a, b = registers
        return f"permuted({a}, {b}, {_selector([0 if w is None else w[1] + 4 * (w[0] == b) for w in wanted])})"
    pair = registers[:2]
    low = gathered([b if b and b[0] in pair else None for b in wanted])
    rest = gathered([b if b and b[0] not in pair else None for b in wanted])
    chosen = _selector([i + 4 * (b is not None and b[0] not in pair) for i, b in enumerate(wanted)])
    return f"permuted({low}, {rest}, {chosen})"


def _selector(values: Sequence[int]) -> str:
    return f"0x{sum(v << 4 * i for i, v in enumerate(values)):x}u"


def _turned(moves: Sequence[Moved], held: Sequence[Byte]) -> tuple[Sequence[Byte | None], Mapping[int, int]]:
    """The order of at most four bytes in one word, and the mask of every rotation of it."""
    orders = itertools.permutations([*held, *[None] * (4 - len(held))])
    found = [(order, _turns(moves, order)) for order in orders]
    return min(found, key=lambda f: len(f[1]) - (0 in f[1]))


def _turns(moves: Sequence[Moved], order: Sequence[Byte | None]) -> dict[int, int]:
    """Rotation to the left -> mask of the bits that it brings."""
    turns: dict[int, int] = {}
    for move in moves:
        turn = (move.to - order.index(move.byte) * 8 - move.at) % 32
        turns[turn] = turns.get(turn, 0) | ((1 << move.bits) - 1) << move.to
    return turns
