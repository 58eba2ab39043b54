"""One way to cut the experts: planned, packed into a folder, verified byte by byte, and run as a language model."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardproof.backends import GateMode
from shardproof.demo.measure import Speech, listen
from shardproof.demo.subject import Subject
from shardproof.formats import ExpertModel
from shardproof.mistakes import Mistake
from shardproof.pack import pack
from shardproof.packed import load
from shardproof.plan import Plan
from shardproof.verify import Proof, verify


@dataclass(frozen=True, slots=True)
class Cut:
    """What a trial does: ranks, gate mode, what to pack for, what runs it, and a mistake to put back."""

    tp: int = 1
    ep: int = 1
    gate_mode: GateMode | None = "separated"
    mistake: Mistake | None = None
    platform: str = "rocm:gfx950"
    backend: str = "aiter"
    implementation: str = "reference"

    @property
    def exact(self) -> bool:
        """Whether the judge runs it, in float32; other kernels round activations."""
        return self.implementation == "reference"

    @property
    def name(self) -> str:
        """`TP 4`, `EP 2`, `TP 2 x EP 2`."""
        parts = [f"{kind} {size}" for kind, size in (("TP", self.tp), ("EP", self.ep)) if size > 1]
        return " x ".join(parts) or "TP 1"

    @property
    def label(self) -> str:
        """The name, with the gate mode where it is not the usual one and the mistake where there is one."""
        mode = f", {self.gate_mode}" if self.gate_mode == "interleaved" else ""
        mode += "" if self.exact else f", {self.implementation}"
        return f"{self.name}{mode}{f', {self.mistake.name}' if self.mistake else ''}"


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of a cut. Sizes in bytes over all ranks, times in seconds."""

    cut: Cut
    plan: Plan
    proof: Proof
    speech: Speech
    packed_bytes: int
    waste_bytes: int
    pack_seconds: float
    verify_seconds: float

    @property
    def empty_ranks(self) -> int:
        """Ranks that hold no block."""
        return sum(not self.plan.shapes[0].valid(rank) for rank in self.plan.ranks)

    @property
    def mistakes_named(self) -> set[str]:
        """The mistakes that verify recognised."""
        return {d.mistake for d in self.proof.differences if d.mistake}

    @property
    def sentence(self) -> str:
        """What verify says about one difference: an empty rank if there is one, then whatever it can explain."""
        told = sorted(self.proof.differences, key=lambda d: ("all zero" not in d.sentence, not d.sentence))
        return f"{told[0].tensor}: {told[0].sentence or told[0].first[0]}" if told else ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        sizes = {"packed_bytes": self.packed_bytes, "waste_bytes": self.waste_bytes, "empty_ranks": self.empty_ranks}
        return {
            "tp": self.cut.tp, "ep": self.cut.ep, "gate_mode": self.cut.gate_mode, "backend": self.cut.backend,
            "run_by": self.cut.implementation,
            "mistake": self.cut.mistake.name if self.cut.mistake else None,
            "intermediate": [self.plan.shapes[0].valid(rank) for rank in self.plan.ranks],
            "padded_intermediate": self.plan.shapes[0].intermediate, **sizes,
            "pack_seconds": round(self.pack_seconds, 3), "verify_seconds": round(self.verify_seconds, 3),
            "verified": self.proof.ok, "digest": self.proof.digest, "differences": len(self.proof.differences),
            "named": sorted(self.mistakes_named), "sentence": self.sentence, **self.speech.to_dict(),
        }  # fmt: skip


def run_trial(
    cut: Cut, plan: Plan, experts: ExpertModel, model: Any, subject: Subject, folder: Path, *, new_tokens: int,
    keep: bool = False,
) -> Trial:  # fmt: skip
    """Pack a plan's ranks into `folder`, verify them, put them into `model` and listen.

    The folder is removed unless `keep`.
    """
    from shardproof.integrations.transformers import replace_experts

    start = time.perf_counter()
    pack(experts, plan, folder, mistake=cut.mistake)
    packed_at = time.perf_counter()
    proof = verify(folder, experts)
    verified_at = time.perf_counter()
    ranks_packed = [load(folder, rank.index) for rank in plan.ranks]
    replace_experts(model, ranks_packed, implementation=cut.implementation, keep=True)
    speech = listen(model, subject, new_tokens)
    if not keep:
        shutil.rmtree(folder)
    ranks = plan.ranks
    return Trial(
        cut, plan, proof, speech, sum(map(plan.rank_bytes, ranks)), sum(map(plan.waste_bytes, ranks)),
        packed_at - start, verified_at - packed_at,
    )  # fmt: skip
