"""Unpacking: kernel bytes back to the rows they came from, by the native engine, which reads a layout both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardproof.errors import PackError
from shardproof.layouts import Placed, find
from shardproof.mxfp4 import Bytes
from shardproof.pack import native
from shardproof.pack.native.library import isa
from shardproof.pack.native.run import BUS_ERROR
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.program import Program, inverse

_JOB_BYTES = 1 << 20
_SMALL = 1 << 18  # bytes up to which NumPy is done before a program is compiled
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Packed:
    """One packed tensor and where its rows go: cuts [E, cuts an expert], whose `src` is written; no rows: nowhere."""

    identity: str
    shape: Shape
    kernel: Bytes
    cuts: npt.NDArray[np.void]


def unpack(identity: str, shape: Shape, kernel: Bytes, *, first: int = 0, count: int | None = None) -> Bytes:
    """Canonical bytes uint8 [count, N, K] of experts `first`, `first + 1`, ... (all by default).

    As `Placed.read`, several times faster where the native engine is. Raises LayoutError `layout.size`,
    `layout.shape`, `layout.part` or `layout.value`, PackError `pack.io` for a mapped file that became shorter.
    """
    layout, parameters = find(identity)
    placed = layout.place(shape, parameters)
    count = shape[0] - first if count is None else count
    whole = kernel.shape == (placed.nbytes,) and kernel.dtype == np.uint8 and kernel.flags.c_contiguous
    fits = whole and 0 <= first <= first + count <= shape[0]  # else NumPy's way says what is wrong
    native_here = native.library() is not None and count * shape[1] * shape[2] >= _SMALL
    if not fits or not native_here or inverse(identity, shape, isa=isa()) is None:
        return placed.read(kernel, first, count)
    part = np.empty((count, *shape[1:]), dtype=np.uint8)
    cuts = np.zeros((shape[0], 1), dtype=native.CUT)
    here = cuts[first : first + count, 0]
    here["src"] = part.ctypes.data + np.arange(count) * (shape[1] * shape[2])
    here["stride"], here["rows"], here["bytes"] = shape[2], shape[1], shape[2]
    unpack_tensors([Packed(identity, shape, kernel, cuts)], keep=part)
    return part


def unpack_tensors(tensors: Sequence[Packed], *, threads: int | None = None, keep: object = None) -> None:
    """Write the rows that the tensors' cuts ask for; every layout must have an `inverse`. Raises as `unpack`."""
    made = [_inverse(t) for t in tensors]
    parts = [_jobs(t, m) for t, m in zip(tensors, made, strict=True)]
    jobs = np.concatenate(parts) if parts else np.zeros(0, dtype=native.JOB)
    if not len(jobs):
        return
    owner = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    scratch = max(m.scratch[0] for m in made), max(m.scratch[1] for m in made)
    fault = native.run(jobs, totals=1, columns=1, scratch=scratch, threads=threads, keep=[tensors, made, keep]).fault
    if fault is None:
        return
    if fault.kind != BUS_ERROR:
        tensor = tensors[int(owner[fault.job])]
        _placed(tensor).unpack(tensor.kernel)
    raise PackError(
        "pack.io", "a page of the packed experts could not be read", found=f"bus error at {fault.address:#x}",
        needed="files that stay whole while they are used", next_step="look at the disk, then run again",
    )  # fmt: skip


def _placed(tensor: Packed) -> Placed:
    layout, parameters = find(tensor.identity)
    return layout.place(tensor.shape, parameters)


def _inverse(tensor: Packed) -> Program:
    made = inverse(tensor.identity, tensor.shape, isa=isa())
    assert made is not None, tensor.identity
    return made


def _jobs(tensor: Packed, made: Program) -> npt.NDArray[np.void]:
    """The runs of groups that hold rows somebody asked for, in pieces."""
    cuts = tensor.cuts
    asked = (cuts["rows"] > 0).any(axis=1)
    held = np.concatenate(([0], np.cumsum(np.repeat(asked, tensor.shape[1]))))  # of the rows before each
    last = len(held) - 1
    first = np.minimum(made.first_rows, last)
    wanted = held[np.minimum(made.first_rows + made.span, last)] > held[first]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8))).reshape(-1, 2)
    step = max(1, _JOB_BYTES // max(made.group_bytes, 1))
    begins = [np.arange(begin, end, step) for begin, end in edges.tolist()]
    starts = np.concatenate(begins) if begins else np.zeros(0, np.int64)
    jobs = np.zeros(len(starts), dtype=native.JOB)
    ends = np.repeat(edges[:, 1], [len(b) for b in begins])
    jobs["program"], jobs["cuts"], jobs["dst"] = made.address, cuts.ctypes.data, tensor.kernel.ctypes.data
    jobs["begin"], jobs["end"] = starts, np.minimum(starts + step, ends)
    jobs["cuts_each"], jobs["field"] = cuts.shape[1], FIELDS["bias"]
    return jobs
