"""A single routed product: float64, the layer's own bits, every variant, and what it refuses."""

import numpy as np
import pytest
import torch

from shardproof.errors import KernelError
from shardproof.kernels.cpu import ExpertMatrix
from shardproof.mxfp4 import decode
from tests.kernels.cpu.exact import relative
from tests.kernels.cpu.packing import pack_w2

TOLERANCE = {"int8": 1.5e-2, "int16": 1e-4, "float32": 1e-6}


class _Product:
    def __init__(self, rng, experts, rows, columns, tokens, top_k):
        self.weight = rng.integers(0, 256, (experts, rows, columns // 2), dtype=np.uint8)
        self.scale = rng.integers(110, 130, (experts, rows, columns // 32), dtype=np.uint8)
        self.x = rng.standard_normal((tokens, columns)).astype(np.float32)
        self.ids = rng.integers(-1, experts, (tokens, top_k)).astype(rng.choice([np.int32, np.int64]))
        self.sizes = {"experts": experts, "rows": rows, "columns": columns}

    def matrix(self, **options):
        return ExpertMatrix(*pack_w2(self.weight, self.scale), **self.sizes, **options)

    def poisoned(self):
        return np.full((*self.ids.shape, self.sizes["rows"]), np.nan, np.float32)

    def exact(self):
        w, out = decode(self.weight, self.scale).astype(np.float64), np.zeros(self.poisoned().shape)
        for m, j in zip(*np.nonzero(self.ids >= 0), strict=True):
            out[m, j] = w[self.ids[m, j]] @ self.x[m]
        return out


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_against_float64(rng, precision, tokens):
    """Each (token, slot) has its own row; a skipped one is zero, not what was there before."""
    case = _Product(rng, 4, 48, 352, tokens, 3)
    got, want = case.matrix(precision=precision).forward(case.x, case.ids, case.poisoned()), case.exact()
    assert relative(got, want) < TOLERANCE[precision]
    np.testing.assert_array_equal(got[case.ids < 0], 0)


@pytest.mark.parametrize("seed", range(8))
def test_same_bits_from_every_variant_thread_and_batch(rng, precision, isa, seed):
    rng = np.random.default_rng([seed, int(rng.integers(1 << 30))])
    case = _Product(rng, 3, int(16 * rng.integers(1, 20)), int(32 * rng.integers(1, 40)), int(rng.integers(1, 120)), 2)
    want = case.matrix(precision=precision, isa="portable", threads=1).forward(case.x, case.ids, case.poisoned())
    matrix = case.matrix(precision=precision, isa=isa, threads=1 + seed % 3)
    np.testing.assert_array_equal(matrix.forward(case.x, case.ids, case.poisoned()), want)
    for m in range(0, len(case.x), 11):
        np.testing.assert_array_equal(matrix.forward(case.x[m : m + 1], case.ids[m : m + 1])[0], want[m])


@pytest.mark.parametrize("tokens", [1, 8, 9])
def test_runs_pass_from_one_expert_to_the_next(rng, tokens):
    """A run of row groups may end in another expert than it began in."""
    case = _Product(rng, 9, 208, 64, tokens, 5)
    want = case.matrix(isa="portable", threads=1).forward(case.x, case.ids, case.poisoned())
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(case.matrix(threads=threads).forward(case.x, case.ids, case.poisoned()), want)


def test_expert_map_and_dtypes(rng):
    case = _Product(rng, 2, 32, 64, 6, 2)
    case.ids = np.abs(case.ids)
    plain = case.matrix().forward(case.x, case.ids)
    mapped = case.matrix(expert_map=np.array([-1, 1, -1, 0], np.int32))
    moved = np.array([3, 1], case.ids.dtype)[case.ids]
    np.testing.assert_array_equal(mapped.forward(case.x, moved), plain)
    np.testing.assert_array_equal(mapped.forward(case.x, np.zeros_like(moved)), np.zeros_like(plain))
    x = torch.from_numpy(case.x).bfloat16()
    got = case.matrix().forward(x, torch.from_numpy(case.ids))
    assert got.dtype == torch.bfloat16
    assert got.shape == (6, 2, 32)
    again = case.matrix().forward(x.float(), torch.from_numpy(case.ids))
    torch.testing.assert_close(got, again.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(("tokens", "top_k"), [(0, 2), (3, 0)])
def test_nothing_to_do(rng, tokens, top_k):
    case = _Product(rng, 2, 32, 64, tokens, top_k)
    assert case.matrix().forward(case.x, case.ids).shape == (tokens, top_k, 32)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"rows": 40}, "kernel.shape", ["rows", "40", "multiple of 16"]),
        ({"columns": 48}, "kernel.shape", ["columns", "48", "multiple of 32"]),
        ({"experts": 3}, "kernel.layout", ["weight", "3072", "2048"]),
        ({"precision": "int4"}, "kernel.precision", ["int4"]),
        ({"expert_map": np.array([2], np.int32)}, "kernel.map", ["expert_map[0]"]),
    ],
)
def test_a_matrix_that_cannot_be(rng, change, code, words):
    case = _Product(rng, 2, 32, 64, 1, 1)
    with pytest.raises(KernelError) as caught:
        ExpertMatrix(*pack_w2(case.weight, case.scale), **{**case.sizes, **change})
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"x": np.zeros((2, 32), np.float32)}, "kernel.shape", ["x", "[2, 32]", "64"]),
        ({"topk_ids": np.zeros((3, 1), np.int32)}, "kernel.shape", ["topk_ids", "[3, 1]"]),
        ({"topk_ids": np.full((2, 1), 2, np.int32)}, "kernel.id", ["topk_ids[0, 0]", "2", "0 to 1"]),
        ({"out": np.zeros((2, 32), np.float32)}, "kernel.shape", ["out", "[2, 1, 32]"]),
        ({"out": np.zeros((2, 1, 64), np.float32)[..., ::2]}, "kernel.stride", ["out", "contiguous"]),
        ({"out": np.zeros((2, 1, 32), np.int32)}, "kernel.dtype", ["out", "int32"]),
    ],
)
def test_a_call_that_cannot_be(rng, change, code, words):
    case = _Product(rng, 2, 32, 64, 2, 1)
    given = {"x": case.x, "topk_ids": np.zeros((2, 1), np.int32), "out": case.poisoned()}
    with pytest.raises(KernelError) as caught:
        case.matrix().forward(**{**given, **change})
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)
