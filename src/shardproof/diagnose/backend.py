"""The recipe of a backend that runs elsewhere: a dump is examined on another machine than the one that made it."""

from __future__ import annotations

from collections.abc import Iterable

from shardproof.backends import GateMode, Recipe, Request, describe
from shardproof.errors import BackendError
from shardproof.experts import ExpertSpec
from shardproof.oracle import select

PLATFORMS = (
    "rocm:gfx950",
    "rocm:gfx942",
    "rocm:gfx1250",
    "cuda:sm90",
    "cuda:sm100",
    "cuda:sm120",
    "xpu:bmg",
    "cpu",
)
"""Where a backend is looked for when no platform is named."""


def recipe_of(
    backend: str,
    spec: ExpertSpec,
    *,
    platform: str | None = None,
    packages: str | Iterable[str] = (),
    gate_mode: GateMode | None = None,
    tp: int = 1,
    ep: int = 1,
) -> Recipe:
    """What a backend needs, on the platform named or on the first one that it runs on.

    `packages` are versions there, as `name=version`; the newest known one where none is given. Raises BackendError.
    """
    first: BackendError | None = None
    for place in (platform,) if platform else PLATFORMS:
        try:
            return select(Request(spec, describe(place, packages), tp, ep, gate_mode), backend=backend).recipe
        except BackendError as reason:
            if reason.code == "backend.unknown":
                raise
            first = first or reason
    assert first is not None
    raise first
