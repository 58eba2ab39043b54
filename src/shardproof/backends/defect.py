"""Defect: one thing that a vendor's own code gets wrong, as a condition on versions and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardproof.backends.backend import Recipe, Request
from shardproof.backends.packages import order, version_of


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a kernel is given: padded sizes of the fullest rank."""

    experts: int
    hidden: int
    intermediate: int
    hidden_pad: int
    intermediate_pad: int

    @classmethod
    def of(cls, request: Request, recipe: Recipe) -> Sizes:
        """Sizes after the recipe's rounding."""
        spec, own = request.spec, request.rank_intermediate
        hidden = _up(spec.hidden, recipe.align_hidden)
        intermediate = _up(own, recipe.align_intermediate)
        return cls(-(-spec.experts // request.ep), hidden, intermediate, hidden - spec.hidden, intermediate - own)

    @property
    def ragged_blocks(self) -> bool:
        """Whether a scale row of w13 or w2 is no whole number of 8 blocks."""
        return self.hidden % 256 != 0 or self.intermediate % 256 != 0

    @property
    def ragged_rows(self) -> bool:
        """Whether the rows of a stack are no multiple of 256."""
        return (self.experts * 2 * self.intermediate) % 256 != 0 or (self.experts * self.hidden) % 256 != 0


Meets = Callable[[Request, Recipe, Sizes], bool]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One defect.

    package, since, before  where it is: versions since <= v < before (empty: open end)
    backends                backends that it concerns; empty: all, where the package is named or installed
    meets                   whether a request and its recipe run into it
    text                    what goes wrong, and what to do
    source                  where it is reported, and how sure it is
    """

    name: str
    package: str
    text: str
    source: str
    meets: Meets = lambda _request, _recipe, _sizes: True
    since: str = ""
    before: str = ""
    backends: tuple[str, ...] = ()

    def here(self, request: Request, recipe: Recipe) -> bool:
        """Whether the described installation has the defect and the request runs into it."""
        version, origin = version_of(self.package, request.platform)
        known = recipe.backend in self.backends if self.backends else origin in {"named", "installed"}
        if version is None or not known:
            return False
        late = not self.since or order(version) >= order(self.since)
        early = not self.before or order(version) < order(self.before)
        return late and early and self.meets(request, recipe, Sizes.of(request, recipe))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
