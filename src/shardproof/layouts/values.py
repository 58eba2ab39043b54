"""ValueChange: the one arithmetic that layouts do on bytes, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardproof.errors import LayoutError
from shardproof.mxfp4 import Bytes


@dataclass(frozen=True, slots=True)
class ValueChange:
    """byte -> byte + add, for bytes up to `highest`; others cannot be held and are refused."""

    add: int
    highest: int

    def apply(self, data: Bytes) -> Bytes:
        """Change every byte. Raises LayoutError `layout.value` for one that would not come back."""
        if data.size and data.max() > self.highest:
            at = np.unravel_index(int(data.argmax()), data.shape)
            raise LayoutError(
                "layout.value",
                f"this layout adds {self.add} to every byte and cannot hold one of the checkpoint's",
                found=f"{int(data.max())} at {tuple(int(i) for i in at)}",
                needed=f"at most {self.highest}",
                next_step="this checkpoint cannot be packed for this kernel: choose another backend",
            )
        return np.asarray(data + np.uint8(self.add), dtype=np.uint8)

    def undo(self, data: Bytes) -> Bytes:
        """The inverse. Raises LayoutError `layout.value` for a byte that `apply` never writes."""
        if data.size and data.min() < self.add:
            raise LayoutError(
                "layout.value",
                f"this layout adds {self.add} to every byte; a smaller one was not written by it",
                found=int(data.min()),
                needed=f"at least {self.add}",
                next_step="the bytes are of another layout: `shardproof diagnose` says which",
            )
        return np.asarray(data - np.uint8(self.add), dtype=np.uint8)
