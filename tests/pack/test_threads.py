"""The engine's threads: they run beside the caller, end with the call, and stop where it is interrupted."""

from __future__ import annotations

import importlib
import os
import signal

import numpy as np
import pytest

from shardproof.pack import layer as pack_layer_module
from shardproof.pack import native, pack_layer
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model, packed, poisoned
from tests.pack.threads import engine_threads, left_over

run = importlib.import_module("shardproof.pack.native.run")  # the package has a function of that name
pytestmark = pytest.mark.skipif(native.library() is None, reason="needs the native engine")


@pytest.fixture
def gpt_oss(tmp_path):
    made = model(tmp_path, "gpt_oss", experts=16, hidden=1024, intermediate=1024)
    return made, make_plan(made, RECIPES["aiter"])


def test_biases_are_packed_beside_the_threads(gpt_oss, monkeypatch):
    made, plan = gpt_oss
    seen = []
    ordinary = pack_layer_module.pack_biases

    def looking(*arguments):
        seen.append(True)
        return ordinary(*arguments)

    monkeypatch.setattr(pack_layer_module, "pack_biases", looking)
    key = next(iter(plan.layers))
    out = poisoned(plan, key, plan.ranks[0])
    pack_layer(made, plan, key, plan.ranks[0], out, threads=3)
    assert seen
    assert left_over() == 0


class Engine:
    """The engine, with a second Ctrl-C just before the wait that no other may follow; `ended` is what waits said."""

    def __init__(self, engine):
        self.sp_start, self.sp_guard, self._wait = engine.sp_start, engine.sp_guard, engine.sp_wait
        self.ended, self.signals = [], 1

    def sp_wait(self, batch, millis):
        if millis < 0 and self.signals:
            self.signals -= 1
            signal.raise_signal(signal.SIGINT)
        self.ended.append(self._wait(batch, millis))
        return self.ended[-1]


@pytest.mark.parametrize("how", ["raised", "sent", "sent twice"])
def test_ctrl_c_while_they_run(gpt_oss, monkeypatch, how):
    """Nobody writes into the caller's memory once the call has ended, and the next call is right."""
    made, plan = gpt_oss
    key, rank = next(iter(plan.layers)), plan.ranks[0]

    batches = []

    class Kept(run.BatchStruct):
        def __init__(self, *fields):
            super().__init__(*fields)
            batches.append(self)

    def interrupt(*_):
        if how == "raised":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)

    out = poisoned(plan, key, rank)
    with monkeypatch.context() as patch:
        patch.setattr(pack_layer_module, "pack_biases", interrupt)
        patch.setattr(run, "BatchStruct", Kept)
        engine = Engine(native.library())
        if how == "sent twice":
            patch.setattr(run, "library", lambda: engine)
        with pytest.raises(KeyboardInterrupt):
            pack_layer(made, plan, key, rank, out, threads=3)
    assert batches[0].running == 0
    assert not run._in_use
    assert engine.ended == ([1] if how == "sent twice" else [])
    before = {slot: data.copy() for slot, data in out.items()}
    assert left_over() == 0
    for slot, data in out.items():
        np.testing.assert_array_equal(data, before[slot])
    (_, (right,)) = packed(made, plan, key, threads=1)
    pack_layer(made, plan, key, rank, out, threads=3)
    for slot, data in out.items():
        np.testing.assert_array_equal(data, right[slot], err_msg=str(slot))


def test_they_have_a_name_and_jobs_wait_for_their_part(tmp_path):
    """Seen from a part that is not taken: the threads exist, under the name that a debugger shows."""
    from shardproof.kernels.device import upload

    assert engine_threads() == 0
    seen = []

    class Looking(upload.Stage):
        def take(self, part):
            seen.append(engine_threads())
            super().take(part)

    torch = pytest.importorskip("torch")
    made = model(tmp_path, experts=6, hidden=256, intermediate=256)
    plan = make_plan(made, RECIPES["aiter"])
    rank = plan.ranks[0]
    out = {s: torch.zeros(plan.placed("layers.0", rank, *s).nbytes, dtype=torch.uint8) for s in plan.fields("layers.0")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "Stage", Looking)
        upload.pack_layer_on_device(made, plan, "layers.0", rank, out, scratch=1, threads=3)
    assert max(seen) == 3
    assert left_over() == 0
