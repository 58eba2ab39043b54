"""Report: what a diagnosis says - a sentence to act on, findings, a table - as text, JSON, or without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardproof.errors import EXIT_FINDING, EXIT_FINE
from shardproof.formats import layer_span
from shardproof.mistakes import Mistake
from shardproof.mistakes.mistake import Severity

BUNDLE_VERSION = 1


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `name` is stable; `also` are other mistakes that give the very same bytes."""

    name: str
    sentence: str
    tensors: tuple[str, ...]
    severity: Severity = "wrong"
    issues: tuple[str, ...] = ()
    repair: str = ""
    explanation: str = ""
    also: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}

    def __str__(self) -> str:
        seen = f"{', '.join(self.tensors)}: " if self.tensors else ""
        see = f"; see {', '.join(self.issues)}" if self.issues else ""
        return f"{seen}{self.sentence}{see}"


@dataclass(frozen=True)
class Row:
    """One tensor of the table. `share` is the share of content bytes that stand where the kernel needs them."""

    tensor: str
    slot: str
    share: float
    found: str
    needed: str
    wrong: int
    total: int
    first: str = ""
    address: int | None = None
    expected_byte: int | None = None
    found_byte: int | None = None
    explained_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self, *, bytes_too: bool = True) -> dict[str, Any]:
        """JSON-ready form; without the two bytes for a bundle."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}
        if not bytes_too:
            data.pop("expected_byte"), data.pop("found_byte")
        return data


@dataclass(frozen=True)
class LayerReport:
    """What was found out about one layer of a dump; `padding` says that its tensors hold nothing else."""

    layer: str
    rank: str
    where: dict[str, Any]
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    recognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    padding: bool = False

    def to_dict(self, *, bytes_too: bool = True) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "layer": self.layer, "rank": self.rank, **self.where, "recognised": list(self.recognised),
            "findings": [f.to_dict() for f in self.findings],
            "tensors": [r.to_dict(bytes_too=bytes_too) for r in self.rows], "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The outcome for a whole dump."""

    checkpoint: str
    identity: str
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def findings(self) -> list[Finding]:
        """All findings, the harmful ones first."""
        found = [f for layer in self.layers for f in layer.findings]
        return sorted(found, key=lambda f: f.severity == "note")

    @property
    def names(self) -> set[str]:
        """Stable names of the mistakes that were found."""
        return {f.name for f in self.findings}

    @property
    def ok(self) -> bool:
        """Whether nothing harmful was found."""
        return not any(f.severity == "wrong" for f in self.findings)

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 1 finding."""
        return EXIT_FINE if self.ok else EXIT_FINDING

    @property
    def sentence(self) -> str:
        """The first line for a tired engineer."""
        wrong = [(layer, f) for layer in self.layers for f in layer.findings if f.severity == "wrong"]
        if not wrong:
            shown = layer_span([layer.layer for layer in self.layers])
            if all(layer.padding for layer in self.layers):
                return f"{shown}: every tensor holds padding only; {self.layers[0].notes[0]}"
            return f"nothing is wrong with {shown}: every byte is where it is needed"
        layer, first = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"rank {layer.rank}: {first}{more}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (`--json`)."""
        return self._dict(bytes_too=True)

    def bundle(self, path: str | Path) -> None:
        """Write the report without any weight byte, to attach to an issue."""
        from shardproof import __version__

        data = {"shardproof_bundle": BUNDLE_VERSION, "shardproof": __version__, **self._dict(bytes_too=False)}
        data["checkpoint"] = Path(self.checkpoint).name
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def _dict(self, *, bytes_too: bool) -> dict[str, Any]:
        return {
            "ok": self.ok, "sentence": self.sentence, "checkpoint": self.checkpoint, "identity": self.identity,
            "layers": [layer.to_dict(bytes_too=bytes_too) for layer in self.layers], "notes": list(self.notes),
        }  # fmt: skip

    def text(self, most: int | None = None, more: Callable[[int], str] = str) -> str:
        """The report; of layers with the same kinds of findings only the first `most`, `more` says how many follow."""
        kinds: dict[frozenset[str], list[LayerReport]] = {}
        for layer in self.layers:
            kinds.setdefault(frozenset(f.name for f in layer.findings), []).append(layer)
        lines = [self.sentence]
        for alike in kinds.values():
            for layer in alike[:most]:
                lines += ["", *_layer(layer)]
            if most is not None and len(alike) > most:
                lines += ["", f"{alike[most].layer} to {alike[-1].layer}: {more(len(alike) - most)}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.text()


def _layer(layer: LayerReport) -> list[str]:
    lines = [f"{layer.layer}, rank {layer.rank}", *_facts(layer), "", *_table(layer.rows)]
    for finding in layer.findings:
        lines += ["", f"[{finding.name}] {finding}"]
        lines += [f"  why: {finding.explanation}"] if finding.explanation else []
        lines += [f"  repair: {finding.repair}"] if finding.repair else []
        lines += [f"  the same bytes also come from: {', '.join(finding.also)}"] if finding.also else []
    return lines + [f"  note: {note}" for note in layer.notes]


def _facts(layer: LayerReport) -> list[str]:
    return [f"  {name}: {value}" for name, value in layer.where.items()]


def _table(rows: Sequence[Row]) -> list[str]:
    head = ("tensor", "right", "is", "needed", "first wrong byte")
    cells = [head]
    for row in rows:
        first = ""
        if row.address is not None:
            first = f"byte {row.address} = {row.first}: expected {row.expected_byte}, found {row.found_byte}"
        cells.append((row.slot, f"{100 * row.share:.4g} %", row.found, row.needed, first))
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return lines + [f"  {row.slot}: {note}" for row in rows for note in row.notes]


def finding(mistake: Mistake, tensors: Sequence[str], words: dict[str, Any], also: Sequence[str] = ()) -> Finding:
    """A finding from a declared mistake; `words` fill its sentence."""
    return Finding(
        mistake.name, mistake.sentence.format_map(_Words(words)), tuple(tensors), mistake.severity, mistake.issues,
        mistake.repair, mistake.explanation, tuple(also),
    )  # fmt: skip


class _Words(dict[str, Any]):
    """Words for a sentence; one that is not known stays visible as `?`."""

    def __missing__(self, key: str) -> str:
        return "?"
