"""Subject: the layer that is benched, in canonical bytes, and laid out for any backend from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.errors import PackedError
from shardproof.experts import Activation, ExpertSpec, Field, Stack
from shardproof.formats import ExpertModel, LayerExperts
from shardproof.layouts import Placed, find
from shardproof.mxfp4 import Bytes
from shardproof.packed import PackedLayer, load
from shardproof.partition import Rank
from shardproof.plan import Plan, make_plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shardproof.kernels.reference import Reference

_FLASH = ExpertSpec("deepseek_v4", 256, 4096, 2048, 6, Activation("silu", 10.0), weight_before_w2=True)
_OSS = ExpertSpec("gpt_oss", 128, 2880, 2880, 4, Activation("swiglu_oai", 7.0), bias=True)
SHAPES: dict[str, tuple[ExpertSpec, int, int]] = {
    **{f"dsv4{cut}": (_FLASH, tp, ep) for cut, tp, ep in (("", 1, 1), ("tp8", 8, 1), ("ep8", 1, 8))},
    **{f"gptoss{cut}": (_OSS, tp, ep) for cut, tp, ep in (("", 1, 1), ("tp8", 8, 1), ("ep8", 1, 8))},
}
"""DeepSeek-V4-Flash and gpt-oss-120b, whole and one rank of 8: spec, TP, EP."""

_KEY = "layers.0"
_SCALES = (118, 122)
"""Random scale bytes are of this range: results stay near 1, and every row is exact in e4m3."""
_BATCH = 256 << 20
Slot = tuple[Stack, Field]


class _Nowhere(Checkpoint):
    """In a checkpoint's place: nothing on a disk."""

    def __init__(self, name: str) -> None:
        self.root, self.identity, self.tensors = Path(name), f"random {name}", {}


@dataclass(frozen=True)
class Subject:
    """One rank of one layer. `content` holds canonical bytes [E, parts, rows, bytes a row] without padding.

    w13 has two parts of `valid` rows, w2 one of H rows and `valid` columns; a bias row is one float32.
    """

    name: str
    spec: ExpertSpec
    tp: int
    ep: int
    rank: int
    content: Mapping[Slot, Bytes]

    @classmethod
    def random(cls, name: str, spec: ExpertSpec, tp: int = 1, ep: int = 1, seed: int = 0) -> Subject:
        """Random weights of a shape; the fullest rank of tp x ep."""
        made = cls(name, spec, tp, ep, 0, {})
        rng = np.random.default_rng(seed)
        content: dict[Slot, Bytes] = {}
        for stack, parts, rows, columns in made._matrices():
            shape = (len(made.experts), parts, rows)
            content[stack, "weight"] = rng.integers(0, 256, (*shape, columns // 2), dtype=np.uint8)
            content[stack, "scale"] = rng.integers(*_SCALES, (*shape, columns // 32), dtype=np.uint8)
            if spec.bias:
                few = rng.integers(-64, 65, (*shape, 1)) / 64  # exact in bfloat16
                content[stack, "bias"] = few.astype("<f4").view(np.uint8)
        return cls(name, spec, tp, ep, 0, content)

    @classmethod
    def packed(cls, folder: Path, rank: int = 0, key: str | None = None) -> Subject:
        """One layer of a packed rank (the first layer by default). Raises PackedError."""
        held = load(folder, rank)
        if key is not None and key not in held.layers:
            raise PackedError(
                "packed.layer", "the packed folder has no such layer", file=folder, found=key,
                needed=", ".join(list(held.layers)[:6]),
                next_step="choose one of those, or leave it out to take the first",
            )  # fmt: skip
        layer = held.layers[key or next(iter(held.layers))]
        valid, hidden = layer.valid, layer.spec.hidden
        content: dict[Slot, Bytes] = {}
        for stack, name in layer.tensors:
            whole = layer.canonical(stack, name)
            parts, rows = (2, valid) if stack == "w13" else (1, hidden)
            columns = {"weight": 2, "scale": 32, "bias": 0}[name]
            width = (hidden if stack == "w13" else valid) // columns if columns else whole.shape[-1]
            split = whole.reshape(len(layer.experts), parts, -1, whole.shape[-1])[:, :, :rows, :width]
            if name == "bias" and width == 2:
                split = (split.copy().view("<u2").astype("<u4") << 16).view(np.uint8)
            content[stack, name] = split
        return cls(f"{folder.name} {layer.key}", layer.spec, layer.plan.tp, layer.plan.ep, rank, content)

    def _matrices(self) -> tuple[tuple[Stack, int, int, int], ...]:
        """(stack, parts, rows, values a row) without padding."""
        valid, hidden = self._plan(_RAW).shape(_KEY).valid(self._rank()), self.spec.hidden
        return ("w13", 2, valid, hidden), ("w2", 1, hidden, valid)

    def _plan(self, recipe: Recipe) -> Plan:
        model = ExpertModel(
            _Nowhere(self.name), "random", self.spec.family, {_KEY: LayerExperts(_KEY, self.spec, {})}, ()
        )
        return make_plan(model, recipe, tp=self.tp, ep=self.ep)

    def _rank(self) -> Rank:
        return self._plan(_RAW).ranks[self.rank]

    @property
    def experts(self) -> tuple[int, ...]:
        """Global ids of the rank's experts."""
        return self._plan(_RAW).experts(_KEY, self._rank())

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights and scales."""
        return sum(v[0].nbytes for (_, name), v in self.content.items() if name != "bias")

    def layer(self, recipe: Recipe, device: str = "cpu") -> PackedLayer:
        """The layer padded and laid out for a backend; on a GPU the bytes are permuted there and come back."""
        plan = self._plan(recipe)
        rank = plan.ranks[self.rank]
        tensors = {}
        for slot in plan.fields(_KEY):
            placed = plan.placed(_KEY, rank, *slot)
            tensors[slot] = _lay_out(self._padded(plan, rank, *slot), placed, recipe.layouts[slot], device)
        return PackedLayer(_KEY, rank, plan, tensors)

    def _padded(self, plan: Plan, rank: Rank, stack: Stack, name: Field) -> Bytes:
        experts, rows, width = plan.canonical_shape(_KEY, rank, stack, name)
        held = self.content[stack, name]
        if name == "bias" and width == 2:
            held = (held.view("<u4") >> 16).astype("<u2").view(np.uint8)
        parts = held.shape[1]
        fill = {"weight": 0, "scale": 127, "bias": 0}[name]
        padded = np.full((experts, parts, rows // parts, width), fill, dtype=np.uint8)
        padded[:, :, : held.shape[2], : held.shape[3]] = held
        return padded.reshape(experts, rows, width)

    def judge(self, device: torch.device) -> Reference:
        """The reference over these weights in float32, decoded on the device expert by expert."""
        import torch

        from shardproof.kernels.reference import Expert, Reference
        from shardproof.mxfp4 import E2M1

        table = torch.tensor(np.asarray(E2M1, dtype=np.float32), device=device)

        def matrix(stack: Stack, part: int, local: int) -> Tensor:
            codes, scale = (
                torch.from_numpy(np.ascontiguousarray(self.content[stack, name][local, part])).to(device)
                for name in ("weight", "scale")
            )
            values = table[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()]
            return values * torch.exp2(scale.float() - 127).repeat_interleave(32, -1)

        def bias(stack: Stack, part: int, local: int) -> Tensor | None:
            if not self.spec.bias:
                return None
            raw = np.ascontiguousarray(self.content[stack, "bias"][local, part])
            return torch.from_numpy(raw.view("<f4")[:, 0].copy()).to(device)

        def get(local: int) -> Expert:
            places: tuple[tuple[Stack, int], ...] = (("w13", 0), ("w13", 1), ("w2", 0))
            return Expert(*(matrix(*p, local) for p in places), *(bias(*p, local) for p in places))

        return Reference(self.spec, self.experts, get)


_RAW = Recipe("reference", {})


def _lay_out(canonical: Bytes, placed: Placed, identity: str, device: str) -> Bytes:
    """Canonical bytes in kernel order."""
    if device == "cpu" or placed.has_padding:
        return placed.pack(canonical)
    import torch

    from shardproof.kernels.device.gather import device_gather

    experts, rows, width = placed.shape
    layout, parameters = find(identity)
    out, count = np.empty(placed.nbytes, dtype=np.uint8), max(1, min(experts, _BATCH // (rows * width)))
    each = layout.place((1, rows, width), parameters).nbytes
    gather = device_gather(layout.place((count, rows, width), parameters), device)
    if gather is None or each * experts != placed.nbytes:
        return placed.pack(canonical)
    for first in range(0, experts, count):
        part = canonical[first : first + count]
        if len(part) < count:
            out[first * each :] = layout.place(part.shape, parameters).pack(part)
            continue
        there = torch.empty(count * each, dtype=torch.uint8, device=device)
        gather.run(torch.from_numpy(part).to(device).reshape(-1), there)
        out[first * each : (first + count) * each] = there.cpu().numpy()
    return out
