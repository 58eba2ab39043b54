"""Hostile folders and indexes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import CheckpointError
from tests.attacks.files import entry, json_file

INDEX = "model.safetensors.index.json"


def folder_of(tmp_path: Path, files: dict[str, list[str]], weight_map: object) -> Path:
    for file, names in files.items():
        json_file(tmp_path / file, {n: entry(i, i + 1) for i, n in enumerate(names)}, bytes(len(names)))
    if weight_map is not None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def refused(where: object) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(where)  # type: ignore[arg-type]
    return caught.value


TWO = {"a.safetensors": ["x", "y"], "b.safetensors": ["z"]}
RIGHT = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}


def test_a_right_folder_opens(tmp_path):
    assert set(Checkpoint.open(folder_of(tmp_path, TWO, RIGHT)).tensors) == {"x", "y", "z"}


@pytest.mark.parametrize(
    "name",
    [
        "../b.safetensors", "/etc/b.safetensors", "sub/b.safetensors", "..", "", ".", "b.bin", 3, None, ["b"],
        "b.safetensors/..", "..\\b.safetensors/",
    ],
    ids=str,
)  # fmt: skip
def test_an_index_that_leads_elsewhere(tmp_path, name):
    error = refused(folder_of(tmp_path, TWO, {**RIGHT, "z": name}))
    assert (error.code, error.tensor, error.found) == ("checkpoint.index", "z", name)
    assert "without a path" in error.needed


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "[" * 90_000]
)
def test_an_index_that_is_none(tmp_path, text):
    folder_of(tmp_path, TWO, None)
    (tmp_path / INDEX).write_text(text)
    error = refused(tmp_path)
    assert error.code == "checkpoint.index"
    assert INDEX in str(error)


def test_an_index_that_is_not_text_or_a_folder(tmp_path):
    folder_of(tmp_path, TWO, None)
    (tmp_path / INDEX).write_bytes(b"\xff\xfe\x00")
    assert refused(tmp_path).code == "checkpoint.index"
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()
    assert refused(tmp_path).code == "checkpoint.index"


@pytest.mark.parametrize("text", ["{", "[]", "3", "\x00"])
def test_a_config_that_is_not_an_object(tmp_path, text):
    (folder_of(tmp_path, TWO, RIGHT) / "config.json").write_text(text)
    assert refused(tmp_path).code == "checkpoint.config"


def test_a_file_that_the_index_names_and_is_not_there(tmp_path):
    error = refused(folder_of(tmp_path, TWO, {**RIGHT, "w": "c.safetensors"}))
    assert (error.code, error.file) == ("checkpoint.file_missing", tmp_path / "c.safetensors")
    assert (error.needed, error.next_step) == ("3 files", "finish the download")


def test_names_that_differ_in_case(tmp_path):
    error = refused(folder_of(tmp_path, TWO, {**RIGHT, "z": "B.safetensors"}))
    assert error.code == "checkpoint.file_missing"
    stale = refused(folder_of(tmp_path, TWO, {"X": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}))
    assert (stale.code, stale.tensor) == ("checkpoint.index_tensor", "X")


def test_a_tensor_that_its_file_does_not_hold(tmp_path):
    error = refused(folder_of(tmp_path, TWO, {**RIGHT, "w": "b.safetensors"}))
    assert (error.code, error.tensor, error.found) == ("checkpoint.index_tensor", "w", "nothing in b.safetensors")


def test_a_tensor_in_another_file(tmp_path):
    error = refused(folder_of(tmp_path, TWO, {**RIGHT, "y": "b.safetensors"}))
    assert (error.code, error.tensor) == ("checkpoint.index_tensor", "y")
    assert (error.found, error.needed) == ("b.safetensors", "a.safetensors")


def test_a_tensor_that_the_index_forgot(tmp_path):
    error = refused(folder_of(tmp_path, TWO, {"x": "a.safetensors", "z": "b.safetensors"}))
    assert (error.code, error.tensor, error.file) == ("checkpoint.index_tensor", "y", tmp_path / "a.safetensors")


@pytest.mark.parametrize("index", [True, False])
def test_a_tensor_in_two_files(tmp_path, index):
    error = refused(folder_of(tmp_path, {**TWO, "b.safetensors": ["z", "x"]}, RIGHT if index else None))
    assert (error.code, error.tensor) == ("checkpoint.duplicate", "x")
    assert error.found == "a.safetensors and b.safetensors"


def test_a_file_that_the_index_does_not_name_is_left_alone_and_said(tmp_path):
    folder_of(tmp_path, {**TWO, "consolidated.safetensors": ["x"]}, RIGHT)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.unlisted == ("consolidated.safetensors",)
    assert [p.name for p in checkpoint.paths] == ["a.safetensors", "b.safetensors"]


def test_numbered_files_without_an_index_must_be_complete(tmp_path):
    files = {f"model-{i:05d}-of-00003.safetensors": [f"x{i}"] for i in (1, 3)}
    error = refused(folder_of(tmp_path, files, None))
    assert (error.code, error.file) == ("checkpoint.file_missing", tmp_path / "model-00002-of-00003.safetensors")
    folder_of(tmp_path, {"model-00002-of-00003.safetensors": ["x2"]}, None)
    assert set(Checkpoint.open(tmp_path).tensors) == {"x1", "x2", "x3"}


def test_a_number_of_files_that_is_a_joke(tmp_path):
    folder_of(tmp_path, {"model-00001-of-99999.safetensors": ["x"]}, None)
    assert set(Checkpoint.open(tmp_path).tensors) == {"x"}  # not believed


def test_a_shard_that_is_a_fifo_or_a_folder_or_a_loop(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert refused(tmp_path).code == "checkpoint.not_a_file"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    assert refused(tmp_path).code == "checkpoint.not_a_file"
    (tmp_path / "model.safetensors").rmdir()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    assert refused(tmp_path).code == "checkpoint.not_a_file"


def test_a_path_that_is_a_fifo_or_impossible(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo").code == "checkpoint.not_a_file"
    assert refused("x" * 5000).code == "checkpoint.not_a_file"
    assert refused("~nobody_of_that_name/x").code == "checkpoint.not_a_file"
    assert refused(str(tmp_path / "a\x00b")).code in ("checkpoint.not_a_file", "checkpoint.not_found")


def test_half_a_million_entries(tmp_path):
    names = [f"layers.{i // 5000}.ffn.experts.{i % 5000}.w1.weight" for i in range(500_000)]
    entries = {n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in names}
    json_file(tmp_path / "a.safetensors", entries)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    assert len(Checkpoint.open(tmp_path).tensors) == 500_000


def test_a_repeated_name_among_half_a_million_is_found_at_once(tmp_path):
    """Counting each name in a list of all names took hours."""
    one = json.dumps({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    text = "{" + ",".join(f'"{i}": {one}' for i in range(300_000)) + f', "299999": {one}}}'
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    error = refused(tmp_path / "a.safetensors")
    assert (error.code, error.tensor) == ("checkpoint.duplicate_key", "299999")


# -- the audit ----------------------------------------------------------------------------------------------------


def test_the_audit_collects_what_strict_raises_one_by_one(tmp_path):
    folder_of(tmp_path, {**TWO, "b.safetensors": ["z", "x"]}, {**RIGHT, "w": "b.safetensors", "v": "c.safetensors"})
    (tmp_path / "d.safetensors").write_bytes(b"short")
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["u"] = "d.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    checkpoint = Checkpoint.open(tmp_path, strict=False)
    assert sorted(p.code.partition(".")[2] for p in checkpoint.problems) == [
        "duplicate", "empty", "file_missing", "index_tensor", "index_tensor",
    ]  # fmt: skip
    assert set(checkpoint.tensors) == {"x", "y", "z"}
    assert all(p.file or p.tensor for p in checkpoint.problems)


def test_the_audit_of_a_right_folder_is_empty(tmp_path):
    assert Checkpoint.open(folder_of(tmp_path, TWO, RIGHT), strict=False).problems == []
