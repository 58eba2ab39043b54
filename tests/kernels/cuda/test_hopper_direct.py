"""e4m3 products of placed codes (DIRECT of csrc/consume.cuh): orders and numbers, by the kernel's own arithmetic in NumPy."""

from __future__ import annotations

import random
import struct

import pytest

torch = pytest.importorskip("torch")

MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def select_bytes(a: list[int], b: list[int], selector: int) -> list[int]:
    return [(a + b)[selector >> (4 * i) & 7] for i in range(4)]


def token_order() -> list[int]:
    """The value (of a block of 32) at each byte that four lanes keep: transpose_block32 of quant.cuh on unique tags."""
    even = [[8 * c + 2 * i for i in range(4)] for c in range(4)]  # lane c holds k = 8c .. 8c + 7
    odd = [[8 * c + 2 * i + 1 for i in range(4)] for c in range(4)]
    order: list[int] = []
    for lane in range(4):
        first, shift = lane >> 1, 2 * (lane & 1)
        e = [even[first + 2 * i][shift:] + [-1] * shift for i in range(2)]
        o = [odd[first + 2 * i][shift:] + [-1] * shift for i in range(2)]
        a, b = select_bytes(e[0], e[1], 0x5140), select_bytes(o[0], o[1], 0x5140)
        order += select_bytes(a, b, 0x5410) + select_bytes(a, b, 0x7632)
    return order


def place(word: int) -> tuple[int, int]:
    """The two registers of a word: place_direct."""
    sign, magnitude = 0x80808080, 0x1C1C1C1C
    low = ((word & 0x0F0F0F0F) * 4 + 0x60606060) & (sign | magnitude)
    return low, (word & sign) | ((word >> 2) & magnitude)


def place_bf16(word: int) -> list[int]:
    """The four registers of a word, each two bf16 numbers: place_bf16 of dequant.cuh."""
    kept, carry = 0x81C081C0, 0x7E007E00
    low = word & 0x00FF00FF
    high = int.from_bytes(select_bytes(list(word.to_bytes(4, "little")), [0] * 4, 0x4341), "little")
    pairs = [(((v << 12) | (v << 6)) & kept, (v * 4 + carry) & kept) for v in (low, high)]
    return [r & 0xFFFFFFFF for pair in pairs for r in pair]


def test_a_placed_code_is_its_value_in_bf16() -> None:
    rng = random.Random(0)
    for code in range(16):
        value = MAGNITUDES[code & 7] * (-1 if code & 8 else 1) * 2.0**-126
        for nibble in range(8):  # nibble 4z + 2d + f is number z of register 2d + f
            word = rng.getrandbits(32) & ~(0xF << (4 * nibble)) & 0xFFFFFFFF | code << (4 * nibble)
            half = place_bf16(word)[nibble % 4] >> (16 * (nibble // 4)) & 0xFFFF
            assert struct.unpack("<f", struct.pack("<I", half << 16))[0] == value
            assert half >> 15 == code >> 3


def test_codes_meet_the_tokens_of_their_k() -> None:
    order = token_order()
    assert sorted(order) == list(range(32))
    for q in range(4):  # the word of lane quarter q: nibble 4z + 2d + f is k = 16d + 8f + 2q + z
        k_of = {4 * z + 2 * d + f: 16 * d + 8 * f + 2 * q + z for z in range(2) for d in range(2) for f in range(2)}
        for nibble, k in k_of.items():
            registers = place(0x7 << (4 * nibble))
            (half, byte), *more = [(h, j) for h in range(2) for j in range(4) if registers[h] >> (8 * j) & 0xFF]
            assert not more
            assert order[16 * half + 4 * q + byte] == k  # the matrix unit's k of that byte of lane quarter q


def test_finished_activations_lie_in_the_same_order() -> None:
    order = token_order()
    for b in range(8):  # a finisher's lane holds k = 8c + b and stores (c 0, 2) at 2b and (c 1, 3) at 16 + 2b
        assert [order[2 * b], order[2 * b + 1]] == [b, 16 + b]
        assert [order[16 + 2 * b], order[17 + 2 * b]] == [8 + b, 24 + b]


def test_a_placed_code_is_its_value_over_64() -> None:
    rng = random.Random(0)
    for code in range(16):
        value = MAGNITUDES[code & 7] * (-1 if code & 8 else 1) * 2.0**-6
        for nibble in range(8):
            word = rng.getrandbits(32) & ~(0xF << (4 * nibble)) & 0xFFFFFFFF | code << (4 * nibble)
            byte = place(word)[nibble % 2] >> (8 * (nibble // 2)) & 0xFF
            assert torch.tensor(byte, dtype=torch.uint8).view(torch.float8_e4m3fn).float().item() == value
            assert byte >> 7 == code >> 3


def test_a_multiplier_byte_becomes_its_power_of_two() -> None:
    for byte in range(121, 254):  # all that spreads of 14 binades leave, and far more
        bits = (byte * (1 << 23) - (120 << 23)) & 0xFFFFFFFF
        assert struct.unpack("<f", struct.pack("<I", bits))[0] == 2.0 ** (byte - 247)
