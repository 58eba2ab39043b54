"""One safetensors file: its header, checked against the specification, without reading any data.

A file is: 8 bytes little-endian length L, L bytes of UTF-8 JSON, then the data. Offsets in the header count from
the start of the data. Tensors must not overlap and must leave no hole, and each must have the bytes of its shape.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shardproof.errors import CheckpointError

HEADER_LIMIT = 256 * 1024 * 1024
"""Longest header that is read; the largest known MoE models stay under 100 MB a file."""

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


_AGAIN = "download the file again"
_LFS_POINTER = b"version "
_MOST = 1 << 63
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


class TensorInfo(NamedTuple):
    """One tensor of a checkpoint: where its bytes are (absolute offsets in file number `file`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    start: int
    stop: int


class Header(NamedTuple):
    """What one file says of itself."""

    tensors: list[TensorInfo]
    metadata: dict[str, str]
    raw: bytes


def read_header(path: Path, file: int = 0, problems: list[CheckpointError] | None = None) -> Header:
    """Read and check the header of one file.

    A problem of single tensors is raised, or appended to `problems` where a list is given; a header that cannot
    be read at all is always raised. Codes: checkpoint.not_a_file, .empty, .header_length, .header_json,
    .duplicate_key, .dtype, .shape, .offsets, .byte_count, .overlap, .hole, .truncated, .trailing.
    """
    raw, size = _read_raw(path)
    entries = _parse(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(
            "checkpoint.header_json", "__metadata__ is not a map of strings", file=path, next_step=_AGAIN
        )
    data_start = 8 + len(raw)
    tensors = []
    for name, entry in entries.items():
        try:
            tensors.append(_tensor(path, name, entry, file, data_start))
        except CheckpointError as problem:
            if problems is None:
                raise
            problems.append(problem)
    for misplaced in _placement(path, tensors, data_start, size):
        if problems is None:
            raise misplaced
        problems.append(misplaced)
    return Header(tensors, metadata, raw)


def _read_raw(path: Path) -> tuple[bytes, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as reason:
        raise CheckpointError(
            "checkpoint.not_a_file", "the file cannot be opened", file=path, found=reason.strerror,
            needed="a safetensors file that this user may read", next_step="correct the path or the file's permissions",
        ) from None  # fmt: skip
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(
            "checkpoint.not_a_file", "not a regular file", file=path,
            found=_KINDS.get(stat.S_IFMT(status.st_mode), "a device"), needed="a safetensors file",
            next_step="correct the path: give the file itself",
        )  # fmt: skip
    with os.fdopen(descriptor, "rb") as stream:
        size = status.st_size
        if size < 8:
            raise CheckpointError(
                "checkpoint.empty", "the file is too short to hold a header",
                file=path, found=f"{size} bytes", needed=">= 8 bytes", next_step=_AGAIN,
            )  # fmt: skip
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start == _LFS_POINTER:
            raise CheckpointError(
                "checkpoint.header_length", "this is a Git LFS pointer, not the file itself", file=path,
                found=f"{size} bytes of text", needed="the file that it stands for", next_step="git lfs pull",
            )  # fmt: skip
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise CheckpointError(
                "checkpoint.header_length", "the header's length cannot be right: not a safetensors file, or cut off",
                file=path, found=f"{length} bytes of header in a file of {size}",
                needed=f"2 to {min(HEADER_LIMIT, size - 8)} bytes", next_step=_AGAIN,
            )  # fmt: skip
        raw = stream.read(length)
        if len(raw) != length:
            raise CheckpointError(
                "checkpoint.truncated", "the file became shorter while its header was read",
                file=path, found=f"{len(raw)} bytes of header", needed=f"{length} bytes",
                next_step="run again when nothing writes to the file",
            )  # fmt: skip
        return raw, size


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        header = json.loads(text)
        if isinstance(header, dict) and raw.count(b":") == _keys(header) and b"\\u" not in raw:
            return header  # as many colons as keys, so no key was dropped; no escapes, so every name is text
        header = json.loads(text, object_pairs_hook=_Object)
    except (UnicodeDecodeError, ValueError, RecursionError) as reason:
        raise CheckpointError(
            "checkpoint.header_json", "the header is not JSON", file=path, found=str(reason)[:120],
            next_step=_AGAIN,
        ) from None  # fmt: skip
    if not isinstance(header, _Object):
        raise CheckpointError(
            "checkpoint.header_json",
            "the header is not a JSON object",
            file=path,
            found=type(header).__name__,
            next_step=_AGAIN,
        )
    for name, entry in header.items():
        if not _is_text(name):
            raise CheckpointError(
                "checkpoint.header_json",
                "a tensor's name is not text",
                file=path,
                tensor=ascii(name),
                next_step=_AGAIN,
            )
        twice = header.twice if header.twice is not None else getattr(entry, "twice", None)
        if twice is not None:
            whole = header.twice is not None
            raise CheckpointError(
                "checkpoint.duplicate_key",
                "a tensor is named twice in one header" if whole else f"a tensor's entry has two values for {twice!r}",
                file=path, tensor=twice if whole else name, needed="each name once",
                next_step="write the file again: what wrote it is broken",
            )  # fmt: skip
    return header


def _keys(header: dict[str, Any]) -> int:
    """Keys of a header and of the objects in it; each stands before a colon, and a repeated one is dropped."""
    return len(header) + sum(len(entry) for entry in header.values() if isinstance(entry, dict))


class _Object(dict[str, Any]):
    """A JSON object that remembers a repeated key."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(self) != len(pairs):
            self.twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


def _is_text(name: str) -> bool:
    """Whether a JSON string is Unicode text: escapes can spell half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(path: Path, name: str, entry: Any, file: int, data_start: int) -> TensorInfo:
    """One entry, checked. Half a million of them are read for the largest models: no call is made for a good one."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        count = DTYPE_BITS[dtype]
    except (KeyError, TypeError, ValueError):
        raise _bad_entry(path, name, entry) from None
    if type(shape) is not list or type(start) is not int or type(stop) is not int or not 0 <= start <= stop:
        raise _bad_entry(path, name, entry)
    for extent in shape:
        if type(extent) is not int or extent < 0 or count > _MOST:
            raise _bad_entry(path, name, entry)
        count *= extent
    if count != (stop - start) * 8:
        raise _bad_entry(path, name, entry)
    return TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + stop)


def _bad_entry(path: Path, name: str, entry: Any) -> CheckpointError:
    """What is wrong with an entry."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return CheckpointError(
            "checkpoint.header_json", "a tensor's entry is incomplete",
            file=path, tensor=name, found=str(entry)[:80], needed="dtype, shape, data_offsets", next_step=_AGAIN,
        )  # fmt: skip
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        return CheckpointError(
            "checkpoint.dtype", "unknown dtype", file=path, tensor=name, found=ascii(dtype)[:80],
            needed=", ".join(DTYPE_BITS), next_step="download the file again, or report the dtype",
        )  # fmt: skip
    if not isinstance(shape, list) or not all(type(s) is int and s >= 0 for s in shape):
        return CheckpointError(
            "checkpoint.shape", "not a shape", file=path, tensor=name, found=str(shape)[:80], next_step=_AGAIN
        )
    if not isinstance(offsets, list) or [type(o) for o in offsets] != [int, int] or not 0 <= offsets[0] <= offsets[1]:
        return CheckpointError(
            "checkpoint.offsets", "not a byte range",
            file=path, tensor=name, found=str(offsets)[:80], needed="[start, stop] with start <= stop",
            next_step=_AGAIN,
        )  # fmt: skip
    start, stop = offsets
    return CheckpointError(
        "checkpoint.byte_count", "the byte range does not fit dtype and shape",
        file=path, tensor=name, found=f"{_number((stop - start) * 8)} bytes",
        needed=f"{_number(_bits(shape, bits))} bytes for {dtype} {str(shape)[:80]}", next_step=_AGAIN,
    )  # fmt: skip


def _bits(shape: list[int], bits: int) -> int:
    """Bits of a tensor; the product stops where it is beyond any file, so that hostile shapes cost nothing."""
    count = 0 if 0 in shape else bits
    for extent in shape:
        if count > 8 * _MOST:
            break
        count *= extent
    return count


def _number(bits: int) -> str:
    if bits > 8 * _MOST:
        return "more than 2**63"
    return f"{bits // 8}" + (f" {bits % 8}/8" if bits % 8 else "")


def _placement(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> Iterator[CheckpointError]:
    position, previous = data_start, "the header"
    for tensor in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if tensor.stop > size:
            yield CheckpointError(
                "checkpoint.truncated", "the file ends before this tensor does", file=path, tensor=tensor.name,
                found=f"{size} bytes", needed=f"at least {_number(tensor.stop * 8)} bytes",
                next_step=_AGAIN,
            )  # fmt: skip
        if tensor.start != position:
            overlaps = tensor.start < position
            yield CheckpointError(
                "checkpoint.overlap" if overlaps else "checkpoint.hole",
                f"the tensor's bytes overlap those of {previous}"
                if overlaps else f"bytes after {previous} belong to no tensor",
                file=path, tensor=tensor.name, found=f"starts at byte {_number(tensor.start * 8)}",
                needed=f"byte {_number(position * 8)}", next_step="do not use the file: download or write it again",
            )  # fmt: skip
        position, previous = max(position, tensor.stop), tensor.name
    if size > position:
        yield CheckpointError(
            "checkpoint.trailing", "the file goes on after its last tensor",
            file=path, found=f"{size} bytes", needed=f"{position} bytes", next_step=_AGAIN,
        )  # fmt: skip
