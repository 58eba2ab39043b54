"""Other packages bring a checkpoint's bytes: the same packed bytes, and a coded error where one is missing or fails."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest

from shardproof.checkpoint import MappedReader, Span, open_reader, readers
from shardproof.checkpoint.reader import merge
from shardproof.errors import CheckpointError
from shardproof.pack import pack
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model

MODULES = {"fastsafetensors": "fastsafetensors", "runai": "runai_model_streamer"}
HERE = [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_reader_is_known_to_this_test():
    assert set(readers()) == set(MODULES)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_packing_through_a_reader(tmp_path, name, kind):
    """Two ranks of several layers, read ahead, are byte for byte what mapped files give."""
    made = model(tmp_path / "ckpt", kind, layers=3, experts=5, hidden=160, intermediate=224)
    plan = make_plan(made, RECIPES["aiter"], tp=2, ep=2)
    right = pack(made, plan, tmp_path / "mapped")
    assert pack(made, plan, tmp_path / "streamed", reader=name) == right
    assert contents(tmp_path / "streamed") == contents(tmp_path / "mapped")


@pytest.mark.parametrize("name", HERE)
def test_spans(tmp_path, name):
    """Odd offsets, many ranges of many files, out of order, with and without reading ahead."""
    made = model(tmp_path, layers=2, experts=6, hidden=256, intermediate=256)
    checkpoint = made.checkpoint
    rng = np.random.default_rng(0)
    spans = []
    for file, path in enumerate(checkpoint.paths):
        size = path.stat().st_size
        starts = rng.integers(0, size - 1, 5).tolist()
        spans += [Span(file, start, int(rng.integers(start + 1, size + 1))) for start in starts]
    rng.shuffle(spans)
    spans = [Span(*map(int, span)) for span in spans]
    reader = open_reader(name, checkpoint)
    right = MappedReader(checkpoint, ()).take(spans)
    reader.ahead(spans)
    for found in (reader.take(spans), reader.take(spans[:3])):
        for span, part, wanted in zip(spans, found, right, strict=False):
            np.testing.assert_array_equal(part, wanted, err_msg=str(span))
    assert reader.source == name
    assert list(reader.take([])) == []


@pytest.mark.parametrize("name", HERE)
def test_a_file_that_shrinks(tmp_path, name):
    """Before it is read: the check. While it is read: the package fails, and the file is named."""
    made = model(tmp_path, experts=6, hidden=256, intermediate=256)
    path = made.checkpoint.paths[0]
    spans = merge(*np.array([[0], [0], [path.stat().st_size]]))
    reader = open_reader(name, made.checkpoint)
    os.truncate(path, 100)
    with pytest.raises(CheckpointError) as caught:
        reader.take(spans)
    assert caught.value.code == "checkpoint.changed"
    reader.ahead(spans)  # without the check: as if it had shrunk just now
    with pytest.raises(Exception, match=r"(?i)read|end of file"):
        next(iter(reader._fetching.values())).result()


@pytest.mark.parametrize("name", HERE)
def test_bytes_that_cannot_be_read(tmp_path, name):
    """The file is as it was, the range is not: the package's words are shown."""
    made = model(tmp_path)
    size = made.checkpoint.paths[0].stat().st_size
    with pytest.raises(CheckpointError) as caught:
        open_reader(name, made.checkpoint).take([Span(0, size - 10, size + 4096)])
    assert caught.value.code == "checkpoint.reader_failed"
    assert caught.value.found.startswith(f"{name}: ")


def test_an_unknown_reader(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        open_reader("carrier pigeon", model(tmp_path).checkpoint)
    assert caught.value.code == "checkpoint.reader"
    assert caught.value.needed == "one of: mmap, fastsafetensors, runai"


def test_mapped_files_are_built_in(tmp_path):
    made = model(tmp_path / "ckpt")
    assert open_reader("mmap", made.checkpoint) is None
    pack(made, make_plan(made, RECIPES["raw"]), tmp_path / "out", reader="mmap")


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, name):
    """Blocked here, so that this also runs where the package is installed."""
    made = model(tmp_path / "ckpt")
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(CheckpointError) as caught:
        pack(made, make_plan(made, RECIPES["raw"]), tmp_path / "out", reader=name)
    kind = readers()[name]
    assert caught.value.code == "checkpoint.reader_missing"
    assert caught.value.next_step == f"pip install {kind.package}=={kind.tested}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", HERE)
def test_another_interface_is_not_guessed_at(tmp_path, monkeypatch, name):
    """A version without the names that are used."""
    made = model(tmp_path)
    target = (
        "fastsafetensors.cpp.nogds_file_reader" if name == "fastsafetensors" else "runai_model_streamer.FileStreamer"
    )
    monkeypatch.delattr(target)
    with pytest.raises(CheckpointError) as caught:
        open_reader(name, made.checkpoint)
    assert caught.value.code == "checkpoint.reader_missing"
    assert "lacks what is used here" in caught.value.found
