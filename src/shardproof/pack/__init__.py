"""Packing: a plan, executed."""

from shardproof.pack.matrices import canonical_expert
from shardproof.pack.pack import Progress, pack, pack_in_memory, pack_layer

__all__ = ["Progress", "canonical_expert", "pack", "pack_in_memory", "pack_layer"]
