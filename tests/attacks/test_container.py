"""Hostile safetensors files: each gives its own code and says where, what was found and what was needed."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest

from shardproof.checkpoint.header import DTYPE_BITS, HEADER_LIMIT
from shardproof.errors import CheckpointError
from tests.attacks.files import entry, json_file, raw_file, read, refused


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# -- not a safetensors file at all ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7])
def test_shorter_than_its_length_field(path, size):
    path.write_bytes(b"\x00" * size)
    error = refused(path)
    assert (error.code, error.found, error.needed) == ("checkpoint.empty", f"{size} bytes", ">= 8 bytes")


@pytest.mark.parametrize(
    "length", [0, 1, 17, HEADER_LIMIT + 1, 1 << 62, (1 << 64) - 1], ids=["0", "1", "past end", "limit", "huge", "-1"]
)
def test_header_length_that_cannot_be(path, length):
    error = refused(raw_file(path, b"{}" + b" " * 14, length=length))
    assert error.code == "checkpoint.header_length"
    assert error.found == f"{length} bytes of header in a file of 24"
    assert error.needed == "2 to 16 bytes"


def test_a_git_lfs_pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert refused(path).code == "checkpoint.header_length"


def test_a_directory_a_fifo_and_a_socket(tmp_path):
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    fifo = tmp_path / "fifo.safetensors"
    os.mkfifo(fifo)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    assert (refused(folder).code, refused(folder).found) == ("checkpoint.not_a_file", "a directory")
    assert (refused(fifo).code, refused(fifo).found) == ("checkpoint.not_a_file", "a FIFO")
    assert refused(tmp_path / "s").code == "checkpoint.not_a_file"
    listening.close()


def test_a_symlink_loop_and_a_dangling_link(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    assert (refused(tmp_path / "a").code, refused(tmp_path / "a").found) == (
        "checkpoint.not_a_file",
        os.strerror(40),
    )
    assert refused(tmp_path / "c").found == os.strerror(2)


def test_no_permission_to_read(path, monkeypatch):
    """Root may read everything, so the refusal of the kernel is played."""
    json_file(path, {})

    def deny(*_args: object, **_kwargs: object) -> int:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("shardproof.checkpoint.header.os.open", deny)
    error = refused(path)
    assert (error.code, error.found) == ("checkpoint.not_a_file", os.strerror(13))
    assert "may read" in error.needed


# -- a header that is not one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe{}", b"not json", b"{ ", b'{"a":', b'"dtype": 1}', b"{}x", b"[]", b"null", b"33", b'"text"', b"NaN",
        b"[" * 100_000, b'{"a":' * 100_000, b"\x00\x00\x00", b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: ascii(text[:10]),
)  # fmt: skip
def test_a_header_that_is_not_a_json_object(path, text):
    error = refused(raw_file(path, text))
    assert error.code == "checkpoint.header_json"
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "value",
    [
        None, 3, [], "text", {}, {"dtype": "U8"}, {"dtype": "U8", "shape": [1]}, {"shape": [1], "data_offsets": [0, 1]},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_incomplete(path, value):
    error = refused(json_file(path, {"w": value}, b"0"))
    assert (error.code, error.tensor) == ("checkpoint.header_json", "w")
    assert error.needed == "dtype, shape, data_offsets"


def test_a_tensor_named_twice(path):
    one = json.dumps(entry(0, 1))
    error = refused(raw_file(path, f'{{"w": {one}, "v": {json.dumps(entry(1, 2))}, "w": {one}}}'.encode(), b"01"))
    assert (error.code, error.tensor) == ("checkpoint.duplicate_key", "w")


def test_an_entry_with_two_dtypes(path):
    text = b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "dtype": "F8_E4M3"}}'
    error = refused(raw_file(path, text, b"0"))
    assert (error.code, error.tensor) == ("checkpoint.duplicate_key", "w")
    assert "'dtype'" in error.what


def test_a_name_that_is_half_a_surrogate_pair(path):
    error = refused(raw_file(path, b'{"w\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"0"))
    assert error.code == "checkpoint.header_json"
    str(error).encode()  # printable everywhere


@pytest.mark.parametrize("metadata", [[], "text", {"a": 1}, {"a": None}, {"a": {"b": "c"}}])
def test_metadata_that_is_not_a_map_of_strings(path, metadata):
    error = refused(json_file(path, {"__metadata__": metadata}))
    assert error.code == "checkpoint.header_json"
    assert "__metadata__" in error.what


# -- entries that lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u8", "F4_E2M1", "", None, 8, ["U8"], "\ud800"])
def test_an_unknown_dtype(path, dtype):
    error = refused(json_file(path, {"w": entry(0, 4, dtype)}, b"0123"))
    assert (error.code, error.tensor) == ("checkpoint.dtype", "w")
    assert "F8_E8M0" in error.needed
    str(error).encode()


@pytest.mark.parametrize("shape", [None, 4, "4", {}, {"0": 4}, [-4], [4.0], [True], ["4"], [None], [[4]]], ids=str)
def test_a_shape_that_is_not_one(path, shape):
    bad = {**entry(0, 4), "shape": shape}
    error = refused(json_file(path, {"w": bad}, b"0123"))
    assert (error.code, error.tensor) == ("checkpoint.shape", "w")


@pytest.mark.parametrize(
    "offsets", [None, [], [0], [0, 1, 2], [1, 0], [-1, 3], [0, 4.0], [False, 4], {"0": 4}, ["0", "4"]], ids=str
)
def test_offsets_that_are_not_a_range(path, offsets):
    bad = {**entry(0, 4), "data_offsets": offsets}
    error = refused(json_file(path, {"w": bad}, b"0123"))
    assert (error.code, error.tensor) == ("checkpoint.offsets", "w")


@pytest.mark.parametrize(
    ("dtype", "shape", "needed"),
    [
        ("U8", [3], "3 bytes"), ("U8", [5], "5 bytes"), ("BF16", [4], "8 bytes"), ("F4", [7], "3 4/8 bytes"),
        ("U8", [0], "0 bytes"), ("U8", [], "1 bytes"), ("F32", [2], "8 bytes"),
    ],
)  # fmt: skip
def test_a_range_that_does_not_fit_dtype_and_shape(path, dtype, shape, needed):
    error = refused(json_file(path, {"w": entry(0, 4, dtype, shape)}, b"0123"))
    assert (error.code, error.tensor, error.found) == ("checkpoint.byte_count", "w", "4 bytes")
    assert error.needed == f"{needed} for {dtype} {shape}"


@pytest.mark.parametrize(
    "shape", [[1 << 32, 1 << 32], [1 << 63, 2], [1 << 62, 4, 1], [10**4000] * 50, [(1 << 64) + 4]],
    ids=["64 bits", "wraps", "wraps to 0", "thousands of digits", "4 mod 2**64"],
)  # fmt: skip
def test_a_product_that_overflows(path, shape):
    error = refused(json_file(path, {"w": entry(0, 4, "U8", shape)}, b"0123"))
    assert error.code == "checkpoint.byte_count"
    assert error.needed.startswith("more than 2**63 bytes")
    assert len(str(error)) < 1000


def test_offsets_beyond_every_file(path):
    error = refused(json_file(path, {"w": entry(0, 10**400, "U8")}, b"0123"))
    assert error.code == "checkpoint.truncated"
    assert error.needed == "at least more than 2**63 bytes"


# -- where the bytes are ------------------------------------------------------------------------------------------


def test_two_tensors_on_the_same_bytes(path):
    error = refused(json_file(path, {"a": entry(0, 4), "b": entry(2, 6)}, b"012345"))
    assert (error.code, error.tensor) == ("checkpoint.overlap", "b")
    assert "those of a" in error.what


def test_many_tensors_on_the_same_bytes_are_no_memory_bomb(path):
    bomb = {f"w{i}": entry(0, 1 << 20) for i in range(2000)}
    assert refused(json_file(path, bomb, bytes(1 << 20))).code == "checkpoint.overlap"


def test_a_hole_before_and_between_tensors(path):
    first = refused(json_file(path, {"a": entry(2, 4)}, b"0123"))
    assert (first.code, first.tensor) == ("checkpoint.hole", "a")
    assert "the header" in first.what
    between = refused(json_file(path, {"a": entry(0, 2), "b": entry(3, 4)}, b"0123"))
    assert (between.code, between.tensor) == ("checkpoint.hole", "b")
    assert "after a" in between.what


@pytest.mark.parametrize("extra", [1, 4096])
def test_bytes_after_the_last_tensor(path, extra):
    error = refused(json_file(path, {"a": entry(0, 4)}, b"0123" + bytes(extra)))
    assert error.code == "checkpoint.trailing"
    assert int(error.found.split()[0]) - int(error.needed.split()[0]) == extra


@pytest.mark.parametrize("lost", [1, 4096, 8192])
def test_a_file_cut_off(path, lost):
    json_file(path, {"a": entry(0, 4096), "b": entry(4096, 8192)}, bytes(8192 - lost))
    error = refused(path)
    assert (error.code, error.tensor) == ("checkpoint.truncated", "b" if lost <= 4096 else "a")
    assert error.next_step == "download the file again"


def test_a_file_that_shrinks_while_its_header_is_read(path, monkeypatch):
    json_file(path, {"a": entry(0, 4)}, b"0123")
    real = os.fdopen

    def shrink(descriptor: int, mode: str):
        os.truncate(path, 20)
        return real(descriptor, mode)

    monkeypatch.setattr("shardproof.checkpoint.header.os.fdopen", shrink)
    assert refused(path).code == "checkpoint.truncated"


# -- what is odd and right ----------------------------------------------------------------------------------------


def test_tensors_of_no_size_and_of_no_axis(path):
    made = {"zero": entry(0, 0, "F32", [0, 4]), "scalar": entry(0, 4, "F32", []), "last": entry(4, 4, "U8", [3, 0])}
    header = read(json_file(path, made, b"0123"))
    assert [(t.name, t.shape, t.stop - t.start) for t in header.tensors] == [
        ("zero", (0, 4), 0), ("scalar", (), 4), ("last", (3, 0), 0),
    ]  # fmt: skip


def test_a_file_without_tensors(path):
    assert read(raw_file(path, b"{}")).tensors == []


def test_a_header_padded_with_blanks_as_safetensors_writes_it(path):
    header = read(raw_file(path, json.dumps({"a": entry(0, 4)}).encode() + b" " * 7, b"0123"))
    assert header.tensors[0].stop == path.stat().st_size


def test_files_that_the_safetensors_library_wrote(path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.uint8), "c": np.int64(3)}
    save_file({k: np.asarray(v) for k, v in arrays.items()}, path, metadata={"format": "pt"})
    header = read(path)
    assert header.metadata == {"format": "pt"}
    blob = path.read_bytes()
    assert {t.name: blob[t.start : t.stop] for t in header.tensors} == {
        k: np.asarray(v).tobytes() for k, v in arrays.items()
    }


def test_every_dtype_of_the_specification_is_known(path):
    for dtype, bits in DTYPE_BITS.items():
        tensor = read(json_file(path, {"w": entry(0, bits, dtype, [8])}, bytes(bits))).tensors[0]
        assert (tensor.dtype, tensor.stop - tensor.start) == (dtype, bits)


# -- collecting instead of raising ----------------------------------------------------------------------------------


def test_all_problems_of_single_tensors_are_collected(path):
    from shardproof.checkpoint.header import read_header

    problems: list[CheckpointError] = []
    made = {
        "dtype": entry(0, 1, "X"), "shape": {**entry(0, 1), "shape": [-1]}, "count": entry(0, 1, "U8", [9]),
        "good": entry(0, 4), "hole": entry(5, 6), "cut": entry(6, 900),
    }  # fmt: skip
    header = read_header(json_file(path, made, bytes(6)), 0, problems)
    assert sorted(p.code.partition(".")[2] for p in problems) == ["byte_count", "dtype", "hole", "shape", "truncated"]
    assert "good" in [t.name for t in header.tensors]
