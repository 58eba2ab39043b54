"""`shardproof plan CKPT`: what each rank would hold, before any byte is read."""

from __future__ import annotations

from typing import Any

import typer

from shardproof.api import main_spec, open_model, platform_of, select
from shardproof.backends import Recipe, Request, check_gate_mode
from shardproof.backends.registry import find as find_backend
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
    read_placement,
    read_policy,
    read_range,
    refused,
)  # fmt: skip
from shardproof.errors import EXIT_FINDING, ShardproofError
from shardproof.formats import ExpertModel, layer_span
from shardproof.mxfp4 import BLOCK
from shardproof.oracle import Decision
from shardproof.oracle import explain as explain_backends
from shardproof.partition import Policy
from shardproof.plan import ExpertMap, Plan, make_plan


def plan(
    checkpoint: CheckpointPath,
    tp: Tp = "1",
    ep: Ep = 1,
    policy: PolicyName = "balanced",
    placement: PlacementName = "linear",
    backend: BackendName = None,
    gate_mode: GateModeName = None,
    platform: PlatformName = None,
    packages: With = None,
    allow_empty: AllowEmpty = False,
    format_name: FormatName = None,
    as_json: Json = False,
) -> None:
    """Show each rank's slices, padding, bytes and waste; with a range (--tp 1..16), compare sizes and backends."""
    model = open_model(checkpoint, format=format_name)
    sizes = read_range(tp, "--tp")
    dealt, placed, mode = read_policy(policy), read_placement(placement), check_gate_mode(gate_mode)
    if len(sizes) == 1:
        decision = select(
            model, platform=platform, packages=packages or (), tp=sizes[0], ep=ep, backend=backend, gate_mode=mode
        )
        made = make_plan(
            model, decision.recipe, tp=sizes[0], ep=ep, policy=dealt, placement=placed, allow_empty=allow_empty
        )
        show.emit(as_json, "plan", _plan_data(model, made, decision), lambda: _render(model, made, decision))
        return
    where = platform_of(platform, packages or ())
    rows = []
    for size in sizes:
        request = Request(main_spec(model), where, size, ep, mode)
        rows += _compare(model, request, backend, dealt, placed, allow_empty)
    show.emit(as_json, "plan", {"sizes": rows}, lambda: _render_sizes(rows))
    if not any("error" not in row for row in rows):
        raise typer.Exit(EXIT_FINDING)


def _compare(
    model: ExpertModel, request: Request, backend: str | None, policy: Policy, placement: ExpertMap, allow_empty: bool
) -> list[dict[str, Any]]:
    """One row a backend of the priority list: what this number of ranks costs there, or why it cannot be."""
    if backend is not None:
        find_backend(backend)
    rows = []
    for verdict in explain_backends(request):
        name, failed = verdict.backend, verdict.failed
        if name != backend and (backend is not None or verdict.place is None):
            continue
        row: dict[str, Any] = {"tp": request.tp, "ep": request.ep, "backend": name}
        if verdict.recipe is None:
            reason = f"{failed.condition}: {failed.found}, needs {failed.needed}" if failed else ""
            rows.append({**row, "error": failed.to_dict() if failed else None, "reason": reason})
            continue
        try:
            made = make_plan(
                model,
                verdict.recipe,
                tp=request.tp,
                ep=request.ep,
                policy=policy,
                placement=placement,
                allow_empty=allow_empty,
            )
        except ShardproofError as refusal:
            rows.append({**row, "error": refusal.to_dict(), "reason": refused(refusal)})
            continue
        rows.append({**row, **_size_row(made)})
    return rows


def _size_row(made: Plan) -> dict[str, Any]:
    shape = made.shapes[0]
    worst = max(made.ranks, key=made.rank_bytes)
    return {
        "blocks": sorted({stop - start for start, stop in shape.intervals}, reverse=True),
        "intermediate": shape.intermediate, "hidden": shape.hidden, "bytes": made.rank_bytes(worst),
        "waste_bytes": max(made.waste_bytes(r) for r in made.ranks),
    }  # fmt: skip


def _render_sizes(rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        if "error" in row:
            shown.append((row["tp"], row["backend"], "-", "-", "-", "-", row["reason"]))
            continue
        valid = " or ".join(str(b * BLOCK) for b in row["blocks"])
        share = row["waste_bytes"] / row["bytes"] if row["bytes"] else 0
        shown.append(
            (row["tp"], row["backend"], valid, row["intermediate"], show.size(row["bytes"]),
             show.size(row["waste_bytes"]), f"{share:.0%} padding")
        )  # fmt: skip
    show.table(
        "tensor-parallel sizes", ("tp", "backend", "I a rank", "padded", "GPU holds", "waste a GPU", ""), shown,
        numbers=(0, 2, 3, 4, 5),
    )  # fmt: skip


def _plan_data(model: ExpertModel, made: Plan, decision: Decision) -> dict[str, Any]:
    return {
        "plan": made.to_dict(), "proof": made.prove(), "notes": [*model.notes, *made.recipe.notes],
        "reason": decision.reason,
        "ranks": [_rank_data(made, index) for index in range(len(made.ranks))],
    }  # fmt: skip


def _rank_data(made: Plan, index: int) -> dict[str, Any]:
    rank, key = made.ranks[index], next(iter(made.layers))
    shape = made.shape(key)
    start, stop = shape.intervals[rank.tp_rank]
    return {
        "rank": index, "tp_rank": rank.tp_rank, "ep_rank": rank.ep_rank, "blocks": [start, stop],
        "rows": [start * BLOCK, stop * BLOCK], "valid": shape.valid(rank), "padded": shape.intermediate,
        "kernel": made.kernel_padding(key, rank), "experts": list(made.experts(key, rank)),
        "bytes": made.rank_bytes(rank), "waste_bytes": made.waste_bytes(rank), "read_bytes": made.read_bytes(rank),
    }  # fmt: skip


def _render(model: ExpertModel, made: Plan, decision: Decision) -> None:
    recipe: Recipe = made.recipe
    show.facts(
        [
            ("model", f"{made.family}, format {made.format}, {len(made.layers)} MoE layers"),
            ("backend", ", ".join(filter(None, (recipe.backend, recipe.gate_mode, recipe.version)))),
            ("because", decision.reason),
            ("ranks", f"tp {made.tp} x ep {made.ep}, {made.policy}"),
            *((f"{stack}.{name}", identity) for (stack, name), identity in recipe.layouts.items()),
            *(("note", note) for note in (*model.notes, *recipe.notes)),
        ]
    )  # fmt: skip
    for index in range(len(made.shapes)):
        keys = [key for key, used in made.layers.items() if used == index]
        _render_shape(made, keys, layer_span(keys, 1))
    for sentence in made.prove():
        show.line(f"proven: {sentence}", style="green")


def _render_shape(made: Plan, keys: list[str], title: str) -> None:
    shape, rows = made.shape(keys[0]), []
    part = made.restrict(keys)
    for rank in made.ranks:
        start, stop = shape.intervals[rank.tp_rank]
        experts = made.experts(keys[0], rank)
        kernel = made.kernel_padding(keys[0], rank)
        rows.append(
            (rank.index, rank.tp_rank, rank.ep_rank, f"{start * BLOCK}..{stop * BLOCK}", shape.valid(rank),
             shape.intermediate, kernel["hidden_pad"], kernel["intermediate_pad"], _run(experts),
             show.size(part.rank_bytes(rank)), show.size(part.waste_bytes(rank)), show.size(part.read_bytes(rank)))
        )  # fmt: skip
    show.table(
        title,
        ("rank", "tp", "ep", "rows of I", "valid", "padded", "hidden_pad", "intermediate_pad", "experts", "holds",
         "waste", "reads"),
        rows, numbers=(0, 1, 2, 4, 5, 6, 7, 9, 10, 11),
    )  # fmt: skip


def _run(experts: tuple[int, ...]) -> str:
    consecutive = list(experts) == list(range(experts[0], experts[0] + len(experts)))
    if consecutive and len(experts) > 2:
        return f"{experts[0]}..{experts[-1]}"
    shown = ",".join(map(str, experts[:6]))
    return shown if len(experts) <= 6 else f"{shown},... ({len(experts)})"
