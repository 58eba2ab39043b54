"""Cut one MoE layer for 3 tensor-parallel ranks, run every rank, and compare their sum with one rank alone.

python examples/moe_on_ranks.py CKPT [LAYER]
"""

from __future__ import annotations

import sys

import torch

from shardproof.api import main_spec, open_model, select
from shardproof.moe import moe
from shardproof.pack import pack_in_memory
from shardproof.packed import PackedLayer
from shardproof.plan import make_plan


def cut(where: str, layer: str | None, tp: int) -> list[PackedLayer]:
    """One layer of a checkpoint on all `tp` ranks, in the byte order of AITER on gfx950."""
    model = open_model(where)
    key = layer or next(iter(model.layers))
    decision = select(model, platform="rocm:gfx950", tp=tp, backend="aiter")
    plan = make_plan(model, decision.recipe, tp=tp).restrict([key])
    return [pack_in_memory(model, plan, rank).layers[key] for rank in plan.ranks]


def main() -> None:
    """Print the largest difference between 3 ranks and 1."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    where, layer = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    one, three = cut(where, layer, 1), cut(where, layer, 3)
    spec = main_spec(open_model(where))
    x = torch.randn(16, spec.hidden)
    ids = torch.stack([torch.randperm(spec.experts)[: spec.top_k] for _ in range(16)])
    weights = torch.full(ids.shape, 1 / spec.top_k)
    whole, summed = moe(x, one, ids, weights), moe(x, three, ids, weights)
    print(
        f"{spec.experts} experts of {spec.intermediate} x {spec.hidden}; ranks hold {[r.valid for r in three]} values"
    )
    print(f"largest value {whole.abs().max():.6g}, largest difference {(whole - summed).abs().max():.3g}")


if __name__ == "__main__":
    main()
