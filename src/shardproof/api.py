"""The first steps of every use, from plain values: open a model, choose a backend."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shardproof.arguments import expect, path_of, whole_number
from shardproof.backends import GateMode, Platform, Request, describe, detect
from shardproof.checkpoint import Checkpoint
from shardproof.errors import FormatError
from shardproof.experts import ExpertSpec
from shardproof.formats import ExpertModel, check_model, read_experts
from shardproof.oracle import Decision
from shardproof.oracle import select as select_backend
from shardproof.repack import is_packed, open_packed


def open_model(where: str | Path, *, format: str | None = None) -> ExpertModel:  # noqa: A002
    """Open a checkpoint (folder, file, or name in the Hugging Face cache) and read where its experts are.

    A packed folder is opened as well: its experts come back through the inverse of its layouts.
    Raises CheckpointError, FormatError, PackedError or ArgumentError.
    """
    path_of("checkpoint", where)
    if is_packed(where):
        return open_packed(where)
    return read_experts(Checkpoint.open(where), format=format)


def select(
    model: ExpertModel | ExpertSpec,
    *,
    platform: Platform | str | None = None,
    packages: str | Iterable[str] = (),
    tp: int = 1,
    ep: int = 1,
    backend: str | None = None,
    gate_mode: GateMode | None = None,
) -> Decision:
    """Choose a backend for a model on a platform (this machine where none is described).

    `packages` are versions on a described platform, as `name=version`, one or several. Raises BackendError,
    PartitionError `partition.size`, ArgumentError, and FormatError `format.model` for a path: `open_model` reads it.
    """
    tp, ep = whole_number("tp", tp), whole_number("ep", ep)
    if backend is not None:
        expect("backend", backend, str, "give its name, for instance decision.backend")
    spec = model if isinstance(model, ExpertSpec) else main_spec(model)
    return select_backend(Request(spec, platform_of(platform, packages), tp, ep, gate_mode), backend=backend)


def platform_of(platform: Platform | str | None, packages: str | Iterable[str] = ()) -> Platform:
    """A platform as it is, described by text, or this machine's.

    Raises BackendError `backend.platform`, ArgumentError.
    """
    if platform is None:
        return detect(packages)
    if isinstance(platform, str):
        return describe(platform, packages)
    return expect("platform", platform, Platform, 'describe it by text, for instance "rocm:gfx950"')


def main_spec(model: ExpertModel) -> ExpertSpec:
    """The spec of the model's first MoE layer. Raises FormatError `format.none` for a model without one."""
    for layer in check_model(model).layers.values():
        return layer.spec
    raise FormatError(
        "format.none",
        "the checkpoint has no MoE layer",
        file=model.checkpoint.root,
        next_step=f"`shardproof inspect {model.checkpoint.root}` shows what it holds",
    )
