"""`shardproof pack CKPT OUT`: write each rank's experts in the byte order of the chosen kernel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from shardproof.api import open_model, select
from shardproof.backends import check_gate_mode
from shardproof.cli import show
from shardproof.cli.answers import Packed
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
    read_placement,
    read_policy,
    read_range,
)  # fmt: skip
from shardproof.digest import Digest
from shardproof.formats import ExpertModel
from shardproof.pack import Progress, Worker
from shardproof.pack import pack as write_packed
from shardproof.packed import rank_file, read_manifest
from shardproof.plan import Plan, make_plan


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
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads; default: the cores of this machine.")
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option("--reader", metavar="NAME", help="Who brings the bytes: mmap, fastsafetensors or runai."),
    ] = None,
    format_name: FormatName = None,
    as_json: Json = False,
) -> None:
    """Cut, pad and lay out all experts; one file a rank, in the byte order that the kernel reads.

    A second run returns at once, an interrupted one is taken up. Under torchrun or Slurm, hosts share the ranks and
    processes of one host share the layers.
    """
    if not out.name:
        out = out.absolute()  # of `.`, whose place the finished folder takes
    model = open_model(checkpoint, format=format_name)
    size = one_tp(tp)
    decision = select(
        model, platform=platform, packages=packages or (), tp=size, ep=ep, backend=backend,
        gate_mode=check_gate_mode(gate_mode),
    )  # fmt: skip
    plan = make_plan(
        model, decision.recipe, tp=size, ep=ep, policy=read_policy(policy), placement=read_placement(placement),
        allow_empty=allow_empty,
    )  # fmt: skip
    chosen = pick_layers(plan.layers, layers)
    if chosen is not None:
        plan = plan.restrict(chosen)
    indices = None if ranks is None else read_range(ranks, "--ranks")
    last: list[Progress] = []
    start = time.monotonic()
    with show.progress("packing", quiet=as_json) as step:
        digests = write_packed(
            model, plan, out, rank_indices=indices, threads=threads, worker=Worker.from_environment(),
            reader=reader, report=lambda progress: _tell(step, progress, last),
        )  # fmt: skip
    data = _data(model, plan, out, digests, last[-1] if last else None, time.monotonic() - start)
    show.emit(as_json, "pack", data, lambda: _render(data))


def _tell(step: show.Step, progress: Progress, last: list[Progress]) -> None:
    last[:] = [progress]
    limit = f", limited by {progress.limited_by}" if progress.limited_by else ""
    step(progress.done_bytes, progress.total_bytes, f"rank {progress.rank.index} {progress.layer}{limit}")


def _data(
    model: ExpertModel, plan: Plan, out: Path, digests: dict[int, Digest], last: Progress | None, seconds: float
) -> Packed:
    manifest = read_manifest(out) if digests else {"ranks": {}, "digest": None}
    return {
        "out": str(out), "backend": plan.recipe.backend, "ranks": sorted(digests), "of": len(plan.ranks),
        "held": [rank.index for rank in plan.ranks if rank_file(rank) in manifest["ranks"]],
        "bytes": sum(plan.rank_bytes(plan.ranks[i]) for i in digests), "packed_bytes": last.run_bytes if last else 0,
        "seconds": round(seconds, 3), "limited_by": last.limited_by if last else None,
        "digest": manifest["digest"],
        "notes": [*model.notes, *plan.recipe.notes],
    }  # fmt: skip


def _these(count: int, of: int) -> str:
    return f"all {of}" if count == of else f"{count} of {of}"


def _render(data: Packed) -> None:
    if not data["ranks"]:
        show.line("this process's share is done; others of this host are still at work")
        return
    ranks = f"{len(data['ranks'])} of {data['of']} ranks for {data['backend']}: {show.size(data['bytes'])}"
    if len(data["held"]) > len(data["ranks"]):
        ranks += f"; the folder holds {_these(len(data['held']), data['of'])}"
    speed = data["packed_bytes"] / max(data["seconds"], 1e-9) / 1e9
    limit = f", limited by {data['limited_by']}" if data["limited_by"] else ""
    done = f"{data['seconds']:.1f} s ({speed:.2f} GB/s{limit})" if data["packed_bytes"] else "they were there already"
    show.facts(
        [
            ("packed", ranks), ("in", done), ("folder", data["out"]), ("digest", data["digest"] or "(not all ranks)"),
            *(("note", note) for note in data["notes"]),
        ]
    )  # fmt: skip
