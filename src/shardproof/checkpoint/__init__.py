"""Checkpoints on disk: safetensors headers, index, byte ranges, and who brings the bytes."""

from shardproof.checkpoint.checkpoint import Checkpoint, config_value, total_bytes
from shardproof.checkpoint.header import TensorInfo
from shardproof.checkpoint.reader import MappedReader, Reader, Span
from shardproof.checkpoint.readers import open_reader, readers

__all__ = [
    "Checkpoint", "MappedReader", "Reader", "Span", "TensorInfo", "config_value", "open_reader", "readers",
    "total_bytes",
]  # fmt: skip
