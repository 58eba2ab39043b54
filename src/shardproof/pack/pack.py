"""Pack: executes a plan. Reads the mapped checkpoint, cuts, pads, lays out, and writes each rank's file once.

Memory is one expert's padded matrix and one layer's scales beside the file that is being written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import Bytes
from shardproof.pack.layer import pack_ranks
from shardproof.pack.output import check_space, fresh_folder, rank_memory, seal
from shardproof.packed import PackedExperts, PackedLayer, rank_file, tensor_name, write_manifest
from shardproof.partition import Rank
from shardproof.plan import Plan


@dataclass(frozen=True, slots=True)
class Progress:
    """What `pack` tells its caller after each layer of a rank."""

    rank: Rank
    layer: str
    done_bytes: int
    total_bytes: int


Report = Callable[[Progress], None]


def pack(
    model: ExpertModel,
    plan: Plan,
    out: str | Path,
    *,
    rank_indices: Sequence[int] | None = None,
    report: Report | None = None,
    mistake: Mistake | None = None,
) -> dict[int, Digest]:
    """Pack ranks (all by default) into a new folder and return their digests.

    The folder appears complete or not at all: work happens beside it under a temporary name. `mistake` puts a
    known mistake back in, for tests and the demo only.

    Raises PackError `pack.not_empty`, `pack.disk_full`, `pack.rank` or `pack.scale_nan`, and CheckpointError
    `checkpoint.changed`.
    """
    target = Path(out)
    indices = list(range(len(plan.ranks))) if rank_indices is None else list(rank_indices)
    for index in indices:
        if not 0 <= index < len(plan.ranks):
            raise PackError("pack.rank", "no such rank", rank=index, needed=f"0..{len(plan.ranks) - 1}")
    sizes = {index: plan.rank_bytes(plan.ranks[index]) for index in indices}
    done, total = 0, sum(sizes.values())
    digests: dict[int, Digest] = {}
    with fresh_folder(target) as folder:
        check_space(folder, total)
        for index in indices:
            rank = plan.ranks[index]
            digest = Digest()
            with rank_memory(folder / rank_file(rank), plan, rank) as tensors:
                for key in plan.layers:
                    packed = {slot: tensors[tensor_name(key, *slot)] for slot in plan.fields(key)}
                    digest += pack_layer(model, plan, key, rank, packed, mistake=mistake)
                    done += sum(t.nbytes for t in packed.values())
                    if report:
                        report(Progress(rank, key, done, total))
            seal(folder / rank_file(rank), plan, rank, digest)
            digests[index] = digest
        for file in {int(f) for layer in model.layers.values() for s in layer.sources.values() for f in set(s.file)}:
            model.checkpoint.check_unchanged(file)
        write_manifest(folder, plan, digests)
    return digests


def pack_in_memory(model: ExpertModel, plan: Plan, rank: Rank, *, mistake: Mistake | None = None) -> PackedExperts:
    """Pack one rank into fresh arrays instead of a file; same bytes, same errors."""
    layers, digest = {}, Digest()
    for key in plan.layers:
        packed = {slot: np.empty(plan.placed(key, rank, *slot).nbytes, np.uint8) for slot in plan.fields(key)}
        digest += pack_layer(model, plan, key, rank, packed, mistake=mistake)
        layers[key] = PackedLayer(key, rank, plan, packed)
    return PackedExperts(plan, rank, layers, digest)


def pack_layer(
    model: ExpertModel,
    plan: Plan,
    key: str,
    rank: Rank,
    out: Mapping[tuple[Stack, Field], Bytes],
    *,
    threads: int | None = None,
    mistake: Mistake | None = None,
) -> Digest:
    """Pack one layer of one rank into caller's buffers (flat uint8, every byte is written).

    Returns the digest of the experts that this rank is the first to hold, so that ranks add up to the model.
    Raises PackError `pack.scale_nan`.
    """
    return pack_ranks(model, plan, key, {rank: out}, threads=threads, mistake=mistake)[rank]
