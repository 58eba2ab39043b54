"""Handing staged bytes over part by part: order, room, and what happens where something goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.pack.recipes import RECIPES, model
from tests.pack.test_faults import damage as damaged
from tests.pack.threads import left_over

from shardproof.errors import PackError
from shardproof.kernels.device import upload
from shardproof.kernels.device.stage import Piece, Stage
from shardproof.kernels.device.upload import pack_layer_on_device
from shardproof.pack import pack_in_memory
from shardproof.plan import make_plan


def _layer(tmp_path, damage=None):
    made = model(tmp_path, experts=6, hidden=256, intermediate=256)
    if damage is not None:
        made = damaged(made, *damage)
    plan = make_plan(made, RECIPES["aiter"])
    rank = plan.ranks[0]
    slots = plan.fields("layers.0")
    out = {s: torch.full((plan.placed("layers.0", rank, *s).nbytes,), 0x77, dtype=torch.uint8) for s in slots}
    return made, plan, rank, out


def test_parts_come_in_order_and_only_into_free_buffers(tmp_path, monkeypatch):
    """A stage that frees its buffers late: no buffer is written before, and every byte is right."""
    made, plan, rank, out = _layer(tmp_path)
    seen: list[tuple[str, int]] = []

    class Slow(Stage):
        def has_room(self, part):
            free = super().has_room(part) and len([s for s in seen if s == ("asked", part)]) > 5
            seen.append(("opened" if free else "asked", part))
            return free

        def take(self, part):
            seen.append(("taken", part))
            super().take(part)

    monkeypatch.setattr(upload, "Stage", Slow)
    pack_layer_on_device(made, plan, "layers.0", rank, out, scratch=1, threads=3)
    order = [part for what, part in seen if what == "taken"]
    assert order == list(range(len(order)))
    assert len(order) > 8
    for part in range(4, len(order)):
        assert seen.index(("taken", part - 4)) < seen.index(("opened", part))
    right = pack_in_memory(made, plan, rank).layers["layers.0"].tensors
    for slot, tensor in right.items():
        np.testing.assert_array_equal(out[slot].numpy(), tensor, err_msg=str(slot))


def test_a_nan_scale_is_named_and_no_thread_is_left(tmp_path):
    """The error of the ordinary path; threads that wait for room are let go."""
    made, plan, rank, out = _layer(tmp_path, (2, "w2", 17, 1, 255))
    with pytest.raises(PackError) as caught:
        pack_layer_on_device(made, plan, "layers.0", rank, out, scratch=1, threads=3)
    assert caught.value.code == "pack.scale_nan"
    assert caught.value.expert == 2
    assert caught.value.found == "255 at row 17, block 1 of w2"
    assert left_over() == 0


def test_an_interrupt_stops_the_threads(tmp_path, monkeypatch):
    """Ctrl-C while parts are handed over, with threads that wait for room."""
    made, plan, rank, out = _layer(tmp_path)

    class Struck(Stage):
        def take(self, part):
            raise KeyboardInterrupt

    monkeypatch.setattr(upload, "Stage", Struck)
    with pytest.raises(KeyboardInterrupt):
        pack_layer_on_device(made, plan, "layers.0", rank, out, scratch=1, threads=3)
    assert left_over() == 0


def test_a_buffer_is_free_once_its_piece_was_permuted():
    """Four buffers: the fifth piece waits for the first, the sixth for the second."""

    class Plain:
        def run(self, source, out):
            out.copy_(source)

    targets = [torch.zeros(8, dtype=torch.uint8) for _ in range(6)]
    stage = Stage("cpu", [Piece(Plain(), 8, target) for target in targets])
    assert [stage.has_room(part) for part in range(6)] == [True] * 4 + [False] * 2
    assert len({stage.address(part) for part in range(6)}) == 4
    stage.take(0)
    assert [stage.has_room(part) for part in (4, 5)] == [True, False]
