"""Defect: what a vendor's own code gets wrong about a layout, as data that `explain` can test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Quantity: TypeAlias = Literal["experts", "rows", "columns", "stack_rows", "blocks"]
"""experts E, rows N, columns K in values, stack_rows E * N, blocks K / 32; all as the kernel gets them (padded)."""
Relation: TypeAlias = Literal["not a multiple of", "greater than"]


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition on a shape: `Clause("blocks", "not a multiple of", 8)`."""

    quantity: Quantity
    relation: Relation
    number: int

    def holds(self, experts: int, rows: int, columns: int) -> bool:
        """Whether the condition holds for E experts of N rows and K columns (values)."""
        found = {
            "experts": experts,
            "rows": rows,
            "columns": columns,
            "stack_rows": experts * rows,
            "blocks": columns // 32,
        }[self.quantity]
        return found % self.number != 0 if self.relation == "not a multiple of" else found > self.number

    def __str__(self) -> str:
        return f"{self.quantity} {self.relation} {self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """A fault of a vendor's writer or reader.

    what     the fault in one sentence
    when     shapes that meet it: every clause must hold; empty means every shape
    effect   "silent" wrong results, "error", or "waste" of memory
    safe     what shardproof does instead
    package, versions, archs   where it lives; empty archs means every one
    where    "writer" (the vendor's converter, which shardproof replaces) or "reader" (the kernel, which it cannot)
    source   where it was read or reproduced
    """

    name: str
    what: str
    safe: str
    package: str
    versions: str
    source: str
    where: Literal["writer", "reader"] = "writer"
    effect: Literal["silent", "error", "waste"] = "silent"
    when: tuple[Clause, ...] = ()
    archs: tuple[str, ...] = ()

    def concerns(self, experts: int, rows: int, columns: int, *, arch: str = "") -> bool:
        """Whether a kernel on `arch` ("" for any) meets the defect on weights of E x N x K values."""
        here = not (arch and self.archs) or arch in self.archs
        return here and all(clause.holds(experts, rows, columns) for clause in self.when)

    def to_dict(self) -> Mapping[str, Any]:
        """JSON-ready form."""
        data = {slot: getattr(self, slot) for slot in self.__slots__}
        return {**data, "when": [str(clause) for clause in self.when], "archs": list(self.archs)}

    def __str__(self) -> str:
        when = f" (when {' and '.join(map(str, self.when))})" if self.when else ""
        return f"{self.package} {self.versions}, {self.where}: {self.what}{when}; shardproof: {self.safe}"
