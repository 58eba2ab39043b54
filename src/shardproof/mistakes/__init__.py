"""The museum: every known way to get expert weights wrong, each a declaration."""

from shardproof.mistakes.mistake import Mistake, find_mistake, museum, register

__all__ = ["Mistake", "find_mistake", "museum", "register"]
