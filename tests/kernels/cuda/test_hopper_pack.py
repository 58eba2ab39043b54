"""The declared byte order against the kernel's own address arithmetic, and what is derived from it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from shardproof.kernels.cuda.pack import derive, pack_bias, pack_scale, pack_weight, pad_to  # noqa: E402


def kernel_address(stack: str, n_rows: int, columns: int, row: int, k: int) -> tuple[int, int, int]:
    """Where the kernel's thread looks for (row, k): nibble, scale byte, row index; from the PTX fragment."""
    if stack == "w13":
        half, i = divmod(row, n_rows // 2)
        group, warp, b = i // 32, i % 32 // 8, i % 8
    else:
        group, warp, half, b = row // 64, row % 64 // 16, row % 16 // 8, row % 8
    chunk, block, step, k16 = k // 64, k % 64 // 32, k % 32 // 16, k % 16
    q, z, f = k16 % 8 // 2, k16 % 2, k16 // 8
    at = group * (columns // 64) + chunk
    lane = 4 * b + q
    nibble = at * 4096 + warp * 1024 + lane * 32 + (2 * block + half) * 8 + 4 * z + 2 * step + f
    scale = at * 128 + warp * 32 + b * 4 + 2 * block + half
    return nibble, scale, 64 * group + 16 * warp + 8 * half + b


@pytest.mark.parametrize("stack", ["w13", "w2"])
def test_every_code_and_scale_is_where_the_kernel_looks(stack: str) -> None:
    rows, columns = 192 if stack == "w2" else 256, 192
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    canonical = (codes[:, ::2] | (codes[:, 1::2] << 4))[None]
    tags = torch.arange(rows * columns // 32).reshape(1, rows, columns // 32)
    packed = pack_weight(canonical, stack).flatten()
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten()
    scales = [pack_scale((tags >> s & 255).to(torch.uint8), stack).flatten().long() << s for s in (0, 8)]
    bias = pack_bias(torch.arange(rows, dtype=torch.float32)[None], stack).flatten()
    seen = set()
    for row in range(rows):
        for k in range(columns):
            nibble, scale, place = kernel_address(stack, rows, columns, row, k)
            seen.add(nibble)
            assert nibbles[nibble] == codes[row, k]
            assert scales[0][scale] + scales[1][scale] == tags[0, row, k // 32]
            assert bias[place] == row
    assert len(seen) == rows * columns


def layer(scales: torch.Tensor, codes: int = 0x22) -> tuple[torch.Tensor, torch.Tensor]:
    rows, blocks = scales.shape
    weight = torch.full((1, rows, blocks * 16), codes, dtype=torch.uint8)
    return pack_weight(weight, "w2"), pack_scale(scales[None].to(torch.uint8), "w2")


def test_multipliers_are_relative_to_the_largest_scale_of_the_row() -> None:
    scales = torch.full((64, 4), 120)
    scales[5] = torch.tensor([100, 121, 90, 121])
    d = derive(*layer(scales), 1, 64, 128)
    plain = pack_scale(scales[None].to(torch.uint8), "w2")
    top = torch.where(torch.arange(64) == 5, 121, 120)
    spot = pack_bias(top[None].float(), "w2")[0]
    assert torch.equal(d.row_scale[0], torch.exp2(spot - 127))
    expected = 253 - (
        pack_scale(top[None, :, None].expand(1, 64, 4).contiguous().to(torch.uint8), "w2").int() - plain.int()
    )
    assert torch.equal(d.multiplier.int().flatten(), expected.flatten())
    assert not d.exact8


@pytest.mark.parametrize(("spread", "exact"), [(0, True), (14, True), (15, False), (20, False)])
def test_e4m3_is_chosen_only_where_it_is_exact(spread: int, exact: bool) -> None:
    scales = torch.full((64, 4), 120)
    scales[9, 2] = 120 - spread
    assert derive(*layer(scales), 1, 64, 128).exact8 is exact


def test_blocks_of_zero_codes_do_not_count() -> None:
    scales = torch.full((64, 4), 120)
    weight, scale = layer(scales)
    assert derive(torch.zeros_like(weight), scale, 1, 64, 128).exact8
    scales[:, 1] = 250
    d = derive(torch.zeros_like(weight), layer(scales)[1], 1, 64, 128)
    assert d.exact8
    assert torch.equal(d.row_scale, torch.ones(1, 64))


def test_a_nan_scale_makes_its_row_nan() -> None:
    scales = torch.full((64, 4), 120)
    scales[3, 1] = 255
    row_scale = derive(*layer(scales), 1, 64, 128).row_scale[0]
    assert torch.isnan(row_scale[3])
    assert torch.isnan(row_scale).sum() == 1


def test_extreme_scales_stay_exact() -> None:
    scales = torch.zeros(64, 4, dtype=torch.int64)
    scales[1] = 254
    row_scale = derive(*layer(scales), 1, 64, 128).row_scale[0]
    assert row_scale[0].item() == 2.0**-127
    assert row_scale[1].item() == 2.0**127


def test_padding_is_to_64() -> None:
    assert [pad_to(v) for v in (32, 64, 96, 2880)] == [64, 64, 128, 2880]
