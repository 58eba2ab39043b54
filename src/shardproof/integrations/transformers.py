"""transformers: the routed experts of a model, replaced by packed ones.

Every MoE block of transformers 5 holds a module `experts` that is called with (hidden_states, top_k_index,
top_k_weights); it alone is replaced. Router, shared experts and everything else stay the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from shardproof.arguments import expect
from shardproof.distributed import DistributedLayer
from shardproof.errors import KernelError
from shardproof.moe import PreparedLayer, check_ranks, moe
from shardproof.packed import PackedExperts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Forward: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
_EXPERTS = re.compile(r"(?:^|\.)((?:layers|mtp)\.\d+)\.(?:\w+\.)*experts$")


class PackedExpertsModule(nn.Module):
    """Stands where a model's `experts` stood. It holds no parameters: the bytes stay in the packed file."""

    def __init__(self, key: str, run: Forward) -> None:
        super().__init__()
        self.key, self._run = key, run

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[..., H] tokens with [M, k] global ids and weights to [..., H]."""
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        ids, weights = (t.reshape(flat.shape[0], -1) for t in (top_k_index, top_k_weights))
        return self._run(flat.contiguous(), ids, weights).reshape(hidden_states.shape)

    def extra_repr(self) -> str:
        """The layer that stands here."""
        return self.key


def replace_experts(
    model: nn.Module,
    ranks: PackedExperts | Sequence[PackedExperts],
    *,
    group: ProcessGroup | None = None,
    implementation: str | None = None,
    device: torch.device | str = "cpu",
    keep: bool = False,
) -> list[str]:
    """Replace the `experts` of every MoE block by packed ones, in place; returns the names of the modules.

    ranks  all ranks of one plan, run one after the other in this process and added in float32; or this process's own
           rank where `group` is given or torch.distributed runs as many processes as the plan has ranks
    keep   hold decoded weights between calls where the implementation can (32 bits a weight)

    Raises KernelError `kernel.module` where model and packed experts do not hold the same layers and sizes,
    `kernel.ranks` or `kernel.group` where the ranks are not the whole group.
    """
    given = [ranks] if isinstance(ranks, PackedExperts | str) else ranks
    load = "load them: [shardproof.load(FOLDER, r) for r in range(RANKS)]"
    packed = [expect("ranks", rank, PackedExperts, load) for rank in given]
    if not packed:
        raise KernelError(
            "kernel.ranks",
            "no rank was given",
            needed="all ranks of a plan, or one rank a process",
            next_step=load,
        )
    found = {match[1]: name for name, _ in model.named_modules() if (match := _EXPERTS.search(name))}
    _check_layers(found, packed[0])
    alone = len(packed) == 1 and packed[0].rank.world > 1

    def forward(key: str) -> Forward:
        layers = [rank.layers[key] for rank in packed]
        if alone:
            return DistributedLayer(layers[0], group, implementation=implementation, device=device, keep=keep)
        check_ranks(layers)
        ready = [PreparedLayer(part, implementation=implementation, device=device, keep=keep) for part in layers]
        return lambda x, ids, weights: moe(x, ready, ids, weights)

    modules = {name: PackedExpertsModule(key, forward(key)) for key, name in found.items()}
    for name, module in modules.items():
        _check_hidden(model, name, packed[0].layers[module.key].spec.hidden)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return list(modules)


def _check_layers(found: dict[str, str], packed: PackedExperts) -> None:
    missing, extra = set(packed.layers) - set(found), set(found) - set(packed.layers)
    if missing or extra or not found:
        raise KernelError(
            "kernel.module", "the model's MoE layers are not those that were packed",
            layer=min(missing | extra, default=None), found=f"{len(found)} modules named experts in the model",
            needed=f"{len(packed.layers)} packed layers: {len(missing)} have no module, {len(extra)} modules no layer",
            next_step="pack all layers of this very model (leave --layers out)",
        )  # fmt: skip


def _check_hidden(model: nn.Module, name: str, hidden: int) -> None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    wanted = getattr(text, "routed_expert_hidden_size", None) or getattr(text, "hidden_size", None)
    if wanted is not None and wanted != hidden:
        raise KernelError(
            "kernel.module", "the model and the packed experts have different hidden sizes", tensor=name,
            found=hidden, needed=wanted, next_step="pack the checkpoint of this very model",
        )  # fmt: skip
