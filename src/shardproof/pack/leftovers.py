"""Part folders that a killed run left beside its output, and that no later run will take up.

Who works in a part folder holds a lock on a file in it, which the system lets go when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from shardproof.pack.journal import Journal, boot

_WORKING = "working"
JOURNAL = "journal"


def part_folder(target: Path, tag: str) -> Path:
    """Where work for `target` happens."""
    return target.parent / f".{target.name}.part-{tag}"


@contextlib.contextmanager
def _locked(path: Path, flags: int, how: int) -> Iterator[None]:
    descriptor = os.open(path, flags, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """One process at a time; a file system without locks is trusted to have one process."""
    return _locked(folder, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_EX)


def working(part: Path) -> contextlib.AbstractContextManager[None]:
    """Say that this process works in a part folder; several may. Without locks on that file system nothing is said."""
    return _locked(part / _WORKING, os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH)


def end_work(part: Path) -> None:
    """Take the file away before the part folder becomes the output."""
    (part / _WORKING).unlink(missing_ok=True)


def sweep(target: Path, content: str, held: Collection[int]) -> None:
    """Remove the part folders of `target`, which now holds ranks `held` of `content`, that are of no more use.

    Left alone: where somebody works, what another machine or an earlier boot left (it may be at work elsewhere), and
    what holds other ranks of the same content: a run for these takes it up.
    """
    of_target = re.compile(re.escape(f".{target.name}.part-") + "[0-9a-f]{12}")
    for part in target.parent.iterdir():
        if not of_target.fullmatch(part.name):
            continue
        about = Journal(part / JOURNAL).about()
        if about.get("boot") != boot() or not {"content", "ranks"} <= about.keys():
            continue
        if about["content"] == content and not set(about["ranks"]) & set(held):
            continue
        if _nobody_works(part):
            shutil.rmtree(part, ignore_errors=True)


def _nobody_works(part: Path) -> bool:
    try:
        descriptor = os.open(part / _WORKING, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
