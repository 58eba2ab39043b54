"""Checkpoints on disk: safetensors headers, index, byte ranges."""

from shardproof.checkpoint.checkpoint import Checkpoint, config_value, total_bytes
from shardproof.checkpoint.header import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "config_value", "total_bytes"]
