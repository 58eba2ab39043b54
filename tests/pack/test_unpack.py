"""The native engine reads every layout back as NumPy does, and what is wrong with the source is a coded error."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardproof.errors import LayoutError, PackError
from shardproof.layouts import find
from shardproof.layouts.registry import everything
from shardproof.pack import native
from shardproof.pack import unpack as unpacking
from shardproof.pack.native import structs
from shardproof.pack.native.library import ENGINE
from shardproof.pack.native.library import isa as best_isa
from shardproof.pack.program import inverse
from shardproof.pack.unpack import Packed, unpack, unpack_tensors
from tests.pack.test_parity import HERE, SHAPES
from tests.pack.threads import left_over

pytestmark = pytest.mark.skipif(native.library() is None, reason="needs the native engine")
IDENTITIES = [layout.identity() for layout in everything()]
_NOTHING = 0


def tagged(shape: tuple[int, int, int], most: int) -> list[np.ndarray]:
    """Tensors whose bytes at one place together name that place: its number, written with digits up to `most`."""
    place = np.arange(np.prod(shape)).reshape(shape)
    digits = []
    while place.any() or not digits:
        digits.append((place % (most + 1)).astype(np.uint8))
        place = place // (most + 1)
    return digits


def at_the_end_of_memory(data: np.ndarray) -> np.ndarray:
    """The same bytes, followed by a page that must not be read."""
    size = -(-data.size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), mmap.PAGESIZE, _NOTHING) == 0
    part = whole[size - data.size : size]
    part[...] = data
    return part


def cuts_of(outs: list[np.ndarray]) -> np.ndarray:
    """One cut an expert: all of its rows, to an array of its own [N, K]."""
    cuts = np.zeros((len(outs), 1), dtype=native.CUT)
    for cut, out in zip(cuts[:, 0], outs, strict=True):
        cut["src"], cut["stride"], cut["rows"], cut["bytes"] = out.ctypes.data, out.strides[0], *out.shape
    return cuts


def highest(identity: str) -> int:
    layout, _ = find(identity)
    return layout.highest if layout.add else 255


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_version_of_every_layout(identity, engine, monkeypatch):
    """Every byte comes back to its place, to rows that start anywhere, and nothing else is written or read."""
    monkeypatch.setenv(ENGINE, engine)
    layout, parameters = find(identity)
    held = 0
    for shape in SHAPES:
        try:
            placed = layout.place(shape, parameters)
        except LayoutError:
            continue
        assert inverse(identity, shape, isa=best_isa()) is not None
        experts, rows, width = shape
        for tags in tagged(shape, highest(identity)):
            kernel = at_the_end_of_memory(placed.pack(tags))
            room = np.full(experts * rows * (width + 5) + 8, 0x77, dtype=np.uint8)
            stack = room[3 : 3 + experts * rows * (width + 5)].reshape(experts, rows, width + 5)
            unpack_tensors([Packed(identity, shape, kernel, cuts_of([m[:, :width] for m in stack]))], threads=2)
            np.testing.assert_array_equal(stack[..., :width], tags, err_msg=f"{identity} {shape}")
            assert (stack[..., width:] == 0x77).all(), "wrote beyond a row"
            assert (room[:3] == 0x77).all()
            assert (room[3 + stack.size :] == 0x77).all()
        held += 1
    assert held, "no shape of this test fits the layout: add one"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    identity=st.sampled_from(IDENTITIES), engine=st.sampled_from([*HERE]), experts=st.integers(1, 5),
    rows=st.integers(1, 40), columns=st.integers(1, 40), steps=st.sampled_from([(1, 1), (8, 4), (16, 16), (64, 32)]),
    data=st.data(),
)  # fmt: skip
def test_random_shapes_and_parts(monkeypatch, identity, engine, experts, rows, columns, steps, data):
    """Some experts, and of each a rectangle: what was asked for comes, and all else stays as it was."""
    shape = (experts, rows * steps[0], columns * steps[1])
    layout, parameters = find(identity)
    try:
        placed = layout.place(shape, parameters)
    except LayoutError:
        return
    monkeypatch.setenv(ENGINE, engine)
    asked = data.draw(st.lists(st.integers(0, experts - 1), unique=True, min_size=1))
    top, left = data.draw(st.integers(0, shape[1] - 1)), data.draw(st.integers(0, shape[2] - 1))
    bottom, right = data.draw(st.integers(top + 1, shape[1])), data.draw(st.integers(left + 1, shape[2]))
    for tags in tagged(shape, highest(identity)):
        kernel = placed.pack(tags)
        found, wanted = np.full(shape, 0x77, dtype=np.uint8), np.full(shape, 0x77, dtype=np.uint8)
        part = slice(top, bottom), slice(left, right)
        cuts = np.zeros((experts, 1), dtype=native.CUT)
        for expert in asked:
            wanted[expert][part] = tags[expert][part]
            cuts[expert] = cuts_of([found[expert][part]])[0]
            cuts[expert]["at_row"], cuts[expert]["at_column"] = top, left
        unpack_tensors([Packed(identity, shape, kernel, cuts)])
        np.testing.assert_array_equal(found, wanted)
    assert left_over() == 0


@pytest.mark.parametrize("identity", IDENTITIES)
def test_it_is_what_numpy_gives(identity, monkeypatch):
    """`unpack` and `Placed.read`, for all experts and for some of them, on bytes that no packing wrote."""
    monkeypatch.setattr(unpacking, "_SMALL", 0)
    layout, parameters = find(identity)
    shape = next(s for s in [(4, 256, 256), *SHAPES] if _holds(identity, s))
    placed = layout.place(shape, parameters)
    kernel = np.random.default_rng(1).integers(layout.add, 256, placed.nbytes, dtype=np.uint8)
    np.testing.assert_array_equal(unpack(identity, shape, kernel), placed.unpack(kernel))
    if shape[0] > 2 and placed.pattern.axes[0] == "e":
        np.testing.assert_array_equal(unpack(identity, shape, kernel, first=1, count=2), placed.read(kernel, 1, 2))
    with pytest.raises(LayoutError) as caught:
        unpack(identity, shape, kernel[:-1])
    assert caught.value.code == "layout.size"


def _holds(identity: str, shape: tuple[int, int, int]) -> bool:
    layout, parameters = find(identity)
    try:
        layout.place(shape, parameters)
    except LayoutError:
        return False
    return True


def test_the_engine_does_it(monkeypatch):
    """A tensor of any size that matters does not go through NumPy."""
    layout, parameters = find("marlin.weight")
    shape = (2, 512, 1024)
    placed = layout.place(shape, parameters)
    tags = tagged(shape, 255)[1]
    kernel = placed.pack(tags)
    monkeypatch.setattr(type(placed), "read", None)
    np.testing.assert_array_equal(unpack("marlin.weight@1", shape, kernel), tags)


def test_each_kernel_has_a_way_back():
    """What is moved by whole tiles goes back by whole tiles; all else through a block."""
    ways = {
        "aiter.w16": (structs.TILE16, structs.UNPACK), "raw.weight": (structs.RUN, structs.UNPACK),
        "marlin.weight": (structs.LINES, structs.UNPACK_BLOCK), "aiter.e8": (structs.LINES, structs.UNPACK_BLOCK),
        "gguf.mxfp4_scale": (structs.COPY, structs.UNPACK),
    }  # fmt: skip
    for identity, way in ways.items():
        made = inverse(identity, (2, 256, 512), isa=structs.AVX512)
        assert made is not None
        assert (made.struct.kernel, made.struct.way) == way, identity


@pytest.mark.parametrize("engine", HERE)
def test_a_byte_that_the_layout_never_writes(engine, monkeypatch):
    """The same error as NumPy's."""
    monkeypatch.setenv(ENGINE, engine)
    monkeypatch.setattr(unpacking, "_SMALL", 0)
    layout = next(layout for layout in everything() if layout.add)
    shape = next(s for s in SHAPES if _holds(layout.identity(), s))
    kernel = layout.place(shape).pack(np.zeros(shape, dtype=np.uint8))
    kernel[kernel.size // 2] = layout.add - 1
    with pytest.raises(LayoutError) as caught:
        unpack(layout.identity(), shape, kernel)
    assert caught.value.code == "layout.value"
    assert f"found: {layout.add - 1}" in str(caught.value)


@pytest.mark.parametrize("wrong", ["stride", "dtype", "size", "first", "count"])
def test_what_is_not_a_packed_tensor_is_refused(wrong):
    """Large enough for the native engine; refused as `Placed.read` refuses it."""
    identity, shape = find("aiter.w16")[0].identity(), (4, 256, 512)
    layout, parameters = find(identity)
    kernel = layout.place(shape, parameters).pack(np.zeros(shape, dtype=np.uint8))
    bad = {"stride": np.repeat(kernel, 2)[::2], "dtype": kernel.view(np.int8), "size": kernel[1:]}.get(wrong, kernel)
    part = {"first": {"first": -1, "count": 1}, "count": {"first": 3, "count": 2}}.get(wrong, {})
    with pytest.raises(LayoutError, match=r"layout\.(size|shape)"):
        unpack(identity, shape, bad, **part)


def test_a_mapped_file_that_became_shorter(tmp_path: Path):
    """An error, not a crash, and no thread is left behind."""
    layout, parameters = find("aiter.w16")
    shape = (8, 256, 1024)
    placed = layout.place(shape, parameters)
    file = tmp_path / "packed"
    file.write_bytes(placed.pack(tagged(shape, 255)[0]).tobytes())
    kernel = np.memmap(file, dtype=np.uint8, mode="r")
    with file.open("r+b") as stream:
        stream.truncate(placed.nbytes // 2)
    with pytest.raises(PackError) as caught:
        unpack("aiter.w16@1", shape, kernel)
    assert caught.value.code == "pack.io"
    assert "a page of the packed experts could not be read" in str(caught.value)
    assert left_over() == 0
