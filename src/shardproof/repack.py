"""Repack: a packed folder read as a model, so that it can be packed for another kernel or another number of ranks.

Every layout has an inverse, so the checkpoint's matrices come back from the ranks' bytes: for one expert and
projection, each tensor-parallel rank's cut is unpacked and put where it was taken from. `open_packed` gives an
`ExpertModel` like any format does; `pack`, `verify` and `plan` do not see the difference.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardproof.checkpoint import Checkpoint
from shardproof.checkpoint.header import read_header
from shardproof.digest import Digest
from shardproof.errors import PackedError
from shardproof.experts import STACKS, Field, Projection, Stack
from shardproof.formats import Evidence, ExpertModel, LayerExperts, Source
from shardproof.formats.model import Interval
from shardproof.mxfp4 import Bytes
from shardproof.packed import BIAS_DTYPE, MANIFEST, METADATA_KEY, PackedExperts, load, rank_file, read_manifest
from shardproof.partition import Rank
from shardproof.plan import Plan

_RANK_FILE = re.compile(r"rank-\d{5}-of-\d{5}\.safetensors", re.ASCII)


class _Kept(threading.local):
    """What a thread unpacked last, by (rank, stack, field)."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, Stack, Field], tuple[tuple[str, int], Bytes]] = {}


class PackedFolder(Checkpoint):
    """A packed folder in a checkpoint's place: it keeps the identity of the checkpoint it was packed from."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.folder = folder
        self.plan = Plan.from_dict(manifest["plan"])
        missing = [r.index for r in self.plan.ranks if rank_file(r) not in manifest["ranks"]]
        if missing:
            raise PackedError(
                "packed.incomplete", "ranks are missing, so the model cannot be put together again", file=folder,
                rank=", ".join(map(str, missing)), needed=f"all {len(self.plan.ranks)} ranks",
                next_step="pack the missing ranks, or start from the checkpoint",
            )  # fmt: skip
        self.ranks: list[PackedExperts] = [load(folder, r.index) for r in self.plan.ranks]
        self.root, self.identity = Path(self.plan.source), self.plan.identity
        self.paths = tuple(folder / rank_file(r) for r in self.plan.ranks)
        self.config, self.problems, self.tensors = {}, [], {}
        self._maps: dict[int, Bytes] = {}
        self._stamps = [(s.st_size, s.st_mtime_ns) for s in (path.stat() for path in self.paths)]
        self._kept = _Kept()

    def recorded_digest(self, layers: Collection[str]) -> str | None:
        """The digest that was noted when the ranks were packed; None for some layers only, or rounded biases."""
        digests = [packed.digest for packed in self.ranks]
        rounded = self.plan.bias_item != 4 and any(shape.spec.bias for shape in self.plan.shapes)
        if set(layers) != set(self.plan.layers) or rounded or None in digests:
            return None
        return str(sum((d for d in digests if d is not None), Digest()))

    def part(self, rank: Rank, key: str, stack: Stack, name: Field, expert: int) -> Bytes:
        """One expert of one rank in canonical form, uint8 [N, bytes a row]; a thread keeps its last: w3 follows w1."""
        slot = rank.index, stack, name
        parts = self._kept.parts
        which, part = parts.get(slot, (None, None))
        if part is None or which != (key, expert):
            packed = self.ranks[rank.index].layers[key]
            part = packed.placed(stack, name).read(packed.tensors[stack, name], packed.experts.index(expert), 1)[0]
            parts[slot] = (key, expert), part
        return part


@dataclass(frozen=True)
class PackedSource(Source):
    """One projection's field, put together from the ranks that hold its cuts."""

    gather: Callable[[int, Interval, Interval], Bytes] = field(kw_only=True)

    def matrix(self, checkpoint: Checkpoint, expert: int) -> Bytes:
        """The matrix of one expert, uint8 [rows, row_bytes], in fresh memory."""
        return self.window(checkpoint, expert, (0, self.rows), (0, self.row_bytes))

    def window(self, checkpoint: Checkpoint, expert: int, rows: Interval, columns: Interval) -> Bytes:  # noqa: ARG002
        """As `matrix`, of which rows and byte columns [first, stop) are filled, the others perhaps."""
        return self.gather(expert, rows, columns)


def is_packed(where: str | Path) -> bool:
    """Whether a path is a packed folder. Raises PackedError `packed.one_rank` for one of its files."""
    try:
        path = Path(where).expanduser()
        packed, rank = (path / MANIFEST).is_file(), bool(_RANK_FILE.fullmatch(path.name)) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        return False  # whoever opens the path says what is wrong with it
    if rank and METADATA_KEY in read_header(path).metadata:
        raise PackedError(
            "packed.one_rank", "this is one rank of a packed folder, not a model", file=path,
            needed="the folder with all ranks", next_step=f"give the folder: {path.absolute().parent}",
        )  # fmt: skip
    return packed


def open_packed(folder: str | Path) -> ExpertModel:
    """Read a packed folder (all ranks) as a model.

    Raises PackedError `packed.not_found`, `packed.incomplete`, `packed.damaged` or `packed.version`.
    """
    opened = PackedFolder(Path(folder).expanduser())
    plan = opened.plan
    layers = {key: _layer(opened, key) for key in plan.layers}
    evidence = (Evidence(True, "packed folder", f"{plan.recipe.backend}, tp {plan.tp} x ep {plan.ep}"),)
    return ExpertModel(opened, plan.format, plan.family, layers, evidence)


def _layer(opened: PackedFolder, key: str) -> LayerExperts:
    plan = opened.plan
    spec = plan.shape(key).spec
    sources: dict[tuple[Projection, Field], Source] = {}
    for stack in STACKS:
        for name in ("weight", "scale", "bias") if spec.bias else ("weight", "scale"):
            for projection in ("w1", "w3") if stack == "w13" else ("w2",):
                sources[projection, name] = _source(opened, key, projection, name)
    return LayerExperts(key, spec, sources)


def _meet(one: Interval, other: Interval) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _source(opened: PackedFolder, key: str, projection: Projection, name: Field) -> PackedSource:
    plan = opened.plan
    stack: Stack = "w2" if projection == "w2" else "w13"
    spec = plan.shape(key).spec
    rows = spec.hidden if projection == "w2" else spec.intermediate
    columns = spec.intermediate if projection == "w2" else spec.hidden
    width = {"weight": columns // 2, "scale": columns // 32, "bias": plan.bias_item}[name]
    owner = {e: ep for ep, held in reversed(list(enumerate(plan.shape(key).owners))) for e in held}

    def gather(expert: int, wanted_rows: Interval, wanted_columns: Interval) -> Bytes:
        matrix = np.empty((rows, width), dtype=np.uint8)
        for rank in plan.ranks:
            if rank.ep_rank != owner[expert]:
                continue
            cuts = [
                c for c in plan.cuts(key, rank, stack, name)
                if c.projection == projection and _meet(c.rows, wanted_rows) and _meet(c.columns, wanted_columns)
            ]  # fmt: skip
            if not cuts:
                continue
            part = opened.part(rank, key, stack, name, expert)
            for cut in cuts:
                height, breadth = cut.rows[1] - cut.rows[0], cut.columns[1] - cut.columns[0]
                found = part[cut.at_row : cut.at_row + height, cut.at_column : cut.at_column + breadth]
                matrix[slice(*cut.rows), slice(*cut.columns)] = found
        return matrix

    nowhere = np.zeros(spec.experts, dtype=np.int64)
    dtype = BIAS_DTYPE[plan.recipe.bias_dtype] if name == "bias" else "U8"
    named = f"{key}.experts.{stack}.{name}"
    return PackedSource(
        nowhere, nowhere, rows, width, width, dtype, lambda expert: f"{named} ({projection} of expert {expert})",
        gather=gather,
    )  # fmt: skip
