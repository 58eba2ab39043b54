"""Write the generated parts of docs/layouts.md and its pictures: `python docs/generate_layouts.py`."""  # noqa: INP001

from __future__ import annotations

from pathlib import Path

from shardproof.layouts import find
from shardproof.layouts.shown.describe import renewed
from shardproof.layouts.shown.picture import svg

HERE = Path(__file__).parent
PICTURES = {
    "aiter.w16": (32, 64),
    "aiter.w16_gugu": (64, 32),
    "cutlass.scale_128x4": (96, 4),
    "marlin.weight": (64, 16),
}
"""Layouts that the page draws, with rows and bytes along K."""


def drawings() -> dict[Path, str]:
    """Each picture's file with its content."""
    return {
        HERE / "pictures" / f"{name}.svg": svg(find(name)[0], rows, columns)
        for name, (rows, columns) in PICTURES.items()
    }


if __name__ == "__main__":
    page = HERE / "layouts.md"
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    for path, text in drawings().items():
        path.write_text(text, encoding="utf-8")
