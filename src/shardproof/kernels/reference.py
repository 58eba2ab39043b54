"""The judge: one rank's part of a MoE layer in float32, straight from canonical bytes. Short rather than fast.

It honours exactly what a kernel honours. Of the padded sizes only the rank's valid intermediate columns and the
layer's own H count; ids are global, and those that the rank does not hold (or -1) are skipped. Its result is the
rank's partial sum: the ranks of a TP x EP group add up to the layer.

    g, u = x @ w1^T + b1, x @ w3^T + b3          h = activation(g, u)
    y   += weight * (h @ w2^T + b2)              or, `weight_before_w2`:  (weight * h) @ w2^T + b2

Sources: `experts.Activation` for the families; DeepSeek-V4 inference/model.py for the weight before w2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from shardproof.experts import Activation, ExpertSpec, Field, Stack
from shardproof.kernels.implementation import Implementation, Runner
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes, decode
from shardproof.pack.unpack import unpack
from shardproof.packed import PackedLayer

ActivationQuant: TypeAlias = Literal["e4m3_1x128"]
Matrices: TypeAlias = Mapping[tuple[Stack, Field], Bytes]

_BIAS = {4: np.float32, 2: ml_dtypes.bfloat16}
_FP8_MAX = 448.0
_FP8_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert's valid part, float32: w1 and w3 [valid, H], w2 [H, valid], biases [valid], [valid], [H] or None."""

    w1: Tensor
    w3: Tensor
    w2: Tensor
    b1: Tensor | None = None
    b3: Tensor | None = None
    b2: Tensor | None = None

    @classmethod
    def decode(cls, matrices: Matrices, hidden: int, valid: int, device: torch.device | str = "cpu") -> Expert:
        """Decode one expert's padded canonical matrices, uint8 [N, bytes a row]; padding is dropped first."""
        half = matrices["w13", "weight"].shape[0] // 2
        gate, up, down = slice(0, valid), slice(half, half + valid), slice(0, hidden)

        def matrix(stack: Stack, rows: slice, columns: int) -> Tensor:
            weight = matrices[stack, "weight"][rows, : columns // BLOCK * BLOCK_BYTES]
            scale = matrices[stack, "scale"][rows, : columns // BLOCK]
            return torch.from_numpy(decode(weight, scale)).to(device)

        def bias(stack: Stack, rows: slice) -> Tensor | None:
            raw = matrices.get((stack, "bias"))
            if raw is None:
                return None
            numbers = np.ascontiguousarray(raw[rows]).view(_BIAS[raw.shape[1]]).reshape(-1)
            return torch.from_numpy(numbers.astype(np.float32)).to(device)

        return cls(
            matrix("w13", gate, hidden), matrix("w13", up, hidden), matrix("w2", down, valid),
            bias("w13", gate), bias("w13", up), bias("w2", down),
        )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A rank's experts, ready to run: `experts` are their global ids in local order, `get(local)` one of them."""

    spec: ExpertSpec
    experts: tuple[int, ...]
    get: Callable[[int], Expert]
    activation_quant: ActivationQuant | None = None

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """The rank's partial sum, float32 [M, H], for x [M, H], global ids [M, k] and weights [M, k]."""
        x = _quantise(x.float(), self.activation_quant)
        out = torch.zeros(x.shape[0], self.spec.hidden, device=x.device)
        for local, expert_id in enumerate(self.experts):
            token, slot = torch.nonzero(topk_ids == expert_id, as_tuple=True)
            if token.numel():
                weight = topk_weights[token, slot].float()[:, None]
                out.index_add_(0, token, self._one(x[token], self.get(local), weight))
        return out

    def _one(self, x: Tensor, expert: Expert, weight: Tensor) -> Tensor:
        first = self.spec.weight_before_w2
        g, u = self._product(x, expert.w1, expert.b1), self._product(x, expert.w3, expert.b3)
        h = gated(g, u, self.spec.activation)
        h = _quantise(h * weight if first else h, self.activation_quant)
        y = self._product(h, expert.w2, expert.b2)
        return y if first else y * weight

    def _product(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        y = x @ w.T
        if self.activation_quant:  # the products of DeepSeek's reference leave as bfloat16
            y = y.bfloat16().float()
        return y if bias is None else y + bias


def gated(g: Tensor, u: Tensor, activation: Activation) -> Tensor:
    """h(g, u) as `Activation` defines it, elementwise."""
    limit = activation.limit
    if activation.kind == "situ":
        beta, linear = activation.beta, activation.linear_beta
        return beta * torch.tanh(g / beta) * torch.sigmoid(g) * linear * torch.tanh(u / linear)
    if limit is not None:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    if activation.kind == "swiglu_oai":
        return (u + 1) * g * torch.sigmoid(activation.alpha * g)
    return torch.nn.functional.silu(g) * u


def _quantise(x: Tensor, kind: ActivationQuant | None) -> Tensor:
    """Round to what a W4A8 kernel sees: E4M3 with one power-of-two scale per 128 values (DeepSeek's act_quant, ue8m0).

    scale = 2^ceil(log2(max(amax, 1e-4) / 448)). Values are rounded to bfloat16 first, as they reach the kernel.
    """
    if kind is None:
        return x
    size = x.shape[-1]
    whole = torch.nn.functional.pad(x.bfloat16().float(), (0, -size % _FP8_BLOCK))
    blocks = whole.reshape(*x.shape[:-1], -1, _FP8_BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(largest / _FP8_MAX)))
    rounded = (blocks / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float() * scale
    return rounded.reshape(whole.shape)[..., :size]


def from_canonical(
    spec: ExpertSpec, matrices: Matrices, *, experts: tuple[int, ...] | None = None, valid: int | None = None,
    activation_quant: ActivationQuant | None = None,
) -> Reference:  # fmt: skip
    """A reference over canonical stacks uint8 [E, N, bytes a row], padded or not.

    `experts` are the global ids (all of the layer by default), `valid` the intermediate values that count.
    """
    held = tuple(range(spec.experts)) if experts is None else experts
    width = spec.intermediate if valid is None else valid

    def get(local: int) -> Expert:
        return Expert.decode({slot: stack[local] for slot, stack in matrices.items()}, spec.hidden, width)

    return Reference(spec, held, get, activation_quant)


def from_packed(
    layer: PackedLayer, *, keep: bool = False, device: torch.device | str = "cpu",
    activation_quant: ActivationQuant | None = None,
) -> Reference:  # fmt: skip
    """A reference over one rank's packed layer in any layout, which is undone first.

    Memory is one expert at a time.
    `keep` decodes everything now and holds it, 32 bits a weight: for many calls.
    """
    read = _reader(layer)

    def get(local: int) -> Expert:
        return Expert.decode(read(local), layer.spec.hidden, layer.valid, device)

    decoded = [get(local) for local in range(len(layer.experts))] if keep else None
    return Reference(layer.spec, layer.experts, decoded.__getitem__ if decoded else get, activation_quant)


def _reader(layer: PackedLayer) -> Callable[[int], dict[tuple[Stack, Field], Bytes]]:
    layouts = layer.plan.recipe.layouts
    shapes = {slot: layer.placed(*slot).shape for slot in layer.tensors}
    return lambda local: {
        slot: unpack(layouts[slot], shapes[slot], held, first=local, count=1)[0] for slot, held in layer.tensors.items()
    }


def reference(
    x: Tensor, layer: PackedLayer | Reference, topk_ids: Tensor, topk_weights: Tensor, *,
    activation_quant: ActivationQuant | None = None,
) -> Tensor:  # fmt: skip
    """One rank's partial sum, float32 [M, H]: x [M, H], global expert ids [M, k], routing weights [M, k].

    `activation_quant="e4m3_1x128"` follows DeepSeek-V4's own W4A8 arithmetic. There a rank's slice is quantised by
    itself, so that tensor-parallel sums equal the whole only where a slice is a multiple of 128.
    """
    if isinstance(layer, PackedLayer):
        layer = from_packed(layer, device=x.device, activation_quant=activation_quant)
    return layer(x, topk_ids, topk_weights)


class ReferenceImplementation(Implementation):
    """Runs any layout on any device that torch has."""

    name = "reference"
    summary = "torch, float32, any layout and device: the judge"
    priority = 1000

    def refuses(self, layer: PackedLayer, device: torch.device) -> str | None:  # noqa: ARG002
        """Nothing is refused."""
        return None

    def prepare(self, layer: PackedLayer, device: torch.device, *, keep: bool = False) -> Runner:
        """See `from_packed`."""
        return from_packed(layer, keep=keep, device=device)
