"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias, cast

import typer

from shardproof.errors import PartitionError, ShardproofError
from shardproof.partition import MOST_RANKS, PLACEMENTS, POLICIES, Policy
from shardproof.plan import ExpertMap

CheckpointPath: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="Folder, .safetensors file, packed folder, or org/name[@rev] in the Hugging Face cache.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print versioned JSON instead of text.")]
Tp: TypeAlias = Annotated[str, typer.Option("--tp", metavar="N", help="Tensor-parallel ranks.")]
Ep: TypeAlias = Annotated[int, typer.Option("--ep", metavar="N", help="Expert-parallel ranks.", min=1)]
PolicyName: TypeAlias = Annotated[
    str, typer.Option("--policy", metavar="|".join(POLICIES), help="How blocks are dealt to tensor-parallel ranks.")
]
PlacementName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--placement", metavar="|".join([*PLACEMENTS, "FILE.json"]),
        help="How experts are dealt to expert-parallel ranks; a file holds one list of expert ids a rank.",
    ),
]  # fmt: skip
BackendName: TypeAlias = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="Take this backend or fail; default: the first that fits."),
]
GateModeName: TypeAlias = Annotated[
    str | None, typer.Option("--gate-mode", metavar="separated|interleaved", help="Row order of w13 in the kernel.")
]
PlatformName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--platform", metavar="KIND[:ARCH]", help="Plan for this platform, e.g. rocm:gfx950; default: this machine."
    ),
]
With: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="PACKAGE=VERSION", help="A package version there, e.g. aiter=0.1.15."),
]
AllowEmpty: TypeAlias = Annotated[
    bool, typer.Option("--allow-empty", help="Allow tensor-parallel ranks that hold no block.")
]
FormatName: TypeAlias = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="Read the checkpoint as this format; default: recognise it."),
]


def read_range(text: str, what: str, *, least: int | None = None) -> list[int]:
    """Read `8`, `1..16`, `0-7` or `0,2,5`, of numbers from `least` up. Raises PartitionError `partition.range`."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            low, dots, high = part.replace("..", "-").partition("-")
            first, last = int(low), int(high if dots else low)
            if last < first:
                numbers = []  # of what cannot be read no part is taken
                break
            if len(numbers) + last - first >= MOST_RANKS:
                raise PartitionError(
                    "partition.range", f"{what} names too many numbers", found=text, needed=f"at most {MOST_RANKS}",
                    next_step="correct the end of the range",
                )  # fmt: skip
            numbers += range(first, last + 1)
    except ValueError:
        numbers = []
    if not numbers:
        raise PartitionError(
            "partition.range",
            f"cannot read {what}",
            found=text or "nothing",
            needed="8, 1..16, 0-7 or 0,2,5",
            next_step=f"{what} 8, for example",
        )
    if least is not None and min(numbers) < least:
        raise PartitionError(
            "partition.range",
            f"{what} is too small",
            found=text,
            needed=f"numbers from {least} up",
            next_step=f"leave out what is below {least}",
        )
    return numbers


def one_tp(text: str) -> int:
    """A single tensor-parallel size. Raises PartitionError `partition.range` for a range."""
    sizes = read_range(text, "--tp")
    if len(sizes) != 1:
        raise PartitionError(
            "partition.range", "this command takes one tensor-parallel size", found=text, needed="a single number",
            next_step="`shardproof plan` takes a range",
        )  # fmt: skip
    return sizes[0]


def read_policy(text: str) -> Policy:
    """A policy by name. Raises PartitionError `partition.policy`."""
    for policy in POLICIES:
        if text == policy:
            return policy
    raise PartitionError(
        "partition.policy",
        "unknown policy",
        found=text,
        needed=" or ".join(POLICIES),
        next_step="choose one of the two",
    )


def read_placement(text: str) -> ExpertMap:
    """A placement by name, or an explicit map from a JSON file (one list of expert ids a rank)."""
    if text in PLACEMENTS:
        return cast(ExpertMap, text)
    path, why = Path(text), ""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        rows = None
        if path.suffix or not isinstance(reason, FileNotFoundError):
            why = f" ({getattr(reason, 'strerror', None) or 'not JSON'})"
    else:
        why = " (not a list of lists)"
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise PartitionError(
            "partition.placement", "unknown expert placement", found=f"{text}{why}",
            needed=f"{', '.join(PLACEMENTS)}, or a JSON file with one list of expert ids a rank",
            next_step="choose one of the two, or correct the file",
        )  # fmt: skip
    return rows  # `expert_owners` says what is wrong with an id


def layer_key(text: str | None) -> str | None:
    """The layer that `3` or `layers.3` names."""
    return f"layers.{text}" if text is not None and text.isdecimal() else text


def pick_layers(keys: Iterable[str], text: str | None) -> list[str] | None:
    """Layer keys for `--layers 0-3` or `mtp.0`; None means all."""
    if text is None:
        return None
    known = list(keys)
    if text in known:
        return [text]
    return [f"layers.{n}" for n in read_range(text, "--layers")]


def refused(error: ShardproofError) -> str:
    """An error as one line for a table cell."""
    needed = f"; needed {error.needed}" if error.needed is not None else ""
    return f"{error.what}: {error.found}{needed}" if error.found is not None else error.what
