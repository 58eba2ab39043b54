"""AITER by version: what each boundary is, and what a user is told on the wrong side of it."""

from __future__ import annotations

import pytest

from shardproof.backends import Request, describe
from shardproof.backends.registry import find
from shardproof.errors import BackendError
from shardproof.oracle import select
from tests.backends.homes import GPT_OSS, KIMI_K3, V4_PRO

SEPARATED = ("aiter.w16", "aiter.e8")
INTERLEAVED = ("aiter.w16_gugu", "aiter.e8_gugu")


def ask(version, spec=V4_PRO, **question):
    return Request(spec, describe("rocm:gfx950", [f"aiter={version}"] if version else []), 8, **question)


@pytest.mark.parametrize(
    ("version", "gate_mode", "dtype", "intermediate"),
    [
        ("0.1.15", "separated", "mxfp4", 256),
        ("0.1.15.post1", "interleaved", "mxfp8", 256),
        ("0.1.15.post3", "interleaved", "mxfp8", 256),
        ("0.1.16", "interleaved", "mxfp8", 256),
        ("0.1.17", "interleaved", "mxfp8", 256),
        ("0.1.18", "interleaved", "mxfp8", 128),
        ("0.1.18+rocm7.2", "interleaved", "mxfp8", 128),
        ("0.1.19.post2", "interleaved", "mxfp8", 128),
        ("0.1.20.post1", "interleaved", "mxfp8", 128),
        (None, "interleaved", "mxfp8", 128),
    ],
)
def test_deepseek_v4_by_version(version, gate_mode, dtype, intermediate):
    recipe = select(ask(version)).recipe
    assert recipe.backend == "aiter"
    assert (recipe.gate_mode, recipe.activation_dtype) == (gate_mode, dtype)
    assert (recipe.align_hidden, recipe.align_intermediate) == (256, intermediate)
    assert recipe.bias_dtype == "float32"
    w13 = SEPARATED if gate_mode == "separated" else INTERLEAVED
    assert (recipe.layouts["w13", "weight"], recipe.layouts["w13", "scale"]) == w13
    assert (recipe.layouts["w2", "weight"], recipe.layouts["w2", "scale"]) == SEPARATED
    assert recipe.version == (version or "0.1.20.post1")


@pytest.mark.parametrize("version", ["0.1.12.post2", "0.1.13", "0.1.13.post1", "0.1.14.dev3", "0.1.14rc0"])
def test_an_aiter_without_the_symbols_is_refused_by_name(version):
    with pytest.raises(BackendError) as refused:
        select(ask(version), "aiter")
    error = refused.value
    assert error.code == "backend.refused"
    assert error.what == "backend aiter cannot be used: version"
    assert error.found == f"aiter {version} (named)"
    assert error.needed == "aiter >= 0.1.14 (symbols GateMode, shuffle_weight(is_guinterleave=), swiglu_limit)"
    assert (
        error.next_step
        == "install aiter 0.1.14 or newer; these would fit: triton_unfused, emulation, reference, shardproof_gpu"
    )


def test_0_1_14_lacks_what_deepseek_v4_needs_and_has_what_gpt_oss_needs():
    with pytest.raises(
        BackendError, match=r"aiter >= 0.1.15 \(first tag with commit 5104dca, which vLLM #42595 asks for"
    ):
        select(ask("0.1.14"), "aiter")
    assert select(ask("0.1.14", GPT_OSS), "aiter").recipe.gate_mode == "interleaved"


def test_falling_back_from_an_old_aiter_is_deepseeks_second_choice():
    decision = select(ask("0.1.13"))
    assert decision.backend == "triton_unfused"
    assert decision.priority == ("aiter", "triton_unfused")


@pytest.mark.parametrize("version", ["0.1.21", "0.2.0", "1.0", "main"])
def test_an_unknown_version_is_refused_with_the_known_ones_named(version):
    with pytest.raises(BackendError) as refused:
        select(ask(version), "aiter")
    assert refused.value.found == f"aiter {version} (named)"
    assert refused.value.needed.endswith(
        "in a known release: 0.1.12, 0.1.13, 0.1.14, 0.1.15, 0.1.16, 0.1.17, 0.1.18, 0.1.19, 0.1.20.post1"
    )
    assert "say --with aiter=0.1.20.post1" in refused.value.next_step


def test_gate_modes_can_be_asked_for():
    assert select(ask("0.1.18", gate_mode="separated"), "aiter").recipe.layouts["w13", "weight"] == "aiter.w16"
    assert select(ask("0.1.18", GPT_OSS, gate_mode="separated"), "aiter").recipe.activation_dtype == "mxfp4"
    with pytest.raises(
        BackendError, match=r"aiter >= 0.1.15.post1 \(the version that vLLM #46122 was validated with\)"
    ):
        select(ask("0.1.15", gate_mode="interleaved"), "aiter")


def test_gpt_oss_is_rounded_to_256():
    recipe = select(ask("0.1.20.post1", GPT_OSS), "aiter").recipe
    assert (recipe.align_hidden, recipe.align_intermediate, recipe.bias_dtype) == (256, 256, "float32")
    assert recipe.layouts["w13", "bias"] == recipe.layouts["w2", "bias"] == "raw.bias"


def test_situ_needs_an_aiter_that_has_it():
    with pytest.raises(BackendError, match=r"aiter >= 0.1.19 \(first tag with Situv2\)"):
        select(ask("0.1.18", KIMI_K3), "aiter")
    assert select(ask("0.1.19", KIMI_K3), "aiter").recipe.activation_dtype == "mxfp8"
    assert select(ask("0.1.20", KIMI_K3), "aiter").recipe.activation_dtype == "bfloat16"
    assert select(ask("0.1.20", KIMI_K3), "aiter").recipe.align_intermediate == 128


def test_the_source_says_how_sure_the_first_boundary_is():
    assert "That 0.1.14 lacks what DeepSeek-V4 needs rests on #42595's words only" in find("aiter").source
