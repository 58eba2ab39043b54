"""Real processes over gloo: each holds one rank, and every one of them ends with the whole layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardproof.api import open_model
from shardproof.distributed import DistributedLayer, load_rank
from shardproof.errors import KernelError
from shardproof.moe import moe
from shardproof.pack import pack
from shardproof.packed import load
from shardproof.plan import make_plan
from tests.checkpoints import make
from tests.layers import SEPARATED, by_hand, close, inputs
from tests.processes import in_processes


def run_layer(rank, packed: Path, dtype: torch.dtype) -> torch.Tensor:
    layer = load_rank(packed).layers["layers.0"]
    assert layer.rank.index == rank
    x, ids, weights = inputs(6, layer.spec)
    distributed = DistributedLayer(layer)
    assert distributed(x[:0], ids[:0], weights[:0]).shape == (0, layer.spec.hidden)
    return distributed((x / 256).to(dtype), ids, weights)


def packed_folder(tmp_path, kind, tp, ep, placement="linear"):
    made = make(tmp_path / "ckpt", kind)
    model = open_model(made.folder)
    plan = make_plan(model, SEPARATED, tp=tp, ep=ep, placement=placement, allow_empty=True)
    pack(model, plan, tmp_path / "packed")
    return made, tmp_path / "packed"


@pytest.mark.parametrize(
    ("kind", "tp", "ep", "placement"),
    [
        ("gpt_oss", 2, 1, "linear"),  # biases, 3 blocks on 2 ranks
        ("deepseek", 1, 2, "round_robin"),  # the weight before w2
        ("gpt_oss", 2, 2, [[0, 1, 3], [2, 3]]),  # biases and a replica
        ("compressed_tensors", 4, 1, "linear"),  # one rank is empty
    ],
)
def test_every_process_has_the_whole_layer(tmp_path, kind, tp, ep, placement):
    made, packed = packed_folder(tmp_path, kind, tp, ep, placement)
    results = in_processes(tp * ep, run_layer, tmp_path, packed, torch.float32)
    ranks = [load(packed, r).layers["layers.0"] for r in range(tp * ep)]
    x, ids, weights = inputs(6, ranks[0].spec)
    for result in results:
        assert torch.equal(result, results[0])
        assert close(result, by_hand(made, ranks[0].spec, x / 256, ids, weights))
    assert close(results[0], moe(x / 256, ranks, ids, weights))


def test_partial_sums_travel_in_float32(tmp_path):
    """For 16-bit tokens the result is the float32 sum rounded once; sums of rounded parts would differ."""
    _, packed = packed_folder(tmp_path, "deepseek", 3, 1)
    found = in_processes(3, run_layer, tmp_path, packed, torch.bfloat16)[0]
    ranks = [load(packed, r).layers["layers.0"] for r in range(3)]
    x, ids, weights = inputs(6, ranks[0].spec)
    x = (x / 256).bfloat16()
    whole = moe(x.float(), ranks, ids, weights)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, whole.bfloat16())
    rounded = sum(moe(x, rank, ids, weights) for rank in ranks)
    assert (rounded != found).any()


def refused(rank, packed: Path) -> torch.Tensor:
    wrong = load(packed, 0 if rank else 1).layers["layers.0"]
    with pytest.raises(KernelError) as caught:
        DistributedLayer(wrong)
    assert caught.value.code == "kernel.group"
    assert caught.value.found == f"process {rank} of 2"
    assert caught.value.needed == f"process {1 - rank} of 2"
    return torch.zeros(0)


def test_another_ranks_bytes_are_refused(tmp_path):
    _, packed = packed_folder(tmp_path, "deepseek", 2, 1)
    in_processes(2, refused, tmp_path, packed)


def too_small(_rank, packed: Path) -> torch.Tensor:
    with pytest.raises(KernelError) as caught:
        load_rank(packed)
    assert (caught.value.code, caught.value.needed) == ("kernel.group", "process 0 of 3")
    return torch.zeros(0)


def test_a_group_of_another_size_is_refused(tmp_path):
    _, packed = packed_folder(tmp_path, "deepseek", 3, 1)
    in_processes(1, too_small, tmp_path, packed)
