"""What lets a search leave mistakes out: two of them never undo each other nearly, and a few wrong bytes are few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from shardproof.errors import LayoutError, ShardproofError
from shardproof.experts import Field, Stack
from shardproof.mistakes import Mistake, Scene, changed_bytes, changes, explain, museum
from shardproof.mistakes import explain as explain_function
from shardproof.mistakes.explain import Views, _combos
from shardproof.mistakes.extent import UNDONE
from shardproof.verify import scene_of
from tests.diagnose.cases import SHAPES
from tests.diagnose.conftest import Made

NAMES = tuple(shape.name for shape in SHAPES)
SLOTS: tuple[tuple[Stack, Field], ...] = tuple((s, f) for s in ("w13", "w2") for f in ("weight", "scale"))  # type: ignore[misc]


def _changed(scene: Scene, slot: tuple[Stack, Field], right: np.ndarray, combo: Sequence[Mistake]) -> int:
    """Bytes of the tensor that a combination changes; 0 where it is impossible."""
    try:
        wrong = scene.kernel(*slot, [m for m in combo if slot[1] in m.fields])
    except (ShardproofError, ValueError, IndexError):
        return 0
    return int((wrong != right).sum()) if wrong.shape == right.shape else 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("slot", SLOTS, ids=".".join)
@pytest.mark.parametrize("name", NAMES)
def test_two_mistakes_change_much_or_nothing(made: Made, name: str, slot: tuple[Stack, Field]) -> None:
    model, plan, _ = made(name)
    scene = scene_of(model, plan, "layers.0", plan.ranks[-1])
    right = scene.kernel(*slot)
    alone = {m.name: _changed(scene, slot, right, (m,)) for m in museum()}
    known = [m for m in museum() if alone[m.name]]
    assert len(known) > 10
    for combo in _combos(known, 2):
        both = _changed(scene, slot, right, combo)
        widest = max(alone[m.name] for m in combo)
        assert not both or both * UNDONE >= widest, [m.name for m in combo]


@pytest.mark.parametrize("stack", ["w13", "w2"])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_one_expert_are_counted_rightly(made: Made, name: str, stack: Stack) -> None:
    """Under another layout too, where they are counted without the other experts."""
    model, plan, _ = made(name)
    slot: tuple[Stack, Field] = (stack, "weight")
    scene = scene_of(model, plan, "layers.0", plan.ranks[-1])
    kernel = scene.kernel(*slot)
    compared = 0
    for mistake in (m for m in museum() if m.experts is None and changes(scene, slot, m)):
        try:
            wrong = scene.kernel(*slot, (mistake,))
        except LayoutError:  # the mistake's layout cannot hold this shape
            continue
        counted = changed_bytes(scene, slot, mistake, 0)
        if counted is not None and wrong.shape == kernel.shape:
            own = (wrong != kernel).reshape(1 if mistake.write else len(scene.experts()), -1)[0]
            assert counted == own.sum(), mistake.name
            compared += 1
    assert compared > 6


@pytest.mark.parametrize("wrong", [1, 3])
def test_pairs_are_not_tried_on_a_few_wrong_bytes(made: Made, monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    tried: list[int] = []
    module = __import__("sys").modules[explain_function.__module__]
    own = module._Search.holds
    monkeypatch.setattr(module._Search, "holds", lambda s, combo: tried.append(len(combo)) or own(s, combo))
    model, plan, _ = made("cdna4")
    slot: tuple[Stack, Field] = ("w13", "weight")
    scene = scene_of(model, plan, "layers.0", plan.ranks[0])
    kernel = scene.kernel(*slot)
    kernel[100 : 100 + wrong] ^= 0x5A
    views = Views(kernel, plan.canonical_shape("layers.0", plan.ranks[0], *slot))
    assert explain(scene, slot, views, museum(), most=3, exact=True) is None
    assert tried.count(1) > 10
    assert len(tried) == tried.count(1)
