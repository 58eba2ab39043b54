"""Every layout by name. A file in this folder that calls `register` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from shardproof.errors import LayoutError
from shardproof.layouts.layout import Layout

_LAYOUTS: dict[str, dict[int, Layout]] = {}
_ID = re.compile(r"(?P<name>[\w.\-]+)(?:@(?P<version>\d+))?(?:\((?P<parameters>[^)]*)\))?")


def register(layout: Layout) -> Layout:
    """Add a layout to the catalogue. Raises LayoutError `layout.duplicate` for another one of that name and version."""
    versions = _LAYOUTS.setdefault(layout.name, {})
    if versions.setdefault(layout.version, layout) != layout:
        raise LayoutError(
            "layout.duplicate",
            "two layouts share a name and version",
            found=layout.identity(),
            next_step="give the new one another version",
        )
    return layout


@cache
def _load() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


def catalogue() -> list[Layout]:
    """Every layout, newest version of each, sorted by name."""
    _load()
    return [versions[max(versions)] for _, versions in sorted(_LAYOUTS.items())]


def everything() -> list[Layout]:
    """Every version of every layout, sorted by name and version."""
    _load()
    return [versions[v] for _, versions in sorted(_LAYOUTS.items()) for v in sorted(versions)]


def find(identity: str) -> tuple[Layout, dict[str, int]]:
    """The layout and parameters that an id (`name`, `name@version`, `name@version(p=1)`) names.

    Raises LayoutError `layout.unknown` or `layout.newer`.
    """
    _load()
    match = _ID.fullmatch(identity.strip())
    if match is None or match["name"] not in _LAYOUTS:
        raise LayoutError(
            "layout.unknown",
            "no such layout",
            found=identity,
            needed="one like: " + ", ".join(get_close_matches(identity, _LAYOUTS, 5, 0.3) or sorted(_LAYOUTS)[:5]),
            next_step="`shardproof layouts list` shows them all",
        )
    versions = _LAYOUTS[match["name"]]
    version = int(match["version"]) if match["version"] else max(versions)
    if version not in versions:
        raise LayoutError(
            "layout.newer",
            "this version of the layout is not known here",
            found=identity,
            needed=f"version {', '.join(map(str, sorted(versions)))}",
            next_step="use a newer shardproof",
        )
    try:
        pairs = [pair.split("=") for pair in (match["parameters"] or "").split(",") if pair]
        parameters = {name.strip(): int(value) for name, value in pairs}
    except ValueError:
        raise LayoutError(
            "layout.parameter",
            "cannot read the parameters of a layout id",
            found=identity,
            next_step="write NAME@VERSION(PARAMETER=NUMBER,...)",
        ) from None
    versions[version].identity(parameters)  # refuses parameters that the layout does not have
    return versions[version], parameters
