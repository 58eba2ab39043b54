"""The native engine writes the bytes that NumPy writes: every layout, every kernel, any shape, cut and padding."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardproof.digest import Digest, matrix_digest, place
from shardproof.errors import LayoutError
from shardproof.layouts import find
from shardproof.layouts.registry import everything
from shardproof.pack import native
from shardproof.pack.fitting import fit
from shardproof.pack.native import structs
from shardproof.pack.native.library import ENGINE, has_tiles, library, why_not
from shardproof.pack.native.library import isa as best_isa
from shardproof.pack.program import digits_of, program
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model, names, packed, recipe

SHAPES = [
    (1, 128, 256), (2, 256, 256), (3, 384, 512), (2, 64, 64), (3, 32, 12), (2, 256, 90), (1, 24, 40), (2, 768, 224),
    (2, 16, 4), (1, 512, 256), (5, 8, 2), (2, 128, 48), (3, 256, 36), (2, 128, 1), (1, 256, 1024),
]  # fmt: skip
ENGINES = {"portable": structs.PORTABLE, "avx2": structs.AVX2, "avx512": structs.AVX512}


HERE = {name: isa for name, isa in ENGINES.items() if isa <= best_isa()}


@pytest.fixture(params=[*HERE, "amx"] if has_tiles() else HERE)
def engine(request, monkeypatch):
    """Each form of the native engine that this machine has; the last one is the default."""
    monkeypatch.setenv(ENGINE, request.param)
    return request.param


def test_the_engine_is_built():
    """Without it the tests below would compare NumPy with itself: `pip install -e .` builds it."""
    assert why_not() is None
    assert library() is not None


def _run(
    identity: str, shape: tuple[int, int, int], source: np.ndarray, *, isa: int, at: int = 0, to: int = 0,
    fresh: bool = False,
):  # fmt: skip
    """Canonical bytes through the engine, from `at` bytes into a buffer to `to` bytes into a line, between canaries."""
    layout, parameters = find(identity)
    placed = layout.place(shape, parameters)
    made = program(identity, shape, 127 if layout.field == "scale" else 0, isa=isa)
    assert made is not None
    experts, rows, width = shape
    held = np.empty(source.size + at, dtype=np.uint8)
    held[at:] = source.reshape(-1)
    room = np.full(placed.nbytes + 192, 0x77, dtype=np.uint8)
    begin = -room.ctypes.data % 64 + to
    out = room[begin : begin + placed.nbytes]
    if made.holes:
        out[...] = placed.pad_value
    cuts = np.zeros(experts, dtype=native.CUT)
    for e in range(experts):
        cuts[e] = (held.ctypes.data + at + e * rows * width, width, rows, width, 0, 0, 0, 0, (0, 0), 0)
    jobs = np.zeros(made.groups, dtype=native.JOB)
    for g in range(made.groups):
        jobs[g] = (made.address, cuts.ctypes.data, out.ctypes.data, g, g + 1, 1, structs.FIELDS["bias"], 0, 0)
    result = native.run(jobs, totals=1, columns=width, scratch=made.scratch, threads=2, isa=isa, fresh=fresh)
    assert result.fault is None
    assert (room[:begin] == 0x77).all(), "wrote before the tensor"
    assert (room[begin + placed.nbytes :] == 0x77).all(), "wrote beyond the tensor"
    return out, placed.pack(source), made.struct.kernel


@pytest.mark.parametrize("width", [608, 1024, 1536])
@pytest.mark.parametrize("identity", ["aiter.w16", "raw.weight", "gguf.mxfp4_weight", "marlin.weight"])
def test_digest_on_the_way(identity, width, engine):
    """Rows so long that kernels sum them as they move them, half of them standing elsewhere, from any column on."""
    layout, parameters = find(identity)
    if width % 64 and identity == "marlin.weight":
        width -= width % 64
    column, shape = 48, (2, 64, width)
    source = np.random.default_rng(width).integers(0, 256, (*shape[:2], column + width + 16), dtype=np.uint8)
    placed = layout.place(shape, parameters)
    made = program(identity, shape, 0, isa=best_isa())
    assert made is not None
    out = np.full(placed.nbytes + 64, 0x77, dtype=np.uint8)[:-64]
    if made.holes:
        placed.fill(out)
    apart = source[:, 24:].copy()
    cuts = np.zeros((2, 2), dtype=native.CUT)
    for e in range(2):
        seeds = place("l", e, "w1", "weight")
        pitch = source.shape[2]
        first, then = source[e].ctypes.data + column, apart[e].ctypes.data + column
        cuts[e, 0] = (first, pitch, 24, width, 0, 0, 5, column, seeds, 1)
        cuts[e, 1] = (then, pitch, 40, width, 24, 0, 29, column, seeds, int(e == 0))
    jobs = np.zeros(1, dtype=native.JOB)
    jobs[0] = (made.address, cuts.ctypes.data, out.ctypes.data, 0, made.groups, 2, structs.FIELDS["weight"], 0, 0)
    result = native.run(jobs, totals=1, columns=width, scratch=made.scratch, keep=[apart])
    content = source[:, :, column : column + width]
    counted = [(0, slice(0, 64)), (1, slice(0, 24))]
    wanted = Digest()
    for e, rows in counted:
        wanted += matrix_digest("l", e, "w1", "weight", content[e, rows], row=5, column=column)
    assert result.totals[0] == wanted
    assert np.array_equal(out, placed.pack(np.ascontiguousarray(content)))


@pytest.mark.parametrize("isa", HERE.values(), ids=HERE)
@pytest.mark.parametrize("identity", [layout.identity() for layout in everything()])
def test_every_version_of_every_layout(identity, isa):
    """Random bytes on every shape that the layout can hold, from an odd address."""
    layout, parameters = find(identity)
    highest = layout.highest if layout.add else 255
    rng = np.random.default_rng(0)
    held = 0
    for shape in SHAPES:
        try:
            layout.place(shape, parameters)
        except LayoutError:
            continue
        source = rng.integers(0, highest + 1, shape, dtype=np.uint8)
        # How lines are stored hangs on where they are and on whether memory was touched before.
        for fresh, to in ((False, 0), (True, 0), (False, 32), (False, 3)):
            found, wanted, _ = _run(identity, shape, source, isa=isa, at=3, to=to, fresh=fresh)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{identity} {shape} {fresh=} {to=}")
        held += 1
    assert held, "no shape of this test fits the layout: add one"


def test_fast_kernels_are_chosen():
    """The layouts that matter most go through the kernels that were written for them."""
    kinds = {
        "aiter.w16": structs.TILE16, "aiter.w16_gugu": structs.TILE16, "aiter.e8": structs.SHUFFLE,
        "triton_kernels.hopper_scale": structs.SHUFFLE, "marlin.weight": structs.SHUFFLE, "raw.weight": structs.RUN,
        "triton_kernels.hopper_value": structs.SHUFFLE,
    }  # fmt: skip
    for identity, kind in kinds.items():
        made = program(identity, (2, 256, 512), 0, isa=structs.AVX2)
        assert made is not None
        assert made.struct.kernel == kind, identity


def test_fast_kernels_are_chosen_for_avx512():
    """Compiled for a machine that need not be this one: only what AVX2 has no faster kernel for is left to it."""
    held = {}
    for layout in everything():
        for shape in SHAPES if layout.field != "bias" else ():
            try:
                made = program(layout.identity(), shape, 0, isa=structs.AVX512)
            except LayoutError:
                continue
            assert made is not None
            held.setdefault(layout.identity(), set()).add(made.struct.kernel)
    fast = {structs.RUN, structs.TILE16, structs.LINES}
    assert {name for name, kinds in held.items() if not kinds & fast} == set()
    lines = ["marlin.weight@1", "triton_kernels.hopper_value@2", "aiter.e8@1", "gguf.mxfp4_weight@1", "marlin.scale@1"]
    assert all(structs.LINES in held[name] for name in lines)


def test_bits_that_part_ways_are_multiplied():
    """FlashInfer's words take four products a line and one step more, where shifts and masks would take seven.

    Hopper's bytes exchange halves first: one term with two products, whose bytes need not be brought.
    """
    for name, a_line in (("flashinfer.sm90_w13", 4), ("triton_kernels.hopper_value", 1)):
        placed = find(name)[0].place((1, 256, 256))
        found = fit(digits_of(placed), placed, structs.AVX512)
        assert found is not None
        terms = found[1].terms
        assert len(terms) == a_line * len(np.unique(terms["dst"]))
        assert (terms["matrix"] > 0).all()
        assert (terms["order"] > 0).all()
        assert (terms["wide"] == (0 if a_line == 4 else 2)).all()
        assert any(found[1].fold) == (a_line == 1)


def test_holes_are_written_with_the_rest():
    """With AVX-512 nothing is left to fill beforehand; the other kernels leave holes alone."""
    for identity in ("gguf.mxfp4_weight", "gguf.mxfp4_scale"):
        for isa, holes in ((structs.AVX512, False), (structs.AVX2, True), (structs.PORTABLE, True)):
            made = program(identity, (2, 24, 48), 0, isa=isa)
            assert made is not None
            assert made.holes == holes, (identity, isa)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (3, 1), (2, 2)])
def test_ranks_of_a_plan(engine, tmp_path, monkeypatch, name, kind, tp, ep):
    """Cut, padded, poisoned: same bytes and same digest as the plain path, for every rank."""
    made = model(tmp_path, kind, experts=5, hidden=160, intermediate=224)
    plan = make_plan(made, RECIPES[name], tp=tp, ep=ep)
    digests, outs = packed(made, plan, "layers.0")
    monkeypatch.setenv(ENGINE, "numpy")
    wanted_digests, wanted = packed(made, plan, "layers.0")
    for rank, (found, right) in enumerate(zip(outs, wanted, strict=True)):
        for slot in right:
            np.testing.assert_array_equal(found[slot], right[slot], err_msg=f"rank {rank} {slot}")
    assert digests == wanted_digests


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    experts=st.integers(1, 6), hidden=st.integers(1, 9), intermediate=st.integers(1, 12), tp=st.integers(1, 4),
    ep=st.integers(1, 3), kind=st.sampled_from(["deepseek", "gpt_oss", "quark"]),
    weight=st.sampled_from(names("weight")), scale=st.sampled_from(names("scale")),
    policy=st.sampled_from(["balanced", "ceil"]), engine=st.sampled_from([*HERE]),
)  # fmt: skip
def test_random_plans(monkeypatch, experts, hidden, intermediate, tp, ep, kind, weight, scale, policy, engine):
    """Any checkpoint shape on any number of ranks, with replicas and empty ranks, through any pair of layouts."""
    with tempfile.TemporaryDirectory() as folder:
        made = model(Path(folder), kind, experts=experts, hidden=32 * hidden, intermediate=32 * intermediate, top_k=1)
        placement = {r: tuple(range(r % experts, experts)) if r else tuple(range(experts)) for r in range(ep)}
        rules = recipe(weight, scale, hidden=512, intermediate=512)
        plan = make_plan(made, rules, tp=tp, ep=ep, policy=policy, placement=placement, allow_empty=True)
        monkeypatch.setenv(ENGINE, engine)
        digests, outs = packed(made, plan, "layers.0")
        monkeypatch.setenv(ENGINE, "numpy")
        wanted_digests, wanted = packed(made, plan, "layers.0")
        for found, right in zip(outs, wanted, strict=True):
            assert all(np.array_equal(found[slot], right[slot]) for slot in right)
        assert digests == wanted_digests


def test_threads_do_not_change_bytes(tmp_path):
    """One thread or many."""
    made = model(tmp_path, experts=7, hidden=256, intermediate=224)
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    one, many = (packed(made, plan, "layers.0", threads=n) for n in (1, 8))
    assert one[0] == many[0]
    assert all(np.array_equal(a[s], b[s]) for a, b in zip(one[1], many[1], strict=True) for s in a)


def test_numpy_path_says_so_once(tmp_path, monkeypatch, caplog):
    """A machine without a compiler packs all the same, and is told why it is slow."""
    rooms = sys.modules["shardproof.pack.native.library"]
    made = model(tmp_path)
    plan = make_plan(made, RECIPES["raw"])
    monkeypatch.setattr(rooms, "_load", lambda: (None, "it was not built (no C compiler at installation)"))
    rooms._say_once.cache_clear()
    with caplog.at_level("WARNING", logger="shardproof.pack"):
        packed(made, plan, "layers.0")
        packed(made, plan, "layers.0")
    reason = "it was not built (no C compiler at installation)"
    said = f"packing with NumPy, several times slower: the native engine is missing; {reason}"
    assert caplog.messages == [said]
