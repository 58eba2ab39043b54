"""Dump one MoE layer's experts from a SGLang model runner, for `shardproof diagnose`.

Call `dump_layer(self.model, 3, "/tmp/dump", self.tp_rank)` once at the end of ModelRunner.load_model, after
process_weights_after_loading, so that the tensors are what the kernel reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def dump_layer(model: Any, layer: int, folder: str, rank: int) -> Path:
    """Save `layers.<layer>`'s w13 and w2, weights, scales and biases; returns the file's path."""
    import torch

    kept = {
        name: value.detach().cpu()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if f"layers.{layer}." in name and ".experts." in name and ("w13" in name or "w2" in name)
    }
    path = Path(folder) / f"layer{layer}-rank{rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, path)
    return path
