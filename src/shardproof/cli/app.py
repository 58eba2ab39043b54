"""The typer application: each verb's function, registered under its name."""

from __future__ import annotations

from typing import Annotated

import typer

from shardproof import __version__
from shardproof.cli.bench import bench
from shardproof.cli.demo import demo
from shardproof.cli.diagnose import diagnose
from shardproof.cli.explain import explain
from shardproof.cli.inspect import inspect
from shardproof.cli.layouts import app as layouts
from shardproof.cli.pack import pack
from shardproof.cli.plan import plan
from shardproof.cli.verify import verify

app = typer.Typer(
    help="MXFP4 Mixture-of-Experts weights, from checkpoint to kernel: planned, packed, proven, run.",
    epilog="Exit codes: 0 fine, 1 finding, 2 usage or refusal, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"shardproof {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options before the verb."""


for verb in (inspect, plan, explain, pack, verify, diagnose, demo, bench):
    app.command()(verb)
app.add_typer(layouts, name="layouts")
