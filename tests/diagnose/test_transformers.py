"""A real engine: transformers' tensor-parallel loading of a native DeepSeek-V4 checkpoint, right and wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardproof.diagnose import diagnose
from tests.checkpoints import make

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

if not hasattr(transformers, "DeepseekV4Config"):
    pytest.skip("this transformers has no DeepSeek-V4", allow_module_level=True)


def _loaded(tmp_path: Path, intermediate: int) -> tuple[Path, Path]:
    """A small native checkpoint of experts, and the folder of both ranks' dumps."""
    config = transformers.DeepseekV4Config(
        vocab_size=64, hidden_size=128, moe_intermediate_size=intermediate, num_hidden_layers=1, num_attention_heads=4,
        head_dim=32, q_lora_rank=32, num_experts_per_tok=2, n_routed_experts=8, max_position_embeddings=512,
        layer_types=["sliding_attention"], mlp_layer_types=["moe"], o_groups=2, o_lora_rank=32, index_n_heads=2,
        index_head_dim=32, index_topk=8, num_nextn_predict_layers=0, qk_rope_head_dim=8,
        architectures=["DeepseekV4ForCausalLM"],
    ).to_dict()  # fmt: skip
    config["expert_dtype"] = "fp4"
    config["quantization_config"] = {
        "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
    }  # fmt: skip
    make(tmp_path / "ckpt", "deepseek", layers=1, experts=8, hidden=128, intermediate=intermediate, config=config)
    script = Path(__file__).with_name("hf_tp.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "ckpt"), str(tmp_path)], check=False, capture_output=True, text=True, timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return tmp_path / "ckpt", tmp_path


def test_shards_of_whole_blocks_are_right(tmp_path: Path) -> None:
    checkpoint, dumps = _loaded(tmp_path, 128)
    for rank in range(2):
        found = diagnose(dumps / f"rank{rank}.pt", checkpoint)
        assert found.ok, str(found)
        assert found.layers[0].rank == f"{rank} of 2"
        assert [row.share for row in found.layers[0].rows] == [1.0, 1.0]


def test_a_shard_that_cuts_a_block_is_named(tmp_path: Path) -> None:
    """moe_intermediate_size 96 at tp 2: 48 values a rank. Nothing is raised, and down_proj is wrong."""
    checkpoint, dumps = _loaded(tmp_path, 96)
    expected = {
        0: "the scales of values 24..31 are another block's: the block size was taken from the shard's shape, "
        "48 values / 2 scales = 24, instead of 32",
        1: "the scales of values 48..63 are another block's: the block size was taken from the shard's shape, "
        "48 values / 1 scales = 48, instead of 32",
    }
    for rank, sentence in expected.items():
        found = diagnose(dumps / f"rank{rank}.pt", checkpoint)
        assert [f.name for f in found.findings] == ["block_from_shape"], str(found)
        assert found.findings[0].sentence == sentence
        assert found.findings[0].tensors == ("w2.weight",)
        assert found.layers[0].rows[0].share == 1.0  # w13 is right
