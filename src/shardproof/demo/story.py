"""The whole demo: original, MXFP4, every rank count, then the three mistakes - and what must hold of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardproof.api import open_model, select
from shardproof.demo.checkpoint import load_moe, write_checkpoint
from shardproof.demo.measure import Speech, listen
from shardproof.demo.subject import Subject
from shardproof.demo.trial import Cut, Trial, run_trial
from shardproof.formats import ExpertModel
from shardproof.mistakes import find_mistake
from shardproof.oracle import Decision
from shardproof.plan import Plan, make_plan

PLATFORM, BACKEND = "rocm:gfx950", "aiter"
EXPERTS = 8
CUTS = (
    Cut(1), Cut(2), Cut(4), Cut(8), Cut(1, 2), Cut(1, 4), Cut(2, 2), Cut(2, 1, "interleaved"),
)  # fmt: skip
MISTAKES = ("padded_offset", "deinterleaved", "wrong_shuffle")
MISTAKE_TP = 4
TOLERANCE = 1e-4
"""Relative difference of perplexity that float32 rounding may cause: sums of ranks are added in another order."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and what was seen."""

    what: str
    ok: bool
    seen: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"what": self.what, "ok": self.ok, "seen": self.seen}


@dataclass
class Story:
    """What has been told so far; `report` of `tell` is called after each change with the step just done."""

    subject: Subject
    original: Speech | None = None
    quantised: Speech | None = None
    experts: ExpertModel | None = None
    decision: Decision | None = None
    trials: list[Trial] = field(default_factory=list)
    broken: list[Trial] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that must hold does."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        spec = next(iter(self.experts.layers.values())).spec if self.experts else None
        return {
            "ok": self.ok, "subject": self.subject.name, "question": self.subject.question,
            "text_tokens": int(self.subject.text.shape[1]), "layers": len(self.experts.layers) if self.experts else 0,
            "spec": spec.to_dict() if spec else None, "backend": self.decision.to_dict() if self.decision else None,
            "original": self.original.to_dict() if self.original else None,
            "mxfp4": self.quantised.to_dict() if self.quantised else None,
            "trials": [t.to_dict() for t in self.trials], "mistakes": [t.to_dict() for t in self.broken],
            "checks": [c.to_dict() for c in self.checks],
        }  # fmt: skip


Report = Callable[[Story, str], None]
"""Called with the story and what happens next (`""` at the end)."""


def steps(cuts: Sequence[Cut] = CUTS, mistakes: Sequence[str] = MISTAKES) -> int:
    """How often `tell` reports."""
    return len(cuts) + len(mistakes) + 4


def tell(
    subject: Subject, folder: Path, *, experts: int = EXPERTS, cuts: Sequence[Cut] = CUTS,
    mistakes: Sequence[str] = MISTAKES, mistake_tp: int = MISTAKE_TP, new_tokens: int = 16, keep: bool = False,
    report: Report = lambda _story, _next: None,
) -> Story:  # fmt: skip
    """Run the whole demo in `folder` and judge it.

    The subject's FFN weights are replaced by what MXFP4 keeps of them. Every cut is packed for AITER on gfx950, proven,
    and run; then each mistake is put back at `mistake_tp` ranks. `keep` leaves the packed folders where they are.
    """
    story = Story(subject)
    report(story, "the original model")
    story.original = listen(subject.model, subject, new_tokens)
    report(story, f"writing an MXFP4 checkpoint: {experts} experts a layer")
    write_checkpoint(subject.model, folder / "checkpoint", experts)
    report(story, "the MXFP4 model, dense")
    story.quantised = listen(subject.model, subject, new_tokens)
    story.experts = open_model(folder / "checkpoint")
    model = load_moe(folder / "checkpoint")
    broken = [Cut(mistake_tp, mistake=find_mistake(name)) for name in mistakes]
    for cut in (*cuts, *broken):
        report(story, cut.label)
        story.decision, plan = _plan(story.experts, cut)
        place = folder / cut.label.lower().replace(", ", "-").replace(" ", "")
        trial = run_trial(cut, plan, story.experts, model, subject, place, new_tokens=new_tokens, keep=keep)
        (story.broken if cut.mistake else story.trials).append(trial)
    story.checks = list(_judge(story, mistakes))
    report(story, "")
    return story


def _plan(experts: ExpertModel, cut: Cut) -> tuple[Decision, Plan]:
    decision = select(
        experts, platform=PLATFORM, tp=cut.tp, ep=cut.ep, backend=BACKEND, gate_mode=cut.gate_mode
    )
    return decision, make_plan(experts, decision.recipe, tp=cut.tp, ep=cut.ep, allow_empty=True)


def _judge(story: Story, mistakes: Sequence[str]) -> Iterator[Check]:
    assert story.original and story.quantised
    yardstick, trials = story.quantised, story.trials
    answer, said = story.subject.answer, (story.original.text, yardstick.text)
    yield Check(f"the original and the MXFP4 model say {answer}", all(answer in t for t in said), " / ".join(said))
    wrong = [t.cut.label for t in trials if not t.proof.ok]
    total = sum(t.proof.bytes_compared for t in trials)
    yield Check("every byte of every rank is right", not wrong, ", ".join(wrong) or f"{total} bytes compared")
    digests = {t.proof.digest for t in trials}
    yield Check("all ways to cut hold the same logical content", len(digests) == 1, ", ".join(map(str, digests)))
    off = max((abs(t.speech.perplexity / yardstick.perplexity - 1) for t in trials), default=1.0)
    yield Check("all have the perplexity of the dense MXFP4 model", off <= TOLERANCE, f"within {off:.1e}")
    others = [t.cut.label for t in trials if t.speech.tokens != yardstick.tokens]
    yield Check("all say what the dense MXFP4 model says", not others, ", ".join(others) or "the same tokens")
    for name, trial in zip(mistakes, story.broken, strict=True):
        named = trial.mistakes_named
        yield Check(f"verify names the mistake {name}", named == {name}, ", ".join(sorted(named)) or "nothing")
        differs = trial.speech.tokens != yardstick.tokens and trial.speech.perplexity > yardstick.perplexity * 1.01
        yield Check(f"{name} changes the text", differs, f"perplexity {trial.speech.perplexity:.4g}")
