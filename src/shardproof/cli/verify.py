"""`shardproof verify OUT --against CKPT`: prove every packed byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from shardproof.api import open_model
from shardproof.cli import show
from shardproof.cli.options import FormatName, Json
from shardproof.errors import EXIT_FINDING
from shardproof.verify import Proof
from shardproof.verify import verify as prove


def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Packed folder.")],
    against: Annotated[str, typer.Option("--against", metavar="CKPT", help="The checkpoint it was packed from.")],
    format_name: FormatName = None,
    as_json: Json = False,
) -> None:
    """Compare every byte of every packed rank with the checkpoint; name the mistake where one is known."""
    model = open_model(against, format=format_name)
    with show.progress("verifying", quiet=as_json) as step:
        proof = prove(out, model, report=lambda rank, layer, done, total: step(done, total, f"rank {rank} {layer}"))
    show.emit(as_json, "verify", proof.to_dict(), lambda: _render(proof))
    if not proof.ok:
        raise typer.Exit(EXIT_FINDING)


def _render(proof: Proof) -> None:
    for statement in proof.statements:
        show.line(f"cover: {statement}")
    by_tensor = sorted(proof.differences, key=lambda d: (_natural(d.tensor), d.rank))
    show.first_of_each_kind(by_tensor, lambda difference: difference.mistake)
    held, missing = len(proof.ranks), len(proof.missing)
    of = f"{held} of {held + missing} ranks" if missing else show.counted(held, "rank")
    ranks = f"{of}, {show.size(proof.bytes_compared)}"
    if missing:
        show.line(f"not packed, so not compared: ranks {', '.join(map(str, proof.missing))}", style="yellow")
    if proof.ok:
        show.line(f"every byte is right: {ranks} compared, digest {proof.digest or '(not all ranks)'}", style="green")
    else:
        wrong = ", ".join(map(str, sorted({difference.rank for difference in proof.differences})))
        differ = "1 tensor differs" if len(proof.differences) == 1 else f"{len(proof.differences)} tensors differ"
        show.line(f"WRONG: {differ}, on ranks {wrong} ({ranks} compared)", "bold red")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which layers.9 stands before layers.10."""
    return [(int(part or 0), other) for other, part in re.findall(r"(\D+)(\d*)", name)]
