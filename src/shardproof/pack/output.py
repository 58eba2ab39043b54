"""Where packed bytes go: a folder that appears complete or not at all, and rank files of known size."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.mxfp4 import Bytes
from shardproof.packed import header
from shardproof.partition import Rank
from shardproof.plan import Plan


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` that becomes `target` when the block ends well, and vanishes otherwise."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _not_empty(target)
    folder = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        folder.replace(target)
    except OSError as reason:
        if reason.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(target, None) from None
        if reason.errno in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else wrote there meanwhile
            raise _not_empty(target) from None
        raise PackError("pack.io", "the output cannot be written", file=target, found=reason.strerror) from reason
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_empty(target: Path) -> PackError:
    return PackError(
        "pack.not_empty", "the output is there already", file=target, needed="a new or empty folder",
        next_step="choose another folder, or remove this one",
    )  # fmt: skip


def _disk_full(target: Path, sizes: tuple[int, int] | None) -> PackError:
    return PackError(
        "pack.disk_full", "there is not enough room on the disk", file=target,
        found=f"{sizes[0]} bytes free" if sizes else "no space left", needed=f"{sizes[1]} bytes" if sizes else None,
        next_step="free some space, or pack fewer ranks at a time (--ranks)",
    )  # fmt: skip


def check_space(folder: Path, needed: int) -> None:
    """Raise PackError `pack.disk_full` before any work if the disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, (free, needed))


@contextlib.contextmanager
def rank_memory(path: Path, plan: Plan, rank: Rank) -> Iterator[dict[str, Bytes]]:
    """The tensors of a new rank file as writable views of the mapped file; space is reserved first."""
    head, offsets = header(plan, rank, None)
    size = len(head) + max((stop for _, stop in offsets.values()), default=0)
    with path.open("w+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
        stream.write(head)
    memory = np.memmap(path, dtype=np.uint8, mode="r+")
    data = memory[len(head) :]
    yield {name: data[start:stop] for name, (start, stop) in offsets.items()}
    memory.flush()


def seal(path: Path, plan: Plan, rank: Rank, digest: Digest) -> None:
    """Write the header once more, now with the digest; it has the same length."""
    head, _ = header(plan, rank, digest)
    with path.open("r+b") as stream:
        stream.write(head)
