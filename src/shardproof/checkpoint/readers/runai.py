"""Run:ai Model Streamer: many concurrent reads of any ranges of files into host memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardproof.checkpoint.reader import Span
from shardproof.checkpoint.readers.streamed import StreamedReader
from shardproof.mxfp4 import Bytes


class RunaiStreamer(StreamedReader):
    """Each layer is one stream whose buffers are handed over; RUNAI_STREAMER_CONCURRENCY sets its threads."""

    name = "runai"
    package = "runai-model-streamer"
    tested = "0.17.0"

    def connect(self) -> None:
        """Its file streamer; the package imports torch."""
        import runai_model_streamer

        self._streamer, self._chunks = runai_model_streamer.FileStreamer, runai_model_streamer.FileChunks

    def read(self, spans: Sequence[Span]) -> Sequence[Bytes]:
        """One buffer a span."""
        files = sorted({s.file for s in spans})
        numbers = {file: [i for i, s in enumerate(spans) if s.file == file] for file in files}
        sizes = [s.stop - s.start for s in spans]
        asked = [
            self._chunks(file, self.path(spans[of[0]]), [spans[i].start for i in of], [sizes[i] for i in of])
            for file, of in numbers.items()
        ]
        outs: list[Bytes] = [np.empty(0, dtype=np.uint8)] * len(spans)
        with self._streamer() as streamer:
            streamer.stream_files(asked, device="cpu", owned=True)
            for file, index, tensor in streamer.get_chunks():
                outs[numbers[file][index]] = tensor.numpy().reshape(-1)
        short = [size for size, out in zip(sizes, outs, strict=True) if len(out) != size]
        if short:
            raise OSError(f"{len(short)} of {len(spans)} ranges could not be read")
        return outs
