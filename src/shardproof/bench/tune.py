"""Tune: which of our Hopper geometries serves how many tokens, as the table that SHARDPROOF_TUNING reads."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardproof.bench.measure import Inputs, captured, draw, on_gpu, routings
from shardproof.bench.subject import Subject
from shardproof.bench.ways import Way
from shardproof.errors import KernelError

if TYPE_CHECKING:
    import torch

    from shardproof.kernels.cuda.geometry import Build
    from shardproof.kernels.cuda.layer import HopperExperts
    from shardproof.kernels.cuda.tuning import Table


def tune(
    subject: Subject, made: Sequence[Way], tokens: Sequence[int], rounds: int = 15
) -> tuple[dict[str, Table], list[dict[str, Any]]]:
    """The table for this GPU, and every geometry's median us behind it.

    Raises KernelError `kernel.implementation` where the Hopper kernels cannot run.
    """
    import torch

    from shardproof.kernels.cuda.builds import shape_class

    table: Table = {}
    seen: list[dict[str, Any]] = []
    for way in made:
        if way.prepared is None or not way.name.startswith("shardproof_hopper"):
            continue
        layer = _experts(way)
        for precision in _precisions(layer):
            best = []
            for count in sorted(set(tokens)):
                times = _times(subject, layer, precision, count, rounds)
                seen += [{"precision": precision, "tokens": count, "geometry": n, "us": us} for n, us in times.items()]
                best.append((count, min(times, key=times.__getitem__)))
            shape = shape_class(layer.experts, layer.intermediate)
            table[f"{precision} {shape}".strip()] = rows(best, subject.spec.top_k, subject.spec.experts)
    if not table:
        reasons = [f"{w.name}: {w.reason}" for w in made if w.name.startswith("shardproof_hopper")]
        raise KernelError(
            "kernel.implementation", "there is nothing to tune: the Hopper kernels cannot run here",
            found="; ".join(reasons) or "none of them was asked for", needed="an NVIDIA Hopper GPU (sm90)",
            next_step="run this on a machine with such a GPU",
        )  # fmt: skip
    return {torch.cuda.get_device_name(): table}, seen


def rows(best: Sequence[tuple[int, str]], top_k: int, experts: int) -> list[tuple[float | None, str]]:
    """Rows of a table from (tokens, geometry) pairs, ascending.

    Between two batches the boundary is their geometric mean; equal neighbours are one row.
    """
    made: list[tuple[float | None, str]] = []
    for (count, name), following in zip(best, [*best[1:], None], strict=True):
        top = None if following is None else math.sqrt(count * following[0]) * top_k / experts
        if made and made[-1][1] == name:
            made.pop()
        made.append((top, name))
    return made


def held(path: Path) -> dict[str, Table]:
    """The tables that a file holds, none if it is not there. Raises KernelError `kernel.tuning`."""
    from shardproof.kernels.cuda.builds import BUILDS
    from shardproof.kernels.cuda.tuning import read

    return read(path, BUILDS) if path.exists() else {}


def write(path: Path, table: dict[str, Table]) -> None:
    """Write tables into a file; what the file says of other GPUs and precisions stays.

    Raises KernelError `kernel.tuning` where the file holds something else.
    """
    before = held(path)
    after = before | {gpu: {**before.get(gpu, {}), **precisions} for gpu, precisions in table.items()}
    path.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")


def _experts(way: Way) -> HopperExperts:
    from shardproof.kernels.cuda.implementation import layer_of

    assert way.prepared is not None
    return layer_of(way.name, way.prepared.layer, way.prepared.device)


def _precisions(layer: HopperExperts) -> list[str]:
    if layer.precision == "w4a16":
        return ["w4a16"]
    return ["w4a8", "w4a8 exact"] if layer.exact8 else ["w4a8"]


def _times(subject: Subject, layer: HopperExperts, precision: str, tokens: int, rounds: int) -> dict[str, float]:
    """Median us of every geometry that can serve this precision, in turn."""
    import torch

    from shardproof.kernels.cuda.builds import BUILDS

    sets = [draw(subject, tokens, 1000 + i, layer.device) for i in range(routings(tokens))]
    outs = [torch.empty_like(x) for x, _, _ in sets]
    graphs = {
        name: _graph(layer, build, sets, outs)
        for name, build in BUILDS.items()
        if not build.fp8 or precision == "w4a8 exact"
    }
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(on_gpu(graph) / len(sets))
    return {name: statistics.median(values) for name, values in times.items()}


def _graph(
    layer: HopperExperts, build: Build, sets: Sequence[Inputs], outs: Sequence[torch.Tensor]
) -> Callable[[], object]:
    def call() -> None:
        for (x, ids, weights), out in zip(sets, outs, strict=True):
            layer.run(build, x, ids, weights, out)

    return captured(call)
