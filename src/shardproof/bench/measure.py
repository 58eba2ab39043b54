"""Times of every way in turn, each checked against the judge first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from shardproof.bench.subject import Subject
from shardproof.bench.ways import Way

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.moe import PreparedLayer

BOUNDS = {"float32": 1e-5, "int16": 2e-3, "bfloat16": 2e-2, "int8": 6e-2, "fp8": 8e-2, "": 1e-5}
"""Largest relative l2 error against the judge, whose activations are not rounded, by dtype of activations."""
CHECKED = 48
"""Tokens of a batch that are checked at most."""

Inputs = tuple["Tensor", "Tensor", "Tensor"]


@dataclass(frozen=True)
class Row:
    """One way at one number of tokens. Times are us of a whole layer call, from ids to the reduced output.

    us, best  median and least over all rounds
    error     relative l2 error against the judge, on up to 48 tokens; `ok` says whether it is within BOUNDS
    gb_s      bytes of the experts that tokens were routed to, a second
    to_rival  the best rival's median over this one's; None for rivals and where there is none
    mode      "graph" (a CUDA graph of several routings) or "eager"
    """

    tokens: int
    name: str
    own: bool
    us: float
    best: float
    error: float
    ok: bool
    gb_s: float
    mode: str
    to_rival: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def routings(tokens: int) -> int:
    """Different routings that are run back to back, so that weights are cold."""
    return 8 if tokens <= 64 else 4 if tokens <= 1024 else 2


def draw(subject: Subject, tokens: int, seed: int, device: torch.device) -> Inputs:
    """Tokens bf16 [M, H], ids int32 [M, k] (of this rank's experts, all different), weights float32 [M, k]."""
    import torch

    made = torch.Generator(device=device).manual_seed(seed)
    held = torch.tensor(subject.experts, device=device)
    top_k = min(subject.spec.top_k, len(held))
    chosen = torch.rand(tokens, len(held), device=device, generator=made).topk(top_k, dim=1).indices
    weights = torch.rand(tokens, top_k, device=device, generator=made) + 0.1
    x = torch.randn(tokens, subject.spec.hidden, device=device, generator=made).bfloat16()
    return x, held[chosen].int().contiguous(), (weights / weights.sum(1, keepdim=True)).contiguous()


def measure(subject: Subject, made: Sequence[Way], tokens: int, *, device: str = "cpu", rounds: int = 15) -> list[Row]:
    """One row a way that is not refused, timed in turn: every round visits each of them once."""
    import torch

    there = torch.device(device)
    sets = [draw(subject, tokens, 1000 + i, there) for i in range(routings(tokens))]
    errors = _errors(subject, made, sets[0], there)
    runs = {way.name: _repeat(way.prepared, sets) for way in made if way.prepared is not None}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (call, _mode) in runs.items():
            times[name].append(_once(call, there) / len(sets))
    touched = statistics.mean(len(set(ids.flatten().tolist())) for _, ids, _ in sets)
    rows = []
    rivals = [statistics.median(times[way.name]) for way in made if way.name in times and not way.own]
    for way in made:
        if way.name not in times:
            continue
        us, bound = statistics.median(times[way.name]), BOUNDS[way.activation_dtype]
        rows.append(
            Row(
                tokens, way.name, way.own, us, min(times[way.name]), errors[way.name], errors[way.name] <= bound,
                touched * subject.expert_bytes / us / 1e3, runs[way.name][1],
                min(rivals) / us if way.own and rivals else None,
            )
        )  # fmt: skip
    return rows


def _errors(subject: Subject, made: Sequence[Way], given: Inputs, device: torch.device) -> dict[str, float]:
    import torch

    x, ids, weights = given
    rows = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(0))[:CHECKED].to(device)
    judge = subject.judge(device)
    wanted = judge(x[rows].float(), ids[rows], weights[rows]).double()
    found = {}
    for way in made:
        if way.prepared is not None:
            difference = way.prepared.partial(x, ids, weights)[rows].double() - wanted
            found[way.name] = float(difference.norm() / wanted.norm())
    return found


def _repeat(layer: PreparedLayer, sets: Sequence[Inputs]) -> tuple[Callable[[], object], str]:
    """All routings as one call: a CUDA graph where it can be captured."""

    def eager() -> list[Tensor]:
        return [layer(*given) for given in sets]

    eager()
    if layer.device.type == "cpu":
        return eager, "eager"
    try:
        return captured(eager), "graph"
    except RuntimeError:
        eager()
        return eager, "eager"


@cache
def _side_stream() -> torch.cuda.Stream:
    import torch

    made: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return made


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """`call` as a CUDA graph, replayed once. It is warmed up on the stream that it is captured on.

    A layer's working memory belongs to its stream: all captures are on one stream and share it.
    """
    import torch

    side = _side_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kept = call()
    graph.replay()
    torch.cuda.synchronize()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def _once(call: Callable[[], object], device: torch.device) -> float:
    """One call in us."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    return on_gpu(call)


def on_gpu(call: Callable[[], object]) -> float:
    """One call on the current GPU's stream in us."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3
