"""One MoE layer with one rank a process: torchrun --nproc-per-node 4 examples/moe_distributed.py PACKED [LAYER].

PACKED is a folder that `shardproof pack` wrote for as many ranks as there are processes.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from shardproof.distributed import DistributedLayer, load_rank


def main() -> None:
    """Run a layer on random tokens; every process prints the same sum."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    dist.init_process_group("gloo")
    packed = load_rank(sys.argv[1])
    key = sys.argv[2] if len(sys.argv) > 2 else next(iter(packed.layers))
    layer = DistributedLayer(packed.layers[key])
    spec = layer.layer.spec
    torch.manual_seed(0)  # all ranks see the same tokens
    x = torch.randn(16, spec.hidden)
    ids = torch.stack([torch.randperm(spec.experts)[: spec.top_k] for _ in range(16)])
    y = layer(x, ids, torch.full(ids.shape, 1 / spec.top_k))
    print(f"rank {packed.rank}: {layer.layer.valid} values of I, result sums to {y.double().sum():.6g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
