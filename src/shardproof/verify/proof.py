"""What a proof says: each tensor that is wrong, and the outcome of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One packed tensor that is not what its checkpoint says, with its first differing bytes."""

    rank: int
    tensor: str
    wrong: int
    total: int
    first: tuple[str, ...]
    mistake: str | None = None
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {s: list(v) if isinstance(v := getattr(self, s), tuple) else v for s in self.__slots__}

    def __str__(self) -> str:
        lines = [f"rank {self.rank}: {self.tensor}: {self.wrong} of {self.total} bytes are wrong"]
        lines += [f"  {line}" for line in self.first]
        if self.sentence:
            lines.append(f"  {self.sentence}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome: differences (none when all is right), digests, and what was compared."""

    differences: tuple[Difference, ...]
    ranks: tuple[int, ...]
    bytes_compared: int
    digest: str | None
    statements: tuple[str, ...]
    missing: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every byte is right."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "ok": self.ok, "ranks": list(self.ranks), "missing": list(self.missing),
            "bytes_compared": self.bytes_compared, "digest": self.digest, "statements": list(self.statements),
            "differences": [d.to_dict() for d in self.differences],
        }  # fmt: skip
