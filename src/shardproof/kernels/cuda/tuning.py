"""Tuning files: which geometry serves how many tokens an expert, read and refused before a layer chooses by them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardproof.errors import KernelError
from shardproof.kernels.cuda.geometry import Build

Table = dict[str, list[tuple[float | None, str]]]
"""Of one GPU: "PRECISION" or "PRECISION SHAPE" -> rows (most tokens an expert or None for any number, geometry)."""

_WHOLE = ("w4a16", "w4a8 exact")  # their rows are the last that `choose` looks at
_KEYS = tuple(f"{precision}{shape}" for precision in (*_WHOLE, "w4a8") for shape in ("", " few", " short"))


def read(path: Path, builds: Mapping[str, Build]) -> dict[str, Table]:
    """The tables of a file, by the GPU's name; `builds` are the geometries by name.

    Raises KernelError `kernel.tuning` for a file that cannot be read or in which a layer might find no geometry, or
    one that computes something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise _refusal(path, reason.strerror, "a file that can be read") from reason
    except (ValueError, RecursionError) as reason:
        raise _refusal(path, f"no JSON: {reason}", "a JSON object") from reason
    tables = _object(path, "the file", found, "names of GPUs")
    return {gpu: _table(path, gpu, held, builds) for gpu, held in tables.items()}


def _table(path: Path, gpu: str, held: object, builds: Mapping[str, Build]) -> Table:
    table: Table = {}
    for key, rows in _object(path, f'"{gpu}"', held, ", ".join(_KEYS)).items():
        where = f'"{key}" of "{gpu}"'
        if key not in _KEYS:
            raise _refusal(path, where, f"one of {', '.join(_KEYS)}")
        if not isinstance(rows, list):
            raise _refusal(path, f"{where} is {_shown(rows)}", "a list of rows")
        can = [name for name, build in builds.items() if not build.fp8 or key.startswith("w4a8 exact")]
        table[key] = [_row(path, f"row {n} of {where}", row, can) for n, row in enumerate(rows, 1)]
        _check_order(path, key, where, [top for top, _ in table[key]])
    return table


def _row(path: Path, where: str, row: object, can: list[str]) -> tuple[float | None, str]:
    if not isinstance(row, list) or len(row) != 2:
        raise _refusal(path, f"{where} is {_shown(row)}", "[most tokens an expert or null, geometry]")
    top, name = row
    number = isinstance(top, int | float) and not isinstance(top, bool) and 0 < top < float("inf")
    if top is not None and not number:
        raise _refusal(path, f"{where} is for {_shown(top)} tokens an expert", "a number above 0, or null for any")
    if name not in can:
        raise _refusal(path, f"{where} names {_shown(name)}", f"a geometry for these products: {', '.join(can)}")
    return top, name


def _check_order(path: Path, key: str, where: str, tops: list[float | None]) -> None:
    if key in _WHOLE and (not tops or tops[-1] is not None):
        last = f"ends at {tops[-1]} tokens an expert" if tops else "has no rows"
        raise _refusal(path, f"{where} {last}", "a last row with null, for any number of tokens")
    bounds = [float("inf") if top is None else top for top in tops]
    if any(low >= high for low, high in itertools.pairwise(bounds)):
        raise _refusal(path, f"{where} is for {json.dumps(tops)} tokens an expert", "ascending numbers, null the last")


def _object(path: Path, what: str, found: object, keys: str) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    raise _refusal(path, f"{what} is {_shown(found)}", f"a JSON object; its keys are {keys}")


def _shown(found: object) -> str:
    text = json.dumps(found, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refusal(path: Path, found: str | None, needed: str) -> KernelError:
    return KernelError(
        "kernel.tuning", "the tuning file cannot be used", file=path, found=found, needed=needed,
        next_step="correct the file, or measure another one with `shardproof bench --shape dsv4 --tune NEW.json`",
    )  # fmt: skip
