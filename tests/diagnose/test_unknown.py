"""A permutation that no layout explains is described from the content itself, as a pattern where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardproof.diagnose import diagnose, put_back
from shardproof.diagnose.unknown import infer_pattern
from shardproof.layouts import Layout
from tests.diagnose.cases import Shape, model_of, plan_of
from tests.models import RAW

PATTERNS = [
    ("byte", "e (n 4a) (k 2b 16c) -> e k a n b c"),
    ("byte", "e (n 2a 8b) (k 4c) -> e b k n c a"),
    ("byte", "e (n 8a) (k 8b) -> e k n b a"),
    ("nibble", "e (n 16a) (k 4b 8c) -> e n c k a b"),
    ("byte", "e (n 2a) (k 32b) -> e ~a k n b"),
]


@pytest.mark.parametrize(("unit", "pattern"), PATTERNS)
def test_pattern_is_found(tmp_path: Path, unit: str, pattern: str) -> None:
    shape = Shape("unknown", "deepseek", 16, 128, 128, 1, RAW)
    model = model_of(tmp_path, shape, layers=1)
    plan = plan_of(model, shape)
    secret = Layout(name="secret", field="weight", unit=unit, pattern=pattern, summary="", source="")  # type: ignore[arg-type]
    dump = put_back(model, plan, "layers.0", plan.ranks[0])
    name = "layers.0.experts.w2.weight"
    placed = secret.place((16, 128, 64))
    dump[name] = placed.pack(dump[name].reshape(16, 128, 64))
    found = diagnose(dump, model, rank=0, tp=1, ep=1, recipe=RAW)
    told = next(f for f in found.findings if f.name == "unknown_order")
    assert found.names == {"unknown_order"}
    line = told.sentence.split('"')[1]
    again = Layout(name="again", field="weight", unit=unit, pattern=line, summary="", source="").place((16, 128, 64))  # type: ignore[arg-type]
    assert np.array_equal(again.source_map(), placed.source_map())


def test_random_permutation_has_no_pattern_but_is_placed(tmp_path: Path) -> None:
    shape = Shape("unknown", "deepseek", 16, 64, 64, 1, RAW)
    model = model_of(tmp_path, shape, layers=1)
    plan = plan_of(model, shape)
    dump = put_back(model, plan, "layers.0", plan.ranks[0])
    name = "layers.0.experts.w2.weight"
    moved = np.random.default_rng(1).permutation(64 * 32)
    dump[name] = dump[name].reshape(16, -1)[:, moved].reshape(-1)
    found = diagnose(dump, model, rank=0, tp=1, ep=1, recipe=RAW)
    assert found.names == {"unknown_order"}
    first = int(moved[0])
    assert (
        f"no pattern; the first addresses are 0 <- row {first // 32}, byte {first % 32}" in found.findings[0].sentence
    )


def test_pieces_of_sixteen_bytes_that_moved_within_each_row(tmp_path: Path) -> None:
    shape = Shape("unknown", "deepseek", 4, 256, 128, 1, RAW)
    model = model_of(tmp_path, shape, layers=1)
    plan = plan_of(model, shape)
    dump = put_back(model, plan, "layers.0", plan.ranks[0])
    name = "layers.0.experts.w13.weight"
    dump[name] = dump[name].reshape(4, 256, 4, 2, 16).transpose(0, 1, 3, 2, 4).reshape(-1).copy()
    found = diagnose(dump, model, rank=0, tp=1, ep=1, recipe=RAW)
    assert "unknown_order" in found.names
    assert "-> e " in str(found)


@pytest.mark.parametrize("seed", range(20))
def test_digits_of_random_patterns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = [2] * int(rng.integers(2, 6)), [2] * int(rng.integers(2, 7))
    sizes = [int(rng.choice([2, 3, 4])) for _ in rows], [int(rng.choice([2, 4, 5])) for _ in columns]
    count = np.prod([s for group in sizes for s in group])
    index = np.arange(count).reshape([*sizes[0], *sizes[1]])
    moved = index.transpose(rng.permutation(index.ndim)).reshape(-1)
    row_units = int(np.prod(sizes[1]))
    line = infer_pattern(moved, row_units)
    assert line is not None
    shape = (1, int(np.prod(sizes[0])), row_units)
    again = Layout(name="again", field="weight", pattern=line, summary="", source="").place(shape)
    assert np.array_equal(again.source_map(), moved)
