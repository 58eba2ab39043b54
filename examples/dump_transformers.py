"""Dump a transformers model's experts, or examine them in process without a file.

torchrun --nproc-per-node 2 examples/dump_transformers.py CKPT OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def local_experts(model: Any) -> dict[str, Any]:
    """This rank's part of every expert parameter (the local part of a DTensor)."""
    kept = {}
    for name, parameter in model.named_parameters():
        if ".experts." in name and "shared" not in name:
            value = parameter.data
            kept[name] = value.to_local() if hasattr(value, "to_local") else value
    return kept


def main(checkpoint: str, out: str) -> None:
    """Load with tensor parallelism, say what each rank holds, and save it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    from shardproof.diagnose import diagnose

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    how = {"distributed_config": DistributedConfig(tp_size=world)} if world > 1 else {}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, **how)
    experts = local_experts(model)
    print(diagnose(experts, checkpoint))
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(experts, Path(out) / f"rank{rank}.pt")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
