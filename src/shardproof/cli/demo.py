"""`shardproof demo`: a real language model, cut every way, proven and run; then the three mistakes, found and named."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.api import main_spec
from shardproof.cli import show
from shardproof.cli.options import Json
from shardproof.errors import EXIT_FINDING, PackError

if TYPE_CHECKING:
    from shardproof.demo.measure import Speech
    from shardproof.demo.story import Story
    from shardproof.demo.trial import Trial

Say = Callable[[str, str], None]
"""Says (the result of the step just done, the name of the next one)."""


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Keep all files in this new folder."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=16, max=4096, help="Tokens of text that perplexity is taken on.")
    ] = 512,
    as_json: Json = False,
) -> None:
    """Cut a real model's experts every way, prove and run each; put three known mistakes back and name them."""
    # OpenMP threads that spin for each other starve on shared cores; read when torch is loaded, so it is set before
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shardproof.demo.subject import check_packages, load_smollm2

    check_packages()
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise PackError(
            "pack.not_empty", "the output is there already", file=keep, needed="a new or empty folder",
            next_step="choose another folder, or remove this one",
        )  # fmt: skip
    if keep is not None:
        with show.writing(keep):
            keep.mkdir(exist_ok=True)
    from shardproof.demo.story import steps, tell

    start = time.perf_counter()
    place = nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="shardproof-demo-")
    with place as folder, _saying(1 + steps()) as say:
        say("", "loading SmolLM2-135M-Instruct from its package")
        subject = load_smollm2(tokens)
        story = tell(
            subject, Path(folder), keep=keep is not None,
            report=lambda done, speech, following: say(_heard(done, speech), following),
        )  # fmt: skip
    data = {**story.to_dict(), "seconds": round(time.perf_counter() - start, 1), "kept": str(keep) if keep else None}
    show.emit(as_json, "demo", data, lambda: _render(story, float(data["seconds"]), keep))
    if not story.ok:
        raise typer.Exit(EXIT_FINDING)


@contextmanager
def _saying(total: int) -> Iterator[Say]:
    """Steps on stderr: a bar with results above it on a terminal, numbered lines elsewhere."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        done = 0

        def plain(result: str, following: str) -> None:
            nonlocal done
            done += 1
            lines = [f"      {result}"] * bool(result) + [f"[{done:2}/{total}] {following} ..."] * bool(following)
            sys.stderr.write("".join(f"{text}\n" for text in lines))
            sys.stderr.flush()

        yield plain
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=total)

        def rich(result: str, following: str) -> None:
            if result:
                bar.console.print(f"  {escape(result)}")
            begun = bool(bar.tasks[0].description)
            bar.update(task, advance=int(begun), description=escape(following))

        yield rich


def _heard(name: str, speech: Speech | None) -> str:
    return f"{name}: perplexity {speech.perplexity:.6g}, {_quote(speech.text)}" if speech else ""


def _quote(text: str, width: int = 56) -> str:
    """Text as one line in quotes, cut to a width."""
    line = text.replace("\n", "\\n")
    return f'"{line}"' if len(line) <= width else f'"{line[:width]}"...'


def _render(story: Story, seconds: float, keep: Path | None) -> None:
    _render_setting(story)
    blank = [""] * 7
    dense = [("original, dense", story.original), ("MXFP4, dense", story.quantised)]
    rows = [
        [name, *blank, f"{heard.perplexity:.6g}", f"{heard.tokens_per_second:.1f}", _quote(heard.text)]
        for name, heard in dense
    ]
    columns = (
        "experts", "ranks", "I a rank", "padded", "packed", "padding", "pack", "verify", "perplexity", "tokens/s",
        "it says",
    )  # fmt: skip
    show.table("Every number of ranks", columns, [*rows, *map(_row, story.trials)], numbers=range(1, 10))
    show.line()
    show.line("The three mistakes of vLLM #42595, put back one at a time", style="bold")
    for trial in story.broken:
        show.line(f"{trial.cut.label}: perplexity {trial.speech.perplexity:.4g}, says {_quote(trial.speech.text)}")
        show.line(f"  verify: {len(trial.proof.differences)} tensors are wrong. {trial.sentence}")
    show.line()
    for check in story.checks:
        show.line(
            f"{'ok   ' if check.ok else 'FAILS'}  {check.what} ({check.seen})", "green" if check.ok else "bold red"
        )
    show.line()
    failed = sum(not check.ok for check in story.checks)
    verdict = "everything holds" if story.ok else f"{failed} of {len(story.checks)} checks fail"
    kept = f"; kept in {keep}" if keep else ""
    show.line(f"{verdict}, in {seconds:.0f} s{kept}", "bold green" if story.ok else "bold red")


def _render_setting(story: Story) -> None:
    spec, recipe = main_spec(story.experts), story.decision.recipe
    layers, files = len(story.experts.layers), show.size(story.experts.expert_bytes)
    cut = f"each FFN cut into {spec.experts} experts of {spec.intermediate} x {spec.hidden}"
    padded = f"H rounded up to {recipe.align_hidden}, I to {recipe.align_intermediate}"
    platform = story.decision.request.platform
    pairs = {
        "model": f"{story.subject.name}: {layers} layers, {cut}, all routed with weight 1/{spec.experts}",
        "checkpoint": f"format {story.experts.format}, {story.experts.tensor_count} expert tensors, {files}",
        "backend": f"{recipe.backend} {recipe.version or ''} for {platform}: {padded}",
        "run by": "the reference on this CPU, which reads the bytes in the backend's order; shardproof_cpu: C kernels",
        "text": f"{story.subject.text.shape[1]} tokens of Python's documentation (pydoc_data.topics)",
        "question": story.subject.question,
    }
    show.facts(pairs.items())
    show.line()


def _row(trial: Trial) -> list[str]:
    plan = trial.plan
    valid = dict.fromkeys(str(plan.shapes[0].valid(rank)) for rank in plan.ranks)
    empty = f" ({trial.empty_ranks} empty)" if trial.empty_ranks else ""
    return [
        trial.cut.label, f"{len(plan.ranks)}{empty}", "/".join(valid), str(plan.shapes[0].intermediate),
        show.size(trial.packed_bytes), f"{trial.waste_bytes / trial.packed_bytes:.0%}", f"{trial.pack_seconds:.2f} s",
        f"{trial.verify_seconds:.2f} s", f"{trial.speech.perplexity:.6g}",
        f"{trial.speech.tokens_per_second:.1f}", _quote(trial.speech.text),
    ]  # fmt: skip
