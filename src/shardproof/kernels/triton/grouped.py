"""What vendors' grouped products need around them: slots sorted into blocks, the activation, the sum over slots."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, type-arg, misc"
# ruff: noqa: E741, ANN001, ANN202

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shardproof.experts import Activation
from shardproof.kernels.triton.gemm import _activate

KINDS = {"silu": 0, "swiglu_oai": 1, "situ": 2}
_ABSENT = 0x7FFFFFFF
_MOST_SLOTS = 4096
"""Above this many slots, sorting is done by torch: its launches no longer count."""


class Blocks(NamedTuple):
    """Slots by expert in blocks of one expert each, as Marlin and humming take them (vLLM's moe_align_block_size).

    slots    int32, slot of each place; the number of slots where a place is padding
    experts  int32, expert of each block
    padded   int32 [1], places in use
    """

    slots: torch.Tensor
    experts: torch.Tensor
    padded: torch.Tensor


def local_ids(ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Local expert of every slot, int32; a large number where there is none. `ids` int32, global, -1 for none."""
    if expert_map is None:
        return ids.bitwise_and(_ABSENT)
    inside = (ids >= 0) & (ids < expert_map.numel())
    return expert_map[ids.clamp(0, expert_map.numel() - 1)].where(inside, -1).bitwise_and(_ABSENT)


@triton.jit
def _align(
    ids, slots, experts, padded, scratch, n, E, places, blocks, BLOCK: tl.constexpr, EP: tl.constexpr, NP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    e = tl.arange(0, EP)
    i = tl.arange(0, NP)
    expert = tl.load(ids + i, mask=i < n, other=E)
    live = (expert >= 0) & (expert < E) & (i < n)
    count = tl.histogram(tl.where(live, expert, EP - 1), EP)
    count = tl.where(e < E, count, 0)
    parts = (count + BLOCK - 1) // BLOCK
    ends = tl.cumsum(parts, 0)
    tl.store(scratch + e, (ends - parts) * BLOCK)
    tl.store(padded, tl.sum(parts, 0) * BLOCK)
    for at in range(0, places, CHUNK):
        place = at + tl.arange(0, CHUNK)
        tl.store(slots + place, tl.full((CHUNK,), 0, tl.int32) + n, mask=place < places)
    for b in range(blocks):
        before = tl.sum(tl.where((ends <= b) & (e < E), 1, 0), 0)
        tl.store(experts + b, tl.minimum(before, E - 1))
    tl.debug_barrier()
    place = tl.atomic_add(scratch + tl.where(live, expert, 0), 1, mask=live)
    tl.store(slots + place, i, mask=live)


def align(ids: torch.Tensor, experts: int, block: int) -> Blocks:
    """Sort slots by expert into blocks of `block` places; ids (`local_ids`) of no local expert are left out.

    Nothing is read back from the device. Up to 4096 slots it is one launch, in no fixed order inside an expert.
    """
    n = ids.numel()
    places = min(n * block, n + experts * (block - 1))
    blocks = -(-places // block)
    made = [torch.empty(size, dtype=torch.int32, device=ids.device) for size in (blocks * block, blocks, 1)]
    size = triton.next_power_of_2(experts + 1)
    if n <= _MOST_SLOTS:
        scratch = torch.empty(size, dtype=torch.int32, device=ids.device)
        _align[(1,)](
            ids, *made, scratch, n, experts, blocks * block, blocks, BLOCK=block, EP=size,
            NP=max(16, triton.next_power_of_2(n)), CHUNK=1024, num_warps=8,
        )  # fmt: skip
        return Blocks(*made)
    key = ids.reshape(-1).clamp(max=experts).long()
    order = torch.sort(key, stable=True).indices
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device).scatter_add_(0, key, torch.ones_like(key))
    counts[experts] = 0
    parts = (counts + block - 1) // block
    starts, first = counts.cumsum(0) - counts, (parts.cumsum(0) - parts) * block
    sorted_key = key[order]
    rank = torch.arange(n, device=ids.device) - starts[sorted_key]
    place = torch.where(sorted_key < experts, first[sorted_key] + rank, blocks * block)
    slots = torch.full((blocks * block + 1,), n, dtype=torch.int32, device=ids.device)
    slots = slots.scatter_(0, place, order.int())[:-1]
    which = torch.searchsorted(parts.cumsum(0), torch.arange(blocks, device=ids.device), right=True)
    return Blocks(slots, which.clamp(max=experts - 1).int(), (parts.sum() * block).int().reshape(1))


@triton.jit
def _gated(h, out, I, limit, alpha, beta, linear_beta, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < I
    g = tl.load(h + row * 2 * I + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(h + row * 2 * I + I + column, mask=inside, other=0.0).to(tl.float32)
    value = _activate(g, u, limit, alpha, beta, linear_beta, ACTIVATION)
    tl.store(out + row * I + column, value.to(out.dtype.element_ty), mask=inside)


def gated(h: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activation of rows [gate; up]: h [rows, 2I] -> [rows, I] in h's dtype."""
    rows, width = h.shape
    out = torch.empty(rows, width // 2, dtype=h.dtype, device=h.device)
    limit = float("inf") if activation.limit is None else activation.limit
    if rows:
        _gated[(rows, triton.cdiv(width // 2, 1024))](
            h, out, width // 2, limit, activation.alpha, activation.beta, activation.linear_beta,
            ACTIVATION=KINDS[activation.kind], BLOCK=1024,
        )  # fmt: skip
    return out


@triton.jit
def _sum_routed(
    y,
    ids,
    weights,
    at,
    out,
    E,
    H,
    pitch,
    top_k,
    WEIGHTED: tl.constexpr,
    MOVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for j in range(top_k):
        slot = token * top_k + j
        expert = tl.load(ids + slot)
        present = (expert >= 0) & (expert < E)
        row = tl.load(at + slot).to(tl.int64) if MOVED else slot
        v = tl.load(y + row * pitch + column, mask=present & (column < H), other=0.0).to(tl.float32)
        acc += v * tl.load(weights + slot) if WEIGHTED else v
    tl.store(out + token * H + column, acc.to(out.dtype.element_ty), mask=column < H)


def sum_routed(
    y: torch.Tensor, ids: torch.Tensor, experts: int, hidden: int, *,
    weights: torch.Tensor | None = None, at: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Each token's rows of y [slots, >= hidden] summed in float32 and slot order, times `weights` [M, k] if given.

    `ids` [M, k] are `local_ids`; slots of no local expert are left out. `at` int [slots] is the row of each slot.
    Returns [M, hidden] in y's dtype.
    """
    tokens, top_k = ids.shape
    out = torch.empty(tokens, hidden, dtype=y.dtype, device=y.device)
    _sum_routed[(tokens, triton.cdiv(hidden, 1024))](
        y, ids, y if weights is None else weights, ids if at is None else at, out, experts, hidden, y.shape[1], top_k,
        WEIGHTED=weights is not None, MOVED=at is not None, BLOCK=1024,
    )  # fmt: skip
    return out


@triton.jit
def _pairs(h):
    g, u = tl.split(tl.reshape(h, (h.shape[0], h.shape[1] // 2, 2)))
    return g.to(tl.float32), u.to(tl.float32)


@triton.jit
def _silu_pairs(tile, limit, alpha, beta, linear_beta):
    g, u = _pairs(tile)
    return _activate(g, u, limit, alpha, beta, linear_beta, 0)


@triton.jit
def _oai_pairs(tile, limit, alpha, beta, linear_beta):
    g, u = _pairs(tile)
    return _activate(g, u, limit, alpha, beta, linear_beta, 1)


@triton.jit
def _situ_pairs(tile, limit, alpha, beta, linear_beta):
    g, u = _pairs(tile)
    return _activate(g, u, limit, alpha, beta, linear_beta, 2)


alternating = {"silu": _silu_pairs, "swiglu_oai": _oai_pairs, "situ": _situ_pairs}
"""Activations of tiles whose columns are gate and up in turn, for kernels that take a function."""
