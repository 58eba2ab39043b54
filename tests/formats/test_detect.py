"""Which dialect a checkpoint is in: config and tensors together; on conflict refuse and show the evidence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import FormatError
from shardproof.experts import Activation
from shardproof.formats import read_experts
from tests.checkpoints import make

CT = "mxfp4-pack-quantized"


def opened(folder, **options):
    return read_experts(Checkpoint.open(folder), **options)


def refused(folder, **options) -> FormatError:
    with pytest.raises(FormatError) as caught:
        opened(folder, **options)
    return caught.value


def configured(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# -- spellings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("deepseek", {"expert_dtype": "FP4"}),
        ("deepseek", {"expert_dtype": None, "quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"}}),
        ("deepseek", {"expert_dtype": None, "text_config": {
            "quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4", "weight_block_size": [32, 32]}},
            "quantization_config": None}),
        ("deepseek", {"expert_dtype": None}),
        ("compressed_tensors", {"quantization_config": {
            "quant_method": "compressed-tensors", "config_groups": {"group_0": {"format": CT}}}}),
        ("compressed_tensors", {"quantization_config": {
            "quant_method": "compressed-tensors", "format": "mixed-precision",
            "config_groups": {"group_0": {"format": "float-quantized"}, "group_1": {"format": CT}}}}),
        ("compressed_tensors", {"quantization_config": None, "text_config": {"quantization_config": {
            "quant_method": "compressed-tensors", "format": CT}}}),
        ("modelopt", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A8_MXFP4_FP8"}}),
        ("gpt_oss", {"quantization_config": None}),
        ("ling", {"quantization_config": {"quant_method": "fp8", "routed_experts_quant_method": "mxfp4",
                                          "routed_experts_group_size": 32}}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_every_way_to_say_it_is_understood(tmp_path, kind, config):
    made = make(tmp_path, kind, config=config)
    model = opened(tmp_path)
    assert model.format == kind
    found = model.layer("layers.0").sources["w2", "weight"].matrix(model.checkpoint, 3)
    assert np.array_equal(found, made.weight["layers.0", 3, "w2"])
    assert all(e.speaks_for for e in model.evidence)
    assert any(e.where == "tensors" for e in model.evidence)


def test_quark_exports_of_deepseek_keep_the_native_names(tmp_path):
    def rename(tensors):
        for name in [n for n in tensors if n.endswith(".scale")]:
            tensors[name.removesuffix("scale") + "weight_scale"] = ("U8", tensors.pop(name)[1])

    make(tmp_path, "deepseek", config={"quantization_config": {"quant_method": "quark"}}, alter=rename)
    model = opened(tmp_path)
    assert model.format == "quark"
    assert model.layer("layers.0").spec.weight_before_w2  # the family is still DeepSeek-V4
    assert model.layer("layers.0").spec.activation.limit == 10.0


def test_tensor_views_of_either_sign_are_the_same_bytes(tmp_path):
    def as_u8(tensors):
        for name, (dtype, array) in tensors.items():
            tensors[name] = ("U8" if dtype in ("I8", "F8_E8M0") else dtype, array)

    made = make(tmp_path, "deepseek", alter=as_u8)
    model = opened(tmp_path)
    found = model.layer("layers.0").sources["w1", "scale"].matrix(model.checkpoint, 1)
    assert np.array_equal(found, made.scale["layers.0", 1, "w1"])


# -- conflicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config", "evidence"),
    [
        ("quark", {"expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8"}},
         ["+ config: expert_dtype is 'fp4'", "- config: quant_method is 'fp8'", ".weight with .weight_scale"]),
        ("compressed_tensors", {"quantization_config": {"quant_method": "mxfp4"}},
         ["+ config: quant_method is 'mxfp4'", "with .weight_scale"]),
        ("compressed_tensors", {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack"}},
         ["- config: quant_method is 'compressed-tensors', format 'pack'"]),
        ("gpt_oss", {"quantization_config": {"quant_method": "quark"}}, ["+ config: quant_method is 'quark'",
                                                                        "gate_up_proj_blocks"]),
        ("quark", {"quantization_config": {"quant_method": "fp8"}}, ["- config: quant_method is 'fp8'"]),
        ("quark", {"quantization_config": None}, ["+ tensors", "+ tensors"]),
        ("modelopt", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, ["'NVFP4'"]),
    ],
)  # fmt: skip
def test_a_conflict_is_refused_with_the_evidence(tmp_path, kind, config, evidence):
    make(tmp_path, kind, config=config)
    error = refused(tmp_path)
    assert error.code == "format.conflict"
    assert all(part in error.found for part in evidence), error.found
    of_kind = next(said for said in error.found.split("; ") if said.startswith(f"{kind} "))
    assert "+ tensors" in of_kind  # each piece stands with the format it speaks of
    assert "--format" in error.next_step


def test_the_user_may_decide(tmp_path):
    make(tmp_path, "quark", config={"quantization_config": None})
    model = opened(tmp_path, format="quark")
    assert (model.format, str(model.evidence[0])) == ("quark", "+ asked for: quark")


def test_an_unknown_format(tmp_path):
    make(tmp_path, "quark")
    error = refused(tmp_path, format="awq")
    assert (error.code, error.found) == ("format.unknown", "awq")
    assert "compressed_tensors, deepseek, gpt_oss" in error.needed


def test_a_format_that_was_asked_for_and_is_not_there(tmp_path):
    make(tmp_path, "quark")
    assert refused(tmp_path, format="gpt_oss").code == "format.extra"
    assert refused(tmp_path, format="compressed_tensors").code == "format.extra"


@pytest.mark.parametrize("where", ["top", "nested"])
def test_a_base_model_in_fp8_is_not_mxfp4(tmp_path, where):
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = (
        {"expert_dtype": "fp8", "quantization_config": quantised}
        if where == "top"
        else {"expert_dtype": None, "quantization_config": {**quantised, "expert_dtype": "fp8"}}
    )
    make(tmp_path, "deepseek", config=config)
    error = refused(tmp_path)
    assert error.code == "format.not_mxfp4"
    assert error.what == "the config says that the experts are fp8, not MXFP4"
    assert (error.found, error.needed) == ("expert_dtype 'fp8'", "expert_dtype 'fp4'")


def test_block_fp8_under_lings_names_is_not_mxfp4(tmp_path):
    def block_fp8(tensors):
        for name, (_, array) in tensors.items():
            if name.endswith("weight_scale_inv"):
                tensors[name] = ("F32", np.zeros(array.shape, np.float32))

    make(tmp_path, "ling", config={"quantization_config": {"quant_method": "fp8"}}, alter=block_fp8)
    assert refused(tmp_path).code == "format.none"


def test_a_checkpoint_without_experts(tmp_path):
    make(tmp_path, "quark", alter=lambda t: [t.pop(n) for n in list(t) if "experts" in n],
         config={"quantization_config": None})  # fmt: skip
    error = refused(tmp_path)
    assert error.code == "format.none"
    assert error.found == "1 tensors, none with the names of a known format"


def test_a_config_that_promises_experts_that_are_not_there(tmp_path):
    make(tmp_path, "quark", alter=lambda t: [t.pop(n) for n in list(t) if "experts" in n])
    assert refused(tmp_path).code == "format.conflict"
    assert refused(tmp_path, format="quark").code == "format.none"
    assert refused(tmp_path, format="gpt_oss").code == "format.none"


# -- what the config says of the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config", "activation", "before"),
    [
        ("deepseek", {}, Activation("silu", limit=10.0), True),
        ("deepseek", {"swiglu_limit": None}, Activation("silu"), True),
        ("gpt_oss", {}, Activation("swiglu_oai", limit=7.0, alpha=1.702), False),
        ("gpt_oss", {"swiglu_limit": 5, "swiglu_alpha": 1.5}, Activation("swiglu_oai", limit=5.0, alpha=1.5), False),
        ("quark", {"model_type": "minimax_m3"}, Activation("swiglu_oai", limit=7.0), False),
        ("quark", {}, Activation("silu"), False),
        ("compressed_tensors", {}, Activation("situ"), False),
        ("compressed_tensors", {"model_type": "x", "text_config": {"model_type": "kimi_k3"}}, Activation("situ"), False),
    ],
)  # fmt: skip
def test_arithmetic_of_a_family(tmp_path, kind, config, activation, before):
    make(tmp_path, kind, config=config)
    spec = opened(tmp_path).layer("layers.0").spec
    assert (spec.activation, spec.weight_before_w2) == (activation, before)


def test_sizes_and_counts_under_text_config(tmp_path):
    make(tmp_path, "quark")
    model = opened(configured(tmp_path, {
        "model_type": "vl", "hidden_size": None, "text_config": {
            "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 3, "hidden_size": 64,
            "moe_intermediate_size": 96, "quantization_config": {"quant_method": "quark"}}}))  # fmt: skip
    assert model.family == "qwen3_moe"
    assert model.layer("layers.0").spec.top_k == 3


def test_a_model_whose_experts_are_narrower_than_its_stream(tmp_path):
    """Kimi-K3 runs its experts at `routed_expert_hidden_size`."""
    make(tmp_path, "compressed_tensors", config={"hidden_size": 128, "routed_expert_hidden_size": 64})
    assert opened(tmp_path).layer("layers.0").spec.hidden == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_experts", "4"), ("num_experts", 0), ("num_experts", True), ("hidden_size", 64.0), ("num_experts_per_tok", -1),
     ("num_experts_per_tok", 5), ("swiglu_limit", "10"), ("swiglu_limit", -1), ("swiglu_limit", float("nan"))],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path, name, value):
    make(tmp_path, "quark", config={name: value})
    error = refused(tmp_path)
    assert error.code == "format.config"
    assert name in error.what
