"""`shardproof diagnose DUMP --against CKPT`: what foreign tensors are, where they are wrong, and why."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from shardproof.api import main_spec, open_model
from shardproof.backends import Recipe, check_gate_mode
from shardproof.cli import show
from shardproof.cli.options import (
    FormatName,
    GateModeName,
    Json,
    PlacementName,
    With,
    read_placement,
    read_policy,
)  # fmt: skip
from shardproof.diagnose.api import diagnose as examine
from shardproof.diagnose.backend import recipe_of
from shardproof.formats import ExpertModel


def diagnose(
    dump: Annotated[
        Path, typer.Argument(metavar="DUMP", help="Tensors of one or more layers: safetensors, .npz, .npy, .pt.")
    ],
    against: Annotated[str, typer.Option("--against", metavar="CKPT", help="The checkpoint they should come from.")],
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="L", help="Layer; default: named or recognised.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="R", help="Rank among tp * ep, TP fastest; needs --tp.", min=0)
    ] = None,
    tp: Annotated[int | None, typer.Option("--tp", metavar="N", help="Tensor-parallel ranks.", min=1)] = None,
    ep: Annotated[int | None, typer.Option("--ep", metavar="M", help="Expert-parallel ranks.", min=1)] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="balanced|ceil", help="Default: recognised.")
    ] = None,
    placement: PlacementName = "linear",
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", help="Who reads the tensors; default: the order that is found."),
    ] = None,
    gate_mode: GateModeName = None,
    platform: Annotated[
        str | None,
        typer.Option("--platform", metavar="KIND[:ARCH]", help="Where it runs; default: the first that it runs on."),
    ] = None,
    packages: With = None,
    format_name: FormatName = None,
    as_json: Json = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE", help="Write a report without weights.")
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option("--repair", metavar="OUT", help="Write the tensors as the backend needs them."),
    ] = None,
) -> None:
    """Say what tensors that an engine laid out are, where they are wrong, and which known mistake explains it."""
    if backend is None and (gate_mode or platform or packages):
        raise typer.BadParameter("it says nothing without --backend", param_hint="--gate-mode, --platform, --with")
    model = open_model(against, format=format_name)
    with ExitStack() as outputs:
        for path in filter(None, (bundle, repair)):
            outputs.enter_context(show.writing(path))
        found = examine(
            dump, model, layer=layer, rank=rank, tp=tp, ep=ep, policy=read_policy(policy) if policy else None,
            placement=read_placement(placement), recipe=_recipe(model, backend, platform, packages, gate_mode, tp, ep),
            repair=repair,
        )  # fmt: skip
        if bundle is not None:
            found.bundle(bundle)
    show.emit(as_json, "diagnose", found.to_dict(), lambda: show.line(found.text(show.SHOWN, show.more)))
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _recipe(
    model: ExpertModel,
    backend: str | None,
    platform: str | None,
    packages: list[str] | None,
    gate_mode: str | None,
    tp: int | None,
    ep: int | None,
) -> Recipe | None:
    if backend is None:
        return None
    return recipe_of(
        backend,
        main_spec(model),
        platform=platform,
        packages=packages or (),
        gate_mode=check_gate_mode(gate_mode),
        tp=tp or 1,
        ep=ep or 1,
    )
