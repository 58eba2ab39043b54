"""Progress: how far packing is, how fast, and what limits it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardproof.partition import Rank


@dataclass(frozen=True, slots=True)
class Progress:
    """What `pack` tells its caller after each layer of a rank.

    `seconds` counts from the start of this run, `run_bytes` what this run has packed (a resumed one has less than
    `done_bytes`); `limited_by` is "disk", "page cache" (of the output), "first touch" or "permute".
    """

    rank: Rank
    layer: str
    done_bytes: int
    total_bytes: int
    seconds: float = 0.0
    run_bytes: int = 0
    limited_by: str = ""

    @property
    def gigabytes_per_second(self) -> float:
        """Packed bytes a second of this run, in GB (10**9)."""
        return self.run_bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this speed; None before anything is known."""
        left = self.total_bytes - self.done_bytes
        return left * self.seconds / self.run_bytes if self.run_bytes else None

    def __str__(self) -> str:
        """One line for people."""
        line = f"rank {self.rank.index} {self.layer}: {self.done_bytes / 1e9:.2f} of {self.total_bytes / 1e9:.2f} GB"
        if self.seconds_left is not None:
            line += f", {self.gigabytes_per_second:.2f} GB/s, {self.seconds_left:.0f} s left"
        return line + (f", limited by {self.limited_by}" if self.limited_by else "")


Report = Callable[[Progress], None]


class Meter:
    """Time and page faults since the last look, read as what limited the work in between."""

    def __init__(self, threads: int, *, into_files: bool) -> None:
        self._threads, self._into_files = threads, into_files
        self.start = time.monotonic()
        self._last = self._look()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    @staticmethod
    def _look() -> tuple[float, float, float, int]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.monotonic(), used.ru_utime, used.ru_stime, used.ru_majflt

    def limit(self) -> str:
        """What limited the work since the last call.

        "disk": threads waited for pages to be read; "page cache" or "first touch": the kernel took more time than the
        permutation did, giving out pages of the output file or fresh memory; else "permute".
        """
        then, self._last = self._last, self._look()
        wall, user, system, faults = (b - a for a, b in zip(then, self._last, strict=True))
        if faults and user + system < 0.5 * wall * self._threads:
            return "disk"
        if system > user:
            return "page cache" if self._into_files else "first touch"
        return "permute"
