"""transformers' own MoE models: stock experts with decoded weights against packed ones, logits and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shardproof.api import open_model
from shardproof.distributed import load_rank
from shardproof.errors import KernelError
from shardproof.integrations.transformers import PackedExpertsModule, replace_experts
from shardproof.mxfp4 import decode
from shardproof.pack import pack, pack_in_memory
from shardproof.packed import PackedExperts
from shardproof.plan import make_plan
from tests.checkpoints import Made, make
from tests.layers import INTERLEAVED, SEPARATED
from tests.processes import in_processes

transformers = pytest.importorskip("transformers")

HIDDEN, INTERMEDIATE, EXPERTS, LAYERS = 64, 96, 4, 2
COMMON = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "max_position_embeddings": 64, "head_dim": 16, "num_experts_per_tok": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "mixtral": (
        "Mixtral", "quark", {"intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS},
        {"model_type": "mixtral", "num_local_experts": EXPERTS},
    ),
    "qwen3_moe": (
        "Qwen3Moe", "quark",
        {"moe_intermediate_size": INTERMEDIATE, "num_experts": EXPERTS, "norm_topk_prob": True, "mlp_only_layers": []},
        {},
    ),
    "gpt_oss": (
        "GptOss", "gpt_oss", {"intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS, "sliding_window": 16},
        {},
    ),
}  # fmt: skip


def stock_model(name: str, made: Made | None, **changes):
    """A small random model; its experts hold what the checkpoint's MXFP4 bytes decode to."""
    torch.manual_seed(0)
    title, _, sizes, _ = FAMILIES[name]
    config = getattr(transformers, f"{title}Config")(**{**COMMON, **sizes, **changes})
    model = getattr(transformers, f"{title}ForCausalLM")(config).eval()
    for number, layer in enumerate(model.model.layers):
        if made is not None:
            fill(layer.mlp.experts, made, f"layers.{number}", transposed=name == "gpt_oss")
    return model


def fill(experts, made: Made, layer: str, *, transposed: bool) -> None:
    def matrix(expert, projection):
        return decode(made.weight[layer, expert, projection], made.scale[layer, expert, projection])

    for expert in range(EXPERTS):
        gate, up, down = (matrix(expert, p) for p in ("w1", "w3", "w2"))
        if transposed:
            gate_up = np.stack([gate, up], 1).reshape(-1, HIDDEN)
            biases = [made.bias[layer, expert, p] for p in ("w1", "w3", "w2")]
            experts.gate_up_proj.data[expert] = torch.from_numpy(gate_up.T.copy())
            experts.down_proj.data[expert] = torch.from_numpy(down.T.copy())
            experts.gate_up_proj_bias.data[expert] = torch.from_numpy(np.stack(biases[:2], 1).reshape(-1))
            experts.down_proj_bias.data[expert] = torch.from_numpy(biases[2])
        else:
            experts.gate_up_proj.data[expert] = torch.from_numpy(np.concatenate([gate, up]))
            experts.down_proj.data[expert] = torch.from_numpy(down)


def checkpoint(tmp_path: Path, name: str) -> Made:
    _, kind, _, config = FAMILIES[name]
    sizes = {} if name == "qwen3_moe" else {"intermediate_size": INTERMEDIATE}
    return make(
        tmp_path / "ckpt", kind, layers=LAYERS, experts=EXPERTS, hidden=HIDDEN, intermediate=INTERMEDIATE,
        config={**config, **sizes},
    )  # fmt: skip


def packed(folder: Path, recipe=SEPARATED, tp: int = 1, ep: int = 1) -> list[PackedExperts]:
    model = open_model(folder)
    plan = make_plan(model, recipe, tp=tp, ep=ep)
    return [pack_in_memory(model, plan, rank) for rank in plan.ranks]


def said(model) -> tuple[torch.Tensor, list[int]]:
    ids = torch.arange(1, 25).reshape(2, 12)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
        new = model.generate(
            input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=6, do_sample=False
        )
    return logits, new[0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("recipe", "tp", "ep"), [(SEPARATED, 1, 1), (INTERLEAVED, 3, 1), (SEPARATED, 2, 2)])
def test_logits_and_text_are_those_of_the_stock_model(tmp_path, name, recipe, tp, ep):
    made = checkpoint(tmp_path, name)
    model = stock_model(name, made)
    logits, text = said(model)
    replaced = replace_experts(model, packed(made.folder, recipe, tp, ep), keep=True)
    assert replaced == [f"model.layers.{n}.mlp.experts" for n in range(LAYERS)]
    assert all(isinstance(model.get_submodule(n), PackedExpertsModule) for n in replaced)
    assert not any(".experts." in n for n, _ in model.named_parameters())
    new_logits, new_text = said(model)
    assert new_text == text
    assert (new_logits - logits).abs().max() <= 2e-5 * logits.abs().max()


def generate_in_a_group(_rank, folder: Path) -> torch.Tensor:
    model = stock_model("gpt_oss", None)
    replace_experts(model, load_rank(folder))
    return said(model)[0]


def test_one_rank_a_process_gives_the_same_logits(tmp_path):
    made = checkpoint(tmp_path, "gpt_oss")
    source = open_model(made.folder)
    pack(source, make_plan(source, SEPARATED, tp=2), tmp_path / "packed")
    logits, _ = said(stock_model("gpt_oss", made))
    for found in in_processes(2, generate_in_a_group, tmp_path, tmp_path / "packed"):
        assert (found - logits).abs().max() <= 2e-5 * logits.abs().max()


def test_wrong_experts_change_the_logits(tmp_path):
    """The comparison above can fail: another checkpoint's experts do not pass it."""
    made = checkpoint(tmp_path, "mixtral")
    model = stock_model("mixtral", made)
    logits, _ = said(model)
    other = make(
        tmp_path / "other", "quark", layers=LAYERS, seed=5,
        config={"model_type": "mixtral", "intermediate_size": INTERMEDIATE},
    )  # fmt: skip
    replace_experts(model, packed(other.folder))
    assert (said(model)[0] - logits).abs().max() > 0.1 * logits.abs().max()


def test_a_model_with_other_layers_is_refused(tmp_path):
    made = checkpoint(tmp_path, "mixtral")
    ranks = packed(made.folder)
    with pytest.raises(KernelError) as caught:
        replace_experts(stock_model("mixtral", None, num_hidden_layers=3), ranks)
    assert (caught.value.code, caught.value.layer) == ("kernel.module", "layers.2")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, intermediate_size=96))
    with pytest.raises(KernelError) as caught:
        replace_experts(llama, ranks)
    assert caught.value.found == "0 modules named experts in the model"


def test_a_model_of_another_size_is_refused_and_left_alone(tmp_path):
    ranks = packed(checkpoint(tmp_path, "mixtral").folder)
    model = stock_model("mixtral", None, hidden_size=128)
    with pytest.raises(KernelError) as caught:
        replace_experts(model, ranks)
    assert (caught.value.found, caught.value.needed) == (64, 128)
    assert not any(isinstance(m, PackedExpertsModule) for m in model.modules())


def test_missing_ranks_are_refused(tmp_path):
    ranks = packed(checkpoint(tmp_path, "mixtral").folder, tp=3)
    with pytest.raises(KernelError) as caught:
        replace_experts(stock_model("mixtral", None), ranks[:2])
    assert caught.value.code == "kernel.ranks"
    with pytest.raises(KernelError):
        replace_experts(stock_model("mixtral", None), [])
