"""Other packages that bring a checkpoint's bytes, by name; one small file each, found by itself."""

from shardproof.checkpoint.readers.registry import open_reader, readers

__all__ = ["open_reader", "readers"]
