"""The engine's own threads, as the system names them."""

from __future__ import annotations

import time
from pathlib import Path

NAME = "shardproof-pack"


def engine_threads() -> int:
    """How many of this process there are now."""
    return sum(_name(task) == NAME for task in Path("/proc/self/task").iterdir())


def left_over(patience: float = 5.0) -> int:
    """How many do not end: the last that a thread does is seen before it is gone."""
    until = time.monotonic() + patience
    while (found := engine_threads()) and time.monotonic() < until:
        time.sleep(0.001)
    return found


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:
        return ""
