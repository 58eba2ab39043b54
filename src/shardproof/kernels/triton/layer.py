"""TritonExperts: the MoE layer on any GPU that Triton compiles for, from canonical MXFP4 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from shardproof.errors import KernelError
from shardproof.kernels.triton import gemm
from shardproof.kernels.triton.device import holds_e4m3

if TYPE_CHECKING:
    from shardproof.experts import Activation

KINDS = {"silu": 0, "swiglu_oai": 1, "situ": 2}


def token_tiles(local: torch.Tensor, experts: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts routed slots by expert and cuts them into tiles, without reading anything back from the device.

    `local` int [slots], -1 for absent. Returns tiles int32 [T, 3] (expert, first sorted place, count; count 0
    for the unused ones) and slots int32 [slots], sorted place -> routed slot. T is a bound that depends on
    shapes only.
    """
    n = local.numel()
    key = torch.where(local < 0, experts, local)
    slots = torch.sort(key, stable=True).indices
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=local.device)
    counts = counts.scatter_add_(0, key.long(), torch.ones_like(key, dtype=torch.int64))[:experts]
    starts, parts = counts.cumsum(0) - counts, (counts + block - 1) // block
    ends = parts.cumsum(0)
    tile = torch.arange(min(n, experts + n // block), device=local.device)
    expert = torch.searchsorted(ends, tile, right=True).clamp(max=experts - 1)
    offset = (tile - (ends - parts)[expert]) * block
    count = torch.where(tile < ends[-1], (counts[expert] - offset).clamp(0, block), 0)
    return torch.stack([expert, starts[expert] + offset, count], 1).int().contiguous(), slots.int()


def round_e4m3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds x [M, K], as bfloat16, to e4m3 [M, K'] and e8m0 [M, K' / 32], a scale for 128 values.

    K' is K padded to 128.
    """
    m, k = x.shape
    blocks = torch.nn.functional.pad(x.bfloat16().float(), (0, -k % 128)).reshape(m, -1, 128)
    ratio = (blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448.0).view(torch.int32)
    exponent = (ratio >> 23) + ((ratio & 0x7FFFFF) != 0).int()
    scale = (exponent << 23).view(torch.float32)
    codes = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn).reshape(m, -1)
    return codes, exponent.to(torch.uint8).expand(-1, -1, 4).reshape(m, -1).contiguous()


class TritonExperts:
    """One MoE layer from canonical uint8: w13 [E, 2I, H/2] ([w1; w3]), w2 [E, H, I/2], scales [E, N, K/32].

    Biases are [E, 2I] and [E, H] or None. The call is HopperExperts'. `mode` "float32" spells the arithmetic
    out (the only form that Triton's interpreter runs), None takes the target's block-scaled product.
    """

    def __init__(
        self,
        w13_weight: torch.Tensor,
        w13_scale: torch.Tensor,
        w2_weight: torch.Tensor,
        w2_scale: torch.Tensor,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
        *,
        experts: int,
        hidden: int,
        intermediate: int,
        activation: Activation,
        weight_before_w2: bool = False,
        precision: Literal["w4a16", "w4a8"] = "w4a16",
        expert_map: torch.Tensor | None = None,
        mode: Literal["float32"] | None = None,
    ) -> None:
        shapes = (
            ("w13_weight", w13_weight, (experts, 2 * intermediate, hidden // 2)),
            ("w13_scale", w13_scale, (experts, 2 * intermediate, hidden // 32)),
            ("w2_weight", w2_weight, (experts, hidden, intermediate // 2)),
            ("w2_scale", w2_scale, (experts, hidden, intermediate // 32)),
        )
        for name, t, shape in shapes:
            if t.dtype != torch.uint8 or tuple(t.shape) != shape or not t.is_contiguous():
                raise KernelError(
                    "kernel.tensor",
                    "a tensor is not what the Triton kernel reads",
                    tensor=name,
                    found=f"{t.dtype} {tuple(t.shape)}",
                    needed=f"contiguous uint8 {shape}",
                    next_step="pack the layer for the backend of this kernel",
                )
        self.tensors = (w13_weight, w13_scale, w2_weight, w2_scale)
        self.biases = tuple(None if b is None else b.float().contiguous() for b in (w13_bias, w2_bias))
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.activation, self.weight_before_w2, self.precision = activation, weight_before_w2, precision
        self.expert_map, self.mode = expert_map, mode

    def _local(self, ids: torch.Tensor) -> torch.Tensor:
        flat = ids.reshape(-1).long()
        if self.expert_map is None:
            return torch.where((flat < 0) | (flat >= self.experts), -1, flat)
        inside = (flat >= 0) & (flat < self.expert_map.numel())
        return torch.where(inside, self.expert_map.long()[flat.clamp(0, self.expert_map.numel() - 1)], -1)

    def _operand(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int, str]:
        """Activations as the kernels read them: values, scales, values a row, mode."""
        if self.precision == "w4a16":
            return x, x, x.shape[1], self.mode or "scaled"
        codes, scales = round_e4m3(x)
        if self.mode is None and holds_e4m3(x.device):
            return codes, scales, codes.shape[1], "scaled8"
        values = codes.float() * torch.exp2(scales.float() - 127).repeat_interleave(32, -1)  # exact in bf16
        return values.to(x.dtype), x, codes.shape[1], self.mode or "scaled"

    def __call__(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """X bf16 [M, H], topk_ids int32 [M, k], topk_weights float32 [M, k] -> [M, H] in x's dtype."""
        (m, k), h, i = topk_ids.shape, self.hidden, self.intermediate
        out = torch.empty_like(x)
        if m == 0:
            return out
        block = min(128, max(16, 1 << (m * k // self.experts).bit_length()))
        local = self._local(topk_ids)
        tiles, slots = token_tiles(local, self.experts, block)
        w13, s13, w2, s2 = self.tensors
        act, route = self.activation, topk_weights.reshape(-1)
        limit = float("inf") if act.limit is None else act.limit
        size: dict[str, Any] = {"BM": block, "BN": 64 if block > 64 else 128, "BK": 128, "num_warps": 4}
        first: dict[str, Any] = {"WEIGHT_FIRST": self.weight_before_w2}
        v, e, pitch, mode = self._operand(x)
        mid = torch.empty(m * k, i, dtype=torch.float32 if mode == "float32" else x.dtype, device=x.device)
        b13, b2 = self.biases
        gemm.gate_up[tiles.shape[0], -(-i // size["BN"])](
            v, e, w13, s13, w13 if b13 is None else b13, mid, tiles, slots, route, k, h, i, pitch,
            limit, act.alpha, act.beta, act.linear_beta,
            ACTIVATION=KINDS[act.kind], BIAS=b13 is not None, MODE=mode, **first, **size,
        )  # fmt: skip
        v, e, pitch, mode = self._operand(mid.to(x.dtype) if self.precision == "w4a8" else mid)
        y = torch.empty(m * k, h, dtype=torch.float32, device=x.device)
        gemm.down[tiles.shape[0], -(-h // size["BN"])](
            v, e, w2, s2, w2 if b2 is None else b2, y, tiles, slots, route, h, i, pitch,
            BIAS=b2 is not None, MODE=mode, **first, **size,
        )  # fmt: skip
        gemm.sum_slots[m, -(-h // 1024)](y, local, out, h, k, BLOCK=1024)
        return out
