"""Where packed bytes go: a part folder that grows, survives being killed, and becomes the output when it is whole.

    OUT/                      the manifest and one file a rank; appears complete, and only ever gains ranks
    .OUT.part-<tag>/          work in progress for one key and one set of ranks: rank files, journal, lock

The tag comes from the key, so whoever packs the same thing again finds the part folder and goes on with it; once
something else was packed there, it is removed (`leftovers`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from shardproof.checkpoint import Checkpoint
from shardproof.digest import Digest
from shardproof.errors import PackedError, PackError
from shardproof.experts import Field, Stack
from shardproof.mxfp4 import Bytes
from shardproof.pack.journal import Journal, Unit
from shardproof.pack.leftovers import JOURNAL, alone, end_work, part_folder, sweep, working
from shardproof.packed import (
    MANIFEST,
    header,
    held_digests,
    plan_key,
    rank_file,
    refuse_stale,
    tensor_name,
    write_manifest,
)  # fmt: skip
from shardproof.plan import Plan


class Output:
    """One packed folder in the making, for some of a plan's ranks."""

    def __init__(
        self, target: Path, plan: Plan, checkpoint: Checkpoint, indices: Sequence[int], variant: str = ""
    ) -> None:
        if target.name in ("", ".."):  # `.`, `..` and `/` have no name that a part folder could stand beside
            target = target.resolve()
        self.target, self.plan, self.indices = target, plan, list(indices)
        self._checkpoint, self._variant = checkpoint, variant
        self._content = _short(f"{plan_key(plan)} {sorted(checkpoint.stamps.items())} {variant}")
        self.part = part_folder(target, _short(f"{self._content} {sorted(self.indices)}"))
        self._journal = Journal(self.part / JOURNAL, {"content": self._content, "ranks": sorted(self.indices)})

    def held(self) -> dict[int, Digest]:
        """Ranks that the target holds already, and their digests.

        Raises PackError `pack.not_empty` for a folder with something else in it, `pack.mount_point` for one that cannot
        be renamed to, `pack.stale` for packed experts of another checkpoint, plan, layout version or file format,
        `pack.io` for a name that the file system does not take or a folder that cannot be read.
        """
        with _coded(self.target):
            if not self.target.exists():
                return {}
            if self._variant or not (self.target / MANIFEST).is_file():
                if not self.target.is_dir() or any(self.target.iterdir()):
                    raise _not_empty(self.target)
                if os.path.ismount(self.target):
                    raise _mount_point(self.target)
                return {}
        refuse_stale(self.target, self.plan, self._checkpoint)
        return held_digests(self.target, self.plan)

    @contextlib.contextmanager
    def begun(self) -> Iterator[dict[Unit, Digest]]:
        """Open or reopen the part folder; yields the units that are complete already.

        What an error leaves is removed; what an interruption leaves stays for the next run.
        """
        with _coded(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                with alone(self.target.parent):  # whoever removes leftovers holds it as well
                    self.part.mkdir(exist_ok=True)
                    stack.enter_context(working(self.part))
                try:
                    with alone(self.part):
                        self._journal.begin()
                        self._create_files()
                    yield self._journal.done()
                except Exception:
                    shutil.rmtree(self.part, ignore_errors=True)
                    raise

    def _create_files(self) -> None:
        missing = [
            i for i in self.indices if not self._path(i).exists() or self._path(i).stat().st_size != self._size(i)
        ]
        if not missing:
            return
        self._journal.drop(missing)
        check_space(self.part, sum(self.plan.rank_bytes(self.plan.ranks[i]) for i in missing))
        for index in missing:
            head, _ = header(self.plan, self.plan.ranks[index], None)
            with self._path(index).open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, self._size(index))
                stream.write(head)

    def _path(self, index: int) -> Path:
        return self.part / rank_file(self.plan.ranks[index])

    def _size(self, index: int) -> int:
        head, offsets = header(self.plan, self.plan.ranks[index], None)
        return len(head) + max((stop for _, stop in offsets.values()), default=0)

    def map(self, index: int) -> RankMap:
        """The rank's file as writable memory."""
        return RankMap(self._path(index), self.plan, index)

    def complete(self, layer: str, digests: Mapping[int, Digest]) -> None:
        """Note units as complete."""
        self._journal.add(layer, digests)

    def publish(self) -> dict[int, Digest] | None:
        """Make the output visible if every unit of every asked rank is complete; None if other processes still work."""
        with alone(self.target.parent):
            already = self.held()
            if all(i in already for i in self.indices):  # of another run, whoever made them
                shutil.rmtree(self.part, ignore_errors=True)
                return {i: already[i] for i in self.indices}
            done = self._journal.done()
            if any((layer, i) not in done for layer in self.plan.layers for i in self.indices):
                return None
            sums = {i: sum((done[layer, i] for layer in self.plan.layers), Digest()) for i in self.indices}
            self._check_source({**already, **sums})
            for index, digest in sums.items():
                self._seal(index, digest)
            self._move(already, sums)
            sweep(self.target, self._content, {**already, **sums})
            return sums

    def _check_source(self, digests: Mapping[int, Digest]) -> None:
        """Where a packed folder is packed again whole, its content must be what its manifest says."""
        recorded = self._checkpoint.recorded_digest(self.plan.layers)
        found = str(sum(digests.values(), Digest()))
        if recorded is None or len(digests) < len(self.plan.ranks) or self._rounds_biases() or recorded == found:
            return
        raise PackedError(
            "packed.damaged", "the packed folder that was read does not hold what was packed into it",
            file=self._checkpoint.paths[0].parent, found=f"content {found}", needed=f"content {recorded}",
            next_step="`shardproof verify` names its wrong bytes; pack it, or this, again from the checkpoint",
        )  # fmt: skip

    def _rounds_biases(self) -> bool:
        return self.plan.recipe.bias_dtype != "float32" and any(shape.spec.bias for shape in self.plan.shapes)

    def _seal(self, index: int, digest: Digest) -> None:
        """Write the header once more, now with the digest (it has the same length), and force all to disk."""
        with self._path(index).open("r+b") as stream:
            stream.write(header(self.plan, self.plan.ranks[index], digest)[0])
            stream.flush()
            os.fsync(stream.fileno())

    def _move(self, held: Mapping[int, Digest], sums: Mapping[int, Digest]) -> None:
        """Rename the part folder, or add its ranks to a folder that holds others; the manifest comes last."""
        if held or (self.target / MANIFEST).is_file():
            for index in sums:
                self._path(index).replace(self.target / rank_file(self.plan.ranks[index]))
            write_manifest(self.target, self.plan, {**held, **sums}, self._checkpoint)
            shutil.rmtree(self.part, ignore_errors=True)
            return
        write_manifest(self.part, self.plan, sums, self._checkpoint)
        self._journal.end()
        end_work(self.part)
        if self.target.exists():
            self.target.rmdir()  # an empty folder that was there before
        self.part.replace(self.target)


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


class RankMap:
    """One rank file of a part folder, mapped."""

    def __init__(self, path: Path, plan: Plan, index: int) -> None:
        head, offsets = header(plan, plan.ranks[index], None)
        with path.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), 0)
        self._start, self._offsets, self._plan = len(head), offsets, plan
        self._data = np.frombuffer(self._map, dtype=np.uint8)

    def layer(self, key: str) -> dict[tuple[Stack, Field], Bytes]:
        """Writable views of one layer's tensors."""
        return {slot: self._data[slice(*self._range(key, slot))] for slot in self._plan.fields(key)}

    def release(self, key: str) -> None:
        """Let a finished layer's pages leave this process; the file keeps them."""
        ranges = [self._range(key, slot) for slot in self._plan.fields(key)]
        first = -(-min(a for a, _ in ranges) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = max(b for _, b in ranges) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _range(self, key: str, slot: tuple[Stack, Field]) -> tuple[int, int]:
        start, stop = self._offsets[tensor_name(key, *slot)]
        return self._start + start, self._start + stop


@contextlib.contextmanager
def _coded(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        if reason.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(target, None) from None
        if reason.errno == errno.ENOTEMPTY:  # somebody else wrote there meanwhile
            raise _not_empty(target) from None
        raise PackError(
            "pack.io", "the output cannot be written", file=target, found=reason.strerror,
            next_step="remove the cause, or choose another place",
        ) from reason  # fmt: skip


def _not_empty(target: Path) -> PackError:
    return PackError(
        "pack.not_empty", "the output is there already", file=target, needed="a new or empty folder",
        next_step="choose another folder",
    )  # fmt: skip


def _mount_point(target: Path) -> PackError:
    return PackError(
        "pack.mount_point", "the output is a mount point, which a finished folder cannot be renamed to", file=target,
        needed="a folder on that disk", next_step=f"write to {target / 'packed'}",
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
