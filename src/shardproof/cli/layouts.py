"""`shardproof layouts ...`: the catalogue of byte orders, and their use on arrays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import typer

from shardproof.cli import show
from shardproof.cli.layout_page import page
from shardproof.cli.options import Json
from shardproof.diagnose.foreign import NOT_NUMPY
from shardproof.errors import EXIT_FINDING, LayoutError
from shardproof.layouts import Layout, Placed, find
from shardproof.layouts.registry import everything
from shardproof.layouts.shown.describe import facts, to_dict
from shardproof.layouts.shown.picture import example_shape
from shardproof.layouts.shown.trace import Shape, canonical_shape, elements_at, locate
from shardproof.mxfp4 import SCALE_NAN, Bytes

app = typer.Typer(help="The catalogue of byte orders that kernels read.", no_args_is_help=True, rich_markup_mode=None)

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="aiter.w16, or an id such as aiter.w16@1.")]
ShapeText: TypeAlias = Annotated[
    str, typer.Option("--shape", metavar="E,N,K", help="K counts values (weight), blocks (scale), bytes (bias).")
]
Params: TypeAlias = Annotated[
    list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the layout; repeatable.")
]
Out: TypeAlias = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write.")]


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """Every layout: name, field, what it is, and what it was held against."""
    rows = [(f"{x.name}@{x.version}", x.field, x.unit, ", ".join(x.held_against), x.summary) for x in everything()]
    data = {"layouts": [to_dict(layout) for layout in everything()]}
    heads = ("layout", "field", "unit", "held against", "what")
    show.emit(as_json, "layouts list", data, lambda: show.table("", heads, rows))


@app.command("show")
def show_one(name: Name, as_json: Json = False) -> None:
    """One layout: its line, padding, conditions, source, evidence and the vendor's known defects."""
    layout, parameters = find(name)
    data = to_dict(layout, parameters)

    def render() -> None:
        show.facts(facts(layout, parameters))
        for defect in layout.defects:
            show.line(f"defect {defect.name}: {defect}")

    show.emit(as_json, "layouts show", data, render)


@app.command()
def address(
    name: Name,
    shape: ShapeText,
    element: Annotated[str, typer.Option("--element", metavar="e,n,k", help="k counts as K does; 0 for a bias.")],
    param: Params = None,
    as_json: Json = False,
) -> None:
    """Where one element is, in canonical bytes and in the kernel's buffer, to the bit."""
    layout, placed, counts = _placed(name, shape, param)
    e, n, k = _three(element, "--element")
    canonical, kernel = locate(layout, placed, (e, n, k))
    data = {
        **_head(layout, placed, counts, param),
        "element": [e, n, k],
        "canonical": [run.to_dict() for run in canonical],
        "kernel": [run.to_dict() for run in kernel],
        "adds": layout.add,
    }

    def render() -> None:
        show.facts([("layout", data["layout"]), ("element", f"e {e}, n {n}, k {k}")])
        show.facts([("canonical", "; ".join(map(str, canonical))), ("kernel   ", "; ".join(map(str, kernel)))])

    show.emit(as_json, "layouts address", data, render)


@app.command()
def at(
    name: Name,
    shape: ShapeText,
    byte: Annotated[int, typer.Option("--byte", metavar="B", help="A byte of the kernel's buffer.")],
    param: Params = None,
    as_json: Json = False,
) -> None:
    """Which elements one byte of the kernel's buffer holds."""
    layout, placed, counts = _placed(name, shape, param)
    found = elements_at(layout, placed, byte)
    data = {
        **_head(layout, placed, counts, param),
        "byte": byte,
        "holds": [{"element": x, "bits": [r.low, r.high], "first": r.first} for x, r in found],
        "pad_value": placed.pad_value,
    }

    def render() -> None:
        show.facts([("layout", data["layout"]), ("byte", f"{byte} of {placed.nbytes}")])
        rows = [
            (f"bits {run.low}-{run.high}", f"padding ({placed.pad_value})" if where is None else _element(where, run))
            for where, run in found
        ]
        show.facts(rows)

    def _element(where: Shape, run: Any) -> str:
        return f"e {where[0]}, n {where[1]}, k {where[2]}, its bits {run.first}-{run.first + run.high - run.low}"

    show.emit(as_json, "layouts at", data, render)


@app.command()
def apply(
    name: Name,
    source: Annotated[Path, typer.Argument(metavar="IN.npy", help="uint8: canonical [E, N, K/2] or [E, N, K/32].")],
    out: Out,
    param: Params = None,
    inverse: Annotated[bool, typer.Option("--inverse", help="From kernel bytes to canonical; needs --shape.")] = False,
    shape: Annotated[str | None, typer.Option("--shape", metavar="E,N,K", help="For --inverse.")] = None,
) -> None:
    """Lay out an array: canonical bytes in, flat kernel bytes out, or the inverse."""
    data = _load(source)
    layout, given = find(name)
    if not inverse:
        if data.ndim != 3:
            raise LayoutError(
                "layout.shape",
                "not a canonical array",
                found=data.shape,
                needed="uint8 [E, N, K bytes]",
                next_step="reshape it to [E, N, K/2] weight bytes or [E, N, K/32] scale bytes",
            )
        _save(out, layout.place(data.shape, {**given, **_parameters(param)}).pack(data))
        return
    if shape is None:
        raise LayoutError(
            "layout.shape",
            "the inverse needs the shape",
            needed="--shape E,N,K",
            next_step="add --shape E,N,K: the shape of the canonical array, K in values",
        )
    layout, placed, _ = _placed(name, shape, param)
    kernel = data.reshape(-1)
    _save(out, placed.unpack(kernel))
    _report_padding(layout, placed, kernel)


@app.command()
def view(
    name: Name,
    out: Out,
    shape: Annotated[str | None, typer.Option("--shape", metavar="E,N,K", help="Default: two small experts.")] = None,
    param: Params = None,
) -> None:
    """Write a page that draws the layout; it opens in any browser and loads nothing."""
    layout, given = find(name)
    parameters = {**given, **_parameters(param)}
    counts = canonical_shape(layout, _three(shape, "--shape")) if shape else example_shape(layout, parameters)
    placed = layout.place(counts, parameters)
    with show.writing(out):
        out.write_text(page(layout, placed, layout.identity(parameters)), encoding="utf-8")
    show.line(f"wrote {out}")


def _report_padding(layout: Layout, placed: Placed, kernel: Bytes) -> None:
    """Padding that another writer left: NaN scales are refused, anything else is a finding."""
    try:
        placed.check_padding(kernel)
    except LayoutError as found:
        wrong = kernel[placed.pack(placed.unpack(kernel)) != kernel]
        if layout.field == "scale" and (wrong == SCALE_NAN).any():
            raise
        sys.stderr.write(f"{found}\n")
        raise typer.Exit(EXIT_FINDING) from None


def _head(layout: Layout, placed: Placed, counts: Shape, param: list[str] | None) -> dict[str, Any]:
    return {
        "layout": layout.identity(_parameters(param)),
        "shape": list(counts),
        "canonical_shape": list(placed.shape),
        "nbytes": placed.nbytes,
    }


def _placed(name: str, shape: str, param: list[str] | None) -> tuple[Layout, Placed, Shape]:
    layout, given = find(name)
    counts = _three(shape, "--shape")
    return layout, layout.place(canonical_shape(layout, counts), {**given, **_parameters(param)}), counts


def _three(text: str, option: str) -> Shape:
    try:
        e, n, k = (int(part) for part in text.split(","))
    except ValueError:
        raise LayoutError(
            "layout.range",
            f"cannot read {option}",
            found=text,
            needed="three numbers: 2,64,128",
            next_step=f"{option} 2,64,128, for example",
        ) from None
    return e, n, k


def _parameters(param: list[str] | None) -> dict[str, int]:
    pairs = {}
    for text in param or []:
        name, equals, value = text.partition("=")
        if not (equals and value.isdecimal()):
            raise LayoutError(
                "layout.parameter",
                "cannot read --param",
                found=text,
                needed="NAME=NUMBER",
                next_step=f"--param {text.partition('=')[0] or 'NAME'}=8, for example",
            )
        pairs[name.strip()] = int(value)
    return pairs


def _load(path: Path) -> Bytes:
    try:
        data = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        found = problem.strerror if isinstance(problem, OSError) else NOT_NUMPY
        raise LayoutError(
            "layout.file",
            "cannot read the array",
            file=path,
            found=found,
            needed=".npy",
            next_step="save it with np.save(PATH, array)",
        ) from None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        found = getattr(data, "dtype", type(data).__name__)
        raise LayoutError(
            "layout.file",
            "not an array of bytes",
            file=path,
            found=found,
            needed="uint8",
            next_step="save the bytes themselves: array.view(np.uint8)",
        )
    return data


def _save(path: Path, data: Bytes) -> None:
    with show.writing(path), path.open("wb") as file:
        np.save(file, data)
    show.line(f"wrote {path}: uint8 {list(data.shape)}")
