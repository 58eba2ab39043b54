"""A packed folder gives its model back: any kernel and number of ranks to any other, without the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproof import repack
from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.errors import CheckpointError, PackedError
from shardproof.formats import ExpertModel, read_experts
from shardproof.pack import native, pack, pack_in_memory
from shardproof.pack.unpack import Packed, unpack_tensors
from shardproof.packed import rank_file
from shardproof.plan import make_plan
from shardproof.repack import PackedFolder, is_packed, open_packed
from shardproof.verify import verify
from tests.checkpoints import make


def recipe(backend: str, weight: str, scale: str, *, hidden: int, intermediate: int, bias: str = "raw.bias") -> Recipe:
    layouts = {
        (stack, name): identity
        for stack in ("w13", "w2")
        for name, identity in (("weight", weight), ("scale", scale), ("bias", bias))
    }
    return Recipe(backend, layouts, hidden, intermediate)


RECIPES = [
    recipe("aiter", "aiter.w16", "aiter.e8", hidden=128, intermediate=128),
    recipe("marlin", "marlin.weight", "marlin.scale", hidden=256, intermediate=128),
    recipe("hopper", "triton_kernels.hopper_value", "triton_kernels.hopper_scale", hidden=64, intermediate=64),
    recipe("reference", "raw.weight", "raw.scale", hidden=32, intermediate=32),
]


def model_in(folder: Path, kind: str, **sizes: int) -> ExpertModel:
    make(folder, kind, **sizes)
    return read_experts(Checkpoint.open(folder))


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@pytest.mark.parametrize("first", RECIPES, ids=lambda r: r.backend)
@pytest.mark.parametrize("second", RECIPES, ids=lambda r: r.backend)
def test_repacked_bytes_equal_bytes_packed_from_the_checkpoint(
    kind: str, first: Recipe, second: Recipe, tmp_path: Path
) -> None:
    model = model_in(tmp_path / "model", kind, layers=1, experts=3, hidden=128, intermediate=192)
    pack(model, make_plan(model, first, tp=4, ep=2), tmp_path / "first")
    again = open_packed(tmp_path / "first")
    plan = make_plan(again, second, tp=3)
    pack(again, plan, tmp_path / "second")
    pack(model, make_plan(model, second, tp=3), tmp_path / "direct")
    for rank in plan.ranks:
        assert (tmp_path / "second" / rank_file(rank)).read_bytes() == (
            tmp_path / "direct" / rank_file(rank)
        ).read_bytes()
    assert verify(tmp_path / "second", model).ok
    assert verify(tmp_path / "direct", again).ok


@pytest.mark.skipif(native.library() is None, reason="needs the native engine")
def test_a_rank_is_put_together_from_the_ranks_that_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 2 holds what ranks 2 and 3 of 4 held; each tensor of theirs is unpacked once, for w1 and w3."""
    model = model_in(tmp_path / "model", "deepseek", layers=1, experts=3, hidden=128, intermediate=256)
    pack(model, make_plan(model, RECIPES[0], tp=4), tmp_path / "first")
    again = open_packed(tmp_path / "first")
    plan = make_plan(again, RECIPES[1], tp=2)
    read: list[Packed] = []

    def unpacking(tensors: Sequence[Packed], **options: Any) -> None:
        read.extend(tensors)
        unpack_tensors(tensors, **options)

    monkeypatch.setattr(repack, "unpack_tensors", unpacking)
    packed = pack_in_memory(again, plan, plan.ranks[1])
    direct = pack_in_memory(model, make_plan(model, RECIPES[1], tp=2), plan.ranks[1])
    assert packed.digest == direct.digest
    opened = again.checkpoint
    assert isinstance(opened, PackedFolder)
    found = [
        (rank.rank.index, *slot)
        for tensor in read
        for rank in opened.ranks
        for slot, kernel in rank.layers["layers.0"].tensors.items()
        if np.shares_memory(kernel, tensor.kernel)
    ]
    wanted = [(rank, stack, name) for rank in (2, 3) for stack in ("w13", "w2") for name in ("weight", "scale")]
    assert sorted(found) == sorted(wanted)
    assert {tensor.cuts.shape[1] for tensor in read} == {1, 2}


@pytest.mark.skipif(native.library() is None, reason="needs the native engine")
def test_a_packed_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    """Whether its pages are gone or only its stamp is another one: no crash, and the file is named."""
    model = model_in(tmp_path / "model", "deepseek", layers=1, experts=3, hidden=512, intermediate=512)
    pack(model, make_plan(model, RECIPES[0], tp=2), tmp_path / "first")
    again = open_packed(tmp_path / "first")
    plan = make_plan(again, RECIPES[1], tp=1)
    file = tmp_path / "first" / rank_file(make_plan(model, RECIPES[0], tp=2).ranks[1])
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 3)
    with pytest.raises(CheckpointError, match=rank_file(plan.ranks[0])[:4]) as caught:
        pack_in_memory(again, plan, plan.ranks[0])
    assert caught.value.code == "checkpoint.changed"
    assert str(file) in str(caught.value)


@settings(max_examples=15, deadline=None)
@given(
    experts=st.integers(1, 5), blocks=st.integers(1, 7), hidden=st.integers(1, 3), tp=st.integers(1, 4),
    ep=st.integers(1, 3), to_tp=st.integers(1, 4), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_ranks_to_any_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    experts: int,
    blocks: int,
    hidden: int,
    tp: int,
    ep: int,
    to_tp: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("repack")
    made = make(
        folder / "model", "quark", experts=experts, hidden=32 * hidden, intermediate=32 * blocks, seed=seed, top_k=1
    )
    model = read_experts(Checkpoint.open(folder / "model"))
    ep = min(ep, experts)
    pack(model, make_plan(model, RECIPES[0], tp=tp, ep=ep, allow_empty=True), folder / "packed")
    again = open_packed(folder / "packed")
    for (layer, expert, projection), weight in made.weight.items():
        source = again.layers[layer].sources[projection, "weight"]
        np.testing.assert_array_equal(source.matrix(again.checkpoint, expert), weight)
    plan = make_plan(again, RECIPES[1], tp=to_tp, allow_empty=True)
    pack(again, plan, folder / "repacked")
    proof = verify(folder / "repacked", model)
    assert proof.ok
    assert proof.digest == verify(folder / "packed", model).digest


def test_replicas_are_read_once(tmp_path: Path) -> None:
    model = model_in(tmp_path / "model", "deepseek", experts=3)
    placement = [[0, 1], [1, 2]]
    pack(model, make_plan(model, RECIPES[0], tp=2, ep=2, placement=placement), tmp_path / "packed")
    again = open_packed(tmp_path / "packed")
    pack(again, make_plan(again, RECIPES[3]), tmp_path / "whole")
    assert verify(tmp_path / "whole", model).ok


def test_a_folder_with_missing_ranks_is_refused(tmp_path: Path) -> None:
    model = model_in(tmp_path / "model", "deepseek")
    pack(model, make_plan(model, RECIPES[0], tp=3), tmp_path / "packed", rank_indices=[0, 2])
    assert is_packed(tmp_path / "packed")
    with pytest.raises(PackedError) as caught:
        open_packed(tmp_path / "packed")
    assert caught.value.code == "packed.incomplete"
    assert "rank: 1" in str(caught.value)


def test_a_damaged_folder_is_not_passed_on(tmp_path: Path) -> None:
    """One flipped weight bit would otherwise become part of a new folder that verifies against itself."""
    model = model_in(tmp_path / "model", "gpt_oss", layers=2, experts=3, hidden=128, intermediate=192)
    replicas = [[0, 1], [1, 2]]
    plan = make_plan(model, RECIPES[0], tp=2, ep=2, placement=replicas)
    pack(model, plan, tmp_path / "first")
    again = open_packed(tmp_path / "first")
    pack(again, make_plan(again, RECIPES[3], tp=3), tmp_path / "whole")

    path = tmp_path / "first" / rank_file(plan.ranks[0])
    placed = plan.placed("layers.1", plan.ranks[0], "w13", "weight")
    start = again.checkpoint.ranks[0].layers["layers.1"].tensors["w13", "weight"].ctypes.data
    base = again.checkpoint.ranks[0].layers["layers.0"].tensors["w13", "weight"].ctypes.data
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header + start - base + int(placed.address(0, 3, 5))] ^= 1
    path.write_bytes(data)

    again = open_packed(tmp_path / "first")
    with pytest.raises(PackedError) as caught:
        pack(again, make_plan(again, RECIPES[3], tp=3), tmp_path / "second")
    assert (caught.value.code, caught.value.file) == ("packed.damaged", tmp_path / "first")
    assert not (tmp_path / "second").exists()
    part = make_plan(again, RECIPES[3], tp=3).restrict(["layers.0"])
    pack(again, part, tmp_path / "part")  # a part has no recorded digest
