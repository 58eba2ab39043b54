"""Repack: a packed folder read as a model, so that it can be packed for another kernel or another number of ranks.

Every layout has an inverse, so the checkpoint's matrices come back from the ranks' bytes: for one expert and
projection, each tensor-parallel rank's cut is unpacked and put where it was taken from. `open_packed` gives an
`ExpertModel` like any format does; `pack`, `verify` and `plan` do not see the difference.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardproof.checkpoint import Checkpoint
from shardproof.checkpoint.header import read_header
from shardproof.digest import Digest
from shardproof.errors import PackedError
from shardproof.experts import STACKS, Field, Projection, Stack
from shardproof.formats import Evidence, ExpertModel, LayerExperts, Source, Window
from shardproof.formats.model import Interval
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.unpack import Packed, unpack, unpack_tensors
from shardproof.packed import (
    BIAS_DTYPE,
    MANIFEST,
    METADATA_KEY,
    PackedExperts,
    load,
    rank_file,
    read_manifest,
    read_plan,
)  # fmt: skip
from shardproof.partition import Rank

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
        self.plan = read_plan(manifest, folder / MANIFEST)
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
            identity, shape = self.plan.recipe.layouts[stack, name], packed.placed(stack, name).shape
            kernel, local = packed.tensors[stack, name], packed.experts.index(expert)
            part = unpack(identity, shape, kernel, first=local, count=1)[0]
            parts[slot] = (key, expert), part
        return part


@dataclass(frozen=True)
class PackedSource(Source):
    """One projection's field, put together from the ranks that hold its cuts."""

    gather: Callable[[int], Bytes] = field(kw_only=True)

    def matrix(self, checkpoint: Checkpoint, expert: int) -> Bytes:  # noqa: ARG002
        """The matrix of one expert, uint8 [rows, row_bytes], in fresh memory."""
        return self.gather(expert)


@dataclass(frozen=True)
class PackedLayerExperts(LayerExperts):
    """A layer whose parts come straight from the ranks' kernel bytes, several experts at once."""

    opened: PackedFolder

    def fill(
        self, checkpoint: Checkpoint, name: Field, windows: Mapping[Projection, Window], experts: Sequence[int],
        threads: int | None = None,
    ) -> None:  # fmt: skip
        """Bring parts of the matrices of some experts into memory; only ranks that hold some of it are read."""
        stacks = {_stack(projection) for projection in windows}
        if native.library() is None or name == "bias" or len(stacks) != 1:
            super().fill(checkpoint, name, windows, experts, threads)
            return
        plan, stack = self.opened.plan, stacks.pop()
        owner, tensors, read = _owner(self.opened, self.key), [], []
        for rank in plan.ranks:
            mine = [local for local, e in enumerate(experts) if owner[e] == rank.ep_rank]
            cuts = self._cuts(rank, (stack, name), windows, experts, mine)
            if cuts is None:
                continue
            read.append(rank.index)
            packed = self.opened.ranks[rank.index].layers[self.key]
            shape = plan.canonical_shape(self.key, rank, stack, name)
            tensors.append(Packed(plan.recipe.layouts[stack, name], shape, packed.tensors[stack, name], cuts))
        try:
            unpack_tensors(tensors, threads=threads, keep=windows)
        finally:
            for index in read:
                self.opened.check_unchanged(index)

    def _cuts(
        self, rank: Rank, slot: tuple[Stack, Field], windows: Mapping[Projection, Window], experts: Sequence[int],
        mine: Sequence[int],
    ) -> npt.NDArray[np.void] | None:  # fmt: skip
        """Where rows of a rank's tensor go, records [E of the rank, cuts]; None where none of it is asked for."""
        plan = self.opened.plan
        asked = [
            (c, windows[c.projection]) for c in plan.cuts(self.key, rank, *slot)
            if c.projection in windows and _meet(c.rows, windows[c.projection].rows)
            and _meet(c.columns, windows[c.projection].columns)
        ]  # fmt: skip
        if not asked or not mine:
            return None
        held = {e: local for local, e in enumerate(plan.experts(self.key, rank))}
        records = np.zeros((len(held), len(asked)), dtype=native.CUT)
        at = np.array([held[experts[local]] for local in mine], dtype=np.intp)
        for number, (cut, window) in enumerate(asked):
            rows, columns = _common(cut.rows, window.rows), _common(cut.columns, window.columns)
            _, height, width = window.out.shape
            first = (rows[0] - window.rows[0]) * width + columns[0] - window.columns[0]
            column = records[:, number]
            column["src"][at] = window.out.ctypes.data + np.array(mine, dtype=np.int64) * (height * width) + first
            column["stride"][at] = width
            column["rows"][at], column["bytes"][at] = rows[1] - rows[0], columns[1] - columns[0]
            column["at_row"][at] = cut.at_row + rows[0] - cut.rows[0]
            column["at_column"][at] = cut.at_column + columns[0] - cut.columns[0]
        return records


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
    return PackedLayerExperts(key, spec, sources, opened)


def _stack(projection: Projection) -> Stack:
    return "w2" if projection == "w2" else "w13"


def _owner(opened: PackedFolder, key: str) -> dict[int, int]:
    """Of every expert the first expert-parallel rank that holds it."""
    return {e: ep for ep, held in reversed(list(enumerate(opened.plan.shape(key).owners))) for e in held}


def _meet(one: Interval, other: Interval) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _common(one: Interval, other: Interval) -> Interval:
    return max(one[0], other[0]), min(one[1], other[1])


def _source(opened: PackedFolder, key: str, projection: Projection, name: Field) -> PackedSource:
    plan = opened.plan
    stack, spec = _stack(projection), plan.shape(key).spec
    rows = spec.hidden if projection == "w2" else spec.intermediate
    columns = spec.intermediate if projection == "w2" else spec.hidden
    width = {"weight": columns // 2, "scale": columns // 32, "bias": plan.bias_item}[name]
    owner = _owner(opened, key)

    def gather(expert: int) -> Bytes:
        matrix = np.empty((rows, width), dtype=np.uint8)
        for rank in plan.ranks:
            cuts = [c for c in plan.cuts(key, rank, stack, name) if c.projection == projection]
            if rank.ep_rank != owner[expert] or not cuts:
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
