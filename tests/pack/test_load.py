"""Packed experts as a value and as a file: load maps, names what is damaged, and never lets a write through."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from shardproof.backends import Recipe
from shardproof.checkpoint.header import read_header
from shardproof.digest import Digest
from shardproof.errors import PackedError
from shardproof.pack import pack, pack_in_memory
from shardproof.packed import MANIFEST, METADATA_KEY, load, load_file, plan_key, rank_file, tensor_name
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model


@pytest.fixture
def made(tmp_path):
    """A model and its plan on four ranks, and the packed folder."""
    found = model(tmp_path / "ckpt", "gpt_oss", layers=2, experts=6, hidden=160, intermediate=224)
    plan = make_plan(found, RECIPES["aiter"], tp=2, ep=2)
    pack(found, plan, tmp_path / "out")
    return found, plan, tmp_path / "out"


def test_load_gives_what_was_packed(made):
    """Every tensor of every rank, and the digest; the same as packing into memory."""
    found, plan, out = made
    for rank in plan.ranks:
        held, fresh = load(out, rank.index), pack_in_memory(found, plan, rank)
        assert held.digest == fresh.digest
        assert [layer.key for layer in held] == list(plan.layers)
        for layer in held:
            for slot, tensor in layer.tensors.items():
                np.testing.assert_array_equal(tensor, fresh.layers[layer.key].tensors[slot])
                np.testing.assert_array_equal(layer.canonical(*slot), fresh.layers[layer.key].canonical(*slot))


def test_a_file_is_ordinary_safetensors(made):
    """Other tools read the rank file, and each tensor starts on a cache line where sizes allow."""
    from safetensors.numpy import load_file as plain

    _, plan, out = made
    path = out / rank_file(plan.ranks[0])
    tensors = plain(path)
    held = load_file(path)
    name = tensor_name("layers.1", "w2", "weight")
    np.testing.assert_array_equal(tensors[name], held.layers["layers.1"].tensors["w2", "weight"])
    header = read_header(path)
    assert header.tensors[0].start % 64 == 0
    record = json.loads(header.metadata[METADATA_KEY])
    assert record["plan"]["recipe"]["layouts"]["w13.weight"] == "aiter.w16@1", "the version belongs to the id"


def test_handed_out_arrays_are_read_only_and_torch_writes_stay_private(made):
    """NumPy refuses a write; torch may write, and the file does not change."""
    _, plan, out = made
    before = (out / rank_file(plan.ranks[1])).read_bytes()
    layer = load(out, 1).layers["layers.0"]
    with pytest.raises(ValueError, match="read-only"):
        layer.tensors["w13", "weight"][0] = 1
    tensor = layer.torch("w13", "weight")
    np.testing.assert_array_equal(tensor.numpy(), layer.tensors["w13", "weight"])
    tensor.fill_(3)
    assert (out / rank_file(plan.ranks[1])).read_bytes() == before


def test_torch_from_memory(made):
    """Packed in memory: torch sees the same bytes."""
    found, plan, _ = made
    layer = pack_in_memory(found, plan, plan.ranks[0]).layers["layers.0"]
    tensor = layer.torch("w2", "scale")
    assert tensor.data_ptr() == layer.tensors["w2", "scale"].ctypes.data


def test_errors_of_load(made, tmp_path):
    """No folder, no such rank, a manifest or a rank file that is damaged."""
    _, plan, out = made
    with pytest.raises(PackedError) as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == "packed.not_found"
    with pytest.raises(PackedError) as caught:
        load(out, 4)
    assert caught.value.code == "packed.rank"
    path = out / rank_file(plan.ranks[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(PackedError) as caught:
        load(out, 0)
    assert caught.value.code == "packed.damaged"
    path.write_bytes(whole.replace(b'\\"digest\\"', b'\\"digesT\\"', 1))
    with pytest.raises(PackedError) as caught:
        load(out, 0)
    assert caught.value.code == "packed.damaged"
    (out / MANIFEST).write_text("{")
    with pytest.raises(PackedError) as caught:
        load(out, 1)
    assert caught.value.code == "packed.damaged"


def test_the_key_knows_what_matters(made):
    """Plan, checkpoint and layouts change it; where the checkpoint lies and how a layout's id is written do not."""
    _, plan, _ = made
    key = plan_key(plan)
    assert plan_key(replace(plan, source="/elsewhere")) == key
    layouts = {**plan.recipe.layouts, ("w13", "weight"): "aiter.w16@1"}
    assert plan_key(replace(plan, recipe=replace(plan.recipe, layouts=layouts))) == key
    assert plan_key(replace(plan, identity="0" * 32)) != key
    assert plan_key(plan.restrict(["layers.0"])) != key
    layouts[("w13", "weight")] = "aiter.w16_gugu"
    assert plan_key(replace(plan, recipe=replace(plan.recipe, layouts=layouts))) != key


def test_the_record_of_a_large_plan_is_small(tmp_path):
    """61 layers of 384 experts: the header grows with the tensors, not with layers times experts."""
    found = model(tmp_path / "ckpt", layers=1, experts=384, hidden=32, intermediate=32)
    plan = make_plan(found, Recipe("raw", RECIPES["raw"].layouts), ep=8)
    plan = replace(plan, layers={f"layers.{n}": 0 for n in range(61)})
    text = json.dumps(plan.to_dict())
    assert len(text) < 12_000
    began = time.perf_counter()
    assert type(plan).from_dict(json.loads(text)).layers == plan.layers
    assert time.perf_counter() - began < 5  # a hang, not a speed: the benchmark measures


def test_digests_are_text_of_a_fixed_width():
    """A header can be written before the digest is known."""
    for digest in (Digest(), Digest(1, 2), Digest(2**64 - 1, 2**64 - 1)):
        assert len(str(digest)) == 32
        assert Digest.parse(str(digest)) == digest
