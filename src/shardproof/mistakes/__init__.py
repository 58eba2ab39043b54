"""The museum: every known way to get expert weights wrong, each a declaration."""

from shardproof.mistakes.explain import Explanation, Views, explain, matches
from shardproof.mistakes.extent import changed_bytes, changes, stands_alone, telling_experts, wrong_experts
from shardproof.mistakes.mistake import Mistake, Owners, find_mistake, museum, register
from shardproof.mistakes.scene import ReadCut, Scene, Slot, declared_fill

__all__ = [
    "Explanation", "Mistake", "Owners", "ReadCut", "Scene", "Slot", "Views", "changed_bytes", "changes",
    "declared_fill", "explain", "find_mistake", "matches", "museum", "register", "stands_alone", "telling_experts",
    "wrong_experts",
]  # fmt: skip
