"""Mistake: one known way to get expert weights wrong, as a declaration that can be put back on purpose.

`verify` and `diagnose` explain wrong bytes by doing each mistake again and comparing; the tests and the demo put
mistakes into packed experts through the same declarations. Nothing else in shardproof uses this room.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from shardproof.errors import DiagnoseError
from shardproof.experts import Field, Stack
from shardproof.mxfp4 import Bytes
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan

Cuts: TypeAlias = "Callable[[Plan, str, Rank, Stack, Field], tuple[Cut, ...]]"
Canonical: TypeAlias = "Callable[[Bytes, Stack, Field], Bytes]"
LayoutOf: TypeAlias = "Callable[[Plan, Stack, Field], str]"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake, done at one or more of the three steps of packing.

    cuts       replaces the rectangles taken from the checkpoint
    canonical  changes one expert's padded canonical matrix uint8 [N, bytes a row]
    layout     replaces a layout id
    applies    whether a plan can show it at all (padding present, say)
    sentence   what to tell the user; {rank}, {stack} and the like are filled from the place where it was seen
    """

    name: str
    sentence: str
    explanation: str
    issues: tuple[str, ...]
    repair: str
    cuts: Cuts | None = field(default=None)
    canonical: Canonical | None = field(default=None)
    layout: LayoutOf | None = field(default=None)


_MISTAKES: dict[str, Mistake] = {}


def register(mistake: Mistake) -> Mistake:
    """Add a mistake to the museum."""
    _MISTAKES[mistake.name] = mistake
    return mistake


@cache
def _load() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


def museum() -> list[Mistake]:
    """Every known mistake."""
    _load()
    return list(_MISTAKES.values())


def find_mistake(name: str) -> Mistake:
    """One mistake by name. Raises DiagnoseError `diagnose.unknown_mistake`."""
    _load()
    if name not in _MISTAKES:
        raise DiagnoseError("diagnose.unknown_mistake", "no such mistake", found=name, needed=", ".join(_MISTAKES))
    return _MISTAKES[name]
