"""Run under torch.distributed: load a checkpoint with transformers' tensor parallelism and save this rank's experts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig


def main(folder: str, out: str) -> None:
    """Load, keep the experts' local parts, save `rank<R>.pt`."""
    world = int(os.environ["WORLD_SIZE"])
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, distributed_config=DistributedConfig(tp_size=world)
    )
    kept = {}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            local = parameter.data
            kept[name] = (local.to_local() if hasattr(local, "to_local") else local).clone()
    torch.save(kept, Path(out) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
