"""One expert's bytes for one rank in canonical form: cut from the checkpoint, padded, checked, digested.

This is the plain way, in NumPy: the judge of the native engine, the path without a compiler, and the path of
mistakes that are put back in on purpose. It reads with pread, so a file that shrinks is an error here as well.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shardproof.digest import Digest, bias_digest, matrix_digest
from shardproof.errors import PackError
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel, LayerExperts, Source
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT, SCALE_NAN, Bytes
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

BIAS_FROM = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
BIAS_TO = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def pad_value(name: Field) -> int:
    """What stands in canonical padding: scale byte 127 (1.0), weight and bias bytes 0."""
    return PAD_SCALE if name == "scale" else PAD_WEIGHT


def canonical_expert(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, stack: Stack, name: Field, expert: int,
    *, mistake: Mistake | None = None,
) -> Bytes:  # fmt: skip
    """One expert's padded matrix on a rank in canonical form: uint8 [N, bytes a row], from the checkpoint."""
    shape = plan.shape(key).matrix_shape(stack, name, plan.bias_item)
    matrix = np.full(shape, pad_value(name), dtype=np.uint8)
    cuts = plan.cuts(key, rank, stack, name)
    if mistake is not None and mistake.cuts is not None:
        cuts = mistake.cuts(plan, key, rank, stack, name)
    layer = model.layer(key)
    for cut in cuts:
        rows = read_cut(model, layer, cut, name, expert, plan)
        matrix[cut.at_row : cut.at_row + rows.shape[0], cut.at_column : cut.at_column + rows.shape[1]] = rows
    if mistake is not None and mistake.canonical is not None:
        matrix = mistake.canonical(matrix, stack, name)
    return matrix


def read_cut(model: ExpertModel, layer: LayerExperts, cut: Cut, name: Field, expert: int, plan: Plan) -> Bytes:
    """The bytes of one cut of one expert, uint8 [rows, columns]; biases in the plan's dtype, scales checked for NaN."""
    source = layer.sources[cut.projection, name]
    matrix = _read_rows(model, source, expert, cut.rows)
    if name == "bias":
        numbers = np.ascontiguousarray(matrix).view(BIAS_FROM[source.dtype])
        return np.asarray(numbers.astype(BIAS_TO[plan.recipe.bias_dtype]).view(np.uint8))
    rows = matrix[:, cut.columns[0] : cut.columns[1]]
    if name == "scale" and (rows == SCALE_NAN).any():
        raise _scale_nan(rows, source, layer, cut, expert)
    return rows


def in_files(source: Source) -> bool:
    """Whether a source's bytes stand in the checkpoint's files as it says, and are not put together when asked for."""
    return type(source).matrix is Source.matrix


def _read_rows(model: ExpertModel, source: Source, expert: int, rows: tuple[int, int]) -> Bytes:
    """Rows [first, stop) of one expert's matrix, uint8 [stop - first, row_bytes]."""
    count = min(rows[1], source.rows) - rows[0]
    if count <= 0:
        return np.empty((0, source.row_bytes), dtype=np.uint8)
    if not in_files(source):
        return source.matrix(model.checkpoint, expert)[rows[0] : rows[0] + count]
    begin = int(source.start[expert]) + rows[0] * source.row_stride
    stop = begin + (count - 1) * source.row_stride + source.row_bytes
    data = model.checkpoint.read(int(source.file[expert]), begin, stop)
    return np.lib.stride_tricks.as_strided(data, (count, source.row_bytes), (source.row_stride, 1), writeable=False)


def _scale_nan(rows: Bytes, source: Source, layer: LayerExperts, cut: Cut, expert: int) -> PackError:
    row, block = (int(i[0]) for i in np.nonzero(rows == SCALE_NAN))
    return PackError(
        "pack.scale_nan", "a scale byte is 255, which means NaN", tensor=source.name(expert), layer=layer.key,
        expert=expert, found=f"255 at row {cut.rows[0] + row}, block {cut.columns[0] + block} of {cut.projection}",
        needed="bytes 0..254", next_step="the checkpoint is damaged, or its quantiser met a NaN: quantise it again",
    )  # fmt: skip


def first_held(plan: Plan, key: str, rank: Rank) -> list[bool]:
    """For each of a rank's experts whether no earlier expert-parallel rank holds it: these count in the digest."""
    owners = plan.shape(key).owners
    earlier: set[int] = set().union(*owners[: rank.ep_rank])
    return [expert not in earlier for expert in owners[rank.ep_rank]]


def slot_digest(model: ExpertModel, plan: Plan, key: str, rank: Rank, stack: Stack, name: Field) -> Digest:
    """Digest of a rank's slices of one field, over the experts that this rank is the first to hold."""
    layer, total = model.layer(key), Digest()
    for expert, counts in zip(plan.experts(key, rank), first_held(plan, key, rank), strict=True):
        for cut in plan.cuts(key, rank, stack, name) if counts else ():
            if name == "bias":
                total += _bias(model, layer, cut, expert)
            else:
                matrix = read_cut(model, layer, cut, name, expert, plan)
                where = {"row": cut.rows[0], "column": cut.columns[0]}
                total += matrix_digest(key, expert, cut.projection, name, matrix, **where)
    return total


def _bias(model: ExpertModel, layer: LayerExperts, cut: Cut, expert: int) -> Digest:
    source = layer.sources[cut.projection, "bias"]
    raw = np.ascontiguousarray(_read_rows(model, source, expert, cut.rows))
    numbers: npt.NDArray[np.float32] = raw.view(BIAS_FROM[source.dtype]).astype(np.float32).reshape(-1)
    return bias_digest(layer.key, expert, cut.projection, numbers, row=cut.rows[0])
