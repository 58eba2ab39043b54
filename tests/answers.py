"""Holds JSON against the types that docs/json.md is made from."""

from __future__ import annotations

import types
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from shardproof.cli.answers import ANSWERS
from shardproof.cli.show import JSON_VERSION

Seen = set[tuple[str, str]]
"""(type, field) pairs that were met."""


def check_answer(data: dict[str, Any], command: str, seen: Seen | None = None, variant: int = 0) -> None:
    """Assert that an answer is what `ANSWERS[command][variant]` says, to the last field."""
    assert (data.pop("shardproof"), data.pop("command")) == (JSON_VERSION, command)
    check(data, ANSWERS[command][variant], command, set() if seen is None else seen)


def check(value: Any, hint: Any, where: str, seen: Seen) -> None:
    """Assert that a value is of a type: no field too many, none missing."""
    if is_typeddict(hint):
        _check_record(value, hint, where, seen)
        return
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        check(value, arguments[0], where, seen)
    elif origin in (Union, types.UnionType):
        kinds = [a for a in arguments if (a is type(None)) == (value is None)]
        inner = kinds[0] if len(kinds) == 1 else next((a for a in kinds if isinstance(value, a)), None)
        assert inner is not None, f"{where}: {value!r} is not {hint}"
        check(value, inner, where, seen)
    elif origin is Literal:
        assert value in arguments, f"{where}: {value!r} is not {hint}"
    elif origin is list:
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check(item, arguments[0], f"{where}[{number}]", seen)
    elif origin is dict:
        assert isinstance(value, dict), where
        for key, item in value.items():
            check(item, arguments[1], f"{where}[{key!r}]", seen)
    elif hint is not Any:
        allowed = {float: (float, int), None: (type(None),)}.get(hint, (hint,))
        assert isinstance(value, allowed), f"{where}: {value!r} is not {hint}"
        assert isinstance(value, bool) == (hint is bool), f"{where}: {value!r} is not {hint}"


def _check_record(value: Any, kind: Any, where: str, seen: Seen) -> None:
    assert isinstance(value, dict), f"{where}: {value!r} is not {kind.__name__}"
    missing, strange = kind.__required_keys__ - value.keys(), value.keys() - get_type_hints(kind).keys()
    assert not missing, f"{where}: no {sorted(missing)}, which {kind.__name__} has"
    assert not strange, f"{where}: {sorted(strange)}, which {kind.__name__} does not name"
    for name, hint in get_type_hints(kind).items():
        if name in value:
            seen.add((kind.__name__, name))
            check(value[name], hint, f"{where}.{name}", seen)


def fields_of(kinds: list[Any]) -> Seen:
    """Every (type, field) that stands in these types or inside them."""
    found: Seen = set()

    def visit(hint: Any) -> None:
        if is_typeddict(hint):
            for name, inner in get_type_hints(hint).items():
                if (hint.__name__, name) not in found:
                    found.add((hint.__name__, name))
                    visit(inner)
        for argument in get_args(hint):
            visit(argument)

    for kind in kinds:
        visit(kind)
    return found
