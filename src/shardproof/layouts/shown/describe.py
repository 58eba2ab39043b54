"""Describe: a layout as data, as lines for people, and as a row of the documentation's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import everything

START, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"


def to_dict(layout: Layout, parameters: Mapping[str, int] | None = None) -> dict[str, Any]:
    """JSON-ready declaration of a layout."""
    return {
        "id": layout.identity(parameters),
        "name": layout.name,
        "version": layout.version,
        "field": layout.field,
        "stacks": list(layout.stacks),
        "unit": layout.unit,
        "pattern": layout.pattern,
        "parameters": layout.filled(parameters),
        "tables": {name: list(table) for name, table in layout.tables.items()},
        "pad": dict(layout.pad),
        "multiple": dict(layout.multiple),
        "pad_value": layout.filler,
        "add": layout.add,
        "highest": layout.highest,
        "summary": layout.summary,
        "source": layout.source,
        "held_against": list(layout.held_against),
        "golden": list(layout.golden),
        "defects": [dict(defect.to_dict()) for defect in layout.defects],
    }


def facts(layout: Layout, parameters: Mapping[str, int] | None = None) -> list[tuple[str, str]]:
    """Name and value of everything that is declared, for people."""
    lines = [
        ("layout", layout.identity(parameters)),
        ("what", layout.summary),
        ("holds", f"{layout.field} of {', '.join(layout.stacks)}; moves {layout.unit}s"),
        ("pattern", layout.pattern),
        *((f"table {name}", ", ".join(map(str, table))) for name, table in layout.tables.items()),
        ("pads", pads(layout) or "nothing"),
        ("needs", needs(layout) or "nothing beyond its digits"),
    ]
    if layout.add:
        lines.append(("adds", f"{layout.add} to every byte; bytes above {layout.highest} are refused"))
    return [*lines, ("source", layout.source), ("held against", ", ".join(layout.held_against))]


def pads(layout: Layout) -> str:
    """`n to 128, k to 4, with 127`; empty where the layout does not pad."""
    parts = [f"{axis} to {size}" for axis, size in layout.pad.items()]
    return ", ".join([*parts, f"with {layout.filler}"]) if parts else ""


def needs(layout: Layout) -> str:
    """`n % 16, k % 32`: what the kernel or its writer needs beside the sizes of the digits."""
    return ", ".join(f"{axis} % {size}" for axis, size in layout.multiple.items())


def table() -> str:
    """The catalogue as Markdown, one table a vendor."""
    vendors: dict[str, list[Layout]] = {}
    for layout in everything():
        vendors.setdefault(layout.name.split(".")[0], []).append(layout)
    parts = []
    for vendor, layouts in vendors.items():
        rows = "\n".join(_row(layout) for layout in layouts)
        sources = "\n".join(f"- `{layout.name}@{layout.version}`: {layout.source}" for layout in layouts)
        parts.append(
            f"### {vendor}\n\n| layout | field | pattern | unit | pads | needs | held against |\n"
            f"|---|---|---|---|---|---|---|\n{rows}\n\n{sources}\n"
        )
        defects = {defect.name: defect for layout in layouts for defect in layout.defects}
        if defects:
            parts.append("Known defects:\n\n" + "\n".join(f"- `{name}`: {d}" for name, d in defects.items()) + "\n")
    return "\n".join(parts)


def _row(layout: Layout) -> str:
    stacks = "" if len(layout.stacks) == 2 else f" ({layout.stacks[0]})"
    cells = (
        f"`{layout.name}@{layout.version}`",
        layout.field + stacks,
        f"`{layout.pattern}`",
        layout.unit,
        pads(layout) or "-",
        needs(layout) or "-",
        ", ".join(layout.held_against),
    )
    return "| " + " | ".join(cells) + " |"


def renewed(document: str) -> str:
    """The documentation page with its catalogue written anew between the two marks."""
    before, _, rest = document.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n{END}{after}"
