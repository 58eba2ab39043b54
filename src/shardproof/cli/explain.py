"""`shardproof explain CKPT`: every backend's verdict, with the condition that failed and what would change it."""

from __future__ import annotations

import typer

from shardproof.api import main_spec, open_model, platform_of
from shardproof.backends import Request, check_gate_mode
from shardproof.cli import show
from shardproof.cli.options import (
    BackendName,
    CheckpointPath,
    Ep,
    FormatName,
    GateModeName,
    Json,
    PlatformName,
    Tp,
    With,
    one_tp,
)  # fmt: skip
from shardproof.errors import EXIT_FINDING, BackendError
from shardproof.oracle import Decision, Verdict
from shardproof.oracle import explain as explain_backends
from shardproof.oracle import select as select_backend


def explain(
    checkpoint: CheckpointPath,
    tp: Tp = "1",
    ep: Ep = 1,
    backend: BackendName = None,
    gate_mode: GateModeName = None,
    platform: PlatformName = None,
    packages: With = None,
    format_name: FormatName = None,
    as_json: Json = False,
) -> None:
    """Say which backend would run this model and why each other one would not."""
    model = open_model(checkpoint, format=format_name)
    where = platform_of(platform, packages or ())
    request = Request(main_spec(model), where, one_tp(tp), ep, check_gate_mode(gate_mode))
    verdicts = explain_backends(request)
    decision, refusal = _decide(request, backend)
    data = decision.to_dict() if decision else {
        "backend": None, "error": refusal.to_dict() if refusal else None, "platform": str(where),
        "verdicts": [v.to_dict() for v in verdicts],
    }  # fmt: skip
    show.emit(as_json, "explain", data, lambda: _render(request, verdicts, decision, refusal))
    if decision is None:
        raise typer.Exit(EXIT_FINDING)


def _decide(request: Request, backend: str | None) -> tuple[Decision | None, BackendError | None]:
    try:
        return select_backend(request, backend=backend), None
    except BackendError as reason:
        if reason.code == "backend.unknown":
            raise
        return None, reason


def _render(
    request: Request, verdicts: tuple[Verdict, ...], decision: Decision | None, refusal: BackendError | None
) -> None:
    spec = request.spec
    show.facts(
        [
            (
                "model",
                f"{spec.family}: {spec.experts} experts of [{spec.intermediate}, {spec.hidden}], {spec.activation}",
            ),
            ("platform", f"{request.platform}, tp {request.tp} x ep {request.ep}"),
        ]
    )
    rows = decision.rows() if decision else [verdict.row() for verdict in verdicts]
    columns = ("place", "backend", "verdict", "condition", "found", "needed", "remedy")
    show.table("", columns, [[row[column] for column in columns] for row in rows], numbers=(0,))
    if decision is not None:
        show.line(f"chosen: {decision.backend}, {decision.reason}", style="bold green")
        show.facts([(f"{stack}.{name}", layout) for (stack, name), layout in decision.recipe.layouts.items()])
        for note in decision.recipe.notes:
            show.line(f"note: {note}", style="yellow")
    elif refusal is not None:
        show.line(f"refused: {refusal.what}", style="bold red")
