"""A new dialect is one new file: made up here, written to a folder, imported, and it works everywhere."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.formats import format as format_room
from shardproof.formats import formats, read_experts
from tests.checkpoints import make

SOURCE = '''
"""Teapot: per-expert `.fp4` and `.e8`."""

from shardproof.formats.format import quantization
from shardproof.formats.model import Evidence
from shardproof.formats.per_expert import PerExpertFormat


class Teapot(PerExpertFormat):
    """A dialect that nobody uses."""

    name = "teapot"
    summary = "teapot: experts.E.w1.fp4 (U8) + .e8 (U8)"
    suffixes = {"fp4": "weight", "e8": "scale"}
    dtypes = {"weight": ("U8",), "scale": ("U8",)}

    def from_config(self, config):
        """`quant_method: teapot`."""
        method = quantization(config).get("quant_method")
        return Evidence(method == "teapot", "config", f"quant_method is {method!r}") if method else None
'''


@pytest.fixture
def teapot(tmp_path):
    file = tmp_path / "teapot.py"
    file.write_text(SOURCE)
    known = formats()  # the folder's own dialects first
    assert "teapot" not in known
    spec = importlib.util.spec_from_file_location("teapot", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["teapot"] = module
    spec.loader.exec_module(module)
    yield
    del sys.modules["teapot"], format_room._FORMATS["teapot"]


def test_one_file_is_enough(tmp_path, teapot):
    def rename(tensors):
        for name in [n for n in tensors if "experts" in n]:
            dtype, array = tensors.pop(name)
            new = name.replace("weight_packed", "fp4").replace("weight_scale", "e8")
            tensors[new] = (dtype, array)

    made = make(tmp_path / "model", "compressed_tensors", alter=rename,
                config={"quantization_config": {"quant_method": "teapot"}})  # fmt: skip
    assert "teapot" in formats()
    model = read_experts(Checkpoint.open(tmp_path / "model"))
    assert model.format == "teapot"
    for (layer, expert, projection), matrix in made.weight.items():
        found = model.layer(layer).sources[projection, "weight"].matrix(model.checkpoint, expert)
        assert np.array_equal(found, matrix)


def test_the_made_up_dialect_is_gone_again():
    assert "teapot" not in formats()
