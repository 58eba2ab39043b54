"""Explain: which known mistakes, done again, give exactly the bytes that were found - one, or two or three at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shardproof.errors import ShardproofError
from shardproof.experts import Field
from shardproof.layouts import find
from shardproof.mistakes.extent import UNDONE, changed_bytes, changes, stands_alone
from shardproof.mistakes.mistake import Mistake
from shardproof.mistakes.scene import Scene, Slot
from shardproof.mxfp4 import SCALE_NAN, Bytes

_HARMLESS = (0, 1, 127)
_TELLING = 0.25  # of the bytes must be content other than zero, before padding may hold anything


@dataclass(frozen=True)
class Explanation:
    """Mistakes that together give one tensor's bytes; `also` are other mistakes that give the same bytes."""

    mistakes: tuple[Mistake, ...]
    also: tuple[tuple[Mistake, ...], ...] = ()

    @property
    def all(self) -> tuple[tuple[Mistake, ...], ...]:
        """Every combination that gives the bytes, the preferred one first."""
        return (self.mistakes, *self.also)

    def prefer(self, combo: tuple[Mistake, ...]) -> Explanation:
        """The same explanations with another one first."""
        return Explanation(combo, tuple(c for c in self.all if c != combo))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the mistakes."""
        return tuple(m.name for m in self.mistakes)


Shape = tuple[int, int, int]
Unpack = Callable[[str, Shape, Bytes], Bytes]


def _unpack(identity: str, shape: Shape, kernel: Bytes) -> Bytes:
    layout, parameters = find(identity)
    return layout.place(shape, parameters).unpack(kernel)


class Views:
    """A tensor's bytes read back into canonical form, expert by expert, through any layout or faulty writer.

    `unpack` reads a layout's bytes back: (identity, shape [E, N, K], kernel bytes) to canonical bytes.
    """

    def __init__(self, kernel: Bytes, shape: Shape, unpack: Unpack | None = None) -> None:
        self.kernel, self.shape, self._unpack = kernel, shape, unpack or _unpack
        self._whole: dict[str, Bytes | None] = {}

    def expert(self, local: int, identity: str, reader: Mistake | None = None) -> Bytes | None:
        """Canonical matrix [N, bytes a row] of one expert; None where this reading is impossible."""
        try:
            return self._expert(local, identity, reader)
        except (ShardproofError, ValueError):
            return None

    def _expert(self, local: int, identity: str, reader: Mistake | None) -> Bytes | None:
        layout, parameters = find(identity)
        experts, rows, columns = self.shape
        if reader is None and stands_alone(layout):
            single = layout.place((1, rows, columns), parameters)
            if single.nbytes * experts != self.kernel.size:
                return None
            own = self.kernel[local * single.nbytes : (local + 1) * single.nbytes]
            matrix: Bytes = self._unpack(identity, (1, rows, columns), own)[0]
            return matrix
        key = identity + (reader.name if reader else "")
        if key not in self._whole:
            self._whole = {key: None}  # one whole tensor at a time
            if reader is not None and reader.read is not None:
                self._whole[key] = reader.read(self.kernel, self.shape, identity)
            else:
                self._whole[key] = self._unpack(identity, self.shape, self.kernel)
        whole = self._whole[key]
        return None if whole is None else whole[local]


def explain(
    scene: Scene,
    slot: Slot,
    views: Views,
    known: Sequence[Mistake],
    *,
    most: int = 2,
    sample: Sequence[int] = (0,),
    first: Sequence[tuple[Mistake, ...]] = (),
    exact: bool = False,
) -> Explanation | None:
    """The fewest mistakes of `known` that, done again, give the bytes of one tensor; None where none do.

    `sample` are the experts that are compared, the first one for screening. `first` are combinations to try before
    the search, such as those that explain another tensor; earlier entries of `known` win. With `exact` padding must
    agree as well; otherwise other padding values do not count.
    """
    return _Search(scene, slot, views, known, tuple(sample), exact).best(most, first)


class _Search:
    def __init__(
        self,
        scene: Scene,
        slot: Slot,
        views: Views,
        known: Sequence[Mistake],
        sample: tuple[int, ...],
        exact: bool,
    ) -> None:
        self.scene, self.slot, self.views, self.sample, self.exact = scene, slot, views, sample, exact
        self._matrix = lru_cache(maxsize=64)(self._matrix_now)
        self._content = lru_cache(maxsize=64)(self._content_now)
        self.candidates = known

    def best(self, most: int, first: Sequence[tuple[Mistake, ...]]) -> Explanation | None:
        """The first combination that holds: those of `first`, then single mistakes, then pairs, and so on."""
        kept = [tuple(m for m in combo if changes(self.scene, self.slot, m, self.sample)) for combo in first]
        held = self._exactest([combo for combo in dict.fromkeys(kept) if combo])
        if held:
            return Explanation(held[0], tuple(c for c in held[1:] if len(c) == len(held[0])))
        known = [m for m in self.candidates if changes(self.scene, self.slot, m, self.sample)]
        for count in range(1, most + 1):
            found = self._exactest(_combos(known if count == 1 else self._narrow(known), count))
            if found:
                return Explanation(found[0], tuple(found[1:]))
        return None

    def _narrow(self, known: Sequence[Mistake]) -> list[Mistake]:
        """Without those that change far more bytes than are wrong: no other mistake makes so much right again."""
        local = self.sample[0]
        found = self.views.expert(local, self.scene.layout(*self.slot))
        if found is None:
            return list(known)
        most = UNDONE * int((found != self.scene.matrix(local, *self.slot)).sum())
        return [m for m in known if most >= found.size or self._changed(m, local) <= most]

    def _changed(self, mistake: Mistake, local: int) -> int:
        try:
            return changed_bytes(self.scene, self.slot, mistake, local) or 0
        except (ShardproofError, ValueError, IndexError):
            return 0

    def _exactest(self, combos: Iterable[tuple[Mistake, ...]]) -> list[tuple[Mistake, ...]]:
        """The combinations that hold; only those with the right padding too, where there are such."""
        held = [(combo, how) for combo in combos if (how := self.holds(combo))]
        best = max((how for _, how in held), default=0)
        return [combo for combo, how in held if how == best]

    def _matrix_now(self, local: int, mistakes: tuple[Mistake, ...]) -> Bytes:
        return self.scene.matrix(local, *self.slot, mistakes)

    def _content_now(self, local: int, mistakes: tuple[Mistake, ...]) -> np.ndarray:
        return self.scene.content(local, *self.slot, mistakes)

    def holds(self, mistakes: tuple[Mistake, ...]) -> int:
        """Whether these mistakes give the bytes of every expert in the sample: 2 with padding, 1 without, else 0."""
        try:
            identity = self.scene.layout(*self.slot, mistakes)
            readers = [m for m in mistakes if m.read is not None]
            worst = 2
            for local in self.sample:
                worst = min(worst, self._same(local, mistakes, identity, readers))
                if not worst:
                    break
        except (ShardproofError, ValueError, IndexError):
            return 0
        return worst

    def _same(self, local: int, mistakes: tuple[Mistake, ...], identity: str, readers: list[Mistake]) -> int:
        found = self.views.expert(local, identity, readers[0] if readers else None)
        if found is None:
            return 0
        changing = tuple(m for m in mistakes if m.layout is None and m.write is None)
        matrix = self._matrix(local, changing)
        if np.array_equal(found, matrix):
            return 2
        if self.exact:
            return 0
        return int(matches(found, matrix, self._content(local, changing), self.slot[1]))


def _combos(known: Sequence[Mistake], count: int) -> Iterator[tuple[Mistake, ...]]:
    for combo in itertools.combinations(known, count):
        if any(_exclude(a, b) for a, b in itertools.combinations(combo, 2)):
            continue
        changing = sum(m.canonical is not None or m.valued is not None for m in combo)
        yield from itertools.permutations(combo) if changing > 1 else (combo,)


def matches(found: Bytes, matrix: Bytes, content: np.ndarray, name: Field) -> bool:
    """Whether content agrees and padding could be padding: one harmless value, or what was predicted.

    Padding of other values counts too where enough of the matrix is content that agrees.
    """
    if found.shape != matrix.shape or not (found == matrix)[content].all():
        return False
    padding = found[~content]
    if not padding.size:
        return True
    first = int(padding[0])
    if (padding == first).all() and (first in _HARMLESS or (name == "scale" and first == SCALE_NAN)):
        return bool(content.any()) or name == "scale" or first == 0
    return bool((content & (matrix != 0)).mean() >= _TELLING)


def _exclude(a: Mistake, b: Mistake) -> bool:
    """Two mistakes at the same step replace each other, so they cannot both show."""
    return any(
        getattr(a, step) is not None and getattr(b, step) is not None
        for step in ("rank", "layer", "experts", "cuts", "fill", "layout", "write")
    )
