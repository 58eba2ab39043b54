"""Every backend by name. A file in this folder that defines a concrete Backend is found by itself."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType

from shardproof import backends
from shardproof.backends.backend import Backend
from shardproof.errors import BackendError


@cache
def _backends() -> dict[str, Backend]:
    modules = [
        importlib.import_module(f"{backends.__name__}.{found.name}")
        for found in pkgutil.iter_modules(backends.__path__)
    ]
    named: dict[str, Backend] = {}
    for kind in (kind for module in modules for kind in _declared(module)):
        if named.setdefault(kind.name, instance := kind()) is not instance:
            raise BackendError(
                "backend.duplicate", "two backends share a name", found=kind.name, next_step="rename one of them"
            )
    return dict(sorted(named.items()))


def _declared(module: ModuleType) -> list[type[Backend]]:
    return [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Backend) and kind.__module__ == module.__name__ and hasattr(kind, "name")
    ]


def catalogue() -> list[Backend]:
    """Every backend, sorted by name."""
    return list(_backends().values())


def find(name: str) -> Backend:
    """The backend of that name. Raises BackendError `backend.unknown` with the nearest names."""
    named = _backends()
    if name not in named:
        close = _nearest(name, named)
        raise BackendError(
            "backend.unknown",
            "no such backend",
            found=repr(name),
            needed="one of: " + ", ".join(named),
            next_step=f"did you mean {' or '.join(close)}?" if close else "`shardproof explain CKPT` shows them all",
        )
    return named[name]


def _nearest(name: str, named: Mapping[str, Backend]) -> list[str]:
    """Names that look like it, or whose engine's own name looks like it."""
    spelt = {
        spelling.lower(): backend.name for backend in named.values() for spelling in (backend.name, *backend.known_as)
    }
    close = difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.5)
    return list(dict.fromkeys(spelt[spelling] for spelling in close))
