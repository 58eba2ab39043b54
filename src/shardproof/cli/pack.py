"""`shardproof pack CKPT OUT`: write each rank's experts in the byte order of the chosen kernel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from shardproof.api import open_model, select
from shardproof.cli import show
from shardproof.cli.options import (
    AllowEmpty,
    BackendName,
    CheckpointPath,
    Ep,
    FormatName,
    GateModeName,
    Json,
    PlacementName,
    PlatformName,
    PolicyName,
    Tp,
    With,
    one_tp,
    pick_layers,
    read_gate_mode,
    read_placement,
    read_policy,
    read_range,
)  # fmt: skip
from shardproof.digest import Digest
from shardproof.pack import Progress
from shardproof.pack import pack as write_packed
from shardproof.plan import make_plan


def pack(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the packed ranks.")],
    tp: Tp = "1",
    ep: Ep = 1,
    policy: PolicyName = "balanced",
    placement: PlacementName = "linear",
    backend: BackendName = None,
    gate_mode: GateModeName = None,
    platform: PlatformName = None,
    packages: With = None,
    allow_empty: AllowEmpty = False,
    ranks: Annotated[str | None, typer.Option("--ranks", metavar="0-7", help="Only these ranks.")] = None,
    layers: Annotated[str | None, typer.Option("--layers", metavar="0-3", help="Only these layers.")] = None,
    format_name: FormatName = None,
    as_json: Json = False,
) -> None:
    """Cut, pad and lay out all experts; one file a rank, in the byte order that the kernel reads."""
    model = open_model(checkpoint, format=format_name)
    size = one_tp(tp)
    decision = select(
        model, platform=platform, packages=packages or (), tp=size, ep=ep, backend=backend,
        gate_mode=read_gate_mode(gate_mode),
    )  # fmt: skip
    plan = make_plan(
        model, decision.recipe, tp=size, ep=ep, policy=read_policy(policy), placement=read_placement(placement),
        allow_empty=allow_empty,
    )  # fmt: skip
    chosen = pick_layers(plan.layers, layers)
    if chosen is not None:
        plan = plan.restrict(chosen)
    indices = None if ranks is None else read_range(ranks, "--ranks")
    start = time.monotonic()
    with show.progress("packing", quiet=as_json) as step:
        digests = write_packed(model, plan, out, rank_indices=indices, report=lambda p: _tell(step, p))
    seconds = time.monotonic() - start
    written = sum(plan.rank_bytes(plan.ranks[i]) for i in digests)
    complete = len(digests) == len(plan.ranks)
    total = str(sum(digests.values(), start=Digest())) if complete else None
    data = {
        "out": str(out), "backend": decision.recipe.backend, "ranks": sorted(digests), "bytes": written,
        "seconds": round(seconds, 3), "digest": total, "notes": list(decision.recipe.notes),
    }  # fmt: skip
    show.emit(
        as_json, "pack", data,
        lambda: show.facts(
            [
                ("packed", f"{len(digests)} of {len(plan.ranks)} ranks for {plan.recipe.backend}: {show.size(written)}"),
                ("in", f"{seconds:.1f} s ({written / max(seconds, 1e-9) / 1e9:.2f} GB/s)"),
                ("folder", out),
                ("digest", total or "(not all ranks)"),
                *(("note", note) for note in decision.recipe.notes),
            ]
        ),
    )  # fmt: skip


def _tell(step: show.Step, progress: Progress) -> None:
    step(progress.done_bytes, progress.total_bytes, f"rank {progress.rank.index} {progress.layer}")
