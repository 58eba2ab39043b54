"""Biases of one layer of a rank, all experts at once: read together, converted to the plan's dtype, digested."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardproof.digest import Digest, biases_digest
from shardproof.experts import Stack
from shardproof.formats import ExpertModel, Source
from shardproof.mxfp4 import Bytes
from shardproof.pack.matrices import BIAS_FROM, BIAS_TO, first_held
from shardproof.partition import Rank
from shardproof.plan import Plan

_SPARSE = 4  # read together what is at most this much larger than what is needed


def pack_biases(model: ExpertModel, plan: Plan, key: str, rank: Rank, stack: Stack, out: Bytes) -> Digest:
    """Write the biases of one stack (every byte of `out`) and return their digest. Raises CheckpointError."""
    layer, experts = model.layer(key), np.array(plan.experts(key, rank), dtype=np.int64)
    counts = np.array(first_held(plan, key, rank), dtype=bool)
    rows, item = plan.shape(key).matrix_shape(stack, "bias", plan.bias_item)
    matrix = np.zeros((len(experts), rows, item), dtype=np.uint8)
    digest = Digest()
    for cut in plan.cuts(key, rank, stack, "bias"):
        source = layer.sources[cut.projection, "bias"]
        raw = _read(model, source, experts, cut.rows)
        numbers = np.ascontiguousarray(raw).view(BIAS_FROM[source.dtype])[..., 0]
        wanted = np.ascontiguousarray(numbers.astype(BIAS_TO[plan.recipe.bias_dtype]))
        matrix[:, cut.at_row : cut.at_row + numbers.shape[1]] = wanted.view(np.uint8).reshape(*numbers.shape, item)
        held = numbers[counts].astype(np.float32)
        digest += biases_digest(key, experts[counts].tolist(), cut.projection, held, row=cut.rows[0])
    placed = plan.placed(key, rank, stack, "bias")
    placed.fill(out)
    placed.write(matrix, out, 0)
    return digest


def _read(
    model: ExpertModel, source: Source, experts: npt.NDArray[np.int64], rows: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Rows [first, stop) of every expert, uint8 [E, rows, bytes a number]; one read a file where they are close."""
    count = max(0, min(rows[1], source.rows) - rows[0])
    length = (count - 1) * source.row_stride + source.row_bytes if count else 0
    found = np.empty((len(experts), count, source.row_bytes), dtype=np.uint8)
    begins = source.start[experts] + rows[0] * source.row_stride
    for file in sorted(set(source.file[experts].tolist())) if count else ():
        of = np.flatnonzero(source.file[experts] == file)
        first, stop = int(begins[of].min()), int(begins[of].max()) + length
        together = stop - first <= _SPARSE * length * len(of)
        data = model.checkpoint.read(file, first, stop) if together else None
        for i in of.tolist():
            at = int(begins[i])
            part = model.checkpoint.read(int(file), at, at + length) if data is None else data[at - first :]
            found[i] = np.ndarray(found.shape[1:], np.uint8, part, strides=(source.row_stride, 1))
    return found
