"""The typer application: each verb's function, registered under its name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from shardproof import __version__

VERBS = ("inspect", "plan", "explain", "pack", "verify", "diagnose", "demo", "bench", "layouts")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"shardproof {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options before the verb."""


def application(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The application with some of its verbs: a call pays for the modules of its own verb only."""
    app = typer.Typer(
        help="MXFP4 Mixture-of-Experts weights, from checkpoint to kernel: planned, packed, proven, run.",
        epilog="Exit codes: 0 fine, 1 finding, 2 usage or refusal, 130 interrupted.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for verb in verbs:
        module = import_module(f"shardproof.cli.{verb}")
        if verb == "layouts":
            app.add_typer(module.app, name=verb)
        else:
            app.command()(getattr(module, verb))
    return app
