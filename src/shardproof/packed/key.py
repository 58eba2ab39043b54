"""The key of packed experts: checkpoint, plan, layout versions and file format; and what differs from it, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardproof.checkpoint import Checkpoint
from shardproof.errors import PackError
from shardproof.layouts import find
from shardproof.plan import Plan

FORMAT_VERSION = 1
MANIFEST = "shardproof.json"
_SHOWN = 6


def plan_record(plan: Plan) -> dict[str, Any]:
    """`Plan.to_dict` with every layout's version and parameters spelled out."""
    record = plan.to_dict()
    record["recipe"]["layouts"] = {
        name: _full_identity(identity) for name, identity in record["recipe"]["layouts"].items()
    }
    return record


def _full_identity(identity: str) -> str:
    layout, parameters = find(identity)
    return layout.identity(parameters)


def plan_key(plan: Plan) -> str:
    """What packed experts are of: checkpoint identity, plan, layout versions and file format, as 32 hex digits.

    Where the checkpoint lies does not matter, nor what users were told.
    """
    record = {"format_version": FORMAT_VERSION, **plan_record(plan)}
    del record["source"], record["recipe"]["notes"]
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def refuse_stale(folder: Path, plan: Plan, checkpoint: Checkpoint) -> None:
    """Raise PackError `pack.stale`, with every difference by name, if a folder was packed from something else."""
    found, needed = _stale(folder, plan, checkpoint)
    if found:
        raise PackError(
            "pack.stale", "the output holds packed experts of something else", file=folder, found=", ".join(found),
            needed=", ".join(needed), next_step="choose another folder, or remove this one",
        )  # fmt: skip


def _stale(folder: Path, plan: Plan, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        then, version = dict(manifest["plan"]), manifest["format_version"]
        then["recipe"] = {name: value for name, value in then["recipe"].items() if name != "notes"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["a manifest that cannot be read"], ["a packed folder"]
    if version != FORMAT_VERSION:
        return [f"format version {version}"], [f"format version {FORMAT_VERSION}"]
    now = json.loads(json.dumps(plan_record(plan)))
    same_place = then.pop("source", None) == now.pop("source")
    del now["recipe"]["notes"]
    pairs = list(differing(then, now))
    files = {k: list(v) for k, v in checkpoint.stamps.items()}
    if not pairs and same_place:
        before = manifest.get("files", {})
        pairs = [(k, "as it was when packed", "as it is now") for k in files if before.get(k) != files[k]][:1]
    pairs = [p for p in pairs if not p[0].startswith("shapes")] or pairs  # where they only follow from the rest
    return [_short(name, a) for name, a, _ in pairs[:_SHOWN]], [_short(name, b) for name, _, b in pairs[:_SHOWN]]


def differing(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two JSON-ready records, as (name, then, now) of the innermost values."""
    if isinstance(then, dict) and isinstance(now, dict):
        outer = "" if name in ("", "recipe", "recipe.layouts") else f"{name}."
        for key in {**then, **now}:
            inner = f"recipe.{key}" if (name, key) == ("recipe", "layouts") else f"{outer}{key}"
            yield from differing(then.get(key, "-"), now.get(key, "-"), inner)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (before, after) in enumerate(zip(then, now, strict=True)):
            yield from differing(before, after, f"{name}[{number}]")
    elif then != now:
        yield name, then, now


def _short(name: str, value: Any) -> str:
    text = str(value)
    return f"{name} {text if len(text) <= 60 else text[:57] + '...'}"
