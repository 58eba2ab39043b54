"""fastsafetensors: its threaded file reader, which takes any byte range of a file into any host memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shardproof.checkpoint.reader import Span
from shardproof.checkpoint.readers.streamed import StreamedReader
from shardproof.mxfp4 import Bytes

_BOUNCE_KB = 16 << 10
_THREADS = 16
_PIECE = 64 << 20


class FastSafetensors(StreamedReader):
    """Spans are cut into pieces, so that all threads of the package work on one span."""

    name = "fastsafetensors"
    package = "fastsafetensors"
    tested = "0.5.0"

    def connect(self) -> None:
        """Its compiled part; no device library is needed for host memory."""
        from fastsafetensors import cpp

        cpp.load_library_functions("")
        self._reader, self._buffer = cpp.nogds_file_reader, cpp.gds_device_buffer

    def read(self, spans: Sequence[Span]) -> Sequence[Bytes]:
        """One buffer a span. OSError where a piece came short."""
        reader = self._reader(False, _BOUNCE_KB, _THREADS, False, 0)  # no mmap, host memory
        outs = [np.empty(s.stop - s.start, dtype=np.uint8) for s in spans]
        files = {file: os.open(self._checkpoint.paths[file], os.O_RDONLY) for file in {s.file for s in spans}}
        buffers = [self._buffer(out.ctypes.data, out.nbytes, False) for out in outs]
        try:
            pieces = [
                self._submit(reader, files[span.file], buffer, span, at)
                for span, buffer in zip(spans, buffers, strict=True)
                for at in range(span.start, span.stop, _PIECE)
            ]
            short = [piece for piece in pieces if not reader.wait_read(piece)]
        finally:
            del reader  # its threads end before their files are closed
            for descriptor in files.values():
                os.close(descriptor)
        if short:
            raise OSError(f"{len(short)} of {len(pieces)} pieces could not be read")
        return outs

    @staticmethod
    def _submit(reader: Any, descriptor: int, buffer: Any, span: Span, at: int) -> int:
        number: int = reader.submit_read(descriptor, buffer, at, min(_PIECE, span.stop - at), at - span.start)
        if number < 0:
            raise OSError(f"a read was refused ({number})")
        return number
