"""Packing: a plan, executed."""

from shardproof.callable_module import make_callable
from shardproof.pack.layer import pack_ranks
from shardproof.pack.matrices import canonical_expert
from shardproof.pack.pack import pack, pack_in_memory, pack_layer
from shardproof.pack.progress import Progress, Report
from shardproof.pack.worker import Worker

__all__ = [
    "Progress", "Report", "Worker", "canonical_expert", "pack", "pack_in_memory", "pack_layer", "pack_ranks",
]  # fmt: skip

make_callable(__name__, pack)
