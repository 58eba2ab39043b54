"""Interrupted at any moment: the old state or one that can be taken up, and the same bytes in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.digest import Digest
from shardproof.errors import CheckpointError, PackError
from shardproof.formats import read_experts
from shardproof.mistakes import find_mistake
from shardproof.pack import Progress, pack
from shardproof.pack.journal import Journal
from shardproof.pack.leftovers import working
from shardproof.packed import MANIFEST, load
from shardproof.plan import make_plan
from shardproof.verify import verify
from tests.pack.recipes import RECIPES, model

KILLS = int(os.environ.get("SHARDPROOF_KILL_POINTS", "15"))
"""How many random kill points; the nightly run asks for 100."""

_RUN = textwrap.dedent(
    """
    import sys
    from shardproof.checkpoint import Checkpoint
    from shardproof.formats import read_experts
    from shardproof.pack import pack
    from shardproof.plan import make_plan
    from tests.pack.recipes import RECIPES
    made = read_experts(Checkpoint.open(sys.argv[1]))
    plan = make_plan(made, RECIPES["aiter"], tp=2, ep=2)
    print("ready", flush=True)
    pack(made, plan, sys.argv[2], threads=1)
    print("done", flush=True)
    """
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a packed folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _start(checkpoint: Path, out: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(checkpoint), str(out)], env=env, cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_kill_at_random_points(tmp_path):
    """SIGKILL after a random time, again and again; every end state is nothing, resumable, or right and complete."""
    made = model(tmp_path / "ckpt", layers=12, experts=8, hidden=256, intermediate=256)
    plan = make_plan(made, RECIPES["aiter"], tp=2, ep=2)
    began = time.perf_counter()
    pack(made, plan, tmp_path / "right", threads=1)
    whole = time.perf_counter() - began
    right = contents(tmp_path / "right")
    chance = random.Random(0)
    resumed = 0
    out = tmp_path / "out0"
    for number in range(KILLS):
        process = _start(tmp_path / "ckpt", out)
        time.sleep(chance.random() * whole * 0.8)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            assert contents(out) == right
            out = tmp_path / f"out{number + 1}"
        else:
            resumed += bool(list(tmp_path.glob(f".{out.name}.part-*")))
    reports: list[Progress] = []
    pack(made, plan, out, report=reports.append)
    assert contents(out) == right
    assert resumed, "no kill fell into a run"
    assert not list(tmp_path.glob(".out*.part-*"))


def test_what_is_done_is_not_done_again(tmp_path):
    """Ctrl-C after the second layer leaves two layers that the next run does not touch."""
    made = model(tmp_path / "ckpt", layers=4)
    plan = make_plan(made, RECIPES["aiter"], tp=2)

    def interrupt(progress: Progress) -> None:
        if progress.layer == "layers.1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(made, plan, tmp_path / "out", report=interrupt)
    assert not (tmp_path / "out").exists()
    seen: list[Progress] = []
    pack(made, plan, tmp_path / "out", report=seen.append)
    assert [p.layer for p in seen] == ["layers.2", "layers.2", "layers.3", "layers.3"]
    assert seen[0].done_bytes > seen[0].run_bytes
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert seen[-1].limited_by in {"disk", "page cache", "permute"}
    assert verify(tmp_path / "out", made).ok


def _leave(made, plan, out: Path, **options) -> Path:
    """A part folder as a killed run leaves it: one layer done."""
    before = set(out.parent.iterdir())

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(made, plan, out, report=interrupt, **options)
    (part,) = set(out.parent.iterdir()) - before
    return part


def test_what_other_options_left_is_removed(tmp_path):
    """Another kernel, another number of ranks, other ranks of which the output now holds some: of no more use."""
    made = model(tmp_path / "ckpt", layers=2, intermediate=128)
    plan = make_plan(made, RECIPES["aiter"], tp=4)
    _leave(made, make_plan(made, RECIPES["hopper"], tp=4), tmp_path / "out")
    _leave(made, make_plan(made, RECIPES["aiter"], tp=2), tmp_path / "out")
    _leave(made, plan, tmp_path / "out", rank_indices=[1, 2])
    elsewhere = _leave(made, plan, tmp_path / "other")
    useful = _leave(made, plan, tmp_path / "out", rank_indices=[2, 3])
    pack(made, plan, tmp_path / "out", rank_indices=[0, 1])
    assert set(tmp_path.iterdir()) == {tmp_path / "ckpt", tmp_path / "out", elsewhere, useful}
    seen: list[Progress] = []
    pack(made, plan, tmp_path / "out", report=seen.append)
    assert {(p.rank.index, p.layer) for p in seen} == {(2, "layers.1"), (3, "layers.1")}
    assert set(tmp_path.iterdir()) == {tmp_path / "ckpt", tmp_path / "out", elsewhere}
    pack(made, plan, tmp_path / "right")
    assert contents(tmp_path / "out") == contents(tmp_path / "right")


@pytest.mark.parametrize(("name", "other"), [("a", "a.part-z"), ("out*", "out_b"), ("o[1]", "o1")])
def test_only_its_own_leftovers_are_removed(tmp_path, name, other):
    """Names that begin alike, or that a shell would read as patterns."""
    made = model(tmp_path / "ckpt", layers=2)
    theirs = _leave(made, make_plan(made, RECIPES["hopper"]), tmp_path / other)
    own = _leave(made, make_plan(made, RECIPES["hopper"]), tmp_path / name)
    pack(made, make_plan(made, RECIPES["aiter"]), tmp_path / name)
    assert theirs.is_dir()
    assert not own.exists()


@pytest.mark.parametrize("ranks", [None, [0]])
def test_another_process_was_quicker(tmp_path, ranks):
    """The same command twice at once, or one that holds its ranks: what the other has published is the result."""
    made = model(tmp_path / "ckpt", layers=2)
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    quicker: list[dict[int, Digest]] = []

    def other(_: Progress) -> None:
        if not quicker:
            quicker.append({})
            quicker[0] = pack(made, plan, tmp_path / "out")

    found = pack(made, plan, tmp_path / "out", rank_indices=ranks, report=other)
    assert found == {i: quicker[0][i] for i in ranks or [0, 1]}
    assert set(tmp_path.iterdir()) == {tmp_path / "ckpt", tmp_path / "out"}
    assert verify(tmp_path / "out", made).ok


@pytest.mark.parametrize("who", ["at work", "another boot", "an earlier version"])
def test_what_may_be_in_use_stays(tmp_path, who):
    """A part folder in which somebody works, on this machine or perhaps on another one."""
    made = model(tmp_path / "ckpt", layers=2)
    part = _leave(made, make_plan(made, RECIPES["hopper"]), tmp_path / "out")
    journal = part / "journal"
    first, *rest = journal.read_text().splitlines(keepends=True)
    says = json.loads(first)
    if who == "another boot":
        journal.write_text("".join([json.dumps({**says, "boot": "another"}) + "\n", *rest]))
    if who == "an earlier version":
        journal.write_text("".join([json.dumps({"boot": says["boot"]}) + "\n", *rest]))
    with working(part) if who == "at work" else contextlib.nullcontext():
        pack(made, make_plan(made, RECIPES["aiter"]), tmp_path / "out")
    assert part.is_dir()


def test_an_error_leaves_nothing(tmp_path):
    """A run that ends with an error is not taken up: its part folder is gone."""
    made = model(tmp_path / "ckpt", layers=3)
    plan = make_plan(made, RECIPES["aiter"])

    def touch(_: Progress) -> None:
        os.utime(made.checkpoint.paths[0])

    with pytest.raises(CheckpointError):
        pack(made, plan, tmp_path / "out", report=touch)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


def test_packed_once(tmp_path):
    """The second time nothing is written, whatever the order of the ranks asked for."""
    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    first = pack(made, plan, tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    reports: list[Progress] = []
    assert pack(made, plan, tmp_path / "out", report=reports.append) == first
    assert pack(made, plan, tmp_path / "out", rank_indices=[1]) == {1: first[1]}
    assert reports == []
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_ranks_are_added(tmp_path):
    """Ranks packed in two runs make the folder that one run makes."""
    made = model(tmp_path / "ckpt", experts=6)
    plan = make_plan(made, RECIPES["aiter"], tp=2, ep=2)
    pack(made, plan, tmp_path / "right")
    pack(made, plan, tmp_path / "out", rank_indices=[2, 1])
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["digest"] is None
    seen: list[Progress] = []
    pack(made, plan, tmp_path / "out", report=seen.append)
    assert {p.rank.index for p in seen} == {0, 3}
    assert contents(tmp_path / "out") == contents(tmp_path / "right")


@pytest.mark.parametrize(
    ("change", "found", "needed"),
    [
        ({"tp": 1}, "tp 2", "tp 1"),
        ({"recipe": "hopper"}, "w13.weight aiter.w16@1", "w13.weight triton_kernels.hopper_value@2"),
        ({"checkpoint": {"experts": 5}}, "identity", "identity"),
        ({"policy": "ceil", "tp": 2}, "policy balanced", "policy ceil"),
    ],
)
def test_stale_output_is_refused_by_name(tmp_path, change, found, needed):
    """Another number of ranks, layout, checkpoint or policy."""
    made = model(tmp_path / "ckpt")
    pack(made, make_plan(made, RECIPES["aiter"], tp=2), tmp_path / "out")
    if "checkpoint" in change:
        made = model(tmp_path / "other", **change["checkpoint"])
    plan = make_plan(
        made, RECIPES[change.get("recipe", "aiter")], tp=change.get("tp", 2), policy=change.get("policy", "balanced")
    )
    with pytest.raises(PackError) as caught:
        pack(made, plan, tmp_path / "out")
    assert caught.value.code == "pack.stale"
    assert found in caught.value.found
    assert needed in caught.value.needed


def test_a_checkpoint_that_was_written_to_is_stale(tmp_path):
    """Same names, same sizes, other bytes: the files' times tell."""
    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"])
    pack(made, plan, tmp_path / "out")
    path = made.checkpoint.paths[1]
    os.utime(path, ns=(1, 1))
    again = read_experts(Checkpoint.open(tmp_path / "ckpt"))
    with pytest.raises(PackError) as caught:
        pack(again, make_plan(again, RECIPES["aiter"]), tmp_path / "out")
    assert caught.value.code == "pack.stale"
    assert path.name in caught.value.found


def test_a_newer_file_format_is_stale(tmp_path):
    """What a later shardproof wrote is not touched."""
    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"])
    pack(made, plan, tmp_path / "out")
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(PackError) as caught:
        pack(made, plan, tmp_path / "out")
    assert (caught.value.code, caught.value.found) == ("pack.stale", "format version 99")


def test_another_folder_is_left_alone(tmp_path):
    """A folder with anything else in it."""
    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(PackError) as caught:
        pack(made, plan, tmp_path / "out")
    assert caught.value.code == "pack.not_empty"
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}


def test_an_empty_folder_will_do(tmp_path):
    """`mkdir out` first is no mistake."""
    made = model(tmp_path / "ckpt")
    (tmp_path / "out").mkdir()
    pack(made, make_plan(made, RECIPES["aiter"]), tmp_path / "out")
    assert load(tmp_path / "out", 0).rank.index == 0


def test_mistakes_never_pass_for_packed_experts(tmp_path):
    """A mistake put back on purpose is not taken from, or added to, a right folder."""
    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    pack(made, plan, tmp_path / "out")
    with pytest.raises(PackError) as caught:
        pack(made, plan, tmp_path / "out", mistake=find_mistake("padded_offset"))
    assert caught.value.code == "pack.not_empty"


def test_a_journal_of_an_earlier_boot_is_not_believed(tmp_path):
    """Bytes in the page cache do not survive the machine."""
    journal = Journal(tmp_path / "journal")
    journal.begin()
    from shardproof.digest import Digest

    journal.add("layers.0", {0: Digest(1, 2), 1: Digest(3, 4)})
    with (tmp_path / "journal").open("a") as stream:
        stream.write('{"layer": "layers.1", "ra')
    assert journal.done() == {("layers.0", 0): Digest(1, 2), ("layers.0", 1): Digest(3, 4)}
    journal.add("layers.2", {0: Digest(5, 6)})
    assert ("layers.2", 0) in journal.done()
    lines = (tmp_path / "journal").read_text().splitlines()
    (tmp_path / "journal").write_text("\n".join(['{"boot": "another"}', *lines[1:]]) + "\n")
    journal.begin()
    assert journal.done() == {}
