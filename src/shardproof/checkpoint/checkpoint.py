"""Checkpoint: all headers of a model, the byte range of every tensor, and the bytes themselves on demand."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import mmap
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from shardproof.checkpoint.header import TensorInfo, read_header
from shardproof.checkpoint.resolve import INDEX, Files, resolve
from shardproof.errors import CheckpointError
from shardproof.mxfp4 import Bytes


class Checkpoint:
    """An open checkpoint. Opening reads headers only; `bytes_of` and `memory` map files when they are first asked.

    `tensors` maps names to `TensorInfo`; `problems` holds what was found wrong (empty unless `strict=False`);
    `unlisted` names safetensors files of the folder that its index does not mention, and that are not read;
    `siblings` the model's other files where one file of several was opened.
    """

    siblings: tuple[str, ...] = ()

    def __init__(self, files: Files, *, strict: bool = True) -> None:
        self.root, self.paths, self.config = files.root, files.paths, files.config
        self.unlisted, self.siblings = files.unlisted, files.siblings
        self.problems: list[CheckpointError] = []
        for missing in files.missing:
            self._report(missing, strict)
        self.tensors: dict[str, TensorInfo] = {}
        self._maps: dict[int, Bytes] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._stamps: list[tuple[int, int]] = []
        digest = hashlib.blake2b(digest_size=16)
        with _no_collection():
            for number, path in enumerate(self.paths):
                self._stamps.append(_stamp(path))  # before reading: a change from here on is noticed
                try:
                    header = read_header(path, number, None if strict else self.problems)
                except CheckpointError as unreadable:
                    self._report(unreadable, strict)
                    continue
                name = path.name.encode("utf-8", "surrogateescape")  # names of files are bytes, and need be no text
                digest.update(name + self._stamps[-1][0].to_bytes(8, "little", signed=True) + header.raw)
                self._add(header.tensors, strict)
        self.identity = digest.hexdigest()
        """Digest of all headers, file names and sizes: changes whenever a tensor moves, not when data changes."""
        for problem in self._against_index(files):
            self._report(problem, strict)

    @classmethod
    def open(cls, where: str | Path, *, strict: bool = True) -> Checkpoint:
        """Open a folder, a file, or a name in the Hugging Face cache.

        With `strict` the first problem is raised as CheckpointError; otherwise all are kept in `problems`.
        """
        return cls(resolve(where), strict=strict)

    def memory(self, file: int) -> Bytes:
        """All bytes of one file, mapped read-only: uint8 [file size]. Raises CheckpointError `checkpoint.changed`."""
        if file not in self._maps:
            self.check_unchanged(file)
            with self.paths[file].open("rb") as stream:
                self._mapped[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[file] = np.frombuffer(self._mapped[file], dtype=np.uint8)
        return self._maps[file]

    def advise(self, file: int, start: int, stop: int, advice: int) -> None:
        """`madvise` for the whole pages inside bytes [start, stop) of a file; does nothing if it is not mapped."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if file in self._mapped and last > first:
            self._mapped[file].madvise(advice, first, last - first)

    def want(self, file: int, start: int, stop: int) -> None:
        """Read bytes of a file into the page cache."""
        self._fadvise(file, start, stop, os.POSIX_FADV_WILLNEED)

    def forget(self, file: int, start: int, stop: int) -> None:
        """Drop bytes of a file from the page cache."""
        self._fadvise(file, start, stop, os.POSIX_FADV_DONTNEED)

    def _fadvise(self, file: int, start: int, stop: int, advice: int) -> None:
        try:
            with self.paths[file].open("rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), start, stop - start, advice)
        except OSError:
            return  # advice only: reading will tell what is wrong

    @property
    def stamps(self) -> dict[str, tuple[int, int]]:
        """Size and modification time (ns) of every file when it was opened, by file name."""
        return {path.name: stamp for path, stamp in zip(self.paths, self._stamps, strict=True)}

    def recorded_digest(self, layers: Collection[str]) -> str | None:  # noqa: ARG002
        """The digest of these layers' content, where the files themselves say it; a checkpoint's do not."""
        return None

    def bytes_of(self, tensor: TensorInfo | str) -> Bytes:
        """The bytes of one tensor: a read-only uint8 view of the mapped file."""
        info = self.tensors[tensor] if isinstance(tensor, str) else tensor
        return self.memory(info.file)[info.start : info.stop]

    def read(self, file: int, start: int, stop: int) -> Bytes:
        """A copy of bytes [start, stop) of a file, by pread. Raises CheckpointError `checkpoint.changed`."""
        data = np.empty(stop - start, dtype=np.uint8)
        with self.paths[file].open("rb", buffering=0) as stream:
            done = 0
            while done < len(data):
                count = os.preadv(stream.fileno(), [data[done:].data], start + done)
                if count == 0:
                    self.check_unchanged(file)
                    raise self._changed(file, f"no byte at {start + done}")
                done += count
        return data

    def check_all_unchanged(self) -> None:
        """`check_unchanged` for every file."""
        for file in range(len(self.paths)):
            self.check_unchanged(file)

    def check_unchanged(self, file: int) -> None:
        """Raise CheckpointError `checkpoint.changed` if a file is no longer what its header was read from."""
        now = _stamp(self.paths[file])
        if now != self._stamps[file]:
            raise self._changed(file, f"{now[0]} bytes" if now[0] >= 0 else "gone")

    def _add(self, tensors: list[TensorInfo], strict: bool) -> None:
        keep = self.tensors.setdefault
        for tensor in tensors:
            other = keep(tensor.name, tensor)
            if other is not tensor:
                self._report(self._duplicate(tensor, other), strict)

    def _changed(self, file: int, found: str) -> CheckpointError:
        return CheckpointError(
            "checkpoint.changed", "the file changed while it was in use", file=self.paths[file], found=found,
            needed=f"{self._stamps[file][0]} bytes, untouched",
            next_step="run again when nothing writes to the checkpoint",
        )  # fmt: skip

    def _report(self, problem: CheckpointError, strict: bool) -> None:
        if strict:
            raise problem
        self.problems.append(problem)

    def _duplicate(self, tensor: TensorInfo, other: TensorInfo) -> CheckpointError:
        return CheckpointError(
            "checkpoint.duplicate", "a tensor stands in two files", tensor=tensor.name,
            found=f"{self.paths[other.file].name} and {self.paths[tensor.file].name}", needed="one file",
            next_step="remove the files that do not belong to this checkpoint",
        )  # fmt: skip

    def _against_index(self, files: Files) -> Iterator[CheckpointError]:
        if files.weight_map is None:
            return
        index = files.root / INDEX
        names = [path.name for path in self.paths]
        here = set(names)
        for name, file in files.weight_map.items():
            info = self.tensors.get(name)
            if file not in here:
                continue  # said once for the whole file
            if info is None:
                yield CheckpointError(
                    "checkpoint.index_tensor", "the index names a tensor that its file does not hold",
                    file=index, tensor=name, found=f"nothing in {file}", next_step="download the index and files again",
                )  # fmt: skip
            elif names[info.file] != file:
                yield CheckpointError(
                    "checkpoint.index_tensor", "the index sends a tensor to the wrong file",
                    file=index, tensor=name, found=file, needed=self.paths[info.file].name,
                    next_step="download index and files again, of one revision",
                )  # fmt: skip
        for name in self.tensors.keys() - files.weight_map.keys():
            yield CheckpointError(
                "checkpoint.index_tensor", "a file holds a tensor that the index does not name",
                file=self.paths[self.tensors[name].file], tensor=name, needed="an entry in the index",
                next_step="download index and files again, of one revision",
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.clear()
        self._mapped.clear()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.root)!r}, {len(self.paths)} files, {len(self.tensors)} tensors)"


def _stamp(path: Path) -> tuple[int, int]:
    """(size, time of last change in ns) of a file; (-1, -1) where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while millions of small objects are made that all stay alive: it would only count them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def total_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Bytes that tensors take in their files."""
    return sum(t.stop - t.start for t in tensors)


def config_value(config: dict[str, Any], *names: str) -> Any:
    """The first of `names` that a config has, at top level or under `text_config`; None where it has none."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for name in names:
            if part.get(name) is not None:
                return part[name]
    return None
