"""The whole demo: original, MXFP4, every rank count, then the three mistakes - and what must hold of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shardproof.api import main_spec, open_model, select
from shardproof.demo.checkpoint import load_moe, write_checkpoint
from shardproof.demo.measure import Speech, listen
from shardproof.demo.subject import Subject
from shardproof.demo.trial import Cut, Trial, run_trial
from shardproof.errors import KernelError
from shardproof.formats import ExpertModel
from shardproof.mistakes import find_mistake
from shardproof.oracle import Decision
from shardproof.plan import Plan, make_plan

EXPERTS = 8
CUTS = (
    Cut(1), Cut(2), Cut(4), Cut(8), Cut(1, 2), Cut(1, 4), Cut(2, 2), Cut(2, 1, "interleaved"),
)  # fmt: skip
OWN_KERNELS = (
    Cut(1, gate_mode=None, platform="cpu", backend="shardproof_cpu", implementation="shardproof_cpu"),
    Cut(4, gate_mode=None, platform="cpu", backend="shardproof_cpu", implementation="shardproof_cpu_int16"),
)  # fmt: skip
MISTAKES = ("padded_offset", "deinterleaved", "wrong_shuffle")
MISTAKE_TP = 4
TOLERANCE = 1e-4
"""Relative difference of perplexity that float32 rounding may cause: sums of ranks are added in another order."""
ROUNDING = 0.02
"""The same for kernels that round activations to 8 or 16 bits."""


def all_cuts() -> tuple[Cut, ...]:
    """Every cut that can be run here: those for AITER, and shardproof's own CPU kernels where they were built."""
    from shardproof.kernels.cpu.library import library

    try:
        library()
    except KernelError:
        return CUTS
    return CUTS + OWN_KERNELS


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and what was seen."""

    what: str
    ok: bool
    seen: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"what": self.what, "ok": self.ok, "seen": self.seen}


@dataclass(frozen=True)
class Story:
    """What was seen, and what must hold of it."""

    subject: Subject
    original: Speech
    quantised: Speech
    experts: ExpertModel
    decision: Decision
    trials: tuple[Trial, ...]
    broken: tuple[Trial, ...]

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Everything that must hold."""
        return tuple(_judge(self))

    @property
    def ok(self) -> bool:
        """Whether everything that must hold does."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "ok": self.ok, "subject": self.subject.name, "question": self.subject.question,
            "text_tokens": int(self.subject.text.shape[1]), "layers": len(self.experts.layers),
            "spec": main_spec(self.experts).to_dict(), "backend": self.decision.to_dict(),
            "original": self.original.to_dict(), "mxfp4": self.quantised.to_dict(),
            "trials": [t.to_dict() for t in self.trials], "mistakes": [t.to_dict() for t in self.broken],
            "checks": [c.to_dict() for c in self.checks],
        }  # fmt: skip


Report = Callable[[str, Speech | None, str], None]
"""Called between steps: the name of what was just done, what was heard of it if anything, and what happens next."""


def steps(cuts: Sequence[Cut] | None = None, mistakes: Sequence[str] = MISTAKES) -> int:
    """How many steps `tell` takes; it reports before each and at the end."""
    return len(all_cuts() if cuts is None else cuts) + len(mistakes) + 3


def tell(
    subject: Subject, folder: Path, *, experts: int = EXPERTS, cuts: Sequence[Cut] | None = None,
    mistakes: Sequence[str] = MISTAKES, mistake_tp: int = MISTAKE_TP, new_tokens: int = 16, keep: bool = False,
    report: Report = lambda _done, _speech, _next: None,
) -> Story:  # fmt: skip
    """Run the whole demo in `folder` and judge it.

    The subject's FFN weights are replaced by what MXFP4 keeps of them. Every cut is packed for AITER on gfx950, proven,
    and run; then each mistake is put back at `mistake_tp` ranks. `keep` leaves the packed folders where they are.
    """
    cuts = all_cuts() if cuts is None else cuts
    report("", None, "the original model")
    original = listen(subject.model, subject, new_tokens)
    report("original, dense", original, f"an MXFP4 checkpoint with {experts} experts a layer")
    write_checkpoint(subject.model, folder / "checkpoint", experts)
    report("", None, "the MXFP4 model, dense")
    quantised = listen(subject.model, subject, new_tokens)
    source, model = open_model(folder / "checkpoint"), load_moe(folder / "checkpoint")
    trials: list[Trial] = []
    decision: Decision | None = None
    done, speech = "MXFP4, dense", quantised
    for cut in (*cuts, *(Cut(mistake_tp, mistake=find_mistake(name)) for name in mistakes)):
        report(done, speech, cut.label)
        decided, plan = _plan(source, cut)
        decision = decision or decided
        place = folder / cut.label.lower().replace(", ", "-").replace(" ", "")
        trials.append(run_trial(cut, plan, source, model, subject, place, new_tokens=new_tokens, keep=keep))
        done, speech = cut.label, trials[-1].speech
    report(done, speech, "")
    assert decision is not None
    healthy, broken = (tuple(t for t in trials if bool(t.cut.mistake) is wrong) for wrong in (False, True))
    return Story(subject, original, quantised, source, decision, healthy, broken)


def _plan(experts: ExpertModel, cut: Cut) -> tuple[Decision, Plan]:
    decision = select(
        experts, platform=cut.platform, tp=cut.tp, ep=cut.ep, backend=cut.backend, gate_mode=cut.gate_mode
    )
    return decision, make_plan(experts, decision.recipe, tp=cut.tp, ep=cut.ep, allow_empty=True)


def _judge(story: Story) -> Iterator[Check]:
    yardstick, trials = story.quantised, story.trials
    answer, said = story.subject.answer, (story.original.text, yardstick.text)
    yield Check(f"the original and the MXFP4 model say {answer}", all(answer in t for t in said), " / ".join(said))
    wrong = [t.cut.label for t in trials if not t.proof.ok]
    total = sum(t.proof.bytes_compared for t in trials)
    yield Check("every byte of every rank is right", not wrong, ", ".join(wrong) or f"{total:,} bytes compared")
    digests = {t.proof.digest for t in trials}
    yield Check("all ways to cut hold the same logical content", len(digests) == 1, ", ".join(map(str, digests)))
    exact, own = ([t for t in trials if t.cut.exact is judged] for judged in (True, False))
    off = max((abs(t.speech.perplexity / yardstick.perplexity - 1) for t in exact), default=1.0)
    yield Check("all have the perplexity of the dense MXFP4 model", off <= TOLERANCE, f"within {off:.1e}")
    others = [t.cut.label for t in exact if t.speech.tokens != yardstick.tokens]
    yield Check("all say what the dense MXFP4 model says", not others, ", ".join(others) or "the same tokens")
    for trial in own:
        off = abs(trial.speech.perplexity / yardstick.perplexity - 1)
        yield Check(f"{trial.cut.label} has nearly that perplexity", off <= ROUNDING, f"within {off:.1e}")
        yield Check(f"{trial.cut.label} says {answer}", answer in trial.speech.text, trial.speech.text)
    for trial in story.broken:
        name, named = trial.cut.mistake.name if trial.cut.mistake else "", trial.mistakes_named
        yield Check(f"verify names the mistake {name}", named == {name}, ", ".join(sorted(named)) or "nothing")
        differs = trial.speech.tokens != yardstick.tokens and not trial.speech.perplexity < yardstick.perplexity * 1.01
        yield Check(f"{name} changes the text", differs, f"perplexity {trial.speech.perplexity:.4g}")
