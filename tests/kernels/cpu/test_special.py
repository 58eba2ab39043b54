"""Numbers at the edge: scale bytes 0 and 255, subnormals, NaN and inf, flush-to-zero in the caller."""

import numpy as np
import pytest
import torch

from shardproof.experts import Activation
from tests.kernels.cpu.exact import layer, random_case, relative

ONE = 2  # the E2M1 code of 1.0


def _unit(rng, count=1):
    """H = I = 32, weights such that y[n] = scale(n) * sum(h) and h is known: only scales matter."""
    case = random_case(rng, 1, 32, 32, count, 1)
    case.w13[:] = case.w2[:] = ONE | ONE << 4
    case.s13[:] = case.s2[:] = 127
    case.ids[:], case.weights[:] = 0, 1
    return case


def test_scale_byte_0_is_two_to_minus_127(rng, precision, isa):
    """Decoders that shift the byte into the exponent read 0 here."""
    case = _unit(rng)
    case.x[:] = 2.0**20
    case.s2[0, 3] = 0
    case.s2[0, 4] = 1
    got = case.run(precision=precision, isa=isa)[0]
    assert got[3] != 0
    assert got[4] == 2 * got[3]
    assert relative(got[3:4], layer(case)[0, 3:4]) < 1e-2


def test_scale_byte_0_in_w13(rng, precision, isa):
    case = _unit(rng)
    case.x[:] = 1e30
    case.s13[:] = 0
    assert relative(case.run(precision=precision, isa=isa), layer(case)) < 1e-2


def test_scale_byte_255_is_nan_in_its_row_alone(rng, precision, isa):
    """Decoders that shift the byte into the exponent read inf here. One token, then a whole tile."""
    for count in (1, 11):
        case = _unit(rng, count)
        case.x[:] = 1
        case.s2[0, 5] = 255
        got = case.run(precision=precision, isa=isa)
        assert np.isnan(got[:, 5]).all()
        assert np.isfinite(np.delete(got, 5, axis=1)).all()


def test_scale_byte_255_in_w13_reaches_every_output(rng, precision, isa):
    case = _unit(rng)
    case.s13[0, 40] = 255  # an up row
    assert np.isnan(case.run(precision=precision, isa=isa)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_bad_activations_stay_in_their_token(rng, precision, isa, value):
    case = random_case(rng, 3, 128, 64, 23, 2)
    clean = case.run(precision=precision, isa=isa)
    case.x[7, 40] = value
    got = case.run(precision=precision, isa=isa)
    assert not np.isfinite(got[7]).any()
    rest = np.arange(23) != 7
    np.testing.assert_array_equal(got[rest], clean[rest])


def test_nan_routing_weight_stays_in_its_token(rng, precision, isa):
    case = random_case(rng, 3, 64, 64, 9, 2)
    clean = case.run(precision=precision, isa=isa)
    case.weights[4, 1] = np.nan
    got = case.run(precision=precision, isa=isa)
    assert np.isnan(got[4]).all()
    np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("power", [-40, -100, -120, -128, -134])
def test_tiny_activations_keep_their_digits(rng, precision, power):
    """Blocks whose largest value is so small that 127 / amax overflows. h is linear in the gate here, scales large."""
    linear = Activation("swiglu_oai")
    case = random_case(rng, 2, 64, 64, 6, 1, low=149, high=156, activation=linear)
    case.x = (np.sign(case.x) * rng.integers(128, 256, case.x.shape) * 2.0**power).astype(np.float32)
    want = layer(case)
    assert np.abs(want).max() > 1e-30
    assert relative(case.run(precision=precision), want) < 3e-2


def test_zeros_give_zero(rng, precision, isa):
    case = random_case(rng, 2, 64, 64, 5, 2)
    case.x[:] = 0
    assert not case.run(np.full((5, 64), np.nan, np.float32), precision=precision, isa=isa).any()


def test_flush_to_zero_in_the_caller_changes_nothing(rng, isa):
    """torch.set_flush_denormal sets the calling thread's mode; the kernels must not inherit it, nor change it."""
    case = _unit(rng)
    case.x[:] = 2.0**20
    case.s2[0] = 0
    want = case.run(isa=isa)
    tiny = torch.tensor([1e-38], dtype=torch.float32)
    assert torch.set_flush_denormal(True)
    try:
        got = case.run(isa=isa)
        assert (tiny / 16).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(got, want)
    assert (tiny / 16).item() != 0.0
