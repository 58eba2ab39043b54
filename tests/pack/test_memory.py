"""Memory: what packing takes beside its output, measured in a process of its own, and where the output may be."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import textwrap
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from shardproof.checkpoint.residency import _group_room
from shardproof.pack import memory as rooms
from shardproof.pack import pack_in_memory, pack_layer
from shardproof.pack.memory import HUGE_PAGES, anonymous, arena, equal
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model

MIB = 1 << 20
ALLOWED = 256 * MIB

_MEASURE = textwrap.dedent(
    """
    import json, resource, sys, threading, time
    from pathlib import Path
    from shardproof.checkpoint import Checkpoint
    from shardproof.formats import read_experts
    from shardproof.pack import pack, pack_in_memory
    from shardproof.plan import make_plan
    from tests.pack.recipes import RECIPES

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) * 1024

    def memory():
        lines = Path("/proc/self/statm").read_text().split()
        return int(lines[0]) * 4096

    made = read_experts(Checkpoint.open(sys.argv[1]))
    plan = make_plan(made, RECIPES[sys.argv[4]], tp=2)
    size = plan.rank_bytes(plan.ranks[0])
    mapped = sum(p.stat().st_size for p in made.checkpoint.paths)
    before, most, stop = anonymous(), 0, threading.Event()
    room = memory() + mapped + int(sys.argv[3]) + (size if sys.argv[2] == "memory" else 2 * size) + (128 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))

    def watch():
        global most
        while not stop.is_set():
            most = max(most, anonymous())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if sys.argv[2] == "memory":
        held = pack_in_memory(made, plan, plan.ranks[0])
    else:
        pack(made, plan, sys.argv[2])
    stop.set()
    watcher.join()
    print(json.dumps({"peak": max(most, anonymous()) - before, "size": size}))
    """
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """100 MB of experts in one layer."""
    folder = tmp_path_factory.mktemp("large") / "ckpt"
    model(folder, experts=64, hidden=1024, intermediate=1024)
    return folder


def _measured(checkpoint: Path, where: str, recipe: str) -> dict[str, int]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(checkpoint), where, str(ALLOWED), recipe], env=env, cwd=root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("recipe", ["aiter", "hopper"])
def test_packing_into_memory_takes_the_packed_bytes(checkpoint, recipe):
    """Under a limit on the address space; 16 MiB beside the packed bytes are enough here, 256 MiB are promised."""
    found = _measured(checkpoint, "memory", recipe)
    assert found["size"] > 40 * MIB
    assert found["peak"] <= found["size"] + 16 * MIB


def test_packing_into_files_takes_next_to_nothing(checkpoint, tmp_path):
    """The output is file pages, not anonymous memory."""
    assert _measured(checkpoint, str(tmp_path / "out"), "aiter")["peak"] <= 16 * MIB


def test_into_shared_memory_a_mapped_file_and_a_tensor(tmp_path):
    """Any writable memory is a destination."""
    import torch

    made = model(tmp_path / "ckpt")
    plan = make_plan(made, RECIPES["aiter"], tp=2)
    rank = plan.ranks[1]
    right = pack_in_memory(made, plan, rank).layers["layers.0"].tensors
    sizes = {slot: tensor.nbytes for slot, tensor in right.items()}
    shared = shared_memory.SharedMemory(create=True, size=sum(sizes.values()))
    try:
        with (tmp_path / "file").open("w+b") as stream:
            stream.truncate(sum(sizes.values()))
            mapped = mmap.mmap(stream.fileno(), 0)
        wholes = {
            "shared": np.frombuffer(shared.buf, dtype=np.uint8), "mapped": np.frombuffer(mapped, dtype=np.uint8),
            "torch": torch.empty(sum(sizes.values()), dtype=torch.uint8).numpy(),
        }  # fmt: skip
        for whole in wholes.values():
            out, at = {}, 0
            for slot, size in sizes.items():
                out[slot], at = whole[at : at + size], at + size
            pack_layer(made, plan, "layers.0", rank, out)
            assert all(np.array_equal(out[slot], right[slot]) for slot in right)
        del wholes, whole, out
    finally:
        shared.close()
        shared.unlink()


def test_huge_pages_are_a_choice(monkeypatch):
    """The caller, then the environment, then whether so much memory is free."""
    asked = []
    real = mmap.mmap

    class Spy(real):
        def madvise(self, option, *rest):
            asked.append(option)
            return super().madvise(option, *rest)

    monkeypatch.setattr(rooms.mmap, "mmap", Spy)
    monkeypatch.delenv(HUGE_PAGES, raising=False)
    monkeypatch.setattr(rooms, "free_memory", lambda: 8 << 30)
    anonymous(4 * MIB)
    monkeypatch.setattr(rooms, "free_memory", lambda: 1 << 30)
    anonymous(4 * MIB)
    anonymous(4 * MIB, huge_pages=True)
    monkeypatch.setenv(HUGE_PAGES, "1")
    anonymous(4 * MIB)
    anonymous(4 * MIB, huge_pages=False)
    yes, no = mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE
    assert asked == [yes, no, yes, yes, no]


def test_an_arena_keeps_tensors_apart():
    """Each starts on a cache line, none overlaps another."""
    parts = arena({"a": 3, "b": 0, "c": 130, "d": 64})
    assert {name: part.nbytes for name, part in parts.items()} == {"a": 3, "b": 0, "c": 130, "d": 64}
    for number, part in enumerate(parts.values()):
        part[...] = number + 1
        assert part.nbytes == 0 or part.ctypes.data % 64 == 0
    assert [set(part.tolist()) for part in parts.values()] == [{1}, set(), {3}, {4}]


@pytest.mark.parametrize(
    ("own", "files", "room"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": "5", "a/memory.max": "900", "a/memory.current": "300"}, [600]),
        ("0::/\n", {"memory.max": "1000", "memory.current": "400"}, [600]),
        ("3:cpu:/x\n4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "70", "memory/x/memory.usage_in_bytes": "80"}, [-10]),
        ("0::/gone\n", {}, []),
    ],
)  # fmt: skip
def test_room_in_a_control_group(tmp_path, own, files, room):
    """Both versions, a limit further up, no limit, a group that is not visible from inside a container."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert _group_room(tmp_path, tmp_path / "own") == room
    assert _group_room(tmp_path, tmp_path / "nowhere") == []


def test_equal_is_exact():
    """A single byte tells, wherever it is; views and runs of another length as well."""
    one = np.arange(20 << 20, dtype=np.uint32).view(np.uint8)[3:]
    assert equal(one, one.copy())
    for at in (0, (8 << 20) - 1, 8 << 20, len(one) - 1):
        other = one.copy()
        other[at] ^= 1
        assert not equal(one, other), at
    assert not equal(one, one[:-1])
    assert equal(one[::2], one[::2].copy())
    assert equal(one[:0], one[:0])
