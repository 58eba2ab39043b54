"""Trials: every byte order that a foreign weight could be in, with the shapes that fit its size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shardproof.errors import ShardproofError
from shardproof.experts import ExpertSpec, Field, Stack
from shardproof.layouts import Layout, Placed, catalogue, find
from shardproof.layouts.placed import UNITS_PER_BYTE
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes

ALIGNMENTS = (32, 64, 128, 256, 512)
MOST_TRIED = 64
_SOURCE = "not a kernel's order: tried by diagnose only"
EXTRA = (
    Layout(name="transposed", field="weight", pattern="e n k -> e k n", summary="bytes along N", source=_SOURCE),
    *(
        Layout(
            name=f"interleaved_{width}", field="weight", stacks=("w13",), pattern=f"e (2g n {width}i) k -> e n g i k",
            summary=f"gate and up alternate every {width} rows", source=_SOURCE,
        )
        for width in (1, 8, 16, 32)
    ),
    Layout(name="up_first", field="weight", stacks=("w13",), pattern="e (2g n) k -> e ~g n k",
           summary="[up; gate]", source=_SOURCE),
)  # fmt: skip
_EXTRA = {layout.name: layout for layout in EXTRA}


@dataclass(frozen=True)
class Trial:
    """A layout on a canonical shape (E, N, bytes a row) that gives exactly the tensor's number of bytes."""

    identity: str
    placed: Placed

    @property
    def shape(self) -> tuple[int, int, int]:
        """Canonical shape."""
        return self.placed.shape

    @property
    def padded(self) -> bool:
        """Whether the layout adds bytes, so that other shapes may fit the same size."""
        experts, rows, columns = self.shape
        return self.placed.nbytes != experts * rows * columns

    def inner(self, stack: Stack) -> int:
        """Padded I."""
        return self.shape[1] // 2 if stack == "w13" else self.shape[2] * 2

    def hidden(self, stack: Stack) -> int:
        """Padded H."""
        return self.shape[2] * 2 if stack == "w13" else self.shape[1]

    def gather(self, kernel: Bytes, experts: Sequence[int], rows: Sequence[int], blocks: Sequence[int]) -> Bytes:
        """Canonical pieces uint8 [experts, rows, blocks, 16], read through the layout address by address."""
        per_byte = UNITS_PER_BYTE[self.placed.unit]
        width = BLOCK_BYTES * per_byte
        units = np.asarray(blocks)[:, None] * width + np.arange(width)
        at = self.placed.address(
            np.asarray(experts)[:, None, None, None], np.asarray(rows)[None, :, None, None], units[None, None]
        )
        if per_byte == 1:
            return np.asarray(kernel[at])
        bits = 8 // per_byte
        found = kernel[at // per_byte] >> (at % per_byte * bits).astype(np.uint8) & np.uint8((1 << bits) - 1)
        grouped = found.reshape(*found.shape[:-1], BLOCK_BYTES, per_byte) << (np.arange(per_byte) * bits).astype(
            np.uint8
        )
        return np.asarray(np.bitwise_or.reduce(grouped, axis=-1), dtype=np.uint8)


def layout_of(identity: str) -> tuple[Layout, dict[str, int]]:
    """The layout of an id, those tried by diagnose only included."""
    return (_EXTRA[identity], {}) if identity in _EXTRA else find(identity)


def trials(
    stack: Stack,
    size: int,
    dims: tuple[int, ...],
    spec: ExpertSpec,
    *,
    needed: str | None,
    experts: Sequence[int] | None,
    hidden: Sequence[int] = (),
    usual: int | None = None,
) -> Iterator[Trial]:
    """Every trial for a weight of `size` bytes; the needed layout comes first."""
    counts = list(experts) if experts else expert_counts(dims, spec)
    known = [layout for layout in catalogue() if layout.field == "weight" and stack in layout.stacks]
    ids = [layout.identity() for layout in known] + [x.name for x in EXTRA if stack in x.stacks]
    near = usual or spec.hidden
    hiddens = sorted({-(-spec.hidden // a) * a for a in ALIGNMENTS}, key=lambda h: abs(h - near))
    hiddens = list(hidden) or hiddens
    ordered = ([needed] if needed else []) + sorted(
        (i for i in ids if i != needed), key=lambda i: not i.startswith("raw")
    )
    seen: set[tuple[str, str, tuple[int, int, int]]] = set()
    for identity in ordered:
        layout, parameters = layout_of(identity)
        for count in counts:
            for shape in _shapes(stack, size, count, spec, hiddens, padded=bool(layout.pad) or "+" in layout.pattern):
                order = (layout.pattern, str((dict(layout.pad), parameters)), shape)
                if order in seen:
                    continue  # two names for one order
                seen.add(order)
                try:
                    placed = layout.place(shape, parameters)
                except ShardproofError:
                    continue
                if placed.nbytes == size:
                    yield Trial(identity, placed)


def expert_counts(dims: tuple[int, ...], spec: ExpertSpec) -> list[int]:
    """How many experts a tensor may hold: its first axis, or the model's experts shared by whole ranks."""
    if len(dims) >= 3 and 1 <= dims[0] <= 2 * spec.experts:
        return [dims[0]]
    shared = {-(-spec.experts // ranks) for ranks in range(1, min(spec.experts, 4 * MOST_TRIED) + 1)}
    return sorted(shared, reverse=True)


@lru_cache(maxsize=64)
def shares(blocks: int) -> tuple[int, ...]:
    """Numbers of blocks that a rank may hold, largest first."""
    found = {blocks}
    for tp in range(2, min(MOST_TRIED, blocks) + 1):
        found |= {blocks // tp, -(-blocks // tp)}
    return tuple(sorted(found, reverse=True))


def _shapes(
    stack: Stack, size: int, count: int, spec: ExpertSpec, hiddens: Sequence[int], *, padded: bool
) -> Iterator[tuple[int, int, int]]:
    for hidden in hiddens:
        if padded:
            inner = {-(-s * BLOCK // a) * a for s in shares(spec.blocks) for a in ALIGNMENTS}
            wanted = sorted(i for i in inner if count * hidden * i // (1 if stack == "w13" else 2) <= size)
        elif size % (count * hidden) == 0:
            wanted = [size // (count * hidden) * (1 if stack == "w13" else 2)]
        else:
            continue
        for inter in wanted:
            if 0 < inter <= spec.intermediate * 2 + ALIGNMENTS[-1] and (stack == "w13" or inter % BLOCK == 0):
                yield (count, 2 * inter, hidden // 2) if stack == "w13" else (count, hidden, inter // 2)


def possible(name: Field, stack: Stack, size: int, shape: tuple[int, int, int]) -> bool:
    """Whether scales or biases of `size` bytes can stand beside weights of canonical shape (E, N, bytes a row)."""
    experts, rows, width = shape
    if name == "bias":
        return size in {experts * rows * item for item in (2, 4, 8)}
    return size in _scale_sizes(stack, (experts, rows, width // BLOCK_BYTES))


@lru_cache(maxsize=4096)
def _scale_sizes(stack: Stack, shape: tuple[int, int, int]) -> frozenset[int]:
    sizes = set()
    for layout in catalogue():
        if layout.field == "scale" and stack in layout.stacks:
            with contextlib.suppress(ShardproofError):
                sizes.add(layout.place(shape).nbytes)
    return frozenset(sizes)
