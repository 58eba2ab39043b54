"""The manifest of a packed folder: key, plan, checkpoint files, and each rank's digest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardproof.checkpoint import Checkpoint
from shardproof.digest import Digest
from shardproof.errors import ArgumentError, FormatError, PackedError, PartitionError
from shardproof.packed.key import FORMAT_VERSION, MANIFEST, plan_key, plan_record
from shardproof.partition import Rank
from shardproof.plan import Plan


def rank_file(rank: Rank) -> str:
    """File name of a rank."""
    return f"rank-{rank.index:05d}-of-{rank.world:05d}.safetensors"


def write_manifest(folder: Path, plan: Plan, digests: Mapping[int, Digest], checkpoint: Checkpoint) -> None:
    """Write the manifest of a packed folder, whole or not at all; `digests` maps rank indices to digests."""
    complete = len(digests) == len(plan.ranks)
    total = sum(digests.values(), start=Digest())
    manifest = {
        "format_version": FORMAT_VERSION,
        "key": plan_key(plan),
        "plan": plan_record(plan),
        "files": checkpoint.stamps,
        "ranks": {rank_file(plan.ranks[i]): str(digest) for i, digest in sorted(digests.items())},
        "digest": str(total) if complete else None,
    }
    growing = folder / f".{MANIFEST}.part"
    with growing.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    growing.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest. Raises PackedError `packed.not_found`, `packed.damaged` or `packed.version`."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        missing = isinstance(reason, FileNotFoundError | NotADirectoryError)
        raise PackedError(
            "packed.not_found", "not a packed folder", file=folder, found=None if missing else reason.strerror,
            needed=MANIFEST, next_step="shardproof pack CKPT OUT" if missing else "correct its permissions",
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as reason:
        raise PackedError(
            "packed.damaged", "the manifest is not JSON", file=path, found=str(reason)[:120], next_step="pack again"
        ) from None
    check_version(data, path)
    try:
        for text in [*data["ranks"].values(), *({data["digest"]} - {None})]:
            Digest.parse(text)
    except (LookupError, AttributeError, TypeError, ValueError) as reason:
        raise PackedError(
            "packed.damaged", "the manifest does not say which ranks there are", file=path, found=repr(reason)[:120],
            needed="a digest of each rank and of the whole", next_step="pack again",
        ) from None  # fmt: skip
    return dict(data)


def read_plan(record: Mapping[str, Any], path: Path) -> Plan:
    """The plan that a manifest or rank file carries, proven. Raises PackedError `packed.damaged`."""
    try:
        plan = Plan.from_dict(record["plan"])
        plan.prove()
    except (LookupError, ValueError, TypeError, AttributeError, ArgumentError, FormatError, PartitionError) as reason:
        raise PackedError(
            "packed.damaged", "the record of how this was packed is not whole", file=path, found=repr(reason)[:120],
            needed="the plan as `shardproof pack` writes it", next_step="pack again",
        ) from None  # fmt: skip
    return plan


def check_version(data: Any, path: Path) -> None:
    """Raise PackedError `packed.version` for a file format that is not known here."""
    found = data.get("format_version") if isinstance(data, dict) else None
    if found != FORMAT_VERSION:
        raise PackedError(
            "packed.version", "the file format is not one this shardproof knows", file=path, found=found,
            needed=FORMAT_VERSION, next_step="use a newer shardproof, or pack again",
        )  # fmt: skip
