"""Answers of `shardproof layouts ...`: what `--json` prints there, field by field."""

from typing import Annotated, Literal, TypedDict


class DefectRecord(TypedDict):
    """A known defect of the vendor's code."""

    name: Annotated[str, "stable"]
    package: Annotated[str, "whose code"]
    versions: Annotated[str, "that have it"]
    where: Annotated[Literal["writer", "reader"], "which side of the bytes has it"]
    what: Annotated[str, "what it does"]
    effect: Annotated[Literal["silent", "error", "waste"], "what comes of it"]
    source: Annotated[str, "where it is to be seen"]
    safe: Annotated[str, "what shardproof does instead"]
    when: Annotated[list[str], "sizes that meet it; empty for all"]
    archs: Annotated[list[str], "architectures that meet it; empty for all"]


class LayoutRecord(TypedDict):
    """A layout as it is declared ([layouts](layouts.md))."""

    id: Annotated[str, "name, version and parameters"]
    name: Annotated[str, "`aiter.w16`"]
    version: Annotated[int, "counts up when the vendor changes the order"]
    field: Annotated[str, "`weight`, `scale` or `bias`"]
    stacks: Annotated[list[str], "`w13`, `w2`"]
    unit: Annotated[str, "what is moved: `byte`, `nibble` or `bit`"]
    pattern: Annotated[str, "the line that everything follows from"]
    parameters: Annotated[dict[str, int], "with their values"]
    tables: Annotated[dict[str, list[int]], "orders that the pattern names"]
    pad: Annotated[dict[str, int | str], "axis -> multiple that it is padded to; text names a parameter"]
    multiple: Annotated[dict[str, int | str], "axis -> multiple that the kernel needs; text names a parameter"]
    pad_value: Annotated[int, "what padding holds"]
    add: Annotated[int, "what is added to every byte"]
    highest: Annotated[int | None, "largest byte that can be held"]
    summary: Annotated[str, "what it is"]
    source: Annotated[str, "where the vendor defines it"]
    held_against: Annotated[list[str], "what it was checked with"]
    golden: Annotated[list[str], "files of vendor bytes"]
    defects: Annotated[list[DefectRecord], "of the vendor's code"]


class LayoutShown(LayoutRecord):
    """One layout."""


class LayoutsListed(TypedDict):
    """The catalogue."""

    layouts: Annotated[list[LayoutRecord], "all of them"]


class Bits(TypedDict):
    """Bits of one byte that hold bits of one element."""

    byte: Annotated[int, "its address"]
    bits: Annotated[list[int], "lowest and highest bit of the byte"]
    first: Annotated[int, "bit of the element that stands lowest"]


class Addressed(TypedDict):
    """Where one element is."""

    layout: Annotated[str, "its id"]
    shape: Annotated[list[int], "E, N and K as they were given"]
    canonical_shape: Annotated[list[int], "E, N and bytes a row"]
    nbytes: Annotated[int, "of the kernel's buffer"]
    element: Annotated[list[int], "e, n, k"]
    canonical: Annotated[list[Bits], "in canonical bytes"]
    kernel: Annotated[list[Bits], "in the kernel's buffer"]
    adds: Annotated[int, "what the kernel's byte has more"]


class Held(TypedDict):
    """What some bits of a byte hold."""

    element: Annotated[list[int] | None, "e, n, k; null for padding"]
    bits: Annotated[list[int], "lowest and highest bit of the byte"]
    first: Annotated[int, "bit of the element that stands lowest"]


class HeldAt(TypedDict):
    """Which elements one byte holds."""

    layout: Annotated[str, "its id"]
    shape: Annotated[list[int], "E, N and K as they were given"]
    canonical_shape: Annotated[list[int], "E, N and bytes a row"]
    nbytes: Annotated[int, "of the kernel's buffer"]
    byte: Annotated[int, "the address"]
    holds: Annotated[list[Held], "its parts"]
    pad_value: Annotated[int, "what padding holds"]
