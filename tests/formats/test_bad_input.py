"""Every way an expert can be wrong has its own code, and names tensor, layer, expert, found and needed."""

from __future__ import annotations

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import FormatError
from shardproof.formats import read_experts
from tests.checkpoints import make

PER_EXPERT = ["deepseek", "quark", "compressed_tensors", "ling", "modelopt"]
WEIGHT = {"compressed_tensors": "weight_packed"}
SCALE = {"deepseek": "scale", "ling": "weight_scale_inv"}


def find(tensors, kind, expert, projection, field):
    """The name of one tensor, whatever the dialect calls it."""
    names = {"w1": ("w1", "gate_proj"), "w3": ("w3", "up_proj"), "w2": ("w2", "down_proj")}[projection]
    suffix = WEIGHT.get(kind, "weight") if field == "weight" else SCALE.get(kind, "weight_scale")
    return next(n for n in tensors if any(n.endswith(f"experts.{expert}.{p}.{suffix}") for p in names))


def refused(tmp_path, kind, alter, **options) -> FormatError:
    make(tmp_path, kind, alter=alter, **options)
    with pytest.raises(FormatError) as caught:
        read_experts(Checkpoint.open(tmp_path))
    return caught.value


# -- missing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PER_EXPERT)
@pytest.mark.parametrize("expert", [0, 2, 3])
def test_a_missing_expert(tmp_path, kind, expert):
    def alter(tensors):
        for name in [n for n in tensors if f"experts.{expert}." in n]:
            del tensors[name]

    error = refused(tmp_path, kind, alter)
    assert (error.code, error.expert, error.layer) == ("format.missing_expert", expert, "layers.0")
    assert error.tensor.endswith(f"experts.{expert}.*")
    assert (error.found, error.needed) == ("no tensor", "4 experts")
    assert "zeros" in error.next_step


@pytest.mark.parametrize("kind", PER_EXPERT)
@pytest.mark.parametrize("projection", ["w1", "w3"])
def test_a_missing_half_of_w13(tmp_path, kind, projection):
    error = refused(tmp_path, kind, lambda t: t.pop(find(t, kind, 1, projection, "weight")))
    assert (error.code, error.expert, error.layer) == ("format.missing_projection", 1, "layers.0")
    assert error.what == "half of w13 is missing"
    assert error.found == f"no weight of {projection}"
    assert error.tensor.endswith(f"experts.1.{projection}")


def test_a_missing_w2(tmp_path):
    error = refused(tmp_path, "deepseek", lambda t: t.pop(find(t, "deepseek", 3, "w2", "weight")))
    assert (error.code, error.what, error.expert) == ("format.missing_projection", "w2 is missing", 3)


def test_every_w2_of_a_layer_is_missing(tmp_path):
    error = refused(tmp_path, "deepseek", lambda t: [t.pop(n) for n in list(t) if ".w2." in n])
    assert (error.code, error.expert) == ("format.missing_projection", 0)


@pytest.mark.parametrize("kind", PER_EXPERT)
@pytest.mark.parametrize("projection", ["w1", "w3", "w2"])
def test_a_missing_scale(tmp_path, kind, projection):
    error = refused(tmp_path, kind, lambda t: t.pop(find(t, kind, 2, projection, "scale")))
    assert (error.code, error.expert, error.found) == ("format.missing_scale", 2, f"no scale of {projection}")


def test_scales_without_their_weights(tmp_path):
    error = refused(tmp_path, "quark", lambda t: [t.pop(n) for n in list(t) if n.endswith("experts.0.up_proj.weight")])
    assert (error.code, error.found) == ("format.missing_projection", "no weight of w3")


def test_a_bias_on_some_experts_only(tmp_path):
    def alter(tensors):
        for expert, projection, rows in ((0, "gate_proj", 96), (0, "up_proj", 96), (0, "down_proj", 64)):
            tensors[f"model.layers.0.mlp.experts.{expert}.{projection}.bias"] = ("F32", np.zeros(rows, np.float32))

    error = refused(tmp_path, "quark", alter)
    assert (error.code, error.layer) == ("format.missing_bias", "layers.0")
    assert (error.found, error.needed) == ("w1: 1, w3: 1, w2: 1", "none, or 4 of each projection")


@pytest.mark.parametrize("router", ["layers.1.ffn.gate.weight", "model.layers.1.mlp.router.weight"])
def test_a_layer_with_a_router_and_no_experts(tmp_path, router):
    kind = "deepseek" if "ffn" in router else "gpt_oss"

    def alter(tensors):
        tensors[router] = tensors[router.replace(".1.", ".0.")] = ("BF16", np.zeros((4, 128), np.uint8))
        for name in [n for n in tensors if "layers.1." in n and "experts" in n]:
            del tensors[name]

    error = refused(tmp_path, kind, alter, layers=3)
    assert (error.code, error.layer, error.tensor) == ("format.missing_layer", "layers.1", router)


# -- too much -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["experts.0.w4.weight", "experts.0.w1.zero_point", "experts.0.w1", "experts.gate_up",
                                  "experts.x.w1.weight", "experts.-1.w1.weight", "experts.00.w1.weight",
                                  "experts.٣.w1.weight", "experts." + "9" * 5000 + ".w1.weight"])  # fmt: skip
def test_an_unknown_expert_tensor(tmp_path, name):
    whole = f"layers.0.ffn.{name}"
    error = refused(tmp_path, "deepseek", lambda t: t.update({whole: ("U8", np.zeros(3, np.uint8))}))
    assert (error.code, error.tensor) == ("format.extra", whole)
    assert "w1|w3|w2" in error.needed


def test_experts_where_no_layer_is_expected(tmp_path):
    def alter(tensors):
        for name in list(tensors):
            tensors[name.replace("layers.0.ffn", "blocks.0.ffn")] = tensors.pop(name)

    error = refused(tmp_path, "deepseek", alter)
    assert error.code == "format.extra"
    assert error.needed.startswith("layers.<L>.")


@pytest.mark.parametrize("kind", PER_EXPERT)
def test_an_expert_id_out_of_range(tmp_path, kind):
    def alter(tensors):
        name = find(tensors, kind, 0, "w1", "weight")
        tensors[name.replace("experts.0.", "experts.4.")] = tensors[name]

    error = refused(tmp_path, kind, alter)
    assert (error.code, error.expert, error.found) == ("format.expert_id", 4, 4)
    assert error.needed == "0..3 (the config has 4 experts)"
    assert "experts.4." in error.tensor


def test_two_names_for_one_matrix(tmp_path):
    def alter(tensors):
        name = "model.layers.0.mlp.experts.1.gate_proj.weight"
        tensors[name.replace("gate_proj", "w1")] = tensors[name]

    error = refused(tmp_path, "quark", alter)
    assert (error.code, error.expert) == ("format.duplicate", 1)
    assert {error.tensor.split(".")[-2], error.found.split(".")[-2]} == {"gate_proj", "w1"}


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_one_layer_under_two_prefixes(tmp_path, kind):
    def alter(tensors):
        for name in [n for n in tensors if "experts" in n]:
            tensors[f"draft.{name}"] = tensors[name]

    error = refused(tmp_path, kind, alter)
    assert error.code == "format.duplicate"
    assert {error.tensor.startswith("draft"), str(error.found).startswith("draft")} == {True, False}


def test_shared_experts_and_routers_are_left_alone(tmp_path):
    def alter(tensors):
        tensors["layers.0.ffn.shared_experts.w1.weight"] = ("U8", np.zeros(3, np.uint8))
        tensors["layers.0.ffn.gate.weight"] = ("U8", np.zeros(3, np.uint8))

    make(tmp_path, "deepseek", alter=alter)
    assert read_experts(Checkpoint.open(tmp_path)).tensor_count == 24


# -- wrong dtype ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PER_EXPERT)
def test_float32_weights(tmp_path, kind):
    def alter(tensors):
        name = find(tensors, kind, 1, "w3", "weight")
        tensors[name] = ("F32", np.zeros(tensors[name][1].shape, np.float32))

    error = refused(tmp_path, kind, alter)
    assert (error.code, error.expert, error.found) == ("format.dtype", 1, "F32")
    assert ".experts.1." in error.tensor
    assert "U8" in error.needed


@pytest.mark.parametrize("kind", PER_EXPERT)
def test_scales_that_were_cast_to_numbers(tmp_path, kind):
    def alter(tensors):
        name = find(tensors, kind, 3, "w2", "scale")
        tensors[name] = ("F32", tensors[name][1].astype(np.float32))

    error = refused(tmp_path, kind, alter)
    assert (error.code, error.expert, error.found) == ("format.dtype", 3, "F32")
    assert "E8M0" in error.next_step
    assert "cast" in error.next_step


# -- wrong shape ----------------------------------------------------------------------------------------------------


def reshaped(kind, projection, field, change):
    def alter(tensors):
        name = find(tensors, kind, 2, projection, field)
        dtype, array = tensors[name]
        tensors[name] = (dtype, change(array))

    return alter


@pytest.mark.parametrize("kind", PER_EXPERT)
@pytest.mark.parametrize("projection", ["w1", "w3", "w2"])
@pytest.mark.parametrize("field", ["weight", "scale"])
def test_one_axis_and_transposed(tmp_path, kind, projection, field):
    flat = refused(tmp_path / "flat", kind, reshaped(kind, projection, field, np.ravel))
    assert (flat.code, flat.expert) == ("format.shape", 2)
    assert len(flat.found) == 1
    turned = refused(tmp_path / "turned", kind, reshaped(kind, projection, field, np.transpose))
    assert (turned.code, turned.expert) == ("format.transposed", 2)
    assert turned.found == turned.needed[::-1]


@pytest.mark.parametrize("cut", [np.s_[:-1], np.s_[:, :-1]])
def test_a_row_or_a_column_too_few(tmp_path, cut):
    error = refused(tmp_path, "deepseek", reshaped("deepseek", "w1", "weight", lambda a: a[cut]))
    assert (error.code, error.expert) == ("format.shape", 2)
    assert error.needed == (96, 32)


@pytest.mark.parametrize(("hidden", "intermediate", "what"), [(80, 96, "hidden"), (64, 72, "intermediate")])
def test_a_size_that_is_not_whole_blocks(tmp_path, hidden, intermediate, what):
    """What a checkpoint would look like whose K is no multiple of 32."""
    error = refused(tmp_path, "deepseek", None, hidden=hidden, intermediate=intermediate)
    assert error.code == "format.block"
    assert what in error.what
    assert error.tensor.startswith("layers.0.ffn.experts.")
    assert (error.found, error.needed) == (hidden if what == "hidden" else intermediate, "a positive multiple of 32")


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@pytest.mark.parametrize(("name", "size"), [("hidden_size", 128), ("moe_intermediate_size", 64)])
def test_a_config_of_another_size(tmp_path, kind, name, size):
    error = refused(tmp_path, kind, None, config={name: size})
    assert (error.code, error.needed) == ("format.size", f"{size} (config)")
    assert error.tensor


# -- gpt-oss: fused tensors -----------------------------------------------------------------------------------------

FUSED = "model.layers.0.mlp.experts."


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("gate_up_proj_blocks", "format.missing_projection"), ("down_proj_blocks", "format.missing_projection"),
        ("gate_up_proj_scales", "format.missing_scale"), ("down_proj_scales", "format.missing_scale"),
        ("gate_up_proj_bias", "format.missing_bias"), ("down_proj_bias", "format.missing_bias"),
    ],
)  # fmt: skip
def test_a_missing_fused_tensor(tmp_path, name, code):
    error = refused(tmp_path, "gpt_oss", lambda t: t.pop(FUSED + name))
    assert (error.code, error.layer) == (code, "layers.0")
    assert error.tensor.endswith(name.rsplit("_", 1)[0] + "_*")


@pytest.mark.parametrize(("experts", "code"), [(5, "format.missing_expert"), (3, "format.expert_id")])
def test_fused_tensors_with_another_number_of_experts(tmp_path, experts, code):
    error = refused(tmp_path, "gpt_oss", None, config={"num_local_experts": experts})
    assert (error.code, error.expert, error.found, error.needed) == (code, min(4, experts), 4, f"{experts} (config)")


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("gate_up_proj_blocks", lambda a: a.reshape(*a.shape[:2], -1), "format.shape"),
        ("gate_up_proj_blocks", lambda a: a[..., :8].copy(), "format.shape"),
        ("down_proj_blocks", lambda a: a[:, :-1], "format.shape"),
        ("down_proj_blocks", lambda a: a[:-1], "format.shape"),
        ("gate_up_proj_scales", lambda a: a[..., None], "format.shape"),
        ("gate_up_proj_scales", lambda a: a.transpose(0, 2, 1), "format.transposed"),
        ("down_proj_bias", lambda a: a[:, :-2], "format.shape"),
    ],
)  # fmt: skip
def test_a_fused_tensor_of_the_wrong_shape(tmp_path, name, change, code):
    error = refused(
        tmp_path, "gpt_oss", lambda t: t.update({FUSED + name: (t[FUSED + name][0], change(t[FUSED + name][1]))})
    )
    assert (error.code, error.tensor) == (code, FUSED + name)


@pytest.mark.parametrize(
    ("name", "dtype"), [("gate_up_proj_blocks", "F32"), ("down_proj_scales", "F32"), ("down_proj_bias", "U8")]
)
def test_a_fused_tensor_of_the_wrong_dtype(tmp_path, name, dtype):
    def alter(tensors):
        shape = tensors[FUSED + name][1].shape
        tensors[FUSED + name] = (dtype, np.zeros(shape, np.float32 if dtype == "F32" else np.uint8))

    error = refused(tmp_path, "gpt_oss", alter)
    assert (error.code, error.tensor, error.found) == ("format.dtype", FUSED + name, dtype)


def test_an_unknown_fused_tensor(tmp_path):
    error = refused(tmp_path, "gpt_oss", lambda t: t.update({FUSED + "gate_up_proj": ("U8", np.zeros(3, np.uint8))}))
    assert (error.code, error.tensor) == ("format.extra", FUSED + "gate_up_proj")


# -- layers that differ -----------------------------------------------------------------------------------------------


def test_mtp_layers_may_have_fewer_experts_and_that_is_said(tmp_path):
    def alter(tensors):
        for name in [n for n in tensors if n.startswith("layers.0.") and ".experts.3." not in n]:
            tensors[name.replace("layers.0.", "mtp.0.")] = tensors[name]

    make(tmp_path, "deepseek", alter=alter)
    model = read_experts(Checkpoint.open(tmp_path))
    assert {key: layer.spec.experts for key, layer in model.layers.items()} == {"layers.0": 4, "mtp.0": 3}
    assert model.notes == ("mtp.0: 3 experts, counted from tensor names (the config: 4)",)


def test_a_hole_in_an_mtp_layer_is_a_missing_expert(tmp_path):
    def alter(tensors):
        for name in [n for n in tensors if n.startswith("layers.0.") and ".experts.1." not in n]:
            tensors[name.replace("layers.0.", "mtp.0.")] = tensors[name]

    error = refused(tmp_path, "deepseek", alter)
    assert (error.code, error.layer, error.expert) == ("format.missing_expert", "mtp.0", 1)


def test_a_layer_that_was_left_in_bf16_is_noted(tmp_path):
    def alter(tensors):
        for name in [n for n in tensors if "layers.1." in n]:
            if name.endswith("weight_scale"):
                del tensors[name]
            else:
                tensors[name] = ("BF16", np.zeros((32, 64), np.uint8))

    make(tmp_path, "quark", layers=2, alter=alter)
    model = read_experts(Checkpoint.open(tmp_path))
    assert list(model.layers) == ["layers.0"]
    assert model.notes == ("layers.1: experts are not MXFP4 (BF16) and were left out",)


def test_a_layer_that_lost_all_its_scales_is_not_taken_for_bf16(tmp_path):
    error = refused(tmp_path, "quark", lambda t: [t.pop(n) for n in list(t) if "layers.1." in n and "scale" in n],
                    layers=2)  # fmt: skip
    assert (error.code, error.layer) == ("format.missing_scale", "layers.1")
