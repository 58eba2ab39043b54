"""Worker: which ranks and layers one of several packing processes takes, from what torchrun or Slurm say.

Hosts share out the ranks, so that a host reads only what its ranks need; the processes of one host share out the
layers, so that each page is still read once for all ranks of the host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from shardproof.errors import PackError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Worker:
    """Process `local` of `locals_` on host `host` of `hosts`."""

    host: int = 0
    hosts: int = 1
    local: int = 0
    locals_: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.host < self.hosts and 0 <= self.local < self.locals_):
            raise PackError(
                "pack.worker", "the environment describes no possible process", found=f"{self}",
                needed="0 <= host < hosts and 0 <= local process < processes of the host",
                next_step="start with torchrun or srun, or unset their variables",
            )  # fmt: skip

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Worker:
        """Read torchrun's or Slurm's variables; alone where there are none. Raises PackError `pack.worker`."""
        env = os.environ if environment is None else environment
        try:
            if "LOCAL_RANK" in env and "WORLD_SIZE" in env:
                locals_ = int(env.get("LOCAL_WORLD_SIZE", "1"))
                hosts = max(1, int(env["WORLD_SIZE"]) // locals_)
                host = int(env.get("GROUP_RANK", int(env["RANK"]) // locals_))
                return cls(host, hosts, int(env["LOCAL_RANK"]), locals_)
            if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
                host, hosts = int(env["SLURM_NODEID"]), int(env["SLURM_NNODES"])
                tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
                return cls(host, hosts, int(env["SLURM_LOCALID"]), _tasks(tasks)[host])
        except (KeyError, ValueError, IndexError) as reason:
            raise PackError(
                "pack.worker", "the variables of torchrun or Slurm cannot be read", found=repr(reason),
                needed="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, or SLURM_PROCID, _NODEID, _NNODES, _LOCALID",
                next_step="start with torchrun or srun, or unset their variables",
            ) from None  # fmt: skip
        return cls()

    def ranks(self, indices: Sequence[Item]) -> list[Item]:
        """This host's share of the ranks, a contiguous run."""
        return _share(indices, self.host, self.hosts)

    def layers(self, keys: Sequence[Item]) -> list[Item]:
        """This process's share of the layers, a contiguous run."""
        return _share(keys, self.local, self.locals_)

    def threads(self, available: int) -> int:
        """Threads for this process, so that the processes of a host do not ask for more than it has."""
        return max(1, available // self.locals_)


def _share(items: Sequence[Item], index: int, count: int) -> list[Item]:
    return list(items[len(items) * index // count : len(items) * (index + 1) // count])


def _tasks(text: str) -> list[int]:
    """Slurm's "4(x2),3": 4, 4, 3 tasks on three hosts."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(text)
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
