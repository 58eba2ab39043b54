"""Several processes: who takes what, and that they make the same folder together."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shardproof.errors import PackError
from shardproof.pack import Worker, pack
from shardproof.pack.native.run import default_threads
from shardproof.plan import make_plan
from shardproof.verify import verify
from tests.pack.recipes import RECIPES, model
from tests.pack.test_resume import contents

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
SLURM = {
    "SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_NODEID": "2", "SLURM_NNODES": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Worker()),
        (TORCHRUN, Worker(1, 2, 1, 4)),
        ({k: v for k, v in TORCHRUN.items() if k != "GROUP_RANK"}, Worker(1, 2, 1, 4)),
        (SLURM, Worker(2, 3, 1, 3)),
        ({**SLURM, "SLURM_NTASKS": "1"}, Worker()),
    ],
)
def test_environments(environment, expected):
    """torchrun, Slurm with uneven nodes, and neither."""
    assert Worker.from_environment(environment) == expected


@pytest.mark.parametrize(
    "broken",
    [
        {**TORCHRUN, "LOCAL_RANK": "4"}, {**TORCHRUN, "WORLD_SIZE": "many"}, {**SLURM, "SLURM_NODEID": "3"},
        {k: v for k, v in SLURM.items() if k != "SLURM_NNODES"}, {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "?"},
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be(broken):
    """A contradiction is refused, not guessed around."""
    with pytest.raises(PackError) as caught:
        Worker.from_environment(broken)
    assert caught.value.code == "pack.worker"


@pytest.mark.parametrize(("hosts", "locals_"), [(1, 1), (2, 3), (3, 2), (8, 8), (5, 16)])
def test_every_unit_has_one_worker(hosts, locals_):
    """Ranks over hosts, layers over the processes of a host: each pair exactly once."""
    ranks, layers = list(range(8)), [f"layers.{n}" for n in range(13)]
    taken = [
        (rank, layer)
        for host in range(hosts) for local in range(locals_)
        for rank in Worker(host, hosts, local, locals_).ranks(ranks)
        for layer in Worker(host, hosts, local, locals_).layers(layers)
    ]  # fmt: skip
    assert sorted(taken) == [(rank, layer) for rank in ranks for layer in sorted(layers)]


def test_threads(monkeypatch):
    """OMP_NUM_THREADS, affinity and the cgroup quota bound them; the processes of a host share them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(sys.modules["shardproof.pack.native.run"], "_quota", lambda: 6)
    assert default_threads() == 6
    assert [Worker(0, 1, 0, n).threads(6) for n in (1, 4, 8)] == [6, 1, 1]


def test_workers_of_one_host_make_one_folder(tmp_path):
    """Each does its layers of all ranks; the last one publishes."""
    made = model(tmp_path / "ckpt", layers=5)
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    right = pack(made, plan, tmp_path / "right")
    seen: list[str] = []
    results = []
    for local in (2, 0, 1):
        assert not (tmp_path / "out").exists()
        results.append(
            pack(made, plan, tmp_path / "out", worker=Worker(0, 1, local, 3), report=lambda p: seen.append(p.layer))
        )
    assert results == [{}, {}, right]
    assert sorted(set(seen)) == list(plan.layers)
    assert len(seen) == 10
    assert contents(tmp_path / "out") == contents(tmp_path / "right")


def test_hosts_with_one_file_system_make_one_folder(tmp_path):
    """Expert parallel: each host packs its ranks and reads its experts only."""
    made = model(tmp_path / "ckpt", experts=8)
    plan = make_plan(made, RECIPES["aiter"], ep=4)
    pack(made, plan, tmp_path / "right")
    for host in (1, 0):
        pack(made, plan, tmp_path / "out", worker=Worker(host, 2))
    assert contents(tmp_path / "out") == contents(tmp_path / "right")
    assert verify(tmp_path / "out", made).ok


def test_two_processes_at_once(tmp_path):
    """Real processes under torchrun's variables, started together."""
    made = model(tmp_path / "ckpt", layers=6, experts=8, hidden=256, intermediate=256)
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    pack(made, plan, tmp_path / "right")
    script = textwrap.dedent(
        """
        import sys
        from shardproof.checkpoint import Checkpoint
        from shardproof.formats import read_experts
        from shardproof.pack import Worker, pack
        from shardproof.plan import make_plan
        from tests.pack.recipes import RECIPES
        made = read_experts(Checkpoint.open(sys.argv[1]))
        pack(made, make_plan(made, RECIPES["aiter"], tp=2), sys.argv[2], worker=Worker.from_environment())
        """
    )
    root = Path(__file__).parents[2]
    base = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "ckpt"), str(tmp_path / "out")], cwd=root,
            env={**base, "RANK": str(n), "LOCAL_RANK": str(n), "GROUP_RANK": "0"},
        )
        for n in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "right")
