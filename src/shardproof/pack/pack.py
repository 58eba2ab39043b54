"""Pack: executes a plan. Moves bytes from the mapped checkpoint straight to their final places, layer by layer.

All ranks of a layer are packed together, so each byte of the checkpoint is read once whatever their number. Memory is
the output (files, or the caller's buffers) and a scratch of a few rows a thread.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shardproof.arguments import check_function, expect, path_of, thread_count, whole_number
from shardproof.checkpoint import MappedReader, Reader, open_reader
from shardproof.digest import Digest
from shardproof.errors import PackError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel, check_model
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import Bytes
from shardproof.pack.journal import Unit
from shardproof.pack.layer import check_plan, layer_spans, pack_ranks
from shardproof.pack.memory import arena
from shardproof.pack.native.run import default_threads
from shardproof.pack.output import Output
from shardproof.pack.progress import Meter, Progress, Report
from shardproof.pack.worker import Worker
from shardproof.packed import PackedExperts, PackedLayer
from shardproof.partition import Rank
from shardproof.plan import Plan

log = logging.getLogger("shardproof.pack")


def pack(
    model: ExpertModel,
    plan: Plan,
    out: str | Path,
    *,
    rank_indices: Sequence[int] | None = None,
    report: Report | None = None,
    threads: int | None = None,
    worker: Worker | None = None,
    reader: Reader | str | None = None,
    mistake: Mistake | None = None,
) -> dict[int, Digest]:
    """Pack ranks (all by default) into a folder and return their digests.

    The folder appears complete or not at all: work happens beside it under a temporary name, and a run that was
    interrupted or killed is taken up where it was. A folder that holds these ranks of this very plan already is left
    as it is; more ranks of the same plan are added to it.

    threads   cores by default (OMP_NUM_THREADS, affinity and cgroup quota are obeyed)
    worker    this process's share of ranks and layers where several pack together (`Worker.from_environment`); all of
              them need the same `out` on one host. A worker that is done before others of its host returns {}.
    reader    who brings the bytes, or its name (`shardproof.checkpoint.readers`); mapped files by default
    mistake   puts a known mistake back in, for tests and the demo only

    Raises PackError `pack.plan`, `pack.not_empty`, `pack.mount_point`, `pack.stale`, `pack.disk_full`, `pack.rank`,
    `pack.scale_nan` or `pack.io`, PackedError `packed.damaged` where a packed folder that is packed again lost
    its content, CheckpointError `checkpoint.changed`, `checkpoint.reader`, `checkpoint.reader_missing` or
    `checkpoint.reader_failed`, LayoutError `layout.value`, FormatError `format.model` for a path instead of a model,
    ArgumentError.
    """
    threads, out = _checked(model, plan, threads), path_of("output", out)
    check_function("report", report)
    if isinstance(reader, str):
        reader = open_reader(reader, model.checkpoint)
    if reader is not None:
        expect("reader", reader, Reader, "give a reader's name, or leave it out")  # type: ignore[type-abstract]
    share = expect("worker", worker or Worker(), Worker, "Worker.from_environment() makes one")
    indices = share.ranks(_indices(plan, rank_indices))
    variant = f"mistake {mistake.name}" if mistake else ""
    held = Output(out, plan, model.checkpoint, indices, variant).held()
    missing = [i for i in indices if i not in held]
    if not missing:
        log.info("%s holds these ranks already", out)
        return {i: held[i] for i in indices}
    output = Output(out, plan, model.checkpoint, missing, variant)
    try:
        with output.begun() as done:
            run = _Run(model, plan, output, threads or share.threads(default_threads()), report, mistake)
            run.layers(share.layers(list(plan.layers)), done, reader)
            model.checkpoint.check_all_unchanged()
            packed = output.publish()
    except PackError as reason:
        packed = output.held()
        if reason.code != "pack.io" or not packed.keys() >= set(missing):
            raise
        log.info("another process has packed these ranks into %s meanwhile", out)  # the part folder went with it
    return {} if packed is None else {i: {**held, **packed}[i] for i in indices}


def _checked(model: ExpertModel, plan: Plan, threads: int | None, key: str | None = None) -> int | None:
    """The number of threads, where model and plan are what they should be and belong together."""
    check_model(model)
    expect("plan", plan, Plan, "make one: shardproof.make_plan(model, recipe, ...)")
    check_plan(model, plan, key)
    return thread_count(threads)


def checked_rank(model: ExpertModel, plan: Plan, rank: Rank, threads: int | None, key: str | None = None) -> int | None:
    """The number of threads, where model, plan and rank are what they should be and belong together.

    Raises PackError `pack.plan` or `pack.rank`, PartitionError `plan.layer`, FormatError `format.model`, ArgumentError.
    """
    threads = _checked(model, plan, threads, key)
    if expect("rank", rank, Rank, "take it from the plan: plan.ranks[0]") not in plan.ranks:
        raise PackError(
            "pack.rank", "the rank is of another plan", rank=rank, needed=f"one of tp {plan.tp} x ep {plan.ep}",
            next_step="take it from this plan: plan.ranks[0]",
        )  # fmt: skip
    return threads


def _indices(plan: Plan, asked: Sequence[int] | None) -> list[int]:
    if asked is None:
        return list(range(len(plan.ranks)))
    expect("rank_indices", asked, Iterable, "give a list, for instance [0, 1]")  # type: ignore[type-abstract]
    indices = list(dict.fromkeys(whole_number("a rank index", index) for index in asked))
    if not indices:
        raise PackError(
            "pack.rank", "no rank was named", found="an empty list", needed=f"some of 0..{len(plan.ranks) - 1}",
            next_step="name ranks, or leave rank_indices out to pack all",
        )  # fmt: skip
    for index in indices:
        if not 0 <= index < len(plan.ranks):
            raise PackError(
                "pack.rank", "no such rank", rank=index, needed=f"0..{len(plan.ranks) - 1}",
                next_step=f"name one of these, or plan for more ranks than tp {plan.tp} x ep {plan.ep}",
            )  # fmt: skip
    return indices


class _Run:
    """One run of `pack`: what stays the same from layer to layer, and the counts for the progress line."""

    def __init__(
        self, model: ExpertModel, plan: Plan, output: Output, threads: int, report: Report | None,
        mistake: Mistake | None,
    ) -> None:  # fmt: skip
        self._model, self._plan, self._output = model, plan, output
        self._threads, self._report, self._mistake = threads, report, mistake
        self._meter = Meter(threads, into_files=True)
        self._total = sum(plan.rank_bytes(plan.ranks[i]) for i in output.indices)
        self._done = self._packed = 0

    def layers(self, keys: Sequence[str], done: Mapping[Unit, Digest], reader: Reader | None) -> None:
        """Pack what is not done yet of the given layers."""
        maps = {index: self._output.map(index) for index in self._output.indices}
        todo = {key: [i for i in maps if (key, i) not in done] for key in keys}
        self._done = sum(self._size(key, i) for key, i in done if i in maps)
        if self._done:
            log.info(
                "taking up an interrupted run: %.1f of %.1f GB are packed",
                self._done / 1e9,
                self._total / 1e9,
            )
        todo = {key: ranks for key, ranks in todo.items() if ranks}
        spans = {key: layer_spans(self._model, self._plan, key, self._ranks(ranks)) for key, ranks in todo.items()}
        reader = reader or MappedReader(self._model.checkpoint, [s for part in spans.values() for s in part])
        for key, following in itertools.pairwise([*todo, None]):
            assert key is not None
            reader.ahead(spans[following] if following else [])
            outs = {self._plan.ranks[i]: maps[i].layer(key) for i in todo[key]}
            digests = pack_ranks(
                self._model,
                self._plan,
                key,
                outs,
                reader=reader,
                threads=self._threads,
                mistake=self._mistake,
                fresh=True,
            )
            self._output.complete(key, {rank.index: digest for rank, digest in digests.items()})
            for index in todo[key]:
                maps[index].release(key)
            self._tell(key, todo[key])

    def _tell(self, key: str, indices: Sequence[int]) -> None:
        limit = self._meter.limit()
        for index in indices:
            size = self._size(key, index)
            self._done, self._packed = self._done + size, self._packed + size
            if self._report:
                rank = self._plan.ranks[index]
                seconds = self._meter.seconds
                self._report(Progress(rank, key, self._done, self._total, seconds, self._packed, limit))

    def _ranks(self, indices: Sequence[int]) -> list[Rank]:
        return [self._plan.ranks[i] for i in indices]

    def _size(self, key: str, index: int) -> int:
        rank = self._plan.ranks[index]
        return sum(self._plan.placed(key, rank, *slot).nbytes for slot in self._plan.fields(key))


def pack_in_memory(
    model: ExpertModel,
    plan: Plan,
    rank: Rank,
    *,
    threads: int | None = None,
    huge_pages: bool | None = None,
    mistake: Mistake | None = None,
) -> PackedExperts:
    """Pack one rank into fresh memory instead of a file; same bytes, same errors.

    `huge_pages`: see `shardproof.pack.memory`; None decides by the memory that is free.
    """
    threads = checked_rank(model, plan, rank, threads)
    layers, digest = {}, Digest()
    for key in plan.layers:
        sizes = {slot: plan.placed(key, rank, *slot).nbytes for slot in plan.fields(key)}
        packed = arena(sizes, huge_pages=huge_pages)
        digest += pack_ranks(model, plan, key, {rank: packed}, threads=threads, mistake=mistake, fresh=True)[rank]
        layers[key] = PackedLayer(key, rank, plan, packed)
    return PackedExperts(plan, rank, layers, digest)


def pack_layer(
    model: ExpertModel,
    plan: Plan,
    key: str,
    rank: Rank,
    out: Mapping[tuple[Stack, Field], Bytes],
    *,
    threads: int | None = None,
    mistake: Mistake | None = None,
) -> Digest:
    """Pack one layer of one rank into caller's buffers (flat uint8, every byte is written).

    Any writable memory will do: a NumPy array, `torch_tensor.numpy()` (pinned or not), shared memory, a mapped file.
    Returns the digest of the experts that this rank is the first to hold, so that ranks add up to the model.
    Raises PackError `pack.plan`, `pack.buffer`, `pack.rank`, `pack.scale_nan` or `pack.io`, PartitionError
    `plan.layer`, CheckpointError `checkpoint.changed`, FormatError `format.model`, ArgumentError.
    """
    threads = checked_rank(model, plan, rank, threads, key)
    return pack_ranks(model, plan, key, {rank: out}, threads=threads, mistake=mistake)[rank]
