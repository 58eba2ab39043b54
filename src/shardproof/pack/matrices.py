"""One expert's bytes for one rank in canonical form: cut from the mapped checkpoint, padded, checked, digested."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shardproof.digest import Digest, bias_digest, blocks_digest
from shardproof.errors import PackError
from shardproof.experts import STACKS, Field, Stack
from shardproof.formats import ExpertModel, LayerExperts, Source
from shardproof.mistakes import Mistake
from shardproof.mxfp4 import PAD_SCALE, PAD_WEIGHT, SCALE_NAN, Bytes
from shardproof.partition import Rank
from shardproof.plan import Cut, Plan

_BIAS_FROM = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def canonical_expert(
    model: ExpertModel, plan: Plan, key: str, rank: Rank, stack: Stack, name: Field, expert: int,
    *, mistake: Mistake | None = None,
) -> Bytes:  # fmt: skip
    """One expert's padded matrix on a rank in canonical form: uint8 [N, bytes a row], from the mapped checkpoint."""
    shape = plan.shape(key).matrix_shape(stack, name, plan.bias_item)
    matrix = np.full(shape, PAD_SCALE if name == "scale" else PAD_WEIGHT, dtype=np.uint8)
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
    matrix = source.matrix(model.checkpoint, expert)[cut.rows[0] : cut.rows[1]]
    if name == "bias":
        numbers = np.ascontiguousarray(matrix).view(_BIAS_FROM[source.dtype])
        wanted = np.float32 if plan.recipe.bias_dtype == "float32" else ml_dtypes.bfloat16
        return np.asarray(numbers.astype(wanted).view(np.uint8))
    rows = matrix[:, cut.columns[0] : cut.columns[1]]
    if name == "scale" and (rows == SCALE_NAN).any():
        raise _scale_nan(rows, source, layer, cut, expert)
    return rows


def _scale_nan(rows: Bytes, source: Source, layer: LayerExperts, cut: Cut, expert: int) -> PackError:
    row, block = (int(i[0]) for i in np.nonzero(rows == SCALE_NAN))
    return PackError(
        "pack.scale_nan", "a scale byte is 255, which means NaN", tensor=source.name(expert), layer=layer.key,
        expert=expert, found=f"255 at row {cut.rows[0] + row}, block {cut.columns[0] + block} of {cut.projection}",
        needed="bytes 0..254", next_step="the checkpoint is damaged, or its quantiser met a NaN: quantise it again",
    )  # fmt: skip


def layer_digest(model: ExpertModel, plan: Plan, layer: LayerExperts, rank: Rank) -> Digest:
    """Digest of a rank's slices of the experts that it is the first expert-parallel rank to hold."""
    owners = plan.shape(layer.key).owners
    earlier = set().union(*owners[: rank.ep_rank])
    total = Digest()
    for expert in plan.experts(layer.key, rank):
        if expert in earlier:
            continue
        for stack in STACKS:
            weights = {c.projection: c for c in plan.cuts(layer.key, rank, stack, "weight")}
            scales = {c.projection: c for c in plan.cuts(layer.key, rank, stack, "scale")}
            for projection, cut in weights.items():
                blocks = scales[projection]
                total += blocks_digest(
                    layer.key, expert, projection,
                    read_cut(model, layer, cut, "weight", expert, plan),
                    read_cut(model, layer, blocks, "scale", expert, plan),
                    row=cut.rows[0], block=blocks.columns[0],
                )  # fmt: skip
            if layer.spec.bias:
                for cut in plan.cuts(layer.key, rank, stack, "bias"):
                    total += _bias(model, layer, cut, expert)
    return total


def _bias(model: ExpertModel, layer: LayerExperts, cut: Cut, expert: int) -> Digest:
    source = layer.sources[cut.projection, "bias"]
    raw = np.ascontiguousarray(source.matrix(model.checkpoint, expert)[cut.rows[0] : cut.rows[1]])
    numbers: npt.NDArray[np.float32] = raw.view(_BIAS_FROM[source.dtype]).astype(np.float32).reshape(-1)
    return bias_digest(layer.key, expert, cut.projection, numbers, row=cut.rows[0])
