"""Checkpoints on disk: safetensors headers, index, byte ranges, and who brings the bytes."""

from shardproof.checkpoint.checkpoint import Checkpoint, config_value, total_bytes
from shardproof.checkpoint.header import TensorInfo
from shardproof.checkpoint.reader import MappedReader, Reader, Span

__all__ = ["Checkpoint", "MappedReader", "Reader", "Span", "TensorInfo", "config_value", "total_bytes"]
