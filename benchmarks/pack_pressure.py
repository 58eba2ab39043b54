"""Packing where memory is scarce, and from a cold disk: one layer of one rank, against the engines' way.

    python benchmarks/pack_pressure.py [--experts 64] [--repeat 3] [--spare 0.15] [--case "V4-Pro tp 8"] [--no-cold]

Needs root and a memory controller of control groups (version 1 or 2). Each run is a process of its own, in a group
whose limit is the checkpoint's files plus `spare` times that: the files are read once inside the group, so that they
fill it, and whatever is allocated then pushes them out. "Cold": the files' pages are dropped, and nothing is limited.
A virtual machine may have given free memory back to its host, and waits for each page of it four times as long; so as
much as a run needs is touched and freed just before, outside the group.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pack import CASES, engines_way, opened, write_checkpoint
from shardproof.pack import pack_in_memory

GROUPS = Path("/sys/fs/cgroup")
WAYS = ("theirs", "ours", "ours 4 KiB")


def group(limit: int) -> Path:
    """A control group of its own with a memory limit."""
    first = GROUPS / "memory" if (GROUPS / "memory").is_dir() else GROUPS
    made = first / f"pack-pressure-{os.getpid()}"
    made.mkdir()
    name = "memory.limit_in_bytes" if first != GROUPS else "memory.max"
    (made / name).write_text(str(limit))
    return made


def forget(folder: Path) -> None:
    """Drop the files' pages from the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch(size: int) -> None:
    """Have as much memory from the host."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def measure(way: str, case: str, folder: Path, inside: str) -> None:
    """Print the seconds of one way; with a group's path, inside it and after its page cache was filled."""
    kind, tp, ep, index = CASES[case]
    model, plan = opened(folder, kind, tp, ep)
    rank = plan.ranks[index]
    if inside:
        packed = plan.rank_bytes(rank)
        touch(sum(path.stat().st_size for path in folder.glob("*.safetensors")) + 4 * packed)
        (Path(inside) / "cgroup.procs").write_text(str(os.getpid()))
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as stream:
                while stream.read(16 << 20):
                    pass
    begin = time.perf_counter()
    if way == "theirs":
        held = engines_way(folder, kind, plan, rank)
    else:
        held = pack_in_memory(model, plan, rank, huge_pages=False if way == "ours 4 KiB" else None)
    print(json.dumps(time.perf_counter() - begin))
    del held


def run(way: str, case: str, folder: Path, inside: Path | None) -> float:
    forget(folder)
    ended = subprocess.run(
        [sys.executable, __file__, "--measure", way, case, str(folder), str(inside or "")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(ended.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--spare", type=float, default=0.15)
    parser.add_argument("--case", default="V4-Pro tp 8", choices=CASES)
    parser.add_argument("--no-cold", action="store_true", help="pressure alone")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        way, case, folder, inside = given.measure
        measure(way, case, Path(folder), inside)
        return
    kind, tp, ep, index = CASES[given.case]
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        write_checkpoint(folder, kind, given.experts)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        _, plan = opened(folder, kind, tp, ep)
        limit = int(size * (1 + given.spare))
        print(f"{given.case}, {given.experts} experts: {size / 1e9:.2f} GB of files, {os.cpu_count()} cores, "
              f"{plan.rank_bytes(plan.ranks[index]) / 1e9:.2f} GB packed, load {os.getloadavg()[0]:.1f}")  # fmt: skip
        print("| state | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
        held = group(limit)
        try:
            for state, inside in ((f"limit {limit / 1e9:.2f} GB", held), ("cold", None))[: 1 if given.no_cold else 2]:
                times: dict[str, list[float]] = {way: [] for way in WAYS}
                for _ in range(given.repeat):
                    for way in WAYS:
                        times[way].append(run(way, given.case, folder, inside))
                found = {way: statistics.median(seconds) for way, seconds in times.items()}
                fastest = {way: min(seconds) for way, seconds in times.items()}
                cells = [f"{s * 1e3:.0f} ms ({found['theirs'] / s:.1f}x), fastest {fastest[way] * 1e3:.0f}, "
                         f"slowest {max(times[way]) * 1e3:.0f}" for way, s in found.items()]  # fmt: skip
                print(f"| {state} | " + " | ".join(cells) + " |", flush=True)
        finally:
            held.rmdir()


if __name__ == "__main__":
    main()
