"""`shardproof bench`: one layer run by every implementation that is here, checked and timed in turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardproof.cli import show
from shardproof.cli.options import Json, With, layer_key, read_range
from shardproof.errors import EXIT_FINDING, PackedError

if TYPE_CHECKING:
    from shardproof.bench import Row, Subject, Way

SHAPE_NAMES = "dsv4[tp8|ep8] or gptoss[tp8|ep8]"


def bench(
    packed: Annotated[Path | None, typer.Argument(metavar="PACKED", help="A packed folder.")] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="NAME", help=f"Random weights instead: {SHAPE_NAMES}.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="cpu|cuda", help="Default: cuda if any.")] = None,
    tokens: Annotated[str, typer.Option("--tokens", metavar="1,4,16", help="Tokens a call.")] = "1,4,16,64,256",
    implementations: Annotated[
        str | None,
        typer.Option("--implementations", metavar="A,B", help="Only these; default: all but the reference."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=0, help="Rank of the packed folder.")] = 0,
    layer: Annotated[str | None, typer.Option("--layer", metavar="L", help="Layer; default: the first.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Timed rounds.")] = 15,
    tune: Annotated[
        Path | None,
        typer.Option("--tune", metavar="FILE", help="Write our geometries' best as a tuning table."),
    ] = None,
    compile_only: Annotated[
        bool, typer.Option("--compile", help="Only compile our Hopper kernels into their cache; needs no GPU.")
    ] = False,
    packages: With = None,
    as_json: Json = False,
) -> None:
    """Time one MoE layer with our kernels and every installed rival, each checked against the reference."""
    if compile_only:
        _compile(packed, shape, rank, layer, as_json)
        return
    import torch

    from shardproof.bench import measure, ways
    from shardproof.bench.ways import check_device

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(where)
    subject = _subject(packed, shape, rank, layer)
    counts = read_range(tokens, "--tokens", least=1)
    made = ways(subject, where, implementations.split(",") if implementations else None, packages or ())
    if tune is not None:
        with show.writing(tune):
            _tune(subject, made, counts, rounds, tune, as_json)
        return
    rows = [row for count in counts for row in measure(subject, made, count, device=where, rounds=rounds)]
    name = torch.cuda.get_device_name() if where != "cpu" else "cpu"
    refused = {way.name: way.reason for way in made if way.reason}
    data = {
        "subject": subject.name, "device": name, "torch": torch.__version__, "refused": refused,
        "rows": [row.to_dict() for row in rows],
    }  # fmt: skip
    show.emit(as_json, "bench", data, lambda: _render(subject, name, rows, refused))
    if not rows or not all(row.ok for row in rows):
        raise typer.Exit(EXIT_FINDING)


def _subject(packed: Path | None, shape: str | None, rank: int, layer: str | None) -> Subject:
    from shardproof.bench import SHAPES, Subject

    if packed is not None and shape is None:
        return Subject.packed(packed, rank, layer_key(layer))
    if packed is None and shape in SHAPES:
        return Subject.random(shape, *SHAPES[shape])
    named = [f"{what} {value}" for what, value in (("PACKED", packed), ("--shape", shape)) if value is not None]
    raise PackedError(
        "packed.subject", "there are two layers to bench" if len(named) == 2 else "there is nothing to bench",
        found=" and ".join(named) or "neither", next_step="name one of these",
        needed=f"a packed folder, or --shape with one of {', '.join(SHAPES)}",
    )  # fmt: skip


def _compile(packed: Path | None, shape: str | None, rank: int, layer: str | None, as_json: bool) -> None:
    from shardproof.bench import SHAPES
    from shardproof.kernels.cuda.ahead import compile_ahead, geometries
    from shardproof.kernels.cuda.compile import cache_folder

    spec = SHAPES[shape][0] if packed is None and shape in SHAPES else _subject(packed, shape, rank, layer).spec
    seconds: dict[str, float] = {}
    with show.counting("compiling", len(geometries()), quiet=as_json) as count:
        for name, took in compile_ahead(spec.activation.kind):
            seconds[name] = round(took, 3)
            count(name)
    data = {"folder": str(cache_folder()), "activation": spec.activation.kind, "seconds": seconds}

    def render() -> None:
        count = f"{len(seconds)} geometr{'y' if len(seconds) == 1 else 'ies'}"
        show.line(f"{count} for {spec.activation.kind}, {sum(seconds.values()):.1f} s of compiling")
        show.line(f"kept in {data['folder']}; SHARDPROOF_CACHE names another folder", style="bold green")

    show.emit(as_json, "bench", data, render)


def _tune(subject: Subject, made: list[Way], counts: list[int], rounds: int, path: Path, as_json: bool) -> None:
    from shardproof.bench.tune import held, tune, write

    held(path)  # refused now and not after minutes of measuring
    table, seen = tune(subject, made, counts, rounds)
    write(path, table)

    def render() -> None:
        cells: list[list[Any]] = [[r["precision"], r["tokens"], r["geometry"], f"{r['us']:.1f}"] for r in seen]
        show.table(subject.name, ("precision", "tokens", "geometry", "us"), cells, numbers=(1, 3))
        show.line(f"written to {path}; use it with SHARDPROOF_TUNING={path}", style="bold green")

    show.emit(as_json, "bench", {"subject": subject.name, "table": table, "seen": seen, "file": path}, render)


def _render(subject: Subject, device: str, rows: list[Row], refused: dict[str, str]) -> None:
    spec = subject.spec
    sizes = f"{spec.experts} experts of [{spec.intermediate}, {spec.hidden}], {spec.activation}"
    show.facts(
        [
            ("layer", f"{subject.name}: {sizes}"),
            ("ranks", f"rank {subject.rank} of tp {subject.tp} x ep {subject.ep}"),
            ("device", device),
        ]
    )
    cells = [
        [
            row.tokens, row.name, f"{row.us:.1f}", f"{row.best:.1f}", f"{row.gb_s:.1f}",
            "" if row.to_rival is None else f"{row.to_rival:.2f}", f"{row.error:.1e}", "" if row.ok else "WRONG",
            row.mode,
        ]
        for row in rows
    ]  # fmt: skip
    columns = ("tokens", "implementation", "us", "best", "GB/s", "rival/ours", "error", "", "mode")
    title = "Medians of rounds in which every implementation takes its turn"
    show.table(title, columns, cells, numbers=(0, 2, 3, 4, 5))
    for name, reason in refused.items():
        show.line(f"not run: {name}: {reason}", style="dim")
