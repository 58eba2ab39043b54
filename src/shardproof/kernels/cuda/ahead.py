"""Compiling the layer kernels before they are called: NVRTC needs no GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import TYPE_CHECKING

from shardproof.errors import BackendError
from shardproof.kernels.cuda.builds import BUILDS, tables
from shardproof.kernels.cuda.compile import KINDS, machine_code
from shardproof.kernels.cuda.geometry import Build

if TYPE_CHECKING:
    from shardproof.experts import ActivationKind


def geometries() -> list[Build]:
    """The geometries that a row of any GPU's tuning table names."""
    named = {name for precisions in tables().values() for rows in precisions.values() for _, name in rows}
    return [build for name, build in BUILDS.items() if name in named]


def compile_ahead(activation: ActivationKind, threads: int | None = None) -> Iterator[tuple[str, float]]:
    """Compile all geometries of an activation into `compile.cache_folder()`, those that take longest first.

    Yields (geometry, seconds) as they are done; one that is there already takes next to nothing. `threads` defaults
    to the cores that this process may use. Raises BackendError `backend.compile`, also where cuda-bindings or NVRTC
    is missing.
    """
    try:
        from cuda.bindings import nvrtc  # noqa: F401
    except ImportError as e:
        raise BackendError(
            "backend.compile", "the kernels cannot be compiled here", found=str(e), needed="cuda-bindings and NVRTC",
            next_step="install shardproof[cuda]",
        ) from e  # fmt: skip
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:  # NVRTC lets other threads run
        longest = sorted(geometries(), key=lambda b: -sum(b.widths))
        pending = [pool.submit(_compile, replace(build, activation=KINDS[activation])) for build in longest]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            for each in pending:
                each.cancel()


def _compile(build: Build) -> tuple[str, float]:
    start = time.perf_counter()
    for entry in ("many.cu" if build.many else "moe.cu", "route.cu"):
        machine_code(entry, build)
    return build.name, time.perf_counter() - start
