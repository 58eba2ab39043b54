"""Packed files: opened by anybody's safetensors, refused when they are damaged, old, mixed up or somebody else's."""

from __future__ import annotations

import json
import mmap
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.checkpoint import Checkpoint, pages
from shardproof.errors import PackedError, ShardproofError
from shardproof.formats import read_experts
from shardproof.pack import pack, pack_in_memory
from shardproof.packed import MANIFEST, load, load_file, plan_key, rank_file, read_manifest
from shardproof.plan import make_plan
from tests.checkpoints import make
from tests.models import AITER, RAW

FIRST = "rank-00000-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    make(folder / "model", "gpt_oss", layers=2)
    model = read_experts(Checkpoint.open(folder / "model"))
    plan = make_plan(model, AITER, tp=2)
    pack(model, plan, folder / "out")
    return model, plan, folder / "out"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[2], tmp_path / "copy")


def refused(action, *arguments) -> PackedError:
    with pytest.raises(PackedError) as caught:
        action(*arguments)
    return caught.value


# -- what is written --------------------------------------------------------------------------------------------------


def test_the_safetensors_library_opens_it(whole):
    safetensors = pytest.importorskip("safetensors")
    model, plan, out = whole
    for rank in plan.ranks:
        packed = pack_in_memory(model, plan, rank)
        with safetensors.safe_open(out / rank_file(rank), framework="numpy") as file:
            names = {f"{key}.experts.{s}.{f}": (key, s, f) for key in plan.layers for s, f in plan.fields(key)}
            assert set(file.keys()) == set(names)
            for name, (key, stack, field) in names.items():
                array = file.get_tensor(name)
                assert array.dtype == (np.float32 if field == "bias" else np.uint8)
                assert array.tobytes() == packed.layers[key].tensors[stack, field].tobytes()
            record = json.loads(file.metadata()["shardproof"])
    assert record["plan"]["recipe"]["layouts"]["w13.weight"].startswith("aiter.w16")
    assert record["rank"] == 1


def test_tensors_start_on_a_cache_line(whole):
    raw = (whole[2] / FIRST).read_bytes()
    assert (8 + struct.unpack("<Q", raw[:8])[0]) % 64 == 0


def test_a_loaded_rank_knows_what_it_is(whole):
    model, plan, out = whole
    packed = load(out, 1)
    assert plan_key(packed.plan) == plan_key(plan)
    assert packed.plan.recipe.layouts["w13", "weight"] == "aiter.w16@1", "the version belongs to the id"
    assert packed.rank == plan.ranks[1]
    assert [layer.key for layer in packed] == ["layers.0", "layers.1"]
    layer = packed.layers["layers.1"]
    assert (layer.experts, layer.valid, layer.spec.hidden) == ((0, 1, 2, 3), 32, 64)
    canonical = layer.canonical("w13", "scale")
    expected = (
        pack_in_memory(model, make_plan(model, RAW, tp=2), plan.ranks[1]).layers["layers.1"].canonical("w13", "scale")
    )
    assert np.array_equal(canonical[:, :32, :2], expected[:, :32])


def test_loading_reads_no_data(whole):
    packed = load(whole[2], 0)
    assert all(isinstance(t, np.memmap) for layer in packed for t in layer.tensors.values())
    with pytest.raises(ValueError, match="read-only"):
        packed.layers["layers.0"].tensors["w2", "weight"][0] = 1


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux's advice")
@pytest.mark.parametrize(("setting", "asked"), [(None, True), ("1", True), ("0", False)])
def test_mapped_weights_ask_for_huge_pages(whole, monkeypatch, setting, asked):
    """The file's own mapping and torch's private one; a switch turns both off."""
    advised = []
    real = mmap.mmap

    class Spy(real):
        def madvise(self, option, *rest):
            advised.append(option)
            return super().madvise(option, *rest)

    monkeypatch.setattr(mmap, "mmap", Spy)
    monkeypatch.setattr(pages, "HUGE", 1)
    monkeypatch.delenv(pages.HUGE_PAGES, raising=False)
    if setting is not None:
        monkeypatch.setenv(pages.HUGE_PAGES, setting)
    packed = load(whole[2], 0)
    layer = next(iter(packed))
    before = layer.tensors["w13", "weight"].tobytes()
    tensor = layer.torch("w13", "weight")
    assert advised == [mmap.MADV_HUGEPAGE] * (2 * asked)
    assert tensor.numpy().tobytes() == before


def test_the_manifest_adds_up(whole):
    from shardproof.digest import Digest

    manifest = read_manifest(whole[2])
    parts = [Digest.parse(text) for text in manifest["ranks"].values()]
    assert str(sum(parts, start=Digest())) == manifest["digest"]
    assert list(manifest["ranks"]) == [FIRST, FIRST.replace("00000-of", "00001-of")]
    assert [load(whole[2], i).digest for i in range(2)] == parts


def test_bytes_do_not_depend_on_when_they_were_written(whole, tmp_path):
    model, plan, out = whole
    pack(model, plan, tmp_path / "again")
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_packed(tmp_path):
    error = refused(load, tmp_path)
    assert (error.code, error.needed, error.next_step) == ("packed.not_found", MANIFEST, "shardproof pack CKPT OUT")


@pytest.mark.parametrize("rank", [2, -1, 99])
def test_a_rank_that_is_not_there(whole, rank):
    error = refused(load, whole[2], rank)
    assert (error.code, error.rank) == ("packed.rank", rank)
    assert error.needed == "one of 0, 1"
    assert error.next_step == "load one of these: the folder is for 2 ranks"


def test_a_rank_that_was_not_packed(whole, tmp_path):
    model, plan, _ = whole
    pack(model, plan, tmp_path / "out", rank_indices=[1])
    error = refused(load, tmp_path / "out", 0)
    assert (error.code, error.needed) == ("packed.rank", "one of 1")
    assert error.next_step.endswith("or pack this rank into the folder (shardproof pack CKPT OUT --ranks N)")
    assert load(tmp_path / "out", 1).rank.index == 1


def test_a_rank_file_that_is_gone(copy):
    (copy / FIRST).unlink()
    assert refused(load, copy, 0).code == "packed.not_found"


@pytest.mark.parametrize("lost", [1, 4096])
def test_a_rank_file_that_is_cut_off(copy, lost):
    path = copy / FIRST
    path.write_bytes(path.read_bytes()[:-lost])
    error = refused(load, copy, 0)
    assert error.code == "packed.damaged"
    assert "the file ends before this tensor does" in error.what


@pytest.mark.parametrize("text", ["", "{", "[]x", "\xff"])
def test_a_manifest_that_is_not_json(copy, text):
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    assert refused(load, copy).code == "packed.damaged"


@pytest.mark.parametrize("change", [
    {"plan": None}, {"plan": {}}, {"plan": []}, {"ranks": None}, {"ranks": 3}, {"plan": {"tp": "x"}},
    {"ranks": {FIRST: 3}}, {"ranks": {FIRST: "x"}}, {"digest": []}, {"digest": "x"},
], ids=str)  # fmt: skip
def test_a_manifest_that_lost_its_plan(copy, change):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, **change}))
    assert refused(load, copy).code == "packed.damaged"


@pytest.mark.parametrize("identity", [None, 3, ["raw.rows"], {}], ids=str)
def test_a_layout_that_is_no_text(copy, identity):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["plan"]["recipe"]["layouts"]["w2.scale"] = identity
    (copy / MANIFEST).write_text(json.dumps(manifest))
    error = refused(load, copy)
    assert (error.code, error.what) == ("packed.damaged", "the record of how this was packed is not whole")
    assert "w2.scale is not a str" in error.found


def test_more_experts_than_memory_could_count(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["plan"]["shapes"][0]["spec"]["experts"] = 10**30
    (copy / MANIFEST).write_text(json.dumps(manifest))
    error = refused(load, copy)
    assert error.code == "packed.damaged"
    assert "an expert is on no rank" in error.found


def test_a_manifest_without_its_digest(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["digest"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    error = refused(load, copy)
    assert (error.code, error.found) == ("packed.damaged", "KeyError('digest')")


@pytest.mark.parametrize("size", ["2", 2.0, True, None, 0, 1 << 40, [2]])
@pytest.mark.parametrize("name", ["tp", "ep"])
def test_a_plan_with_a_size_of_another_kind(copy, name, size):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["plan"][name] = size
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert refused(load, copy).code == "packed.damaged"


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_version_from_the_future(copy, version):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format_version": version}))
    error = refused(load, copy)
    assert (error.code, error.found, error.needed) == ("packed.version", version, 1)


def test_a_list_for_a_manifest(copy):
    (copy / MANIFEST).write_text("[]")
    assert refused(load, copy).code == "packed.version"


def test_files_that_this_user_may_not_read(copy, monkeypatch):
    """Packing again is no cure for a permission."""

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shardproof.checkpoint.header.os.open", forbidden)
    error = refused(load, copy, 0)
    assert (error.code, error.found) == ("packed.not_found", "Permission denied")
    assert error.next_step == "correct the path or the file's permissions"
    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    error = refused(load, copy, 0)
    assert (error.code, error.found, error.next_step) == (
        "packed.not_found", "Permission denied", "correct its permissions",
    )  # fmt: skip


def rewritten(path, change):
    """The rank file with another header."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_a_rank_file_of_another_program(copy):
    rewritten(copy / FIRST, lambda h: h.pop("__metadata__"))
    error = refused(load, copy, 0)
    assert error.code == "packed.damaged"
    assert "'shardproof'" in error.needed


@pytest.mark.parametrize("key", ["plan", "rank", "digest"])
def test_a_rank_file_that_lost_part_of_its_record(copy, key):
    def change(header):
        record = json.loads(header["__metadata__"]["shardproof"])
        del record[key]
        header["__metadata__"]["shardproof"] = json.dumps(record)

    rewritten(copy / FIRST, change)
    assert refused(load, copy, 0).code == "packed.damaged"


def test_a_tensor_under_another_name(copy):
    rewritten(copy / FIRST, lambda h: h.update({"x": h.pop("layers.1.experts.w2.scale")}))
    error = refused(load, copy, 0)
    assert (error.code, error.tensor, error.found) == ("packed.damaged", "layers.1.experts.w2.scale", "nothing")


def test_a_tensor_of_another_size(copy):
    def change(header):
        one, two = header["layers.0.experts.w13.weight"], header["layers.0.experts.w13.scale"]
        one["shape"][0] -= 1
        one["data_offsets"][1] -= 1
        two["shape"][0] += 1
        two["data_offsets"][0] -= 1

    rewritten(copy / FIRST, change)
    error = refused(load, copy, 0)
    assert (error.code, error.tensor) == ("packed.damaged", "layers.0.experts.w13.weight")


def test_a_rank_file_under_another_ranks_name(copy):
    (copy / FIRST).write_bytes((copy / FIRST.replace("00000-of", "00001-of")).read_bytes())
    error = refused(load, copy, 0)
    assert (error.code, error.rank, error.found) == ("packed.mixed", 0, "rank 1")


def test_a_rank_file_of_another_plan(whole, copy, tmp_path):
    model, _, _ = whole
    pack(model, make_plan(model, AITER, ep=2), tmp_path / "ep")  # also two ranks
    shutil.copy(tmp_path / "ep" / FIRST, copy / FIRST)
    error = refused(load, copy, 0)
    assert (error.code, error.file) == ("packed.mixed", copy / FIRST)
    assert "another plan" in error.what


def test_a_rank_file_of_the_same_plan_for_other_weights(tmp_path):
    """Weights that were trained on have the same headers, so the same plan: only the digest tells their ranks apart."""
    for seed, out in enumerate(("first", "second")):
        make(tmp_path / "model", "gpt_oss", seed=seed)  # written anew in its place
        model = read_experts(Checkpoint.open(tmp_path / "model"))
        plan = make_plan(model, AITER, tp=2)
        pack(model, plan, tmp_path / out)
    old = (tmp_path / "first" / FIRST).read_bytes()
    shutil.copy(tmp_path / "second" / FIRST, tmp_path / "first" / FIRST)
    error = refused(load, tmp_path / "first", 0)
    assert (error.code, error.what) == ("packed.mixed", "the rank file belongs to another packing")
    assert error.found == f"digest {load_file(tmp_path / 'second' / FIRST).digest}"
    assert error.needed == f"the manifest's digest {read_manifest(tmp_path / 'first')['ranks'][FIRST]}"
    (tmp_path / "second" / FIRST).write_bytes(old)
    pack(model, plan, tmp_path / "second")  # writes again what is not its own
    assert load(tmp_path / "second", 0).rank.index == 0


@given(at=st.integers(0, 6000), new=st.binary(min_size=1, max_size=3))
def test_damage_anywhere_in_a_header_is_an_error_or_harmless(whole, tmp_path_factory, at, new):
    path = tmp_path_factory.mktemp("damaged") / FIRST
    raw = (whole[2] / FIRST).read_bytes()
    path.write_bytes(raw[:at] + new + raw[at + len(new) :])
    try:
        load_file(path)
    except ShardproofError as error:
        str(error).encode()


@given(at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=3))
def test_damage_anywhere_in_a_manifest_is_an_error_or_harmless(whole, tmp_path_factory, at, new):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / FIRST).symlink_to(whole[2] / FIRST)
    raw = (whole[2] / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(raw[:at] + new + raw[at + len(new) :])
    try:
        load(folder, 0)
    except ShardproofError as error:
        str(error).encode()
