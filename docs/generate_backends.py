"""Rewrite the tables of docs/backends.md from the declarations: `python docs/generate_backends.py`."""  # noqa: INP001

import re
from pathlib import Path

from shardproof.backends import Request, support
from shardproof.errors import BackendError
from shardproof.oracle import select

PAGE = Path(__file__).parent / "backends.md"


def choose(request: Request) -> str:
    """The chosen backend's name, or a dash."""
    try:
        return f"`{select(request).backend}`"
    except BackendError:
        return "-"


def fill(page: str) -> str:
    """The page with every part between `<!-- begin NAME -->` and `<!-- end NAME -->` written anew."""
    parts = {
        "choices": support.choices(choose),
        "support": support.support(),
        "layouts": support.layouts(),
        "sources": support.sources(),
    }
    for name, text in parts.items():
        between = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        page, found = between.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if found != 1:
            raise SystemExit(f"{PAGE} has {found} parts named {name}")
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
