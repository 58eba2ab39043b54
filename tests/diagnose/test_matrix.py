"""Every mistake x every shape: put back, named, and nothing named where nothing is wrong."""

from __future__ import annotations

import pytest

from shardproof.diagnose import diagnose, put_back
from shardproof.mistakes import museum
from tests.diagnose.cases import SHAPES, named, spoiled, told
from tests.diagnose.conftest import Made

NAMES = [shape.name for shape in SHAPES]
WITHOUT_A_STEP = {"bias_dtype", "block_from_shape"}
"""Shown in test_bad_input (a bias of another dtype) and test_transformers (dequantised weights)."""


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_named(made: Made, name: str) -> None:
    model, plan, _ = made(name)
    for mistake in museum():
        case = spoiled(model, plan, [mistake])
        if case is None:
            continue  # the mistake changes no byte of this shape
        found = told(model, plan, *case)
        assert mistake.name in named(found), (mistake.name, str(found))
        assert len({f.name for f in found.findings}) == 1, (mistake.name, str(found))
        assert found.exit_code == (mistake.severity == "wrong")


def test_every_mistake_shows_somewhere(made: Made) -> None:
    shown = set()
    for name in NAMES:
        model, plan, _ = made(name)
        shown |= {m.name for m in museum() if m.name not in shown and spoiled(model, plan, [m]) is not None}
    assert {m.name for m in museum()} - shown == WITHOUT_A_STEP


@pytest.mark.parametrize("name", NAMES)
def test_right_tensors_raise_no_alarm(made: Made, name: str) -> None:
    model, plan, _ = made(name)
    for rank in plan.ranks:
        found = told(model, plan, rank, put_back(model, plan, "layers.0", rank))
        assert found.ok, str(found)
        assert not found.findings
        assert all(row.share == 1.0 for row in found.layers[0].rows)


@pytest.mark.parametrize("name", NAMES)
def test_right_tensors_are_recognised_without_hints(made: Made, name: str) -> None:
    model, plan, _ = made(name)
    for rank in plan.ranks:
        dump = {n.removeprefix("layers.1."): a for n, a in put_back(model, plan, "layers.1", rank).items()}
        found = diagnose(dump, model)
        report = found.layers[0]
        assert not found.findings, str(found)
        assert report.layer == "layers.1"
        start, stop = (32 * b for b in plan.shape("layers.1").intervals[rank.tp_rank])
        assert report.where["intermediate"].startswith(f"{start}..{stop} of ")
        same_slice = f"rank {rank.tp_rank} of tp {rank.tp}"
        assert (report.where["tp"], report.where["ep"]) == (rank.tp, rank.ep) or any(
            same_slice in n for n in report.notes
        )
