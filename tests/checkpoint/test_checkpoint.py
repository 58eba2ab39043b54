"""Opening checkpoints: names and byte ranges without data, bytes on demand, changes noticed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardproof
from shardproof.checkpoint import Checkpoint, config_value, total_bytes
from shardproof.errors import CheckpointError
from tests.checkpoints import make, write_file


@pytest.fixture
def small(tmp_path):
    rng = np.random.default_rng(3)
    arrays = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in (("a", (3, 5)), ("b", (7,)))}
    write_file(tmp_path / "model.safetensors", {k: ("U8", v) for k, v in arrays.items()})
    return tmp_path, arrays


def test_bytes_are_those_of_the_file(small):
    folder, arrays = small
    checkpoint = Checkpoint.open(folder)
    for name, array in arrays.items():
        assert checkpoint.bytes_of(name).tobytes() == array.tobytes()
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape) == ("U8", array.shape)
        assert np.array_equal(checkpoint.bytes_of(info), checkpoint.bytes_of(name))
    assert total_bytes(checkpoint.tensors.values()) == 22


def test_opening_reads_no_data(small, monkeypatch):
    monkeypatch.setattr("shardproof.checkpoint.checkpoint.mmap.mmap", None)
    checkpoint = Checkpoint.open(small[0])
    assert set(checkpoint.tensors) == {"a", "b"}
    with pytest.raises(TypeError):
        checkpoint.bytes_of("a")  # only now


def test_bytes_cannot_be_written(small):
    view = Checkpoint.open(small[0]).bytes_of("a")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_a_single_file_opens_with_the_config_beside_it(small):
    folder, _ = small
    (folder / "config.json").write_text('{"model_type": "x"}')
    checkpoint = Checkpoint.open(folder / "model.safetensors")
    assert checkpoint.config == {"model_type": "x"}
    assert set(checkpoint.tensors) == {"a", "b"}
    assert repr(checkpoint) == f"Checkpoint({str(folder)!r}, 1 files, 2 tensors)"


def test_a_relative_path_and_the_home_folder(small, monkeypatch):
    folder, _ = small
    monkeypatch.chdir(folder.parent)
    assert len(Checkpoint.open(folder.name).tensors) == 2
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(Checkpoint.open(f"~/{folder.name}").tensors) == 2


def test_an_index_over_several_files(tmp_path):
    made = make(tmp_path, "deepseek", files=3)
    checkpoint = Checkpoint.open(tmp_path)
    assert len(checkpoint.paths) == 3
    assert len({t.file for t in checkpoint.tensors.values()}) == 3
    name = "layers.0.ffn.experts.2.w1.weight"
    assert checkpoint.bytes_of(name).tobytes() == made.weight["layers.0", 2, "w1"].tobytes()


# -- a file that changes ------------------------------------------------------------------------------------------


def changed(checkpoint) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.bytes_of("a")
    assert caught.value.code == "checkpoint.changed"
    return caught.value


def test_a_file_that_grew_is_noticed(small):
    folder, _ = small
    checkpoint = Checkpoint.open(folder)
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    assert changed(checkpoint).needed.endswith("bytes, untouched")


def test_a_file_that_was_rewritten_in_place_is_noticed(small):
    folder, _ = small
    checkpoint = Checkpoint.open(folder)
    status = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed(checkpoint)


def test_a_file_that_is_gone_is_noticed(small):
    folder, _ = small
    checkpoint = Checkpoint.open(folder)
    (folder / "model.safetensors").unlink()
    assert changed(checkpoint).found == "gone"


def test_a_change_while_the_header_is_read_is_noticed(small, monkeypatch):
    folder, _ = small
    path = folder / "model.safetensors"
    from shardproof.checkpoint import checkpoint as room

    real = room.read_header

    def read_then_touch(*arguments):
        header = real(*arguments)
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        return header

    monkeypatch.setattr(room, "read_header", read_then_touch)
    changed(Checkpoint.open(folder))


def test_leaving_the_block_lets_the_maps_go(small):
    with Checkpoint.open(small[0]) as checkpoint:
        checkpoint.bytes_of("a")
        assert checkpoint._maps
    assert not checkpoint._maps


# -- identity -------------------------------------------------------------------------------------------------------


def test_identity_is_that_of_the_headers(tmp_path):
    make(tmp_path / "a", "deepseek", seed=1)
    make(tmp_path / "b", "deepseek", seed=2)  # other data under equal headers
    make(tmp_path / "c", "deepseek", seed=1, experts=5)
    one, two, three = (Checkpoint.open(tmp_path / n).identity for n in "abc")
    assert one == two != three


# -- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"a": 1, "b": 2}, 1), ({"b": 2}, 2), ({"a": None, "b": 2}, 2), ({}, None), ({"a": 0}, 0),
        ({"text_config": {"a": 3}}, 3), ({"b": 2, "text_config": {"a": 3}}, 2), ({"text_config": [1]}, None),
        ({"text_config": None}, None),
    ],
    ids=str,
)  # fmt: skip
def test_config_values(config, found):
    assert config_value(config, "a", "b") == found


def test_no_config_is_an_empty_one(small):
    assert Checkpoint.open(small[0]).config == {}


# -- names in the Hugging Face cache ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out: blobs, a snapshot of links, refs."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = cache / "models--some--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repo / "snapshots" / commit
    made = make(tmp_path / "made", "quark")
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(made.folder.iterdir())):
        blob = repo / "blobs" / f"{number:064x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "refs" / "v1").write_text(commit)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("name", ["some/model", "some/model@main", "some/model@v1",
                                  "some/model@0123456789abcdef0123456789abcdef01234567"])  # fmt: skip
def test_a_name_in_the_cache(hub, name):
    checkpoint = Checkpoint.open(name)
    assert checkpoint.root == hub
    assert len(checkpoint.tensors) == 25


def test_nothing_is_ever_asked_of_the_network(hub, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert Checkpoint.open("some/model").tensors
    with pytest.raises(CheckpointError):
        Checkpoint.open("other/model")


@pytest.mark.parametrize("name", ["other/model", "some/model@v2"])
def test_a_name_that_is_not_in_the_cache(hub, name):
    with pytest.raises(CheckpointError, match="nothing is downloaded") as caught:
        Checkpoint.open(name)
    assert caught.value.code == "checkpoint.not_found"
    repo, _, revision = name.partition("@")
    assert caught.value.next_step == f"hf download {repo}" + (f" --revision {revision}" if revision else "")


def test_a_snapshot_that_was_cut_short(hub):
    next(hub.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("some/model")
    assert (caught.value.code, caught.value.next_step) == ("checkpoint.file_missing", "finish the download")


def test_a_folder_of_that_name_comes_first(hub):
    folder = Path("some/model")  # below the working directory
    folder.mkdir(parents=True)
    write_file(folder / "x.safetensors", {"t": ("U8", np.zeros(1, np.uint8))})
    assert set(Checkpoint.open("some/model").tensors) == {"t"}


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "", "some model/x", "/no/such/folder", "./x"])
def test_a_name_that_is_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(name or tmp_path / "nowhere")
    assert caught.value.code == "checkpoint.not_found"


def test_without_huggingface_hub_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("some/model")
    assert "shardproof[hub]" in caught.value.next_step


def test_the_environment_chooses_the_cache(hub, tmp_path):
    """HF_HOME, in a process of its own, because huggingface_hub reads it when it is imported."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "hub").symlink_to(hub.parents[2])
    code = "from shardproof.checkpoint import Checkpoint; print(len(Checkpoint.open('some/model').tensors))"
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(shardproof.__file__).parents[1])
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "25", done.stderr


def test_a_file_whose_name_is_no_text(tmp_path):
    make(tmp_path, "quark", files=1)
    (tmp_path / "model.safetensors.index.json").unlink()
    (shard,) = tmp_path.glob("*.safetensors")
    named = shard.rename(tmp_path / os.fsdecode(b"caf\xe9.safetensors"))
    assert Checkpoint.open(tmp_path).paths == (named,)
    assert Checkpoint.open(named).identity == Checkpoint.open(tmp_path).identity


def test_a_user_without_a_home(monkeypatch):
    pytest.importorskip("huggingface_hub")

    def homeless(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", homeless)
    with pytest.raises(CheckpointError, match="the Hugging Face cache cannot be looked for") as caught:
        Checkpoint.open("some/model")
    assert (caught.value.code, caught.value.found) == ("checkpoint.not_found", "Could not determine home directory.")
    assert "HF_HOME" in str(caught.value.next_step)


def test_an_index_may_carry_more_than_a_map(tmp_path):
    make(tmp_path, "quark")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({"metadata": {"total_size": 1}, **data}))  # sizes of shared tensors are often stale
    assert len(Checkpoint.open(tmp_path).tensors) == 25
