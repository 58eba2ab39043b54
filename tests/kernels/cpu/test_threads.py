"""Threads: how many, whose, after fork, from several callers, from a thread."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from shardproof.kernels.cpu import default_threads, threads
from shardproof.kernels.cpu.library import library
from tests.kernels.cpu.exact import random_case


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("5,2", 5), (" 7 ", 7)])
def test_omp_num_threads_is_obeyed(monkeypatch, value, count):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == count


@pytest.mark.parametrize("value", ["", "0", "-2", "many"])
def test_nonsense_in_omp_num_threads_is_passed_over(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert 1 <= default_threads() <= os.cpu_count()


def test_affinity_is_obeyed():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert threads._usable_cores(threads._affinity()) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_physical_cores_count_siblings_once(tmp_path):
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    assert threads.physical_cores(frozenset(range(5)), tmp_path) == 3
    assert threads.physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert threads.physical_cores(frozenset({7, 8}), tmp_path) == 2  # unknown ones count alone


def test_cgroup_quota(tmp_path):
    assert threads.cgroup_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads.cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert threads.cgroup_quota(tmp_path) == 4
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.cgroup_quota(tmp_path) is None


def test_torch_lends_its_threads():
    """The OpenMP runtime that torch has loaded is found, and it is the one in this process's map."""
    assert threads._executor(torch.__file__)
    assert threads._executor(None) is None


@pytest.fixture
def two_executors():
    """Runs a function with torch's runtime, then with the library's own pool."""

    def both(function):
        results = []
        for address in (threads._executor(torch.__file__), None):
            library().sp_set_executor(address)
            results.append(function())
        return results

    yield both
    library().sp_set_executor(threads._executor(torch.__file__))


def test_both_executors_give_the_same_bits(rng, two_executors):
    case = random_case(rng, 4, 128, 96, 30, 2)
    layer = case.experts(threads=3)
    layer.forward(case.x, case.ids, case.weights)
    with_torch, alone = two_executors(lambda: layer.forward(case.x, case.ids, case.weights))
    np.testing.assert_array_equal(with_torch, alone)


def test_several_callers_at_once(rng, two_executors):
    """Five threads, their own inputs, 20 calls each: nobody gets another's result or waits for ever."""
    cases = [random_case(rng, 3, 64 * (n + 1), 96, 9 + n, 2) for n in range(5)]
    layers = [case.experts(threads=2) for case in cases]
    want = [case.run(threads=1) for case in cases]

    def together():
        wrong = []

        def call(n):
            for _ in range(20):
                got = layers[n].forward(cases[n].x, cases[n].ids, cases[n].weights)
                if not np.array_equal(got, want[n]):
                    wrong.append(n)

        callers = [threading.Thread(target=call, args=(n,)) for n in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert not any(caller.is_alive() for caller in callers)
        return wrong

    assert two_executors(together) == [[], []]


def _child(case, want, queue):
    got = [case.run(threads=2) for _ in range(3)]
    queue.put(all(np.array_equal(g, want) for g in got))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_after_use(rng, two_executors):
    """GNU OpenMP's team does not survive fork(); the child must neither hang nor use it."""
    case = random_case(rng, 4, 128, 96, 20, 2)
    want = case.run(threads=2)

    def forked():
        case.run(threads=2)  # the parent's threads exist now
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_child, args=(case, want, queue))
        child.start()
        try:
            fine = queue.get(timeout=60)
        finally:
            child.kill()
            child.join()
        np.testing.assert_array_equal(case.run(threads=2), want)  # and the parent goes on
        return fine

    assert two_executors(forked) == [True, True]


LAYER = """
import numpy as np, sys
from shardproof.kernels.cpu import CpuExperts
layer = CpuExperts(*(np.full(n, v, np.uint8) for n, v in ((2048, 0x22), (128, 127))), None,
                   *(np.full(n, v, np.uint8) for n, v in ((1024, 0x22), (64, 127))), None,
                   experts=1, hidden=64, intermediate=32, threads=2)
out = layer.forward(np.ones((5, 64), np.float32), np.zeros((5, 1), np.int32), np.ones((5, 1), np.float32))
assert (abs(out - 32 * 64 * 64) < 1).all(), out
"""
FIRST_USE_IN_CHILD = f"""
import os, torch
IMPORT
torch.set_num_threads(2)
torch.ones(4_000_000).exp()  # torch's OpenMP team exists
child = os.fork()
if child == 0:
    code = 1
    try:
        exec({LAYER!r})
        code = 0
    finally:
        os._exit(code)
sys_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
raise SystemExit(sys_code)
"""
FIRST_IMPORT_IN_CHILD = f"""
import multiprocessing, torch
torch.set_num_threads(2)
torch.ones(4_000_000).exp()
child = multiprocessing.get_context("fork").Process(target=exec, args=({LAYER!r}, {{}}))
child.start()
child.join()
raise SystemExit(child.exitcode)
"""


def test_works_without_torch():
    """NumPy alone: torch is not imported, the library's own pool runs the call."""
    script = LAYER + 'assert "torch" not in sys.modules'
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    "script",
    [FIRST_USE_IN_CHILD.replace("IMPORT", "import shardproof.kernels.cpu"), FIRST_IMPORT_IN_CHILD],
    ids=["imported before", "imported in the child"],
)
def test_first_call_in_a_forked_child(script):
    """Torch's team was made by the parent, and this library is first used in the child: it must not wait for it."""
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], start_new_session=True)
    try:
        assert parent.wait(timeout=120) == 0
    finally:  # a child that hangs must not outlive its test
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
