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
from typing import TYPE_CHECKING, Literal, TypeAlias

from shardproof.errors import DiagnoseError
from shardproof.experts import FIELDS, Field, Stack
from shardproof.mxfp4 import Bytes
from shardproof.partition import Rank

if TYPE_CHECKING:
    from shardproof.plan import Cut, Plan

Owners: TypeAlias = tuple[int | None, ...]
"""Global expert id at each local place; None where no expert was loaded."""
Severity: TypeAlias = Literal["wrong", "note"]
RankOf: TypeAlias = "Callable[[Plan, str, Rank], Rank]"
LayerOf: TypeAlias = "Callable[[Plan, str], str]"
ExpertsOf: TypeAlias = "Callable[[Plan, str, Rank], Owners]"
Cuts: TypeAlias = "Callable[[Plan, str, Rank, Stack, Field], tuple[Cut, ...]]"
Canonical: TypeAlias = "Callable[[Bytes, Stack, Field], Bytes]"
Valued: TypeAlias = "Callable[[Bytes, Bytes, Field], Bytes]"
Fill: TypeAlias = "Callable[[Field], int | None]"
LayoutOf: TypeAlias = "Callable[[Plan, Stack, Field], str]"
Write: TypeAlias = "Callable[[Bytes, str], Bytes]"
Read: TypeAlias = "Callable[[Bytes, tuple[int, int, int], str], Bytes]"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake, done at one or more of the steps that take a checkpoint to a kernel, in this order.

    rank       whose slice is taken
    layer      which layer is read
    experts    which experts are loaded, in local order; `zeroed` names the fields that stay zero where it says None
    cuts       replaces the rectangles taken from the checkpoint
    fill       the byte that padding holds; None keeps the declared one, -1 is memory that nobody wrote
    canonical  changes one expert's padded canonical matrix uint8 [N, bytes a row]
    valued     the same for a matrix whose new bytes depend on weights and scales together: (weight, scale, field)
    layout     replaces a layout id
    write      replaces the packing of a canonical stack uint8 [E, N, bytes a row]; `read` is its inverse
    dtype      bytes are handed over as numbers of this dtype

    `fields` are the fields that it can change at all. `sentence` is what to tell the user; {rank}, {stack} and the
    like are filled from the place where it was seen. A "note" does no harm by itself.
    """

    name: str
    sentence: str
    explanation: str
    issues: tuple[str, ...]
    repair: str
    severity: Severity = "wrong"
    fields: tuple[Field, ...] = FIELDS
    zeroed: tuple[Field, ...] = FIELDS
    rank: RankOf | None = field(default=None)
    layer: LayerOf | None = field(default=None)
    experts: ExpertsOf | None = field(default=None)
    cuts: Cuts | None = field(default=None)
    fill: Fill | None = field(default=None)
    canonical: Canonical | None = field(default=None)
    valued: Valued | None = field(default=None)
    layout: LayoutOf | None = field(default=None)
    write: Write | None = field(default=None)
    read: Read | None = field(default=None)
    dtype: str | None = None

    @property
    def beyond_packing(self) -> str:
        """The steps of this mistake that `pack` does not have, joined by commas."""
        steps = ("rank", "layer", "experts", "fill", "valued", "write", "dtype")
        return ", ".join(step for step in steps if getattr(self, step) is not None)


_MISTAKES: dict[str, Mistake] = {}
_LIKELIEST_FIRST = ("seed", "partition", "layouts", "rows", "loading", "scales", "padding", "biases")


def register(mistake: Mistake) -> Mistake:
    """Add a mistake to the museum."""
    _MISTAKES[mistake.name] = mistake
    return mistake


@cache
def _load() -> None:
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    for name in [*_LIKELIEST_FIRST, *sorted(set(found) - set(_LIKELIEST_FIRST))]:
        importlib.import_module(f"{__package__}.{name}")


def museum() -> list[Mistake]:
    """Every known mistake. Where two give the same bytes, the earlier one is the likelier explanation."""
    _load()
    return list(_MISTAKES.values())


def find_mistake(name: str) -> Mistake:
    """One mistake by name. Raises DiagnoseError `diagnose.unknown_mistake`."""
    _load()
    if name not in _MISTAKES:
        raise DiagnoseError(
            "diagnose.unknown_mistake",
            "no such mistake",
            found=name,
            needed=", ".join(_MISTAKES),
            next_step="choose one of those",
        )
    return _MISTAKES[name]
