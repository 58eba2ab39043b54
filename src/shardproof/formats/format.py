"""Format: one checkpoint dialect, recognised from config and tensors together."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from shardproof.arguments import expect
from shardproof.checkpoint import Checkpoint, config_value
from shardproof.checkpoint.resolve import INDEX
from shardproof.errors import FormatError
from shardproof.formats.model import Evidence, ExpertModel

_FORMATS: dict[str, Format] = {}


class Format(ABC):
    """One dialect. A file in this folder with a `Format` subclass that has a `name` is found by itself."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            _FORMATS[cls.name] = cls()

    @abstractmethod
    def from_config(self, config: dict[str, Any]) -> Evidence | None:
        """What the config says about this dialect; None where it says nothing either way."""

    @abstractmethod
    def from_tensors(self, checkpoint: Checkpoint) -> Evidence | None:
        """What the tensor names say about this dialect; None where no name is in it."""

    @abstractmethod
    def read(self, checkpoint: Checkpoint, evidence: tuple[Evidence, ...]) -> ExpertModel:
        """Every expert as byte ranges. Raises FormatError for what is missing, extra, or of wrong dtype or shape."""


@cache
def _load() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


def formats() -> dict[str, Format]:
    """Every known dialect by name."""
    _load()
    return dict(sorted(_FORMATS.items()))


def quantization(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization_config of a config, at top level or under text_config; {} where there is none."""
    found = config_value(config, "quantization_config")
    return found if isinstance(found, dict) else {}


def read_experts(checkpoint: Checkpoint, *, format: str | None = None) -> ExpertModel:  # noqa: A002
    """Recognise the dialect and read all experts.

    Config and tensors must agree: a conflict is refused with the evidence (FormatError `format.conflict`), and so
    is a checkpoint without MXFP4 experts (`format.none`, `format.not_mxfp4`). A config that says nothing leaves the
    choice to the tensors. `format` names the dialect instead. One file of several whose experts are not whole without
    the others is `format.one_shard`.
    """
    try:
        return _read(checkpoint, format)
    except FormatError as reason:
        if not checkpoint.siblings or not reason.code.startswith(("format.conflict", "format.missing", "format.none")):
            raise
        raise _one_shard(checkpoint, reason) from reason


def _one_shard(checkpoint: Checkpoint, reason: FormatError) -> FormatError:
    path, others = checkpoint.paths[0], list(checkpoint.siblings)
    absent = [name for name in others if not (path.parent / name).is_file()]
    told_by = f", which {INDEX} names" if (path.parent / INDEX).is_file() else ""
    shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return FormatError(
        "format.one_shard", f"this is one file of {len(others) + 1}, and its experts are not whole without the others",
        file=path, tensor=reason.tensor, layer=reason.layer, expert=reason.expert,
        found=f"{reason.code}: {reason.what}", needed=f"{shown} as well{told_by}",
        next_step=f"download {absent[0]} and what else is missing ({len(absent)} files), then give the folder"
        if absent else f"give the folder: {path.absolute().parent}",
    )  # fmt: skip


def _read(checkpoint: Checkpoint, format: str | None) -> ExpertModel:  # noqa: A002
    known = formats()
    if format is not None:
        if expect("format", format, str, "give a format's name") not in known:
            raise FormatError(
                "format.unknown",
                "no such format",
                found=format,
                needed=", ".join(known),
                next_step="choose one of those, or leave it out to have it recognised",
            )
        return known[format].read(checkpoint, (Evidence(True, "asked for", format),))
    evidence = {name: _evidence(dialect, checkpoint) for name, dialect in known.items()}
    by_tensors = [n for n, (_, tensors) in evidence.items() if tensors is not None and tensors.speaks_for]
    by_config = [n for n, (config, _) in evidence.items() if config is not None and config.speaks_for]
    chosen = [n for n in by_tensors if n in by_config]
    if not by_config:
        chosen = [n for n in by_tensors if evidence[n][0] is None]
    if len(chosen) == 1:
        kept = tuple(e for e in evidence[chosen[0]] if e is not None)
        return known[chosen[0]].read(checkpoint, kept)
    if not by_tensors and not by_config:
        raise FormatError(
            "format.none", "no MXFP4 experts of a known format were found", file=checkpoint.root,
            found=f"{len(checkpoint.tensors)} tensors, none with the names of a known format",
            needed=", ".join(known), next_step="`shardproof inspect` shows the names; see docs/formats.md",
        )  # fmt: skip
    _refuse_other_dtype(checkpoint)
    said = {name: ", ".join(str(e) for e in pair if e is not None) for name, pair in evidence.items()}
    raise FormatError(
        "format.conflict", "config and tensors do not point to one format", file=checkpoint.root,
        found="; ".join(f"{name} {what}" for name, what in said.items() if what),
        needed="evidence for exactly one format",
        next_step="correct the config, or name the format (--format)",
    )  # fmt: skip


def expert_dtype(config: dict[str, Any]) -> str | None:
    """`expert_dtype` as DeepSeek writes it: at top level (V4) or in quantization_config (V4.1)."""
    found = config_value(config, "expert_dtype") or quantization(config).get("expert_dtype")
    return None if found is None else str(found)


def _refuse_other_dtype(checkpoint: Checkpoint) -> None:
    found = expert_dtype(checkpoint.config)
    if found is not None and found.lower() != "fp4":
        raise FormatError(
            "format.not_mxfp4", f"the config says that the experts are {found[:20]}, not MXFP4", file=checkpoint.root,
            found=f"expert_dtype {found[:20]!r}", needed="expert_dtype 'fp4'",
            next_step="use the MXFP4 release of the model (DeepSeek-V4-*-Base is FP8)",
        )  # fmt: skip


def no_experts(checkpoint: Checkpoint, name: str) -> FormatError:
    """The error of a checkpoint that has no expert of the dialect it was read as."""
    return FormatError(
        "format.none", f"no MXFP4 experts of format {name} were found", file=checkpoint.root,
        found=f"{len(checkpoint.tensors)} tensors", needed=formats()[name].summary,
        next_step="`shardproof inspect` shows the names; see docs/formats.md",
    )  # fmt: skip


def _evidence(dialect: Format, checkpoint: Checkpoint) -> tuple[Evidence | None, Evidence | None]:
    return dialect.from_config(checkpoint.config), dialect.from_tensors(checkpoint)
