"""Bad input: one coded error each, naming the tensor, what was found and what was needed."""

import numpy as np
import pytest
import torch

from shardproof.errors import KernelError
from shardproof.kernels.cpu import CpuExperts, library
from tests.kernels.cpu.exact import random_case
from tests.kernels.cpu.packing import pack_w2, pack_w13


@pytest.fixture
def case(rng):
    return random_case(rng, 3, 64, 32, 5, 2, bias=True)


def _build(case, **changes):
    (w13, s13), (w2, s2) = pack_w13(case.w13, case.s13), pack_w2(case.w2, case.s2)
    given = {
        "w13_weight": w13, "w13_scale": s13, "w13_bias": case.b13,
        "w2_weight": w2, "w2_scale": s2, "w2_bias": case.b2,
        "experts": 3, "hidden": 64, "intermediate": 32,
    }  # fmt: skip
    return CpuExperts(**{**given, **changes})


def _bytes(count):
    return np.zeros(count, dtype=np.uint8)


BAD_LAYERS = [
    (
        {"w13_weight": _bytes(10)},
        "kernel.layout",
        ["w13 weight", "10 elements", "6144 elements", "pack the layer"],
    ),
    ({"w2_scale": _bytes(191)}, "kernel.layout", ["w2 scale", "191", "192"]),
    ({"w13_scale": np.zeros(384, dtype=np.int8)}, "kernel.dtype", ["w13 scale", "int8", "uint8"]),
    ({"w2_weight": torch.zeros(3072, dtype=torch.int8)}, "kernel.dtype", ["w2 weight", "int8", "uint8"]),
    ({"w13_scale": torch.zeros(384).to(torch.float8_e8m0fnu)}, "kernel.dtype", ["float8_e8m0fnu", "uint8"]),
    ({"w13_bias": np.zeros((3, 64), dtype=np.float16)}, "kernel.dtype", ["w13 bias", "float16", "float32"]),
    ({"w2_bias": np.zeros((64, 3), dtype=np.float32).T}, "kernel.stride", ["w2 bias", "contiguous"]),
    ({"w13_weight": _bytes(12288)[::2]}, "kernel.stride", ["w13 weight", "strides (2,)"]),
    ({"w2_weight": [1, 2]}, "kernel.dtype", ["w2 weight", "list", "NumPy array or a torch CPU tensor"]),
    ({"w2_weight": torch.zeros(3072, dtype=torch.uint8, device="meta")}, "kernel.device", ["meta", "cpu"]),
    ({"hidden": 48}, "kernel.shape", ["hidden", "48", "multiple of 32"]),
    ({"intermediate": 0}, "kernel.shape", ["intermediate", "0"]),
    ({"experts": 0}, "kernel.shape", ["at least one expert"]),
    ({"precision": "int4"}, "kernel.precision", ["int4", "int8 or int16 or float32"]),
    ({"isa": "sse9"}, "kernel.isa", ["sse9", "portable", "SHARDPROOF_CPU_ISA"]),
    ({"expert_map": np.array([0, 3], dtype=np.int32)}, "kernel.map", ["expert_map[1]", "-1 to 2"]),
    ({"expert_map": np.array([0, -2], dtype=np.int32)}, "kernel.map", ["-2"]),
    ({"expert_map": np.array([0, 1])}, "kernel.dtype", ["expert map", "int64", "int32"]),
]


@pytest.mark.parametrize(("changes", "code", "words"), BAD_LAYERS, ids=[str(i) for i in range(len(BAD_LAYERS))])
def test_a_layer_that_cannot_be(case, changes, code, words):
    with pytest.raises(KernelError) as caught:
        _build(case, **changes)
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


BAD_CALLS = [
    (
        "x",
        lambda c: c.x.astype(np.float64),
        "kernel.dtype",
        ["x", "float64", "float32 or bfloat16 or float16"],
    ),
    ("x", lambda c: c.x.astype(">f4"), "kernel.stride", ["native byte order"]),
    ("x", lambda c: c.x[:, :32], "kernel.shape", ["[5, 32]", "[M, 64]"]),
    ("x", lambda c: c.x[0], "kernel.shape", ["[64]"]),
    ("x", lambda c: np.asfortranarray(c.x), "kernel.stride", ["x", "column stride 1"]),
    ("x", lambda c: torch.zeros(5, 64, device="meta"), "kernel.device", ["meta"]),
    (
        "x",
        lambda c: torch.zeros(5, 64, requires_grad=True),
        "kernel.grad",
        ["no backward", "torch.no_grad()"],
    ),
    ("ids", lambda c: c.ids.astype(np.uint8), "kernel.dtype", ["topk_ids", "uint8", "int32 or int64"]),
    ("ids", lambda c: c.ids[:4], "kernel.shape", ["topk_ids", "[4, 2]", "[5, k]"]),
    ("ids", lambda c: np.repeat(c.ids, 2, axis=1)[:, ::2], "kernel.stride", ["topk_ids", ".contiguous()"]),
    (
        "weights",
        lambda c: c.weights.astype(np.float16),
        "kernel.dtype",
        ["topk_weights", "float16", "float32"],
    ),
    ("weights", lambda c: c.weights[:, :1], "kernel.shape", ["topk_weights", "[5, 1]"]),
    ("out", lambda c: np.zeros((5, 64)), "kernel.dtype", ["out", "float64"]),
    ("out", lambda c: np.zeros((4, 64), np.float32), "kernel.shape", ["out", "[4, 64]", "[5, 64]"]),
    ("out", lambda c: torch.zeros(64).expand(5, 64), "kernel.stride", ["out", "rows of out apart"]),
]


@pytest.mark.parametrize(("name", "change", "code", "words"), BAD_CALLS, ids=[str(i) for i in range(len(BAD_CALLS))])
def test_a_call_that_cannot_be(case, name, change, code, words):
    given = {"x": case.x, "ids": case.ids, "weights": case.weights, "out": None}
    given[name] = change(case)
    with pytest.raises(KernelError) as caught:
        _build(case).forward(given["x"], given["ids"], given["weights"], given["out"])
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("bad", [3, -2, 1 << 40, -(1 << 40)])
def test_an_id_of_no_expert_is_named(case, bad):
    """Also ids that are right modulo 2^32: nothing is truncated; nothing is written."""
    case.ids = case.ids.astype(np.int64)
    case.ids[3, 1] = bad
    out = np.full((5, 64), 7, dtype=np.float32)
    with pytest.raises(KernelError) as caught:
        _build(case).forward(case.x, case.ids, case.weights, out)
    assert caught.value.code == "kernel.id"
    for word in ("topk_ids[3, 1]", str(bad), "0 to 2, or -1 to skip"):
        assert word in str(caught.value)
    assert (out == 7).all()


def test_gradient_mode_off_is_fine(case):
    with torch.no_grad():
        x = torch.from_numpy(case.x).requires_grad_()
        _build(case).forward(x, torch.from_numpy(case.ids), torch.from_numpy(case.weights))


def test_environment_chooses_the_isa(case, monkeypatch):
    monkeypatch.setenv("SHARDPROOF_CPU_ISA", "portable")
    assert _build(case).isa == "portable"
    monkeypatch.setenv("SHARDPROOF_CPU_ISA", "mmx")
    with pytest.raises(KernelError, match=r"kernel\.isa"):
        _build(case)


def test_no_vector_unit_warns_once(case, monkeypatch):
    real = library.library()

    class Plain:
        sp_isa_best = staticmethod(lambda: 0)

        def __getattr__(self, name):
            return getattr(real, name)

    monkeypatch.delenv("SHARDPROOF_CPU_ISA", raising=False)
    monkeypatch.setattr(library, "library", Plain)
    library._warn_portable.cache_clear()
    with pytest.warns(RuntimeWarning, match="portable C path"):
        first = _build(case)
    assert first.isa == _build(case).isa == "portable"  # warnings are errors here: the second build gives none


def test_a_build_without_compiler_says_so(monkeypatch):
    monkeypatch.setattr(library, "_library_path", lambda: None)
    library.library.cache_clear()
    try:
        with pytest.raises(KernelError) as caught:
            library.library()
        assert caught.value.code == "kernel.missing"
        assert "C compiler" in str(caught.value)
    finally:
        library.library.cache_clear()
