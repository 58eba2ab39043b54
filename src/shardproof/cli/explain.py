"""`shardproof explain CKPT`: every backend's verdict, with the condition that failed and what would change it."""

from __future__ import annotations

import typer

from shardproof.api import main_spec, open_model, platform_of
from shardproof.backends import Request
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
    read_gate_mode,
)  # fmt: skip
from shardproof.errors import EXIT_FINDING
from shardproof.oracle import Explanation
from shardproof.oracle import explain as explain_backends


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
    request = Request(main_spec(model), where, one_tp(tp), ep, read_gate_mode(gate_mode))
    found = explain_backends(request, backend=backend)
    show.emit(as_json, "explain", found.to_dict(), lambda: _render(found))
    if found.chosen is None:
        raise typer.Exit(EXIT_FINDING)


def _render(found: Explanation) -> None:
    raise NotImplementedError
