"""The museum: every known way to get expert weights wrong, each a declaration."""

from shardproof.mistakes.explain import Explanation, Views, changes, explain, matches, stands_alone
from shardproof.mistakes.mistake import Mistake, Owners, find_mistake, museum, register
from shardproof.mistakes.scene import ReadCut, Scene, declared_fill

__all__ = [
    "Explanation", "Mistake", "Owners", "ReadCut", "Scene", "Views", "changes", "declared_fill", "explain",
    "find_mistake", "matches", "museum", "register", "stands_alone",
]  # fmt: skip
