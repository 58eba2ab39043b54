"""What must hold for every registered layout; a new one is picked up by itself."""

from __future__ import annotations

import numpy as np
import pytest
from formulas import FORMULAS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapes import ALL, IDS, legal, steps
from test_aiter_readers import READ
from test_libraries import LIBRARY
from vectors import GOLDEN, files_of, load

from shardproof.errors import LayoutError
from shardproof.layouts.moves import BITS

every = pytest.mark.parametrize("layout", ALL, ids=IDS)
quiet = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def identity(layout):
    return f"{layout.name}@{layout.version}"


def claiming(condition):
    """Parametrize over the layouts that claim one kind of evidence."""
    some = [layout for layout in ALL if condition(layout)]
    return pytest.mark.parametrize("layout", some, ids=[identity(layout) for layout in some])


def draw_placed(layout, data):
    parameters = {
        name: data.draw(st.sampled_from([4, 8] if name == "num_warps" else [2, 4]), label=name)
        for name in layout.parameters
    }
    counts = [data.draw(st.integers(1, 3), label=label) for label in "ENK"]
    rows, columns = steps(layout, parameters)
    counts[1] = data.draw(st.integers(1, max(3, 100 // rows)), label="N")
    counts[2] = data.draw(st.integers(1, max(3, 60 // columns)), label="K")
    return layout.place(legal(layout, parameters, *counts), parameters), parameters


def coordinates(placed):
    E, N, K = placed.shape
    K *= 8 // BITS[placed.unit]
    return [c.reshape(-1) for c in np.meshgrid(np.arange(E), np.arange(N), np.arange(K), indexing="ij")]


def units(data, placed):
    """Bytes as a list of units, low bits first."""
    return np.packbits(
        np.unpackbits(data.reshape(-1), bitorder="little").reshape(-1, BITS[placed.unit]),
        axis=1,
        bitorder="little",
    )[:, 0]


def planes(placed, layout):
    """Canonical tensors whose units together spell each unit's own index: one tensor for every few bits of it."""
    bits = BITS[placed.unit]
    total = placed.shape[0] * placed.shape[1] * placed.shape[2] * 8 // bits
    take = 7 if bits == 8 else bits  # a layout that adds to bytes needs some room
    index = np.arange(total)
    for low in range(0, max(total - 1, 1).bit_length(), take):
        tag = (index >> low & (1 << take) - 1).astype(np.uint8)
        as_bits = np.unpackbits(tag[:, None], axis=1, bitorder="little")[:, :bits]
        yield low, np.packbits(as_bits.reshape(-1), bitorder="little").reshape(placed.shape)


@every
@quiet
@given(data=st.data())
def test_unique_tags_arrive_where_the_address_says(layout, data):
    placed, _ = draw_placed(layout, data)
    where = placed.address(*coordinates(placed))
    assert np.unique(where).size == where.size, "two elements share an address"
    source = placed.source_map()
    assert (source >= 0).sum() == where.size
    assert (source[where] == np.arange(where.size)).all()
    found = np.zeros(where.size, dtype=np.int64)
    for low, canonical in planes(placed, layout):
        kernel = placed.pack(canonical)
        assert (placed.unpack(kernel) == canonical).all()
        moved = units(kernel, placed)[: placed.units][where].astype(np.int64)
        found |= moved - layout.add << low
    assert (found == np.arange(where.size)).all()


@every
@quiet
@given(data=st.data())
def test_element_is_the_inverse_of_address(layout, data):
    placed, _ = draw_placed(layout, data)
    addresses = np.arange(placed.units)
    e, n, k = placed.element(addresses)
    real = e >= 0
    assert ((e >= 0) == (n >= 0)).all()
    assert ((e >= 0) == (k >= 0)).all()
    assert (placed.address(e[real], n[real], k[real]) == addresses[real]).all()


@every
@quiet
@given(data=st.data())
def test_padding_is_exact_on_a_poisoned_destination(layout, data):
    placed, _ = draw_placed(layout, data)
    poison = 0xFF if layout.field == "scale" else 0x77
    out = np.full(placed.nbytes, poison, dtype=np.uint8)
    canonical = np.full(placed.shape, 0x22, dtype=np.uint8)
    placed.pack(canonical, out)
    padding = placed.source_map() < 0
    moved = units(out, placed)
    assert (moved[: placed.units][padding] == layout.filler).all()
    assert placed.has_padding == padding.any()
    placed.check_padding(out)
    if padding.any() and placed.unit == "byte":
        out[np.flatnonzero(padding)[-1]] = 255
        with pytest.raises(LayoutError) as caught:
            placed.check_padding(out)
        assert caught.value.code == "layout.padding"


@every
@quiet
@given(data=st.data())
def test_parts_of_experts_make_the_whole(layout, data):
    placed, _ = draw_placed(layout, data)
    canonical = np.random.default_rng(7).integers(0, 200, placed.shape, dtype=np.uint8)
    out = np.full(placed.nbytes, 0xFF, dtype=np.uint8)
    placed.fill(out)
    for expert in reversed(range(placed.shape[0])):
        placed.write(canonical[expert : expert + 1], out, first=expert)
    assert (out == placed.pack(canonical)).all()
    last = placed.shape[0] - 1
    assert (placed.read(out, last, 1) == canonical[last:]).all()


@claiming(lambda layout: "index formula" in layout.held_against)
def test_agrees_with_the_index_formula(layout, held):
    formula = FORMULAS[identity(layout)]
    for parameters in [{}] if not layout.parameters else [{}, {"num_warps": 4, "kpad": 2}]:
        full = {**layout.parameters, **parameters}
        rows, columns = steps(layout, full)
        for counts in ((1, 1, 1), (2, max(3, 96 // rows), max(3, 48 // columns)), (3, 5, 2)):
            placed = layout.place(legal(layout, full, *counts), parameters)
            E, N, K = placed.shape
            where = coordinates(placed)
            expected = formula(*where, E, N, K * 8 // BITS[placed.unit], **full)
            assert (placed.address(*where) == expected).all()
    held(identity(layout), "index formula")


@claiming(lambda layout: layout.golden)
def test_reproduces_the_vendors_bytes(layout, held):
    files = files_of(layout)
    assert files, f"{layout.golden} match no file"
    for path in files:
        vector = load(path, layout)
        placed = layout.place(vector.canonical.shape, vector.parameters)
        packed = placed.pack(vector.canonical)
        assert packed.size == vector.expected.size, path.stem
        real = units_present(placed) if vector.source is None else vector.source >= 0
        assert (packed[real] == vector.expected[real]).all(), path.stem
        if vector.source is not None:
            assert (placed.source_map()[real] == vector.source[real]).all(), path.stem
            constant = vector.source == -2
            assert (packed[constant] == vector.expected[constant]).all(), path.stem
        assert (placed.unpack(vector.expected) == vector.canonical).all(), path.stem
        held(identity(layout), "vendor bytes")


def units_present(placed):
    """Bytes of which every unit comes from the checkpoint."""
    per_byte = 8 // BITS[placed.unit]
    return (placed.source_map().reshape(-1, per_byte) >= 0).all(axis=1)


def test_every_vector_is_claimed_by_a_layout():
    claimed = {path.stem for layout in ALL for path in files_of(layout)}
    spare = {"aiter_e8_n48_shared_group"}  # recorded misuse: a test of refusals reads it
    assert {path.stem for path in GOLDEN.glob("*.npz")} - claimed == spare


@every
def test_illegal_shapes_are_refused_with_a_legal_one(layout):
    parameters = layout.filled()
    rows, columns = steps(layout, parameters)
    for axis, step in ((1, rows), (2, columns)):
        if step == 1:
            continue
        shape = list(legal(layout, parameters, 2, 2, 2))
        shape[axis] += 1
        with pytest.raises(LayoutError) as caught:
            layout.place(tuple(shape))
        error = caught.value
        assert error.code == "layout.shape"
        assert layout.name in error.what
        assert "a multiple of" in error.needed
        assert str(tuple(shape)) in error.found
        assert error.next_step


@every
def test_wrong_tensors_and_places_are_refused(layout):
    placed = layout.place(legal(layout, layout.filled(), 2, 1, 1))
    E, N, K = placed.shape
    cases = {
        "layout.shape": [
            lambda: placed.pack(np.zeros((E, N, K + 1), np.uint8)),
            lambda: placed.pack(np.zeros((E, N, K), np.int8)),
            lambda: layout.place((0, N, K)),
            lambda: placed.write(np.zeros((E, N, K), np.uint8), np.zeros(placed.nbytes, np.uint8), first=1),
        ],
        "layout.size": [
            lambda: placed.unpack(np.zeros(placed.nbytes + 1, np.uint8)),
            lambda: placed.pack(np.zeros((E, N, K), np.uint8), np.zeros(placed.nbytes - 1, np.uint8)),
        ],
        "layout.range": [
            lambda: placed.address(0, N, 0),
            lambda: placed.address(-1, 0, 0),
            lambda: placed.element(placed.units),
            lambda: placed.element(-1),
        ],
        "layout.parameter": [lambda: layout.place((E, N, K), {"colour": 1})],
    }
    for code, calls in cases.items():
        for call in calls:
            with pytest.raises(LayoutError) as caught:
                call()
            assert caught.value.code == code


@every
def test_the_declaration_is_complete(layout):
    assert layout.summary
    assert layout.source
    assert layout.held_against
    assert ("index formula" in layout.held_against) == (identity(layout) in FORMULAS)
    assert ("reader formula" in layout.held_against) == (identity(layout) in READ)
    assert ("vendor bytes" in layout.held_against) == bool(layout.golden or identity(layout) in LIBRARY)
    assert ("nothing yet" in layout.held_against) == (layout.held_against == ("nothing yet",))
    names = [defect.name for defect in layout.defects]
    assert len(set(names)) == len(names)
