"""Readers: who brings the bytes of a checkpoint. Packing asks for the spans of one layer at a time.

`MappedReader` is built in. Another one - a streamer, a remote store - is any object with these four methods; it may
return bytes anywhere in host memory, and what it holds counts against the memory of the run.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from shardproof.checkpoint.checkpoint import Checkpoint
from shardproof.checkpoint.residency import available_memory, resident
from shardproof.mxfp4 import Bytes

Ints = npt.NDArray[np.int64]

log = logging.getLogger("shardproof.pack")

_COLD = 0.75
_STEP = 16 << 20


class Span(NamedTuple):
    """Bytes [start, stop) of file number `file` of a checkpoint."""

    file: int
    start: int
    stop: int


@runtime_checkable
class Reader(Protocol):
    """Brings the bytes of spans. All calls come from one thread; the bytes are read from several."""

    @property
    def source(self) -> str:
        """Where bytes come from, for the progress line: "page cache", "disk", or a name."""

    def ahead(self, spans: Sequence[Span]) -> None:
        """These spans are needed next; a hint that must not block."""

    def take(self, spans: Sequence[Span]) -> Sequence[Bytes]:
        """The bytes of each span, uint8, valid until `done`. Raises CheckpointError `checkpoint.changed`."""

    def done(self, spans: Sequence[Span]) -> None:
        """These spans are not needed any more."""


class MappedReader:
    """Files mapped into memory. Warm files are used as they are; cold ones are read ahead by one layer.

    Pages leave this process as soon as they are used; those that were read ahead for a checkpoint of more than half
    the free memory leave the page cache as well, so that what else is cached stays there.
    """

    def __init__(self, checkpoint: Checkpoint, spans: Sequence[Span]) -> None:
        self._checkpoint = checkpoint
        self._share = resident(checkpoint, spans) if spans else 1.0
        self._cold = self._share < _COLD
        self._release = bool(spans)  # a single layer's caller will come back for the next one
        size = sum(s.stop - s.start for s in spans)
        self._drop = self._cold and size > available_memory() // 2
        self._reading: threading.Thread | None = None
        if not spans:
            return
        log.info(
            "%.0f %% of the checkpoint's bytes are in the page cache: %s", 100 * self._share,
            "reading ahead from disk" if self._cold else "mapping them as they are",
        )  # fmt: skip

    @property
    def source(self) -> str:
        """Where fewer than three quarters of the bytes were in the page cache "disk", else "page cache"."""
        return "disk" if self._cold else "page cache"

    def ahead(self, spans: Sequence[Span]) -> None:
        """Start reading spans into the page cache, if the files are cold."""
        if self._cold and spans:
            self._join()
            self._reading = threading.Thread(target=self._read, args=(list(spans),), daemon=True)
            self._reading.start()

    def take(self, spans: Sequence[Span]) -> list[Bytes]:
        """Views of the mapped files."""
        for file in {s.file for s in spans}:
            self._checkpoint.check_unchanged(file)
        return [self._checkpoint.memory(s.file)[s.start : s.stop] for s in spans]

    def done(self, spans: Sequence[Span]) -> None:
        """Let the pages go."""
        for span in spans if self._release else ():
            self._checkpoint.advise(*span, mmap.MADV_DONTNEED)
            if self._drop:
                self._checkpoint.forget(*span)

    def _read(self, spans: list[Span]) -> None:
        for span in spans:
            for start in range(span.start, span.stop, _STEP):
                self._checkpoint.want(span.file, start, min(start + _STEP, span.stop))

    def _join(self) -> None:
        if self._reading is not None:
            self._reading.join()
            self._reading = None


def merge(files: Ints, starts: Ints, stops: Ints, gap: int = 1 << 20) -> list[Span]:
    """Byte ranges (files, starts, stops: int64 [n]) by file and start, those less than `gap` bytes apart joined."""
    if not len(files):
        return []
    order = np.lexsort((starts, files))
    files, starts = files[order], starts[order]
    # One long line of bytes: file by file, each far beyond the end of the one before.
    reach = np.maximum.accumulate((files << 48) + stops[order])
    first = np.flatnonzero(np.concatenate(([True], (files[1:] << 48) + starts[1:] > reach[:-1] + gap)))
    last = np.append(first[1:], len(files)) - 1
    ends = reach[last] - (files[last] << 48)
    return list(map(Span, files[first].tolist(), starts[first].tolist(), ends.tolist()))


class Addresses:
    """Where the bytes of spans are in memory: addresses of many (file, offset) pairs at once."""

    def __init__(self, spans: Sequence[Span], data: Sequence[Bytes]) -> None:
        order = sorted(range(len(spans)), key=lambda i: spans[i])
        self._data = list(data)  # keeps the bytes alive
        self._starts = np.array([(spans[i].file << 48) + spans[i].start for i in order], dtype=np.int64)
        self._at = np.array([data[i].ctypes.data for i in order], dtype=np.int64)

    def find(self, file: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Address of each byte `offset` of file `file`; every pair must lie in one of the spans."""
        wanted = (file.astype(np.int64) << 48) + offset
        index = np.searchsorted(self._starts, wanted, side="right") - 1
        return np.asarray(self._at[index] + (wanted - self._starts[index]))
