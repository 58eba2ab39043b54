"""select(): which backend runs a model on a platform, and the reason why each other one does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shardproof.backends.backend import Backend, Check, Recipe, Request
from shardproof.backends.known_defects import warnings
from shardproof.backends.packages import PACKAGES, check_names, version_of
from shardproof.backends.priorities import priority
from shardproof.backends.registry import catalogue, find
from shardproof.errors import BackendError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one backend says to a request.

    place     position in the priority list, from 1; None where the list does not name it
    recipe    sizes and byte orders if every check holds, else None
    warnings  known vendor defects that this installation and these sizes meet
    """

    backend: str
    summary: str
    checks: tuple[Check, ...]
    place: int | None = None
    recipe: Recipe | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def failed(self) -> Check | None:
        """The first condition that does not hold."""
        return next((check for check in self.checks if not check.ok), None)

    def row(self) -> dict[str, str]:
        """One row of the table that `explain` prints."""
        failed = self.failed or Check("", True, "", "")
        return {
            "backend": self.backend,
            "place": str(self.place or ""),
            "verdict": "refused" if self.failed else "fits",
            "condition": failed.condition,
            "found": failed.found,
            "needed": failed.needed,
            "remedy": failed.remedy,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "backend": self.backend,
            "summary": self.summary,
            "fits": self.ok,
            "place": self.place,
            "failed": self.failed.condition if self.failed else None,
            "checks": [check.to_dict() for check in self.checks],
            "recipe": self.recipe.to_dict() if self.recipe else None,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The backend that `select` took, and every backend's verdict: the list's first, then by name."""

    request: Request
    recipe: Recipe
    verdicts: tuple[Verdict, ...]
    priority: tuple[str, ...]
    reason: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        request = self.request
        return f"Decision({self.backend} for {request.platform}, tp {request.tp} x ep {request.ep})"

    @property
    def backend(self) -> str:
        """Name of the chosen backend."""
        return self.recipe.backend

    @property
    def verdict(self) -> Verdict:
        """The chosen backend's verdict."""
        return next(v for v in self.verdicts if v.backend == self.backend)

    def rows(self) -> list[dict[str, str]]:
        """Rows for a table of all verdicts; the chosen one says so."""
        rows = [verdict.row() for verdict in self.verdicts]
        return [row | {"verdict": "chosen"} if row["backend"] == self.backend else row for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (`--json`)."""
        request = self.request
        return {
            "backend": self.backend,
            "reason": self.reason,
            "platform": str(request.platform),
            "family": request.spec.family,
            "tp": request.tp,
            "ep": request.ep,
            "recipe": self.recipe.to_dict(),
            "priority": list(self.priority),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
        }


def explain(request: Request) -> tuple[Verdict, ...]:
    """Every backend's verdict: those of the priority list in its order, then the others by name.

    Raises BackendError `backend.package` where the platform names a package that no backend needs.
    """
    named = {backend.name: backend for backend in catalogue()}
    check_names(request.platform)
    listed = priority(request)
    first = [name for name in (listed.order if listed else ()) if name in named]
    rest = [name for name in named if name not in first]
    places = {name: place for place, name in enumerate(first, 1)}
    return tuple(_judge(named[name], request, places.get(name)) for name in (*first, *rest))


def select(request: Request, backend: str | None = None) -> Decision:
    """Choose a backend: the one named, or the first of the priority list whose conditions all hold.

    Raises BackendError `backend.unknown`, `backend.refused` (the named one cannot), `backend.none` or
    `backend.package`.
    """
    if backend is not None:
        find(backend)
    verdicts = explain(request)
    listed = priority(request)
    if backend is not None:
        chosen = next(v for v in verdicts if v.backend == backend)
        if not chosen.ok:
            raise _refusal(chosen, verdicts)
        reason = "asked for by name"
    else:
        fitting = [v for v in verdicts if v.ok and v.place is not None]
        if not fitting:
            raise _nothing(request, verdicts)
        chosen = fitting[0]
        reason = (
            f"first that fits of: {_arrows(v.backend for v in verdicts if v.place)} ({listed.source})" if listed else ""
        )
    assert chosen.recipe is not None
    passed = _passed_over(request, verdicts, chosen) if backend is None else ()
    notes = (*_assumptions(request, chosen), *passed)
    recipe = dataclasses.replace(chosen.recipe, notes=(*chosen.recipe.notes, *notes, *chosen.warnings))
    order = tuple(v.backend for v in verdicts if v.place)
    return Decision(request, recipe, verdicts, order, reason, notes, chosen.warnings)


def _judge(backend: Backend, request: Request, place: int | None) -> Verdict:
    checks = tuple(backend.checks(request))
    recipe = backend.recipe(request) if all(check.ok for check in checks) else None
    found = warnings(request, recipe) if recipe else ()
    return Verdict(backend.name, backend.summary, checks, place, recipe, found)


def _assumptions(request: Request, chosen: Verdict) -> tuple[str, ...]:
    package, version, origin = _package(request, chosen)
    if package is None or PACKAGES[package].any_version or origin != "assumed":
        return ()
    newest = f"the newest known one, {version}" if version else "one like that known here"
    return (f"no version of {package} was given; taken as {newest} (say --with {package}=VERSION)",)


def _passed_over(request: Request, verdicts: Sequence[Verdict], chosen: Verdict) -> tuple[str, ...]:
    """What refused the backends before the chosen one whose package was named: their user expects them."""
    return tuple(
        f"{v.backend} was passed over: {failed.condition}: found {failed.found}, needed {failed.needed}"
        for v in verdicts[: verdicts.index(chosen)]
        if (failed := v.failed) and _package(request, v)[2] == "named"
    )


def _package(request: Request, verdict: Verdict) -> tuple[str | None, str | None, str | None]:
    """The package that a backend needs, its version and where that is known from; None where it needs none."""
    package: str | None = getattr(find(verdict.backend), "package", None)
    return (package, *version_of(package, request.platform)) if package else (None, None, None)


def _refusal(chosen: Verdict, verdicts: Sequence[Verdict]) -> BackendError:
    failed = chosen.failed
    assert failed is not None
    others = [v.backend for v in verdicts if v.ok]
    return BackendError(
        "backend.refused",
        f"backend {chosen.backend} cannot be used: {failed.condition}",
        found=failed.found,
        needed=failed.needed,
        next_step=failed.remedy + (f"; these would fit: {', '.join(others)}" if others else ""),
    )


def _nothing(request: Request, verdicts: Sequence[Verdict]) -> BackendError:
    lines = [f"{v.backend}: {f.condition}: {f.found}, needs {f.needed}" for v in verdicts if (f := v.failed)]
    unlisted = [v.backend for v in verdicts if v.ok]
    by_name = f"ask for one by name that fits but is not in the priority list: {', '.join(unlisted)}"
    return BackendError(
        "backend.none",
        f"no backend fits {request.spec.family} on {request.platform}",
        found="\n    ".join(["each one's reason:", *lines]),
        needed="one backend of the priority list whose conditions all hold",
        next_step=by_name if unlisted else "change what a condition above names, or plan for another --platform",
    )


def _arrows(names: Iterable[str]) -> str:
    return " -> ".join(names)
