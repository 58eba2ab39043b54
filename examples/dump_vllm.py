"""Dump one MoE layer's experts from a running vLLM worker, one file a rank, for `shardproof diagnose`.

    llm = LLM(model, tensor_parallel_size=8)
    llm.collective_rpc(dump_layer, args=(3, "/tmp/dump"))

Tensors are saved in memory order, so what the kernel reads is what is compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def dump_layer(worker: Any, layer: int, folder: str) -> str:
    """Save `layers.<layer>`'s w13 and w2, weights, scales and biases of this worker; returns the file's name."""
    import torch

    model = worker.model_runner.model
    kept = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if f"layers.{layer}." in name and ".experts." in name and ("w13" in name or "w2" in name):
            kept[name] = value.detach().cpu()
    path = Path(folder) / f"layer{layer}-rank{worker.rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, path)
    return str(path)
