"""The forward of one MoE layer from packed experts: checks, choice of an implementation, and the sum over ranks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shardproof.arguments import expect
from shardproof.callable_module import make_callable
from shardproof.errors import KernelError
from shardproof.experts import ExpertSpec
from shardproof.kernels.implementation import Implementation, implementations
from shardproof.packed import PackedExperts, PackedLayer

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ID_DTYPES = (torch.int32, torch.int64)
_A_TENSOR = "convert it: torch.as_tensor(...)"
A_LAYER = 'choose one layer: shardproof.load(FOLDER, RANK).layers["layers.0"]'


class PreparedLayer:
    """One rank's packed layer with the implementation that runs it.

    `partial` gives the rank's float32 partial sum; calling the object gives it in x's dtype, which is the layer's
    result where the rank is the only one.

    `check_ids` says whether every call looks for ids of experts that do not exist. That waits for the device, so by
    default it is done on a CPU only; a GPU kernel skips such ids as it skips -1.
    """

    def __init__(
        self, layer: PackedLayer, *, implementation: str | None = None, device: torch.device | str = "cpu",
        keep: bool = False, check_ids: bool | None = None,
    ) -> None:  # fmt: skip
        self.layer = expect("packed", layer, PackedLayer, A_LAYER)
        if layer.plan.guesses_activation:
            _say_guess(layer.plan.source, str(layer.spec.activation))
        self.device = torch.device(device)
        self.check_ids = self.device.type == "cpu" if check_ids is None else check_ids
        chosen = choose(layer, self.device, implementation)
        self.implementation = chosen.name
        self._run = chosen.prepare(layer, self.device, keep=keep)

    @property
    def spec(self) -> ExpertSpec:
        """The whole layer's spec."""
        return self.layer.spec

    def partial(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """The rank's partial sum, float32 [M, H]. Raises KernelError; see `moe`."""
        return self._forward(x, topk_ids, topk_weights).float()

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """The rank's partial sum in x's dtype, [M, H]."""
        return self._forward(x, topk_ids, topk_weights).to(x.dtype)

    def _forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        check_inputs(self.layer, self.device, x, topk_ids, topk_weights)
        if self.check_ids:
            check_expert_ids(self.layer, topk_ids)
        if not x.shape[0]:
            return torch.zeros(0, self.spec.hidden, device=self.device)
        return self._run(x, served_ids(self.layer, topk_ids), topk_weights)


def moe(
    x: Tensor,
    packed: PackedLayer | PreparedLayer | Sequence[PackedLayer | PreparedLayer],
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    implementation: str | None = None,
) -> Tensor:
    """Run one MoE layer: sum over k of weight * expert(x), [M, H] in x's dtype.

    x             [M, H] float32, bfloat16 or float16; M may be 0; H is the model's, not the padded one
    packed        the layer of one rank (its partial sum is returned), or of several ranks, which are added in float32
    topk_ids      [M, k] int32 or int64 global expert ids; -1 skips a slot
    topk_weights  [M, k] floating point
    implementation  a name, or None for the best one that takes the layer

    Raises KernelError `kernel.shape`, `kernel.dtype`, `kernel.device`, `kernel.expert_id`, `kernel.implementation`,
    `kernel.ranks`, ArgumentError.
    """
    expect("x", x, Tensor, _A_TENSOR)
    several = isinstance(packed, Iterable) and not isinstance(packed, PackedExperts | str)
    ranks: list[Any] = list(packed) if several else [packed]  # type: ignore[arg-type]
    prepared = [
        rank
        if isinstance(rank, PreparedLayer)
        else PreparedLayer(rank, implementation=implementation, device=x.device, check_ids=True)
        for rank in ranks
    ]
    if not prepared:
        raise KernelError(
            "kernel.ranks",
            "no rank was given",
            needed="one packed layer a rank",
            next_step="load them: [shardproof.load(FOLDER, r) for r in range(RANKS)]",
        )
    if len(prepared) > 1:
        check_ranks([rank.layer for rank in prepared])
    if len(prepared) == 1:
        return prepared[0](x, topk_ids, topk_weights)
    total = prepared[0].partial(x, topk_ids, topk_weights)
    for rank in prepared[1:]:
        total = total + rank.partial(x, topk_ids, topk_weights)
    return total.to(x.dtype)


@functools.cache
def _say_guess(source: str, activation: str) -> None:
    """Once for each checkpoint: what runs may not be the model."""
    warnings.warn(
        f"shardproof: {source} had no config.json that names its family when it was packed, so its activation "
        f"({activation}) and the routing weight after w2 are guesses; put the model's config.json there and pack again",
        RuntimeWarning,
        stacklevel=3,
    )


def choose(layer: PackedLayer, device: torch.device, name: str | None = None) -> Implementation:
    """The named implementation, or the preferred one that takes the layer: first those that it was packed for.

    The oracle chose the backend when the layer was packed; its layouts and dtype of activations say which ways remain.
    Raises KernelError `kernel.implementation` with every refusal.
    """
    known = sorted(implementations(), key=lambda i: not i.wanted(layer))
    if name is not None:
        known = [i for i in known if i.name == name]
        if not known:
            raise KernelError(
                "kernel.implementation", "no such implementation", found=name,
                needed=", ".join(i.name for i in implementations()),
                next_step="choose one of those, or leave it to shardproof",
            )  # fmt: skip
    reasons = []
    for candidate in known:
        reason = candidate.refuses(layer, device)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise KernelError(
        "kernel.implementation", "no implementation can run this layer", layer=layer.key, rank=layer.rank,
        found="; ".join(reasons), next_step="pack for another backend, or leave the implementation open",
    )  # fmt: skip


def served_ids(layer: PackedLayer, topk_ids: Tensor) -> Tensor:
    """Global ids [M, k] with -1 where another expert-parallel rank serves the token.

    Of an expert with replicas, token t is served by holder number t mod (number of holders), so that replicas share
    the load and every token is counted once. Tokens must be in the same order on all ranks.
    """
    owners = layer.shape.owners
    if sum(map(len, owners)) == layer.spec.experts:
        return topk_ids
    token = torch.arange(topk_ids.shape[0], device=topk_ids.device)[:, None]
    ids = topk_ids
    for expert in layer.experts:
        holders = [rank for rank, held in enumerate(owners) if expert in held]
        if len(holders) > 1:
            mine = token % len(holders) == holders.index(layer.rank.ep_rank)
            ids = torch.where((topk_ids == expert) & ~mine, -1, ids)
    return ids


def check_ranks(layers: Sequence[PackedLayer]) -> None:
    """Raise KernelError `kernel.ranks` unless these are all the ranks of one plan, each once."""
    first = layers[0]
    found, needed = sorted(layer.rank.index for layer in layers), list(range(first.rank.world))
    if found != needed:
        raise KernelError(
            "kernel.ranks", "the ranks given are not the whole group", layer=first.key, found=found, needed=needed,
            next_step="give every rank of the plan once, or run one rank a process (shardproof.distributed)",
        )  # fmt: skip
    for layer in layers:
        if layer.key != first.key or (layer.plan is not first.plan and layer.plan.to_dict() != first.plan.to_dict()):
            raise KernelError(
                "kernel.ranks", "the ranks were not packed by one plan", rank=layer.rank, layer=layer.key,
                found=f"{layer.key} of tp {layer.plan.tp} x ep {layer.plan.ep}",
                needed=f"{first.key} of tp {first.plan.tp} x ep {first.plan.ep}",
                next_step="give all ranks of one packed folder",
            )  # fmt: skip


def check_inputs(layer: PackedLayer, device: torch.device, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
    """Raise KernelError for dtypes, shapes and devices that the layer cannot take; see `moe`."""
    for name, tensor in (("x", x), ("topk_ids", topk_ids), ("topk_weights", topk_weights)):
        expect(name, tensor, Tensor, _A_TENSOR)
    _check_dtype("x", x, ACTIVATION_DTYPES)
    _check_dtype("topk_ids", topk_ids, _ID_DTYPES)
    _check_dtype("topk_weights", topk_weights, ACTIVATION_DTYPES)
    hidden = layer.spec.hidden
    if x.ndim != 2 or x.shape[1] != hidden:
        padded = layer.shape.hidden
        step = (
            "give the model's own H: padding is inside" if x.shape[-1:] == (padded,) else "flatten batch and sequence"
        )
        raise KernelError(
            "kernel.shape", "x does not fit the layer", tensor="x", layer=layer.key, found=tuple(x.shape),
            needed=f"[M, {hidden}]", next_step=step,
        )  # fmt: skip
    for name, tensor in (("topk_ids", topk_ids), ("topk_weights", topk_weights)):
        wanted = (x.shape[0], topk_ids.shape[-1] if topk_ids.ndim else 0)
        if tuple(tensor.shape) != wanted:
            raise KernelError(
                "kernel.shape", f"{name} does not fit x", tensor=name, layer=layer.key, found=tuple(tensor.shape),
                needed=f"[{x.shape[0]}, k], the same k in topk_ids and topk_weights",
                next_step="give k expert ids and k weights for each row of x",
            )  # fmt: skip
    for name, tensor in (("x", x), ("topk_ids", topk_ids), ("topk_weights", topk_weights)):
        if tensor.device.type != device.type:
            raise KernelError(
                "kernel.device", f"{name} is on another device than the layer", tensor=name, layer=layer.key,
                found=tensor.device, needed=device, next_step=f"move it: {name}.to({str(device)!r})",
            )  # fmt: skip


def _check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        raise KernelError(
            "kernel.dtype", f"{name} has a dtype that the layer does not take", tensor=name, found=tensor.dtype,
            needed=", ".join(str(dtype) for dtype in allowed), next_step=f"convert {name} with .to({allowed[0]})",
        )  # fmt: skip


def check_expert_ids(layer: PackedLayer, topk_ids: Tensor) -> None:
    """Raise KernelError `kernel.expert_id` for an id that names no expert; waits for the ids' device."""
    experts = layer.spec.experts
    outside = (topk_ids < -1) | (topk_ids >= experts)
    if bool(outside.any()):
        token, slot = (int(i) for i in outside.nonzero()[0])
        raise KernelError(
            "kernel.expert_id", "a token is routed to an expert that does not exist", layer=layer.key,
            tensor=f"topk_ids[{token}, {slot}]", expert=int(topk_ids[token, slot]), found=int(topk_ids[token, slot]),
            needed=f"0..{experts - 1}, or -1 to skip", next_step="ids are global, not local to an expert-parallel rank",
        )  # fmt: skip


make_callable(__name__, moe)
