"""How many threads a call uses, and whose.

Threads are one per physical core of those that the process may use, cut by the cgroup's CPU quota;
OMP_NUM_THREADS wins over both. Where torch is loaded the parallel regions run on torch's own OpenMP threads,
since two pools that spin on the same cores slow each other down; otherwise on the library's pool.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from pathlib import Path

from shardproof.kernels.cpu.library import library

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Threads of a call that names no number: OMP_NUM_THREADS, else usable physical cores, at least 1."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return _usable_cores(_affinity())


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


@functools.lru_cache(maxsize=8)
def _usable_cores(cpus: frozenset[int]) -> int:
    quota = cgroup_quota(_CGROUP)
    cores = physical_cores(cpus, _TOPOLOGY)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def physical_cores(cpus: frozenset[int], topology: Path) -> int:
    """Distinct (package, core) pairs among `cpus`; each CPU counts alone where the system does not tell."""
    cores = set()
    for cpu in cpus:
        folder = topology / f"cpu{cpu}" / "topology"
        try:
            cores.add(tuple((folder / name).read_text().strip() for name in ("physical_package_id", "core_id")))
        except OSError:
            cores.add((f"cpu{cpu}",))
    return len(cores)


def cgroup_quota(root: Path) -> float | None:
    """CPUs that the cgroup (version 2 or 1) lets this process use; None: no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if micros <= 0 else micros / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=1)
def _executor(torch_file: str | None) -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded; None where there is none."""
    if torch_file is None:
        return None
    package = Path(torch_file).parent
    loaded_only = getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_LAZY
    for path in (*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path), mode=loaded_only).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def _is_forked() -> bool:
    """True in a child that multiprocessing forked before this module was imported."""
    processes = sys.modules.get("multiprocessing.process")
    return processes is not None and type(processes.current_process()).__name__ == "ForkProcess"


class _State:
    """What this process knows; a forked child is told so by the hook below."""

    forked = _is_forked()
    seen: object = None


def _after_fork_in_child() -> None:
    _State.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def choose_executor() -> None:
    """Use torch's threads if torch is loaded; a forked child keeps the library's own.

    There torch's OpenMP team, if the parent ever used it, lists threads that the child does not have.
    """
    torch = sys.modules.get("torch")
    if torch is not _State.seen and not _State.forked:
        library().sp_set_executor(_executor(getattr(torch, "__file__", None)))
        _State.seen = torch
