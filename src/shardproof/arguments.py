"""Arguments: a value of another kind is refused where it is handed over, not where it is first used."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any, TypeVar

from shardproof.errors import ArgumentError

Kind = TypeVar("Kind")


def expect(name: str, found: object, kind: type[Kind], next_step: str) -> Kind:
    """The value itself. Raises ArgumentError `argument.type` unless it is a `kind`."""
    if isinstance(found, kind):
        return found
    needed = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
    raise ArgumentError(
        "argument.type", f"{name} is not {needed}", found=_shown(found), needed=needed,
        next_step=next_step,
    )  # fmt: skip


def whole_number(name: str, found: object, *, least: int | None = None) -> int:
    """The number as an int, from any integer type (NumPy's too) but not from a bool, whose meaning would be guessed.

    Raises ArgumentError `argument.type`, or `argument.value` below `least`.
    """
    try:
        number = None if isinstance(found, bool) else operator.index(found)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise ArgumentError(
            "argument.type", f"{name} is not a whole number", found=_shown(found), needed="an integer",
            next_step=f"give {name} as an int",
        )  # fmt: skip
    if least is not None and number < least:
        raise ArgumentError(
            "argument.value", f"{name} is too small", found=number, needed=f">= {least}",
            next_step=f"give {name} from {least} up",
        )  # fmt: skip
    return number


def thread_count(threads: object) -> int | None:
    """A number of threads; None leaves it to the library. Raises ArgumentError `argument.type` or `argument.value`."""
    return None if threads is None else whole_number("threads", threads, least=1)


def check_function(name: str, found: object) -> None:
    """Raises ArgumentError `argument.type` for what is there and cannot be called."""
    if found is not None and not callable(found):
        raise ArgumentError(
            "argument.type", f"{name} is not a function", found=_shown(found), needed="a function, or None",
            next_step=f"give a function, or leave {name} out",
        )  # fmt: skip


def variable(name: str, *values: str) -> str | None:
    """The value of an environment variable; None where it is unset or empty. Raises ArgumentError `argument.value`."""
    found = os.environ.get(name) or None
    if found is None or found in values:
        return found
    raise ArgumentError(
        "argument.value", f"{name} is set to what it does not know", found=found, needed=" or ".join(values),
        next_step=f"set it to one of these, or unset {name}",
    )  # fmt: skip


def path_of(name: str, found: str | os.PathLike[str]) -> Path:
    """A path from text or a path. Raises ArgumentError `argument.type`."""
    if isinstance(found, str | os.PathLike):
        return Path(found)
    raise ArgumentError(
        "argument.type", f"{name} is not a path", found=_shown(found), needed="text or a pathlib.Path",
        next_step=f"give the path of the {name}",
    )  # fmt: skip


def _shown(found: Any) -> str:
    shape = getattr(found, "shape", None)
    return f"{type(found).__name__} {list(shape) if isinstance(shape, tuple) else repr(str(found)[:120])}"
