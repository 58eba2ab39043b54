"""StreamedReader: bytes that another package reads into memory, one layer ahead of the one that is packed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, NoReturn

from shardproof.checkpoint.checkpoint import Checkpoint
from shardproof.checkpoint.reader import Span
from shardproof.errors import CheckpointError
from shardproof.mxfp4 import Bytes


class StreamedReader(ABC):
    """A `Reader` on top of a package: it says how spans are read, the rest is here.

    At most two layers' spans are held at a time, so they add to the memory of a run.

    name      how users choose it
    package   what to install
    tested    the version whose interface this was written and tested against

    Raises CheckpointError `checkpoint.reader_missing` where the package is not there or lacks that interface.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    tested: ClassVar[str]

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._fetching: dict[tuple[Span, ...], Future[Sequence[Bytes]]] = {}
        try:
            self.connect()
        except (ImportError, AttributeError) as reason:
            raise self._missing(reason) from reason
        self._pool = ThreadPoolExecutor(2, f"shardproof-{self.name}")

    @abstractmethod
    def connect(self) -> None:
        """Import the package and the names that `read` uses; ImportError or AttributeError where one is not there."""

    @abstractmethod
    def read(self, spans: Sequence[Span]) -> Sequence[Bytes]:
        """The bytes of each span, from any thread; any exception where a byte cannot be read."""

    @property
    def source(self) -> str:
        """The reader's name."""
        return self.name

    def ahead(self, spans: Sequence[Span]) -> None:
        """Start reading spans."""
        if spans:
            self._fetching[tuple(spans)] = self._pool.submit(self.read, list(spans))

    def take(self, spans: Sequence[Span]) -> Sequence[Bytes]:
        """The bytes of each span. Raises CheckpointError `checkpoint.changed` or `checkpoint.reader_failed`."""
        for file in {s.file for s in spans}:
            self._checkpoint.check_unchanged(file)
        if tuple(spans) not in self._fetching:
            self.ahead(spans)
        started = self._fetching.pop(tuple(spans), None)
        try:
            return started.result() if started else []
        except Exception as reason:  # noqa: BLE001 - whatever the package raises
            self._failed(spans, reason)

    def done(self, spans: Sequence[Span]) -> None:
        """Forget spans that were read ahead and never taken; what was taken ends with its last user."""
        self._fetching.pop(tuple(spans), None)

    def path(self, span: Span) -> str:
        """The file of a span."""
        return str(self._checkpoint.paths[span.file])

    def _failed(self, spans: Sequence[Span], reason: Exception) -> NoReturn:
        for file in {s.file for s in spans}:
            self._checkpoint.check_unchanged(file)
        raise CheckpointError(
            "checkpoint.reader_failed", "the reader could not bring the bytes", file=self._checkpoint.root,
            found=f"{self.name}: {reason}", next_step="look at the disk, or leave the reader out to map the files",
        ) from reason  # fmt: skip

    def _missing(self, reason: Exception) -> CheckpointError:
        from importlib import metadata  # slow to load, and needed for this sentence only

        try:
            found = f"{self.package} {metadata.version(self.package)}, which lacks what is used here: {reason}"
        except metadata.PackageNotFoundError:
            found = "it is not installed"
        return CheckpointError(
            "checkpoint.reader_missing", f"the reader {self.name} needs the package {self.package}", found=found,
            needed=f"{self.package} (tested: {self.tested})", next_step=f"pip install {self.package}=={self.tested}",
        )  # fmt: skip
