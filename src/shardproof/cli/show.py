"""How commands speak: rich tables on a terminal, plain text in a pipe, JSON where asked. Results go to stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shardproof.errors import PackError

JSON_VERSION = 1
SHOWN = 3
"""Findings of one kind that are printed."""

Item = TypeVar("Item")
Step = Callable[[int, int, str], None]
"""Tells a progress line (done, total, what)."""


def console() -> Console:
    """Standard output as it is now; rich decides by itself whether it is a terminal and heeds NO_COLOR."""
    wide = None if sys.stdout.isatty() else 10_000
    return Console(file=sys.stdout, width=wide, highlight=False, soft_wrap=not sys.stdout.isatty())


def emit(as_json: bool, command: str, data: Mapping[str, Any], render: Callable[[], None]) -> None:
    """Print `data` as versioned JSON, or call `render`; a reader who has enough (`| head`) changes no exit code."""
    try:
        if as_json:
            print_json({"shardproof": JSON_VERSION, "command": command, **data})
        else:
            render()
    except (BrokenPipeError, SystemExit):  # the latter is rich's answer to a closed pipe
        drop_output()


def drop_output() -> None:
    """Let nothing that is still buffered be written, so that the interpreter ends without a word of its own."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def counted(number: int, what: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {what}" + "s" * (number != 1)


def print_json(data: Any) -> None:
    """Print JSON-ready data; what is not finite becomes null."""
    sys.stdout.write(json.dumps(_finite(data), indent=1, default=str, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def line(text: str = "", style: str | None = None) -> None:
    """One line of text, taken literally."""
    console().print(escape(text), style=style)


def first_of_each_kind(items: Iterable[Item], kind: Callable[[Item], object], *, style: str = "red") -> None:
    """The first `SHOWN` items of every kind, and how many more there are of it; JSON lists them all."""
    kinds: dict[object, list[Item]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    for alike in kinds.values():
        for item in alike[:SHOWN]:
            line(str(item), style=style)
        if len(alike) > SHOWN:
            line(more(len(alike) - SHOWN), style=style)


def more(count: int) -> str:
    """The line that stands for `count` items that are not shown."""
    return f"... and {count} more of the same kind (--json lists all)"


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Aligned `name  value` lines."""
    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    out = console()
    for name, value in rows:
        out.print(f"[bold]{escape(name):<{width}}[/bold]  {escape(value)}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[int] = ()) -> None:
    """A table; `numbers` are the columns that are right-aligned."""
    if not sys.stdout.isatty():
        _plain_table(title, columns, rows, numbers)
        return
    if _least_width(columns, rows) > console().width:
        _paragraphs(title, columns, rows)
        return
    drawn = Table(
        title=title or None, title_justify="left", box=rich.box.SIMPLE_HEAD, title_style="bold", pad_edge=False
    )
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    console().print(drawn)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Of a drawn table in which no word, and so no number, is cut in two."""
    words = [[w for row in (columns, *rows) for w in str(row[i]).split()] for i in range(len(columns))]
    return sum(max(map(len, found), default=0) + 3 for found in words)


def _paragraphs(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """For a narrow terminal: a row as text, each cell under its column's name."""
    if title:
        line(title, style="bold")
    for row in rows:
        line("; ".join(f"{column} {cell}" for column, cell in zip(columns, row, strict=True) if str(cell)))


def _plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int]) -> None:
    cells = [[str(c) for c in columns], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [title] if title else []
    for row in cells:
        parts = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    sys.stdout.write("\n".join(lines) + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around work that ends in a file: a folder that is not there is refused before it, and no part of a file stays.

    Raises PackError `pack.io`.
    """
    try:
        was_there, place = path.exists(), path.absolute().parent.is_dir()
    except OSError as reason:  # a name that is too long
        raise PackError(
            "pack.io",
            "the output cannot be written",
            file=path,
            found=reason.strerror,
            next_step="choose a shorter name, or another place",
        ) from reason
    if not place:
        raise PackError(
            "pack.io", "the output cannot be written", file=path, found=f"no folder {path.parent}",
            next_step="make the folder first, or choose another place",
        )  # fmt: skip
    try:
        yield
    except OSError as reason:
        if reason.filename is not None and Path(reason.filename) != path:
            raise
        if not was_there:
            with suppress(OSError):
                path.unlink()
        raise PackError(
            "pack.io", "the output cannot be written", file=path, found=reason.strerror,
            next_step="choose another place, or make room",
        ) from reason  # fmt: skip


def size(count: float) -> str:
    """Bytes for people: `12.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError


@contextmanager
def counting(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar that counts things done where stderr is a terminal; nothing in a pipe or if quiet."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _what: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=total, what="")
        yield lambda what: bar.update(task, advance=1, what=what)


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Step]:
    """A progress bar with GB/s and time left where stderr is a terminal; nothing in a pipe or if quiet."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _done, _total, _what: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[what]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=None, what="")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, what=what)
