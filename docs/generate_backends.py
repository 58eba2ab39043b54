"""Rewrite the tables of docs/backends.md and README.md from the declarations: `python docs/generate_backends.py`."""  # noqa: INP001

import re
from pathlib import Path

from shardproof.backends import Request, support
from shardproof.errors import BackendError
from shardproof.oracle import select

PAGE = Path(__file__).parent / "backends.md"
README = Path(__file__).parent.parent / "README.md"
PARTS = {PAGE: ("choices", "support", "layouts", "sources"), README: ("choices",)}


def choose(request: Request) -> str:
    """The chosen backend's name, or a dash."""
    try:
        return f"`{select(request).backend}`"
    except BackendError:
        return "-"


def fill(page: str, names: tuple[str, ...] = PARTS[PAGE]) -> str:
    """The page with every part between `<!-- begin NAME -->` and `<!-- end NAME -->` written anew."""
    parts = {
        "choices": support.choices(choose),
        "support": support.support(),
        "layouts": support.layouts(),
        "sources": support.sources(),
    }
    for name in names:
        text = parts[name]
        between = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        page, found = between.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if found != 1:
            raise SystemExit(f"the page has {found} parts named {name}")
    return page


if __name__ == "__main__":
    for path, names in PARTS.items():
        path.write_text(fill(path.read_text(encoding="utf-8"), names), encoding="utf-8")
