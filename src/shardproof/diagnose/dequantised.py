"""Dequantised dumps: numbers instead of codes, as loaders without an MXFP4 kernel keep them.

A number is sign, code and a power of two. Where only the power differs, the codes are right and a scale is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shardproof.diagnose.report import Finding, Row, finding
from shardproof.experts import Projection, Stack
from shardproof.formats import ExpertModel
from shardproof.mistakes import find_mistake
from shardproof.mxfp4 import BLOCK, E8M0, decode

if TYPE_CHECKING:
    from shardproof.diagnose.foreign import Foreign
    from shardproof.diagnose.intake import Intake

Floats = npt.NDArray[np.float32]
_SAME = 0.999


@dataclass(frozen=True)
class Shard:
    """An even share of the intermediate axis in values, which need not be whole blocks."""

    size: int
    tp: int
    rank: int

    @property
    def interval(self) -> tuple[int, int]:
        """Values [start, stop) of the intermediate axis."""
        return self.rank * self.size, (self.rank + 1) * self.size


def examine_numbers(examination: Intake, stack: Stack, tensor: Foreign) -> tuple[Row, list[Finding], Shard | None]:
    """Compare a dequantised weight [E, N, K] (or [E, K, N]) with the checkpoint's numbers."""
    model, key, hints = examination.model, examination.key, examination.hints
    spec = model.layer(key).spec
    slot = f"{stack}.weight"
    numbers = _oriented(tensor, stack, spec.hidden)
    if numbers is None or numbers.shape[0] > spec.experts:
        text = f"a dequantised {stack} of shape {tensor.shape} does not fit hidden size {spec.hidden}"
        return (
            Row(tensor.name, slot, 0.0, tensor.dtype, "numbers", 1, 1),
            [Finding("wrong_shape", text, (slot,))],
            None,
        )
    size = numbers.shape[1] // 2 if stack == "w13" else numbers.shape[2]
    tp = hints.tp or max(1, spec.intermediate // size)
    ranks = [hints.rank % tp] if hints.rank is not None else range(tp)
    shards = [Shard(size, tp, r) for r in ranks]
    shard = max(shards, key=lambda s: _alike(numbers[0], _expected(model, key, stack, 0, s)))
    equal = total = alike = 0
    wrong: set[int] = set()
    first: tuple[int, int, int] | None = None
    for expert in range(numbers.shape[0]):
        expected = _expected(model, key, stack, expert, shard)
        if expected.shape != numbers[expert].shape:
            break
        bad = _rounded(expected, tensor.dtype) != numbers[expert]
        equal += int((~bad).sum())
        total += bad.size
        alike += int(bad.size * _alike(numbers[expert], expected))
        wrong |= set(np.flatnonzero(bad.any(axis=0)).tolist())
        if first is None and bad.any():
            first = (expert, *(int(x[0]) for x in np.nonzero(bad)))  # type: ignore[assignment]
    share = equal / total if total else 0.0
    place = "" if first is None else f"expert {first[0]} {stack} row {first[1]} value {first[2] + shard.interval[0]}"
    notes = (f"dequantised: numbers of {tensor.dtype}",)
    row = Row(
        tensor.name,
        slot,
        share,
        tensor.dtype,
        "the checkpoint's numbers",
        total - equal,
        total or 1,
        place,
        notes=notes,
    )
    if total and equal == total:
        return row, [], shard
    if not total or alike < _SAME * total:
        text = f"{100 * share:.4g} % of the numbers are the checkpoint's: another slice or checkpoint, or requantised"
        return row, [Finding("other_numbers", text, (slot,))], shard
    return row, [_scales_wrong(model, key, stack, numbers, shard, sorted(wrong), tensor.dtype)], shard


def _oriented(tensor: Foreign, stack: Stack, hidden: int) -> Floats | None:
    numbers = tensor.numbers
    if numbers is None or numbers.ndim != 3:
        return None
    axis = 2 if stack == "w13" else 1
    if numbers.shape[axis] == hidden:
        return numbers
    return numbers.transpose(0, 2, 1) if numbers.shape[3 - axis] == hidden else None


def _part(
    model: ExpertModel, key: str, projection: Projection, expert: int, shard: Shard, columns: Any = None
) -> Floats:
    """The shard's numbers; `columns` names the scale column of each value along K where it is not its own block's."""
    sources = model.layer(key).sources
    weight, scale = (
        np.ascontiguousarray(sources[projection, name].matrix(model.checkpoint, expert)) for name in ("weight", "scale")
    )
    start, stop = shard.interval
    if projection != "w2":
        return decode(weight, scale)[start:stop]
    if columns is None:
        return decode(weight, scale)[:, start:stop]
    codes = decode(weight, np.full_like(scale, 127))[:, start:stop]
    return np.asarray(codes * E8M0[scale[:, columns]], dtype=np.float32)


def _expected(model: ExpertModel, key: str, stack: Stack, expert: int, shard: Shard, columns: Any = None) -> Floats:
    if stack == "w2":
        return _part(model, key, "w2", expert, shard, columns)
    return np.concatenate([_part(model, key, p, expert, shard) for p in ("w1", "w3")])


def _rounded(numbers: Floats, dtype: str) -> Floats:
    """A bfloat16 or float32 holds every MXFP4 number; float16 overflows."""
    return numbers.astype(np.float16).astype(np.float32) if dtype == "F16" else numbers


def _alike(found: Floats, expected: Floats) -> float:
    """Share of numbers that agree up to a power of two."""
    if found.shape != expected.shape:
        return 0.0
    a, b = (np.frexp(x)[0] for x in (found, expected))
    return float((a == b).mean())


def _scales_wrong(
    model: ExpertModel, key: str, stack: Stack, numbers: Floats, shard: Shard, wrong: list[int], dtype: str
) -> Finding:
    start, stop = shard.interval
    words = {"columns": _runs(wrong, start), "size": shard.size, "floor": shard.size}
    blocks = model.layer(key).spec.blocks
    share = -(-blocks // shard.tp)
    held = max(0, min(share, blocks - share * shard.rank))
    local = np.arange(stop - start)
    guesses = {
        "block_from_shape": share * shard.rank + local * held // shard.size if held else None,
        "floor_division": blocks // shard.tp * shard.rank + local // BLOCK,
    }
    for name, columns in guesses.items():
        if stack != "w2" or columns is None or columns.max() >= blocks:
            continue
        again = [_rounded(_expected(model, key, stack, e, shard, columns), dtype) for e in range(len(numbers))]
        if all(np.array_equal(a, n) for a, n in zip(again, numbers, strict=True)):
            words |= {"scales": held, "block": f"{shard.size / held:g}" if held else "?"}
            return finding(find_mistake(name), [f"{stack}.weight"], words)
    return Finding(
        "scales_misplaced", f"the codes are right and the scales of values {words['columns']} are another block's",
        (f"{stack}.weight",), repair="cut weights and scales by the same interval of 32-value blocks",
    )  # fmt: skip


def _runs(values: list[int], offset: int) -> str:
    """Sorted numbers as runs: `24..31, 56`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [f"{a + offset}..{b + offset}" if a != b else str(a + offset) for a, b in runs[:4]]
    return ", ".join(shown) + (f" and {len(runs) - 4} more runs" if len(runs) > 4 else "")
