"""PackedExperts: a rank's tensors with the identity of their byte order, as a value and as a file.

A packed folder holds `shardproof.json` (the manifest: format version, plan, digests) and one
`rank-00006-of-00008.safetensors` a rank with flat tensors `layers.L.experts.{w13,w2}.{weight,scale,bias}` in kernel
order. Each file repeats plan and rank in its metadata, so that no tensor is ever without its layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardproof.checkpoint.header import TensorInfo, read_header
from shardproof.digest import Digest
from shardproof.errors import CheckpointError, FormatError, PackedError, PartitionError
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.layouts import Placed
from shardproof.mxfp4 import Bytes
from shardproof.partition import Rank
from shardproof.plan import LayerShape, Plan

FORMAT_VERSION = 1
MANIFEST = "shardproof.json"
METADATA_KEY = "shardproof"
BIAS_DTYPE = {"float32": "F32", "bfloat16": "BF16"}


def rank_file(rank: Rank) -> str:
    """File name of a rank."""
    return f"rank-{rank.index:05d}-of-{rank.world:05d}.safetensors"


def tensor_name(layer: str, stack: Stack, name: Field) -> str:
    """Name of a packed tensor."""
    return f"{layer}.experts.{stack}.{name}"


@dataclass(frozen=True)
class PackedLayer:
    """One layer of one rank: kernel bytes by (stack, field), and everything needed to read them.

    `tensors` are flat uint8 arrays in kernel order; `canonical` undoes the layout.
    """

    key: str
    rank: Rank
    plan: Plan
    tensors: Mapping[tuple[Stack, Field], Bytes]

    @property
    def shape(self) -> LayerShape:
        """How the layer was dealt and padded."""
        return self.plan.shape(self.key)

    @property
    def spec(self) -> ExpertSpec:
        """The whole layer's spec."""
        return self.shape.spec

    @property
    def experts(self) -> tuple[int, ...]:
        """Global ids of the experts held here, in local order."""
        return self.plan.experts(self.key, self.rank)

    @property
    def valid(self) -> int:
        """Intermediate values that are not padding."""
        return self.shape.valid(self.rank)

    def placed(self, stack: Stack, name: Field) -> Placed:
        """The layout on this tensor's canonical shape."""
        return self.plan.placed(self.key, self.rank, stack, name)

    def canonical(self, stack: Stack, name: Field) -> Bytes:
        """The padded stack in canonical form, uint8 [E, N, bytes a row], from the kernel's bytes."""
        return self.placed(stack, name).unpack(self.tensors[stack, name])


@dataclass(frozen=True)
class PackedExperts:
    """All layers of one rank. `digest` is the logical content's (see `digest`), None where it was not computed."""

    plan: Plan
    rank: Rank
    layers: Mapping[str, PackedLayer]
    digest: Digest | None = None

    def __iter__(self) -> Iterator[PackedLayer]:
        return iter(self.layers.values())


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
        "plan": plan.to_dict(),
    }


def write_manifest(folder: Path, plan: Plan, digests: Mapping[int, Digest]) -> None:
    """Write the manifest of a packed folder; `digests` maps rank indices to digests."""
    complete = len(digests) == len(plan.ranks)
    total = sum(digests.values(), start=Digest())
    manifest = {
        "format_version": FORMAT_VERSION,
        "plan": plan.to_dict(),
        "ranks": {rank_file(plan.ranks[i]): str(digest) for i, digest in sorted(digests.items())},
        "digest": str(total) if complete else None,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest. Raises PackedError `packed.not_found`, `packed.damaged` or `packed.version`."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise PackedError(
            "packed.not_found", "not a packed folder", file=folder, needed=MANIFEST,
            next_step="shardproof pack CKPT OUT",
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as reason:
        raise PackedError("packed.damaged", "the manifest is not JSON", file=path, found=str(reason)[:120]) from None
    _check_version(data, path)
    if not isinstance(data.get("ranks"), dict):
        raise PackedError("packed.damaged", "the manifest does not say which ranks there are", file=path)
    return dict(data)


def read_plan(record: Mapping[str, Any], path: Path) -> Plan:
    """The plan that a manifest or rank file carries, proven. Raises PackedError `packed.damaged`."""
    try:
        plan = Plan.from_dict(record["plan"])
        plan.prove()
    except (LookupError, ValueError, TypeError, AttributeError, FormatError, PartitionError) as reason:
        raise PackedError(
            "packed.damaged", "the record of how this was packed is not whole", file=path, found=repr(reason)[:120],
            needed="the plan as `shardproof pack` writes it", next_step="pack again",
        ) from None  # fmt: skip
    return plan


def _check_version(data: Any, path: Path) -> None:
    found = data.get("format_version") if isinstance(data, dict) else None
    if found != FORMAT_VERSION:
        raise PackedError(
            "packed.version", "the file format is not one this shardproof knows", file=path, found=found,
            needed=FORMAT_VERSION, next_step="use a newer shardproof, or pack again",
        )  # fmt: skip


def load(folder: str | Path, rank: int = 0) -> PackedExperts:
    """Map one rank of a packed folder; nothing is read but the header.

    Raises PackedError `packed.not_found`, `packed.rank`, `packed.damaged`, `packed.mixed` or `packed.version`.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    plan = read_plan(manifest, root / MANIFEST)
    held = manifest["ranks"]
    if not 0 <= rank < len(plan.ranks) or rank_file(plan.ranks[rank]) not in held:
        raise PackedError(
            "packed.rank", "the folder does not hold this rank", file=root, rank=rank, needed=", ".join(held)
        )
    packed = load_file(root / rank_file(plan.ranks[rank]))
    if packed.rank.index != rank or packed.plan != plan:
        other_rank = packed.rank.index != rank
        raise PackedError(
            "packed.mixed", f"the rank file belongs to another {'rank' if other_rank else 'plan'}",
            file=root / rank_file(plan.ranks[rank]), rank=rank,
            found=f"rank {packed.rank.index}" if other_rank else f"tp {packed.plan.tp}, ep {packed.plan.ep}",
            needed=f"rank {rank}" if other_rank else f"the manifest's plan (tp {plan.tp}, ep {plan.ep})",
            next_step="pack again; files of different packings were put together",
        )  # fmt: skip
    return packed


def load_file(path: Path) -> PackedExperts:
    """Map one rank file. Raises PackedError `packed.not_found`, `packed.damaged` or `packed.version`."""
    try:
        found = read_header(path)
    except CheckpointError as reason:
        code = "packed.not_found" if reason.code == "checkpoint.not_a_file" else "packed.damaged"
        raise PackedError(
            code, f"the rank file cannot be read: {reason.what}", file=path, found=reason.found
        ) from reason
    try:
        record = json.loads(found.metadata[METADATA_KEY])
        _check_version(record, path)
        plan = read_plan(record, path)
        rank = plan.ranks[record["rank"]]
        digest = Digest.parse(record["digest"])
    except (LookupError, ValueError, TypeError, RecursionError) as reason:
        raise PackedError(
            "packed.damaged", "the rank file does not say how it was packed", file=path, found=repr(reason)[:120],
            needed=f"metadata {METADATA_KEY!r} as `shardproof pack` writes it",
        ) from None  # fmt: skip
    memory = np.memmap(path, dtype=np.uint8, mode="r")
    tensors = {t.name: t for t in found.tensors}
    layers = {key: _layer(key, rank, plan, tensors, memory, path) for key in plan.layers}
    return PackedExperts(plan, rank, layers, digest)


def _layer(
    key: str, rank: Rank, plan: Plan, tensors: Mapping[str, TensorInfo], memory: Bytes, path: Path
) -> PackedLayer:
    held: dict[tuple[Stack, Field], Bytes] = {}
    for stack, name in plan.fields(key):
        named = tensor_name(key, stack, name)
        info = tensors.get(named)
        needed = plan.placed(key, rank, stack, name).nbytes
        if info is None or info.stop - info.start != needed:
            raise PackedError(
                "packed.damaged", "a packed tensor is missing or has the wrong size",
                file=path, tensor=named, rank=rank,
                found="nothing" if info is None else f"{info.stop - info.start} bytes", needed=f"{needed} bytes",
            )  # fmt: skip
        held[stack, name] = memory[info.start : info.stop]
    return PackedLayer(key, rank, plan, held)
