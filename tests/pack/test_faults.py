"""What is wrong with a checkpoint while it is packed is an error that names the place, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import CheckpointError, LayoutError, PackError
from shardproof.formats import read_experts
from shardproof.pack import pack, pack_layer
from shardproof.pack.native.library import ENGINE
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model, poisoned


@pytest.fixture(params=["", "avx2", "portable", "numpy"], ids=["best", "avx2", "portable", "numpy"])
def engine(request, monkeypatch):
    """Every way of packing."""
    monkeypatch.setenv(ENGINE, request.param)
    return request.param


def damage(made, expert: int, projection: str, row: int, block: int, value: int):
    """Put one scale byte into the checkpoint's file and open it again."""
    source = made.layer("layers.0").sources[projection, "scale"]
    path = made.checkpoint.paths[int(source.file[expert])]
    with path.open("r+b") as stream:
        stream.seek(int(source.start[expert]) + row * source.row_stride + block)
        stream.write(bytes([value]))
    return read_experts(Checkpoint.open(path.parent))


@pytest.mark.parametrize("where", [(0, "w1", 0, 0), (3, "w2", 63, 2), (2, "w3", 95, 1), (1, "w2", 17, 1)])
def test_a_nan_scale_is_named(engine, tmp_path, where):
    """Byte 255 anywhere: tensor, expert, row and block."""
    expert, projection, row, block = where
    made = damage(model(tmp_path), expert, projection, row, block, 255)
    plan = make_plan(made, RECIPES["aiter"], tp=3)
    rank = next(
        r for r in plan.ranks for stack in ("w13", "w2") for cut in plan.cuts("layers.0", r, stack, "scale")
        if cut.projection == projection and cut.rows[0] <= row < cut.rows[1] and cut.columns[0] <= block < cut.columns[1]
    )  # fmt: skip
    with pytest.raises(PackError) as caught:
        pack_layer(made, plan, "layers.0", rank, poisoned(plan, "layers.0", rank))
    assert caught.value.code == "pack.scale_nan"
    assert caught.value.expert == expert
    assert caught.value.found == f"255 at row {row}, block {block} of {projection}"
    for other in set(plan.ranks) - {rank}:
        pack_layer(made, plan, "layers.0", other, poisoned(plan, "layers.0", other))


def test_a_value_that_the_layout_cannot_hold(engine, tmp_path):
    """marlin.scale_a8 adds 6: byte 250 has no place in it."""
    made = damage(model(tmp_path, hidden=128, intermediate=128), 1, "w1", 5, 1, 250)
    plan = make_plan(made, RECIPES["marlin_a8"])
    with pytest.raises(LayoutError) as caught:
        pack_layer(made, plan, "layers.0", plan.ranks[0], poisoned(plan, "layers.0", plan.ranks[0]))
    assert caught.value.code == "layout.value"


def test_a_wrong_buffer_is_refused(engine, tmp_path):
    """Size, dtype, and a buffer that cannot be written."""
    made = model(tmp_path)
    plan = make_plan(made, RECIPES["raw"])
    rank = plan.ranks[0]
    good = poisoned(plan, "layers.0", rank)
    readonly = good["w13", "weight"].copy()
    readonly.flags.writeable = False
    for bad in (good["w13", "weight"][:-1], good["w13", "weight"].view(np.int8), readonly):
        with pytest.raises(PackError) as caught:
            pack_layer(made, plan, "layers.0", rank, {**good, ("w13", "weight"): bad})
        assert caught.value.code == "pack.buffer"


def _truncate(made) -> None:
    for path in made.checkpoint.paths:
        os.truncate(path, 4096)


def test_a_file_cut_off_before_packing(engine, tmp_path):
    """The plan was made, then the file shrank."""
    made = model(tmp_path, experts=8, hidden=256, intermediate=256)
    plan = make_plan(made, RECIPES["raw"])
    _truncate(made)
    with pytest.raises(CheckpointError) as caught:
        pack_layer(made, plan, "layers.0", plan.ranks[0], poisoned(plan, "layers.0", plan.ranks[0]))
    assert caught.value.code == "checkpoint.changed"


def test_a_file_cut_off_under_the_map(tmp_path, monkeypatch):
    """The file shrinks after it was mapped and checked: a read beyond its end is caught in the engine."""
    made = model(tmp_path, experts=8, hidden=256, intermediate=256)
    plan = make_plan(made, RECIPES["raw"])
    check = made.checkpoint.check_unchanged
    taken = [made.checkpoint.memory(file) for file in range(len(made.checkpoint.paths))]
    _truncate(made)
    calls = []

    def later(file: int) -> None:
        calls.append(file)
        if len(calls) > len(taken):  # the checks before the run still see the old file
            check(file)

    monkeypatch.setattr(made.checkpoint, "check_unchanged", later)
    with pytest.raises(CheckpointError) as caught:
        pack_layer(made, plan, "layers.0", plan.ranks[0], poisoned(plan, "layers.0", plan.ranks[0]))
    assert caught.value.code == "checkpoint.changed"
    assert caught.value.needed.endswith("untouched")


def test_a_file_that_shrinks_while_it_is_packed(tmp_path):
    """Truncation at a random moment of a real run: a coded error, or the run was done before."""
    made = model(tmp_path / "ckpt", layers=4, experts=16, hidden=512, intermediate=512)
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    done = 0
    for attempt in range(6):
        again = read_experts(Checkpoint.open(tmp_path / "ckpt"))
        keep = [path.read_bytes() for path in again.checkpoint.paths]
        started = threading.Event()

        def cut(wait: float = 0.002 * attempt, paths=again.checkpoint.paths, event=started) -> None:
            event.wait()
            time.sleep(wait)
            for path in paths:
                os.truncate(path, 8192)

        killer = threading.Thread(target=cut)
        killer.start()
        try:
            pack(again, plan, tmp_path / f"out{attempt}", report=lambda _, event=started: event.set())
            done += 1
        except CheckpointError as error:
            assert error.code == "checkpoint.changed"
        finally:
            started.set()
            killer.join()
            for path, data in zip(again.checkpoint.paths, keep, strict=True):
                path.write_bytes(data)
        assert not list(tmp_path.glob(".out*.part-*"))
    assert done < 6, "no attempt met a shrunken file"


def test_a_bus_error_outside_the_engine_still_kills(tmp_path):
    """The guard is there while the engine runs and not a moment longer."""
    script = textwrap.dedent(
        """
        import mmap, os, sys
        import numpy as np
        from pathlib import Path
        from shardproof.plan import make_plan
        from tests.pack.recipes import RECIPES, model, packed
        made = model(Path(sys.argv[1]))
        packed(made, make_plan(made, RECIPES["raw"]), "layers.0")
        path = Path(sys.argv[1]) / "victim"
        path.write_bytes(bytes(8192))
        with path.open("r+b") as stream:
            view = mmap.mmap(stream.fileno(), 0)
        os.truncate(path, 0)
        view[4096]
        """
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, cwd=root, check=False)
    assert ended.returncode == -7, "SIGBUS was swallowed"
