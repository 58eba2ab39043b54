"""The whole layer against float64: random shapes, every activation, every dtype, every precision mode."""

import os

import ml_dtypes
import numpy as np
import pytest
import torch

from shardproof.experts import Activation
from tests.kernels.cpu.exact import STEP, layer, random_case, relative

ACTIVATIONS = [
    Activation(),
    Activation(limit=10.0),
    Activation("swiglu_oai", limit=7.0),
    Activation("swiglu_oai", alpha=1.0),
    Activation("situ"),
    Activation("situ", beta=1.0, linear_beta=2.0),
]
TOLERANCE = {"int8": 2.5e-2, "int16": 1e-4, "float32": 1e-6}
SHAPES = int(os.environ.get("SHARDPROOF_CPU_SHAPES", "100"))


@pytest.mark.parametrize("seed", range(SHAPES))
def test_random_shapes(seed):
    """Sizes, activation, biases, holes in ids and place of the weight at random; out is poisoned."""
    rng = np.random.default_rng(seed)
    e, m, k = rng.integers(1, 9), rng.integers(0, 40), rng.integers(1, 7)
    h, i = 32 * rng.integers(1, 13, 2)
    case = random_case(
        rng, e, h, i, m, k, bias=bool(rng.integers(2)), holes=bool(rng.integers(2)),
        before=bool(rng.integers(2)), activation=ACTIVATIONS[seed % len(ACTIVATIONS)],
    )  # fmt: skip
    want = layer(case)
    for precision, tolerance in TOLERANCE.items():
        out = np.full((m, h), np.nan, dtype=np.float32)
        assert case.run(out, precision=precision) is out
        assert relative(out, want) < tolerance if m else out.shape == (0, h)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_is_as_exact_as_float32(rng, activation):
    case = random_case(rng, 2, 64, 96, 33, 2, bias=True, activation=activation, low=122, high=129)
    assert relative(case.run(precision="float32"), layer(case)) < 5e-7


def test_error_is_within_the_rounding_bound(rng, precision, isa):
    """Every element, with scales over 40 binades, zeros, one outlier a block: no more off than rounding explains."""
    case = random_case(rng, 3, 160, 96, 17, 2, low=107, high=148)
    case.x[:, ::7] = 0
    case.x[:, 5::32] *= 1000
    case.x[3] *= 1e-8
    case.w2[:, ::3] = 0
    want, bound = layer(case, STEP[precision])
    got = case.run(precision=precision, isa=isa)
    assert (np.abs(got - want) <= bound).all()
    assert (got[:, ::3] == 0).all()
    if precision != "float32":  # the bound is no free pass: rounding uses a good part of it somewhere
        assert (np.abs(got - want)[:, 1::3] / bound[:, 1::3]).max() > 0.02


@pytest.mark.parametrize(("h", "i"), [(7168, 384), (2880, 352), (4096, 64), (32, 32), (2048, 192), (64, 2880)])
def test_real_widths_and_short_k(rng, h, i, precision):
    """Rows of DeepSeek-V4, gpt-oss and Qwen ranks, K = 32 up, more tokens than one token block for one expert."""
    m = 3 if h * i > 1 << 20 else 200
    case = random_case(rng, 1 if m > 100 else 3, h, i, m, 2, low=117, high=121)
    assert relative(case.run(precision=precision), layer(case)) < TOLERANCE[precision]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numpy_dtypes_in_and_out(rng, dtype, precision):
    case = random_case(rng, 4, 96, 64, 9, 2)
    case.x = case.x.astype(dtype)
    want = layer(case)
    out = np.empty((9, 96), dtype=np.float32)
    case.run(out, precision=precision)
    got = case.run(precision=precision)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.view(np.uint8), out.astype(dtype).view(np.uint8))  # rounded once, to even
    assert relative(out, want) < TOLERANCE[precision]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_and_row_strides(rng, dtype):
    case = random_case(rng, 4, 96, 64, 9, 2)
    wide = torch.from_numpy(case.x).to(dtype).repeat(1, 3)
    case.x = wide[:, 96:192]
    ids, weights = torch.from_numpy(case.ids), torch.from_numpy(case.weights)
    space = torch.full((9, 192), 7.0, dtype=dtype)
    got = case.experts().forward(case.x, ids, weights, space[:, 96:])
    assert (space[:, :96] == 7.0).all()
    plain = case.experts().forward(case.x.contiguous(), ids, weights)
    assert torch.equal(got, plain)
    assert plain.dtype == dtype
    case.x = case.x.float().numpy()
    assert relative(plain.float().numpy(), layer(case)) < 2e-2


def test_in_place(rng):
    case = random_case(rng, 4, 96, 64, 9, 2)
    want = case.run()
    assert case.run(case.x) is case.x
    np.testing.assert_array_equal(case.x, want)


def test_expert_map_skips_what_is_elsewhere(rng):
    """Two ranks of two experts each, with maps, add up to the four experts."""
    case = random_case(rng, 4, 64, 64, 21, 3, holes=True)
    want, total = layer(case), np.zeros((21, 64))
    for mine in ([2, 0], [1, 3]):
        rank = random_case(rng, 2, 64, 64, 21, 3)
        for name in ("w13", "s13", "w2", "s2"):
            setattr(rank, name, getattr(case, name)[mine])
        rank.x, rank.ids, rank.weights = case.x, case.ids, case.weights
        mapped = np.full(4, -1, dtype=np.int32)
        mapped[mine] = [0, 1]
        total += rank.run(expert_map=mapped, precision="float32")
    assert relative(total, want) < 1e-6


def test_nothing_to_do(rng):
    """M = 0, k = 0, and every id -1: zeros, never what was in out before."""
    case = random_case(rng, 2, 64, 32, 5, 2)
    assert case.experts().forward(case.x[:0], case.ids[:0], case.weights[:0]).shape == (0, 64)
    poison = np.full((5, 64), np.nan, dtype=np.float32)
    assert not case.experts().forward(case.x, case.ids[:, :0], case.weights[:, :0], poison).any()
    case.ids[:] = -1
    poison = np.full((5, 64), np.nan, dtype=np.float32)
    assert not case.run(poison).any()


def test_one_hot_expert_and_many_tokens(rng):
    """All of 700 tokens on one expert, twice: several token blocks, pairs of one token that share an expert."""
    case = random_case(rng, 8, 64, 96, 700, 2)
    case.ids[:] = 5
    assert relative(case.run(precision="int16"), layer(case)) < 1e-4


def test_several_passes_give_the_same_bits(rng):
    """More activations than one pass may hold: 40,000 pairs of 6,656 values."""
    case = random_case(rng, 2, 32, 6656, 20_000, 2)
    case.x[:] = case.x[:10].repeat(2000, axis=0)
    case.ids[:] = case.ids[:10].repeat(2000, axis=0)
    case.weights[:] = case.weights[:10].repeat(2000, axis=0)
    got = case.run()
    np.testing.assert_array_equal(got, got[::2000].repeat(2000, axis=0))
    few = case.experts().forward(case.x[::2000].copy(), case.ids[::2000].copy(), case.weights[::2000].copy())
    np.testing.assert_array_equal(got[::2000], few)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_ties_round_to_even(rng, dtype):
    """The result is w2's bias alone, so that exact halves between two numbers of the dtype can be asked for."""
    case = random_case(rng, 1, 64, 32, 1, 1, bias=True)
    case.w2[:], case.ids[:], case.weights[:] = 0, 0, 1
    half = 2.0 ** (-11 if dtype == np.float16 else -8)
    case.b2[0] = np.float32(1) + np.arange(64, dtype=np.float32) * half
    case.b2[0, 32:] *= np.float32(-(2.0**-15))  # subnormal as float16
    case.x = case.x.astype(dtype)
    np.testing.assert_array_equal(case.run()[0].view(np.uint8), case.b2[0].astype(dtype).view(np.uint8))
