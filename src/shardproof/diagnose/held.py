"""Held: one tensor of a dump while it is examined."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardproof.diagnose.compare import Comparison
from shardproof.diagnose.foreign import Foreign
from shardproof.mistakes import Explanation, Scene, Views
from shardproof.mistakes.scene import Slot


@dataclass
class Held:
    """One tensor while it is examined."""

    slot: Slot
    tensor: Foreign
    views: Views
    scene: Scene
    comparison: Comparison
    against_plan: Comparison | None = None
    explanation: Explanation | None = None
    found_layout: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Stack and field, `w13.weight`."""
        return ".".join(self.slot)

    @property
    def wrong(self) -> bool:
        """Whether content differs, or nothing could be compared."""
        return self.comparison.wrong > 0
