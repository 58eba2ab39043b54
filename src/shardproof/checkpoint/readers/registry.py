"""Every reader by name. A file in this folder that defines a concrete StreamedReader is found by itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from shardproof.checkpoint import readers as folder
from shardproof.checkpoint.checkpoint import Checkpoint
from shardproof.checkpoint.readers.streamed import StreamedReader
from shardproof.errors import CheckpointError

MAPPED = "mmap"


@cache
def readers() -> dict[str, type[StreamedReader]]:
    """Reader classes by name; mapped files (`mmap`) are built in and not among them."""
    found: dict[str, type[StreamedReader]] = {}
    for file in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{file.name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and issubclass(kind, StreamedReader) and not inspect.isabstract(kind):
                found[kind.name] = kind
    return dict(sorted(found.items()))


def open_reader(name: str, checkpoint: Checkpoint) -> StreamedReader | None:
    """A reader of a checkpoint by name; None for `mmap`, which packing makes itself.

    Raises CheckpointError `checkpoint.reader` for a name that does not exist, `checkpoint.reader_missing` where its
    package is not installed or offers another interface.
    """
    if name == MAPPED:
        return None
    kinds = readers()
    if name not in kinds:
        raise CheckpointError(
            "checkpoint.reader", "no such reader", found=repr(name), needed="one of: " + ", ".join([MAPPED, *kinds]),
            next_step="leave the reader out: files are mapped then",
        )  # fmt: skip
    return kinds[name](checkpoint)
