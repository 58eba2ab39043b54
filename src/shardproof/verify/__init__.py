"""Verify: proves packed experts against their checkpoint, byte for byte, and names the mistake where one is known.

Every byte of every tensor is computed again from the checkpoint by the plan that the rank file carries, and
compared; padding is compared as well. The plan itself must be for this checkpoint and must prove its cover.
"""

from __future__ import annotations

from shardproof.callable_module import make_callable
from shardproof.verify.api import Report, verify
from shardproof.verify.causes import scene_of
from shardproof.verify.proof import Difference, Proof

__all__ = ["Difference", "Proof", "Report", "scene_of", "verify"]

make_callable(__name__, verify)
