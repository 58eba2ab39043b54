"""Hostile safetensors files, written byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardproof.checkpoint.header import Header, read_header
from shardproof.errors import CheckpointError


def raw_file(path: Path, header: bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with this header text, this data, and (if wanted) a lie about the header's length."""
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)
    return path


def json_file(path: Path, entries: dict[str, Any], data: bytes = b"") -> Path:
    """A file whose header is this object."""
    return raw_file(path, json.dumps(entries).encode(), data)


def entry(start: int, stop: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    """A tensor's entry; by default a vector of bytes."""
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def refused(path: Path) -> CheckpointError:
    """The error that a file gives, and the same file collected instead of raised gives it too."""
    try:
        read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return error
    raise AssertionError("the file was accepted")


def read(path: Path) -> Header:
    """A header that must be accepted."""
    return read_header(path)
