"""Packing: a plan, executed."""

from shardproof.callable_module import make_callable
from shardproof.pack.matrices import canonical_expert
from shardproof.pack.pack import Progress, pack, pack_in_memory, pack_layer

__all__ = ["Progress", "canonical_expert", "pack", "pack_in_memory", "pack_layer"]

make_callable(__name__, pack)
