"""Layout: the declaration of one byte order, from which everything else follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shardproof.errors import LayoutError
from shardproof.experts import STACKS, Field, Stack
from shardproof.layouts.defect import Defect
from shardproof.layouts.notation import Pattern, parse
from shardproof.layouts.placed import Placed
from shardproof.layouts.sizing import Size, place
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT, SCALE_NAN

Unit: TypeAlias = Literal["byte", "nibble", "bit"]
Evidence: TypeAlias = Literal["vendor kernel", "vendor bytes", "reader formula", "index formula", "nothing yet"]
"""What an order was compared with, strongest first: a vendor's kernel that ran on packed bytes; bytes that the vendor's
converter wrote; the addresses that a kernel reads; the converter restated as plain arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The byte order of one field that one kernel reads.

    name, version  `aiter.w16`, 1: a version never changes its meaning
    field          what it holds: weight (uint8 [E, N, K/2]), scale ([E, N, K/32]), bias ([E, N, itemsize] bytes)
    pattern        the line in `notation`; k counts units
    unit           what moves as a whole: byte, nibble (unit 2j is the low nibble of byte j) or bit (low bit first)
    stacks         which stacks it can hold; a pattern with the axis h is for w13 only
    pad            axis -> multiple that the layout itself pads to, with `pad_value`
    multiple       axis -> multiple that the kernel or its writer needs and does not pad to
    pad_value      127 for scales, 0 for weights and biases, unless declared
    parameters     names and defaults of sizes in the pattern, such as num_warps
    tables         permutations that the pattern names
    add, highest   value change: byte -> byte + add, for bytes up to `highest`
    source         where the order was read, with version
    held_against   what it was compared with
    golden         vendor byte vectors that it reproduces (names of files in tests/golden, glob patterns)
    defects        what the vendor's own code gets wrong; shardproof writes the safe form
    """

    name: str
    field: Field
    pattern: str
    source: str
    summary: str
    version: int = 1
    unit: Unit = "byte"
    stacks: tuple[Stack, ...] = STACKS
    pad: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    multiple: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    pad_value: int | None = None
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    add: int = 0
    highest: int = 255
    held_against: tuple[Evidence, ...] = ("nothing yet",)
    golden: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.parameters)
        for digit in (d for axis in self.parsed.digits for d in axis):
            if isinstance(digit.size, str) and digit.size not in known:
                raise LayoutError(
                    "layout.parameter",
                    f"layout {self.name} has no parameter {digit.size!r}",
                    next_step="add it to the layout's parameters, or write a number into the pattern",
                )
        if self.field == "scale" and self.filler == SCALE_NAN:
            raise LayoutError(
                "layout.pad_value",
                f"layout {self.name} pads scales with NaN",
                found=255,
                needed="0..254",
                next_step="declare another pad_value: 127 is a scale of 1",
            )
        if self.unit != "byte" and self.filler:
            raise LayoutError(
                "layout.pad_value",
                f"layout {self.name} moves {self.unit}s and pads with another value than 0",
                next_step="leave pad_value out of the declaration",
            )
        if "h" in self.parsed.axes and self.stacks != ("w13",):
            object.__setattr__(self, "stacks", ("w13",))

    @property
    def parsed(self) -> Pattern:
        """The pattern, parsed."""
        return parse(self.pattern)

    @property
    def filler(self) -> int:
        """The declared value of padding bytes: 127 for scales, 0 for weights and biases, unless declared."""
        if self.pad_value is not None:
            return self.pad_value
        return PAD_SCALE if self.field == "scale" else PAD_WEIGHT

    def identity(self, parameters: Mapping[str, int] | None = None) -> str:
        """The id that values and files carry: `name@version` and the parameters, if any."""
        full = self.filled(parameters)
        tail = ",".join(f"{k}={v}" for k, v in sorted(full.items()))
        return f"{self.name}@{self.version}" + (f"({tail})" if tail else "")

    def place(self, shape: tuple[int, int, int], parameters: Mapping[str, int] | None = None) -> Placed:
        """Put the layout on canonical bytes of shape (E, N, K): K bytes along K (K/2 weights, K/32 scales).

        Raises LayoutError `layout.shape` with the legal multiple, or `layout.parameter`.
        """
        return place(self, shape, self.filled(parameters))

    def filled(self, given: Mapping[str, int] | None = None) -> dict[str, int]:
        """The parameters with defaults filled in. Raises LayoutError `layout.parameter` for one it does not have."""
        given = given or {}
        unknown = set(given) - set(self.parameters)
        if unknown:
            raise LayoutError(
                "layout.parameter",
                f"layout {self.name} has no parameter {min(unknown)!r}",
                found=", ".join(sorted(unknown)),
                needed=", ".join(self.parameters) or "no parameters",
                next_step="leave it out, or choose one of those needed" if self.parameters else "leave it out",
            )
        if any(value < 1 for value in given.values()):
            raise LayoutError(
                "layout.parameter",
                f"a parameter of layout {self.name} is not positive",
                found=dict(given),
                next_step="give whole numbers from 1 up",
            )
        return {**self.parameters, **given}
