"""Write docs/json.md from the types of `shardproof.cli.answers`: `python docs/generate_json.py`."""  # noqa: INP001

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from shardproof.cli.answers import ANSWERS, Refusal
from shardproof.cli.show import JSON_VERSION

PAGE = Path(__file__).parent / "json.md"
HEAD = """# JSON: what `--json` prints

Generated from the types in `src/shardproof/cli/` (`python docs/generate_json.py`); the tests hold every command's
answer against them.

Every answer is one object with two more fields: `shardproof`, the version of this form (now {version}), and `command`.
A field that is there keeps its name and meaning within a version; new fields may come. Lists are complete, also where
the text shows only the first of a kind. The exit code is the same as without `--json`: 0 fine, 1 finding, 2 refusal.
Wrong usage (an option that does not exist) is said on stderr and prints no JSON. Sizes are bytes, ranks count TP
fastest, layers are keys such as `layers.3`.

A field that is marked `?` may be missing.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(version=JSON_VERSION)]
    parts += ["## Refusals\n", _table(Refusal)]
    for command, kinds in ANSWERS.items():
        parts += [f"## {command}\n", *map(_table, kinds)]
    parts.append("## Records\n\nWhat stands inside the answers above.\n")
    parts += [f"### {kind.__name__}\n\n{_table(kind)}" for kind in _inner([Refusal, *sum(ANSWERS.values(), ())])]
    return "\n".join(parts)


def _table(kind: type) -> str:
    rows = []
    for name, (hint, text) in _fields(kind).items():
        optional = "" if name in kind.__required_keys__ else "?"  # type: ignore[attr-defined]
        rows.append(f"| `{name}`{optional} | {_type(hint)} | {text} |")
    return "\n".join([f"{inspect.getdoc(kind)}\n", "| field | type | meaning |", "|---|---|---|", *rows, ""])


def _fields(kind: type) -> dict[str, tuple[Any, str]]:
    """Field name -> (type, meaning)."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner = hint if hasattr(hint, "__metadata__") else get_args(hint)[0]  # NotRequired[Annotated[...]]
        found[name] = inner.__origin__, inner.__metadata__[0]
    return found


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        command = next((name for name, kinds in ANSWERS.items() if hint in kinds), hint.__name__)
        return f"[{hint.__name__}](#{command.lower().replace(' ', '-')})"
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "map" if arguments[1] is Any else f"map to {_type(arguments[1])}"
    if hint in (None, type(None)):
        return "null"
    if origin is not None and str(origin) == "typing.Literal":
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin is not None:
        return " or ".join(map(_type, arguments))
    return {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}[hint]


def _inner(kinds: list[type]) -> list[type]:
    """Records that stand inside the given ones, each once, in order of appearance."""
    found: dict[type, None] = {}

    def visit(hint: Any) -> None:
        if is_typeddict(hint):
            if hint not in found and hint not in kinds:
                found[hint] = None
            elif hint in found:
                return
            for inner, _ in _fields(hint).values():
                visit(inner)
        for argument in get_args(hint):
            visit(argument)

    for kind in kinds:
        visit(kind)
    return list(found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
