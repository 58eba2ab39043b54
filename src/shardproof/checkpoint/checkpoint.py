"""Checkpoint: all headers of a model, the byte range of every tensor, and the bytes themselves on demand."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator
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
    `unlisted` names safetensors files of the folder that its index does not mention, and that are not read.
    """

    def __init__(self, files: Files, *, strict: bool = True) -> None:
        self.root, self.paths, self.config = files.root, files.paths, files.config
        self.unlisted = files.unlisted
        self.problems: list[CheckpointError] = []
        for missing in files.missing:
            self._report(missing, strict)
        self.tensors: dict[str, TensorInfo] = {}
        self._maps: dict[int, Bytes] = {}
        self._stamps: list[tuple[int, int]] = []
        digest = hashlib.blake2b(digest_size=16)
        for number, path in enumerate(self.paths):
            self._stamps.append(_stamp(path))  # before reading: a change from here on is noticed
            try:
                header = read_header(path, number, None if strict else self.problems)
            except CheckpointError as unreadable:
                self._report(unreadable, strict)
                continue
            digest.update(path.name.encode() + self._stamps[-1][0].to_bytes(8, "little", signed=True) + header.raw)
            for tensor in header.tensors:
                other = self.tensors.setdefault(tensor.name, tensor)
                if other is not tensor:
                    self._report(self._duplicate(tensor, other), strict)
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
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[file] = np.frombuffer(mapped, dtype=np.uint8)
        return self._maps[file]

    def bytes_of(self, tensor: TensorInfo | str) -> Bytes:
        """The bytes of one tensor: a read-only uint8 view of the mapped file."""
        info = self.tensors[tensor] if isinstance(tensor, str) else tensor
        return self.memory(info.file)[info.start : info.stop]

    def check_unchanged(self, file: int) -> None:
        """Raise CheckpointError `checkpoint.changed` if a file is no longer what its header was read from."""
        path, now = self.paths[file], _stamp(self.paths[file])
        if now != self._stamps[file]:
            raise CheckpointError(
                "checkpoint.changed", "the file changed while it was in use", file=path,
                found=f"{now[0]} bytes" if now[0] >= 0 else "gone", needed=f"{self._stamps[file][0]} bytes, untouched",
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
        here = {path.name for path in self.paths}
        for name, file in files.weight_map.items():
            info = self.tensors.get(name)
            if file not in here:
                continue  # said once for the whole file
            if info is None:
                yield CheckpointError(
                    "checkpoint.index_tensor", "the index names a tensor that its file does not hold",
                    file=index, tensor=name, found=f"nothing in {file}", next_step="download the index and files again",
                )  # fmt: skip
            elif self.paths[info.file].name != file:
                yield CheckpointError(
                    "checkpoint.index_tensor", "the index sends a tensor to the wrong file",
                    file=index, tensor=name, found=file, needed=self.paths[info.file].name,
                )  # fmt: skip
        for name in self.tensors.keys() - files.weight_map.keys():
            yield CheckpointError(
                "checkpoint.index_tensor", "a file holds a tensor that the index does not name",
                file=self.paths[self.tensors[name].file], tensor=name, needed="an entry in the index",
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.clear()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.root)!r}, {len(self.paths)} files, {len(self.tensors)} tensors)"


def _stamp(path: Path) -> tuple[int, int]:
    """(size, time of last change in ns) of a file; (-1, -1) where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


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
