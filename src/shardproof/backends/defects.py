"""Warnings about vendors' code: which of its defects a described installation meets with these sizes.

Defects of one byte order stand with the layout; those of a kernel or an engine, and the versions in which each is
met, stand in `known_defects`. shardproof writes the safe form; the warning is for code that it does not replace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardproof.backends.backend import Recipe, Request
from shardproof.backends.packages import order, version_of
from shardproof.experts import Stack
from shardproof.layouts import find


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

    def matrix(self, stack: Stack) -> tuple[int, int]:
        """Rows N and columns K of a stack."""
        return (2 * self.intermediate, self.hidden) if stack == "w13" else (self.hidden, self.intermediate)

    @property
    def ragged_blocks(self) -> bool:
        """Whether a scale row of w13 or w2 is no whole number of 8 blocks."""
        return self.hidden % 256 != 0 or self.intermediate % 256 != 0


Meets = Callable[[Request, Recipe, Sizes], bool]


@dataclass(frozen=True, kw_only=True)
class KernelDefect:
    """A defect of a kernel, or of the engine that calls it.

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
        used = recipe.backend in self.backends if self.backends else origin in {"named", "installed"}
        return (
            used
            and version is not None
            and between(version, self.since, self.before)
            and self.meets(request, recipe, Sizes.of(request, recipe))
        )

    def __str__(self) -> str:
        return f"{self.text} [{self.name}; {self.source}]"


@dataclass(frozen=True, kw_only=True)
class Occurs:
    """Where a layout's defect is met, beyond the shapes that the layout names: versions, and kernels that matter."""

    since: str = ""
    before: str = ""
    meets: Meets = lambda _request, _recipe, _sizes: True


def of_layouts(request: Request, recipe: Recipe, occurs: Mapping[str, Occurs]) -> dict[str, str]:
    """Name -> warning for the defects of a recipe's layouts that this installation and these sizes meet."""
    sizes = Sizes.of(request, recipe)
    found: dict[str, str] = {}
    for (stack, _), identity in recipe.layouts.items():
        rows, columns = sizes.matrix(stack)
        for defect in find(identity)[0].defects:
            where = occurs.get(defect.name, Occurs())
            version = version_of(defect.package, request.platform)[0]
            if (
                defect.name not in found
                and version is not None
                and between(version, where.since, where.before)
                and defect.concerns(sizes.experts, rows, columns, arch=request.platform.arch)
                and where.meets(request, recipe, sizes)
            ):
                found[defect.name] = f"{defect.what}; shardproof: {defect.safe} [{defect.name}; {defect.source}]"
    return found


def between(version: str, since: str, before: str) -> bool:
    """Whether since <= version < before; an empty bound is open, and so is a version that is not known."""
    if not version:
        return True
    return (not since or order(version) >= order(since)) and (not before or order(version) < order(before))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
