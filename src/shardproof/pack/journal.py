"""The journal of a run: which (layer, rank) units are complete, so that a killed run goes on where it was.

A unit's line is written after its bytes. Bytes written through a map survive the death of the process, not that of
the machine; so a journal of an earlier boot is not believed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardproof.digest import Digest

Unit = tuple[str, int]
"""Layer key and rank index."""


def boot() -> str:
    """Names this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class Journal:
    """An append-only file of JSON lines beside the rank files; several processes may write to it.

    The first line says of which boot it is, and what `says` tells of the run.
    """

    def __init__(self, path: Path, says: Mapping[str, Any] | None = None) -> None:
        self._path, self._says = path, dict(says or {})

    def begin(self) -> None:
        """Start the journal, unless this boot of the machine already has one."""
        if self.about().get("boot") != boot():
            self._first_line()

    def about(self) -> dict[str, Any]:
        """The first line; empty where there is none."""
        try:
            first = json.loads((self._lines() or [""])[0])
        except ValueError:
            return {}
        return first if isinstance(first, dict) else {}

    def _first_line(self) -> None:
        self._path.write_text(json.dumps({"boot": boot(), **self._says}) + "\n", encoding="utf-8")

    def done(self) -> dict[Unit, Digest]:
        """Complete units and their digests; a line that was cut off does not count."""
        found: dict[Unit, Digest] = {}
        for line in self._lines()[1:]:
            try:
                entry = json.loads(line)
                found[entry["layer"], entry["rank"]] = Digest.parse(entry["digest"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, layer: str, digests: Mapping[int, Digest]) -> None:
        """Note units as complete, in one write."""
        lines = [
            json.dumps({"layer": layer, "rank": rank, "digest": str(digest)}) + "\n" for rank, digest in digests.items()
        ]
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, ("\n" * self._cut_off() + "".join(lines)).encode())
        finally:
            os.close(descriptor)

    def end(self) -> None:
        """Remove the journal."""
        self._path.unlink(missing_ok=True)

    def drop(self, ranks: Iterable[int]) -> None:
        """Forget the units of ranks whose files are not there."""
        gone = set(ranks)
        kept = {unit: digest for unit, digest in self.done().items() if unit[1] not in gone}
        self._first_line()
        for (layer, rank), digest in kept.items():
            self.add(layer, {rank: digest})

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return []

    def _cut_off(self) -> bool:
        return self._lines()[-1:] != [""]
