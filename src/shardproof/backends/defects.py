"""Known vendor defects as data: what goes wrong, in which versions, and for which sizes.

shardproof writes the safe form of every layout; these are warnings about what the vendor's own code does around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardproof.backends.backend import Recipe, Request
from shardproof.backends.packages import order, version_of

Meets = Callable[[Request, Recipe], bool]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One defect.

    package, since, before  where it is: versions since <= v < before (empty: open end)
    meets                   whether a request and its recipe run into it
    text                    what goes wrong, and what to do
    """

    name: str
    package: str
    meets: Meets
    text: str
    source: str
    since: str = ""
    before: str = ""

    def here(self, request: Request, recipe: Recipe) -> bool:
        """Whether the described installation has the defect and the request runs into it."""
        version, origin = version_of(self.package, request.platform)
        used = origin in {"named", "installed"} or recipe.backend.startswith(self.package.split("_")[0])
        if version is None or not used:
            return False
        late = not self.since or order(version) >= order(self.since)
        early = not self.before or order(version) < order(self.before)
        return late and early and self.meets(request, recipe)


def warnings(request: Request, recipe: Recipe) -> tuple[str, ...]:
    """The warnings for a recipe, each with its source."""
    return tuple(f"{d.text} [{d.name}: {d.source}]" for d in DEFECTS if d.here(request, recipe))


DEFECTS: tuple[Defect, ...] = ()
