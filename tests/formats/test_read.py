"""Every dialect is read into the same canonical bytes."""

from __future__ import annotations

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import FormatError
from shardproof.formats import ExpertModel, formats, read_experts
from tests.checkpoints import make

KINDS = ["deepseek", "quark", "compressed_tensors", "gpt_oss", "ling", "modelopt"]


def opened(folder) -> ExpertModel:
    return read_experts(Checkpoint.open(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_what_was_written(tmp_path, kind):
    made = make(tmp_path, kind, layers=2, experts=5, hidden=96, intermediate=64)
    model = opened(tmp_path)
    assert model.format == kind
    assert list(model.layers) == ["layers.0", "layers.1"]
    for field, written in (("weight", made.weight), ("scale", made.scale)):
        assert len(written) == 2 * 5 * 3
        for (layer, expert, projection), matrix in written.items():
            found = model.layer(layer).sources[projection, field].matrix(model.checkpoint, expert)
            assert np.array_equal(found, matrix), (layer, expert, projection, field)
            assert found.shape == model.layer(layer).logical_shape(projection, field)


def test_all_dialects_give_the_same_canonical_bytes(tmp_path):
    """One seed, six spellings: the matrices are equal byte for byte."""
    seen = {}
    for kind in KINDS:
        make(tmp_path / kind, kind, seed=7)
        model = opened(tmp_path / kind)
        layer = model.layer("layers.0")
        seen[kind] = {
            (expert, *slot): source.matrix(model.checkpoint, expert).tobytes()
            for slot, source in layer.sources.items()
            if slot[1] != "bias"
            for expert in range(layer.spec.experts)
        }
        assert len(set(seen[kind].values())) == len(seen[kind])  # no two matrices are equal by chance
    assert all(found == seen["deepseek"] for found in seen.values())


def test_gpt_oss_rows_are_deinterleaved_and_biases_kept(tmp_path):
    made = make(tmp_path, "gpt_oss")
    model = opened(tmp_path)
    layer = model.layer("layers.0")
    assert layer.spec.bias
    for (_, expert, projection), bias in made.bias.items():
        raw = layer.sources[projection, "bias"].matrix(model.checkpoint, expert)
        words = np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16
        assert np.array_equal(words.view(np.float32).reshape(-1), bias)


def test_matrices_are_read_only_views(tmp_path):
    make(tmp_path, "gpt_oss")
    model = opened(tmp_path)
    matrix = model.layer("layers.0").sources["w1", "weight"].matrix(model.checkpoint, 0)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


@pytest.mark.parametrize(
    ("kind", "tensors"), [("deepseek", 24), ("gpt_oss", 6)], ids=["per expert", "fused, w1 and w3 in one tensor"]
)
def test_counts(tmp_path, kind, tensors):
    make(tmp_path, kind)
    model = opened(tmp_path)
    assert model.tensor_count == tensors
    matrices = 4 * (3 * 64 * 96 // 2 + 3 * 64 * 96 // 32)
    biases = 4 * (2 * 96 + 64) * 2 if kind == "gpt_oss" else 0
    assert model.expert_bytes == matrices + biases


def test_a_layer_that_is_not_there(tmp_path):
    make(tmp_path, "quark", layers=2)
    with pytest.raises(FormatError) as caught:
        opened(tmp_path).layer("layers.7")
    assert (caught.value.code, caught.value.layer, caught.value.needed) == (
        "format.layer", "layers.7", "layers.0, layers.1",
    )  # fmt: skip


def test_layers_are_in_model_order_and_not_in_text_order(tmp_path):
    make(tmp_path, "deepseek", layers=12, experts=1, hidden=32, intermediate=32, top_k=1)
    assert list(opened(tmp_path).layers) == [f"layers.{i}" for i in range(12)]


def test_names_wholly_in_one_file_or_spread_over_many(tmp_path):
    for files in (1, 5):
        made = make(tmp_path / str(files), "deepseek", files=files)
        model = opened(tmp_path / str(files))
        for (layer, expert, projection), matrix in made.scale.items():
            found = model.layer(layer).sources[projection, "scale"].matrix(model.checkpoint, expert)
            assert np.array_equal(found, matrix)


def test_every_format_has_a_summary_and_a_test():
    assert sorted(KINDS) == sorted(formats())
    assert all(f.summary and f.name == name for name, f in formats().items())
