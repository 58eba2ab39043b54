"""A rank's file: a safetensors file whose metadata says how its tensors were cut and laid out."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardproof.arguments import path_of, whole_number
from shardproof.checkpoint import pages
from shardproof.checkpoint.header import TensorInfo, read_header
from shardproof.digest import Digest
from shardproof.errors import CheckpointError, PackedError
from shardproof.experts import Field, Stack
from shardproof.mxfp4 import Bytes
from shardproof.packed.experts import PackedExperts, PackedLayer
from shardproof.packed.key import FORMAT_VERSION, MANIFEST, plan_record
from shardproof.packed.manifest import check_version, rank_file, read_manifest, read_plan
from shardproof.partition import Rank
from shardproof.plan import Plan

METADATA_KEY = "shardproof"
BIAS_DTYPE = {"float32": "F32", "bfloat16": "BF16"}


def tensor_name(layer: str, stack: Stack, name: Field) -> str:
    """Name of a packed tensor."""
    return f"{layer}.experts.{stack}.{name}"


def header(plan: Plan, rank: Rank, digest: Digest | None) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A rank file's safetensors header (length prefix included) and the byte range of each tensor in the data.

    The digest has a fixed width, so a header can be written before the digest is known and once more after.
    """
    offsets: dict[str, tuple[int, int]] = {}
    entries: dict[str, Any] = {
        "__metadata__": {METADATA_KEY: json.dumps(_record(plan, rank, digest), separators=(",", ":"))}
    }
    position = 0
    for key in plan.layers:
        for stack, name in plan.fields(key):
            size = plan.placed(key, rank, stack, name).nbytes
            dtype, item = (BIAS_DTYPE[plan.recipe.bias_dtype], plan.bias_item) if name == "bias" else ("U8", 1)
            range_ = (position, position + size)
            named = tensor_name(key, stack, name)
            entries[named] = {"dtype": dtype, "shape": [size // item], "data_offsets": list(range_)}
            offsets[named] = range_
            position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # tensors start on a cache line
    return len(text).to_bytes(8, "little") + text, offsets


def _record(plan: Plan, rank: Rank, digest: Digest | None) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "rank": rank.index,
        "digest": str(digest or Digest()),
        "plan": plan_record(plan),
    }


def held_digests(folder: Path, plan: Plan) -> dict[int, Digest]:
    """Ranks that a packed folder of this plan holds, and their digests; a file that is cut off or gone is not held."""
    noted = read_manifest(folder)["ranks"]
    held = {rank.index: Digest.parse(noted[rank_file(rank)]) for rank in plan.ranks if rank_file(rank) in noted}
    return {i: digest for i, digest in held.items() if _whole(folder / rank_file(plan.ranks[i]), plan.ranks[i], digest)}


def _whole(path: Path, rank: Rank, digest: Digest) -> bool:
    """Whether a rank's file is the one that was noted, and whole as far as its header says; bytes are for `verify`."""
    try:
        found = load_file(path)
    except PackedError:
        return False
    return found.rank == rank and found.digest == digest


def load(folder: str | Path, rank: int = 0) -> PackedExperts:
    """Map one rank of a packed folder; nothing is read but the header.

    Raises PackedError `packed.not_found`, `packed.rank`, `packed.damaged`, `packed.mixed` or `packed.version`, and
    ArgumentError.
    """
    root, rank = path_of("folder", folder), whole_number("rank", rank)
    manifest = read_manifest(root)
    plan = read_plan(manifest, root / MANIFEST)
    held = manifest["ranks"]
    if not 0 <= rank < len(plan.ranks) or rank_file(plan.ranks[rank]) not in held:
        raise PackedError(
            "packed.rank", "the folder does not hold this rank", file=root, rank=rank,
            needed=f"one of {', '.join(str(r.index) for r in plan.ranks if rank_file(r) in held)}",
            next_step="load one of these, or pack this rank into the folder (shardproof pack CKPT OUT --ranks N)"
            if 0 <= rank < len(plan.ranks) else f"load one of these: the folder is for {len(plan.ranks)} ranks",
        )  # fmt: skip
    packed = load_file(root / rank_file(plan.ranks[rank]))
    noted = held[rank_file(plan.ranks[rank])]
    if packed.rank.index != rank:
        raise _mixed(root, plan, rank, "rank", f"rank {packed.rank.index}", f"rank {rank}")
    if packed.plan != plan:
        needed = f"the manifest's plan (tp {plan.tp}, ep {plan.ep})"
        raise _mixed(root, plan, rank, "plan", f"tp {packed.plan.tp}, ep {packed.plan.ep}", needed)
    if str(packed.digest) != noted:
        raise _mixed(root, plan, rank, "packing", f"digest {packed.digest}", f"the manifest's digest {noted}")
    return packed


def _mixed(folder: Path, plan: Plan, rank: int, other: str, found: str, needed: str) -> PackedError:
    return PackedError(
        "packed.mixed", f"the rank file belongs to another {other}", file=folder / rank_file(plan.ranks[rank]),
        rank=rank, found=found, needed=needed, next_step="pack again; files of different packings were put together",
    )  # fmt: skip


def load_file(path: Path) -> PackedExperts:
    """Map one rank file. Raises PackedError `packed.not_found`, `packed.damaged` or `packed.version`."""
    try:
        found = read_header(path)
    except CheckpointError as reason:
        unread = reason.code == "checkpoint.not_a_file"
        forbidden = unread and reason.found != os.strerror(errno.ENOENT)
        raise PackedError(
            "packed.not_found" if unread else "packed.damaged",
            f"the rank file cannot be read: {reason.what}",
            file=path,
            found=reason.found,
            next_step=reason.next_step if forbidden else "pack the rank again (shardproof pack)",
        ) from reason
    try:
        record = json.loads(found.metadata[METADATA_KEY])
        check_version(record, path)
        plan = read_plan(record, path)
        rank = plan.ranks[record["rank"]]
        digest = Digest.parse(record["digest"])
    except (LookupError, ValueError, TypeError, RecursionError) as reason:
        raise PackedError(
            "packed.damaged", "the rank file does not say how it was packed", file=path, found=repr(reason)[:120],
            needed=f"metadata {METADATA_KEY!r} as `shardproof pack` writes it",
            next_step="give a rank's file that shardproof packed, or pack again",
        ) from None  # fmt: skip
    memory = _mapped(path)
    tensors = {t.name: t for t in found.tensors}
    layers = {key: _layer(key, rank, plan, tensors, memory, path) for key in plan.layers}
    return PackedExperts(plan, rank, layers, digest)


def _mapped(path: Path) -> Bytes:
    """The whole file, in huge pages where the file system has them, unless SHARDPROOF_HUGE_PAGES=0."""
    memory = np.memmap(path, dtype=np.uint8, mode="r")
    base: object = memory.base
    if isinstance(base, mmap.mmap) and pages.wanted() is not False:
        pages.advise(base, huge=True)
    return memory


def _layer(
    key: str, rank: Rank, plan: Plan, tensors: Mapping[str, TensorInfo], memory: Bytes, path: Path
) -> PackedLayer:
    held: dict[tuple[Stack, Field], Bytes] = {}
    for stack, name in plan.fields(key):
        named = tensor_name(key, stack, name)
        info = tensors.get(named)
        needed = plan.placed(key, rank, stack, name).nbytes
        if info is None or info.stop - info.start != needed:
            found = "nothing" if info is None else f"{info.stop - info.start} bytes"
            raise PackedError(
                "packed.damaged", "a packed tensor is missing or has the wrong size", file=path, tensor=named,
                rank=rank, found=found, needed=f"{needed} bytes", next_step="pack again",
            )  # fmt: skip
        held[stack, name] = memory[info.start : info.stop]
    return PackedLayer(key, rank, plan, held)
