"""Same bits whatever runs the layer: instruction set, batch, threads, executor."""

import numpy as np
import pytest

from shardproof.experts import Activation
from shardproof.kernels.cpu import usable_isas
from tests.kernels.cpu.exact import random_case


def _varied(rng, seed):
    rng = np.random.default_rng([seed, int(rng.integers(1 << 30))])
    h, i = 32 * rng.integers(1, 40, 2)
    kind = Activation(["silu", "swiglu_oai", "situ"][seed % 3], limit=[None, 7.0, None][seed % 3])
    return random_case(
        rng, rng.integers(1, 6), h, i, rng.integers(1, 60), 3,
        low=100, high=140, bias=bool(seed % 2), activation=kind, before=seed % 4 > 1,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_every_isa_gives_the_portable_bits(rng, precision, seed):
    case = _varied(rng, seed)
    want = case.run(precision=precision, isa="portable")
    assert np.isfinite(want).all()
    for isa in usable_isas()[1:]:
        np.testing.assert_array_equal(case.run(precision=precision, isa=isa), want, err_msg=isa)


def test_one_by_one_equals_batched(rng, precision, isa):
    """Batch sizes of 1, 2, 3 and all: the tile widths differ, the bits do not."""
    case = random_case(rng, 3, 320, 224, 53, 2, low=110, high=135)
    layer = case.experts(precision=precision, isa=isa)
    whole = layer.forward(case.x, case.ids, case.weights)
    for size in (1, 2, 3, 7):
        parts = [
            layer.forward(*(np.ascontiguousarray(a[s : s + size]) for a in (case.x, case.ids, case.weights)))
            for s in range(0, 53, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("count", range(1, 21))
def test_every_number_of_tokens_an_expert(rng, isa, count):
    """One expert with 1 to 20 tokens walks through every tile width and the hand-over to decoded tiles."""
    case = random_case(rng, 1, 1120, 64, count, 1)
    want = case.run(isa="portable")
    np.testing.assert_array_equal(case.run(isa=isa), want)


def test_number_of_threads_changes_nothing(rng, precision):
    case = random_case(rng, 5, 256, 160, 40, 3)
    want = case.run(precision=precision, threads=1)
    for threads in (2, 3, 8):
        for _ in range(3):
            np.testing.assert_array_equal(case.run(precision=precision, threads=threads), want)


@pytest.mark.parametrize("tokens", [1, 8, 9])
@pytest.mark.parametrize(("hidden", "inter"), [(2048, 64), (64, 2048), (1120, 320)])
def test_long_and_short_runs(rng, tokens, hidden, inter):
    """A worker takes runs of items, long for up to 8 tokens; they shrink with what is left and the workers there are."""
    case = random_case(rng, 6, hidden, inter, tokens, 4)
    want = case.run(isa="portable", threads=1)
    for threads in (1, 2, 5, 16):
        np.testing.assert_array_equal(case.run(threads=threads), want)


def test_decoded_bytes_are_canonical_ones(rng, isa):
    """Unit activations read single weights back: every code and scale byte comes from its own address.

    Expert 0's w2 row n, column k is a unique value; h is made one-hot by w1 and w3 of all ones and a one-hot bias.
    """
    case = random_case(rng, 1, 64, 64, 1, 1, bias=True, activation=Activation("swiglu_oai", limit=1e9))
    case.w13[:], case.b2[:] = 0, 0
    case.ids[:], case.weights[:] = 0, 1
    case.s2 = rng.integers(1, 200, case.s2.shape, dtype=np.uint8)
    from shardproof.mxfp4 import decode

    want = decode(case.w2, case.s2)[0]
    for k in range(64):
        case.b13[:] = 0
        case.b13[0, k] = 64.0  # gate 64, up 0: h = 64 in column k alone
        got = case.run(precision="float32", isa=isa)[0]
        np.testing.assert_array_equal(got, want[:, k] * np.float32(64))
        np.testing.assert_allclose(case.run(precision="int8", isa=isa)[0], want[:, k] * 64, rtol=1e-6)
