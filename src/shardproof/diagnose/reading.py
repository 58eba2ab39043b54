"""Reading: what one foreign weight tensor was found to hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardproof.experts import Stack
from shardproof.mistakes import Owners

UNKNOWN = -2
NEARLY = 0.98


@dataclass(frozen=True)
class Reading:
    """What one weight tensor holds.

    identity, shape   its byte order, on canonical (E, N, bytes a row)
    owners            global expert at each local place; None where it is zero, UNKNOWN where it is no expert's
    start, stop       values [start, stop) of the intermediate axis that were met
    share             of the sampled pieces that are in the checkpoint, how many stand where this reading says
    met               how many pieces of the sample are in the checkpoint at all
    in_order          share of rows that are [w1; w3] in ascending order
    order             words for the order of rows
    """

    stack: Stack
    identity: str
    codec: str
    shape: tuple[int, int, int]
    owners: Owners
    start: int | None
    stop: int | None
    share: float
    met: float
    in_order: float
    order: str
    straight: str = ""
    alike: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    @property
    def hiddens(self) -> tuple[int, ...]:
        """Every padded H that fits."""
        own = [(self.identity, self.shape), *self.alike]
        return tuple(dict.fromkeys(2 * s[2] if self.stack == "w13" else s[1] for _, s in own))

    def resized(self, hidden: int, inner: int) -> Reading | None:
        """The reading that fits as well under other padded sizes; None where there is none."""
        shape = (self.shape[0], 2 * inner, hidden // 2) if self.stack == "w13" else (self.shape[0], hidden, inner // 2)
        return next((replace(self, identity=i, shape=s, straight=i) for i, s in self.alike if s == shape), None)

    def as_good_as(self, other: Reading) -> bool:
        """Whether as much stands in place, in as good an order."""
        return self.share >= NEARLY * other.share and self.in_order >= NEARLY * other.in_order

    @property
    def inner(self) -> int:
        """Padded I."""
        return self.shape[1] // 2 if self.stack == "w13" else self.shape[2] * 2

    @property
    def hidden(self) -> int:
        """Padded H."""
        return self.shape[2] * 2 if self.stack == "w13" else self.shape[1]
