"""The pattern notation: one line that says where every unit of a tensor goes.

    "e (n 16r) (k 16b) -> e n k r b"

Left: one group an axis, each written as mixed-radix digits, most significant first:

    e n k         expert, row, unit along K
    e h n k       expert, half of w13 (0 gate, 1 up), row of that half, unit along K
    m k           m = e * N + n counts the rows of the whole stack, unit along K

A digit is a size and a name (`16r`), a parameter and a name (`{warps}w`), or a bare name whose size follows
from the shape (at most one an axis).

Right: the same digits, each once, as the address is counted, most significant first:

    r             the digit
    ~h            the digit counted backwards (the up half before the gate half)
    word[q b]     digits joined to one number and looked up in the table named `word` (a permutation)
    17+1{j}       the digits inside occupy places 1, 2, ... of a field of 17; the other places are holes

Reading the line backwards gives the inverse; all else (address, element, legal shapes) follows from it as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from shardproof.errors import LayoutError

AXES_BY_COUNT = {2: ("m", "k"), 3: ("e", "n", "k"), 4: ("e", "h", "n", "k")}

_TOKEN = re.compile(
    r"\s*(?:(?P<arrow>->)|(?P<open>\()|(?P<close>\))|(?P<pitch>\d+)\+(?P<offset>\d+)\{|(?P<endslot>\})"
    r"|(?P<table>[A-Za-z_]\w*)\[|(?P<endtable>\])|(?P<flip>~)?(?:(?P<size>\d+)|\{(?P<param>\w+)\})?(?P<name>[A-Za-z_]\w*))"
)


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of an axis: `size` is a number, the name of a parameter, or None where it follows from the shape."""

    name: str
    size: int | str | None


@dataclass(frozen=True, slots=True)
class Place:
    """One part of an address: a digit (perhaps reversed), or a table over several digits."""

    digits: tuple[str, ...]
    reverse: bool = False
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A field of `pitch` places of which `inside` occupies those from `offset` on."""

    pitch: int
    offset: int
    inside: tuple[Place | Slot, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed line: digits by axis on the left, places on the right."""

    text: str
    axes: tuple[str, ...]
    digits: tuple[tuple[Digit, ...], ...]
    places: tuple[Place | Slot, ...]

    def sizes(self, parameters: Mapping[str, int]) -> dict[str, int | None]:
        """Size of every digit with the parameters filled in; None where the shape decides."""
        out: dict[str, int | None] = {}
        for digit in (d for axis in self.digits for d in axis):
            out[digit.name] = parameters[digit.size] if isinstance(digit.size, str) else digit.size
        return out


def _fail(pattern: str, what: str, found: object = None) -> LayoutError:
    return LayoutError(
        "layout.pattern", f"{what} in pattern {pattern!r}", found=found, next_step="see layouts/notation.py"
    )


@lru_cache(maxsize=512)
def parse(text: str) -> Pattern:
    """Parse one line. Raises LayoutError `layout.pattern` with the part that cannot be read."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise _fail(text, "no '->'")
    groups = _parse_left(text, left)
    if len(groups) not in AXES_BY_COUNT:
        raise _fail(text, "the left side needs the axes e n k, e h n k or m k", f"{len(groups)} groups")
    places = _parse_right(text, right)
    named = [d.name for group in groups for d in group]
    used = [name for place in places for name in _names(place)]
    if sorted(named) != sorted(used) or len(set(named)) != len(named):
        raise _fail(text, "each digit must stand once on each side", f"left {named}, right {used}")
    for group in groups:
        if sum(d.size is None for d in group) > 1:
            raise _fail(text, "an axis has two digits without a size", [d.name for d in group])
    return Pattern(text, AXES_BY_COUNT[len(groups)], groups, places)


def _names(place: Place | Slot) -> list[str]:
    if isinstance(place, Place):
        return list(place.digits)
    return [name for inner in place.inside for name in _names(inner)]


def _tokens(text: str, part: str) -> list[re.Match[str]]:
    found, position = [], 0
    while position < len(part.rstrip()):
        match = _TOKEN.match(part, position)
        if match is None:
            raise _fail(text, "cannot read", repr(part[position:].strip()))
        found.append(match)
        position = match.end()
    return found


def _parse_left(text: str, part: str) -> tuple[tuple[Digit, ...], ...]:
    groups: list[tuple[Digit, ...]] = []
    inside: list[Digit] | None = None
    for token in _tokens(text, part):
        if token["open"] and inside is None:
            inside = []
        elif token["close"] and inside:
            groups.append(tuple(inside))
            inside = None
        elif token["name"] and not token["flip"]:
            size = int(token["size"]) if token["size"] else token["param"]
            digit = Digit(token["name"], size)
            if inside is None:
                groups.append((digit,))
            else:
                inside.append(digit)
        else:
            raise _fail(text, "unexpected on the left side", repr(token[0].strip()))
    if inside is not None:
        raise _fail(text, "an unclosed '('")
    return tuple(groups)


def _parse_right(text: str, part: str) -> tuple[Place | Slot, ...]:
    stack: list[tuple[re.Match[str] | None, list[Place | Slot]]] = [(None, [])]
    for token in _tokens(text, part):
        opener, items = stack[-1]
        if token["pitch"] or token["table"]:
            stack.append((token, []))
        elif token["endtable"] and opener is not None and opener["table"]:
            digits = tuple(name for item in items for name in _names(item))
            stack.pop()
            stack[-1][1].append(Place(digits, table=opener["table"]))
        elif token["endslot"] and opener is not None and opener["pitch"]:
            stack.pop()
            stack[-1][1].append(Slot(int(opener["pitch"]), int(opener["offset"]), tuple(items)))
        elif token["name"] and not token["size"] and not token["param"]:
            items.append(Place((token["name"],), reverse=bool(token["flip"])))
        else:
            raise _fail(text, "unexpected on the right side", repr(token[0].strip()))
    if len(stack) != 1:
        raise _fail(text, "an unclosed '[' or '{'")
    return tuple(stack[0][1])
