"""A defect is warned of where the described installation has it and the sizes meet it, and nowhere else."""

from __future__ import annotations

import dataclasses

import pytest

from shardproof.backends import Request, describe
from shardproof.backends.known_defects import DEFECTS, LAYOUT_DEFECTS
from shardproof.experts import Activation
from shardproof.layouts import catalogue
from shardproof.oracle import explain, select
from tests.backends.homes import GPT_OSS, KIMI_K3, QWEN3, V4_FLASH, V4_PRO

WIDE = dataclasses.replace(V4_PRO, hidden=8448)
BIASED = dataclasses.replace(V4_PRO, bias=True)


def ask(spec, where, *packages, tp=8, ep=1, **question):
    return Request(spec, describe(where, packages), tp, ep, **question)


MET = {
    "aiter.gate_mode_default": ("aiter", ask(V4_PRO, "rocm:gfx950")),
    "aiter.pad_convention": ("aiter", ask(V4_PRO, "rocm:gfx950", "aiter=0.1.15")),
    "aiter.cktile_256": ("aiter", ask(V4_PRO, "rocm:gfx950")),
    "aiter.ck_ignores_pads": ("aiter", ask(GPT_OSS, "rocm:gfx950")),
    "aiter.situ_defaults": ("aiter", ask(KIMI_K3, "rocm:gfx950")),
    "aiter.shuffle_scale_moe": ("aiter", ask(V4_PRO, "rocm:gfx950")),
    "aiter.lost_mark": ("aiter", ask(V4_PRO, "rocm:gfx950")),
    "aiter.uninitialised_padding": ("aiter", ask(V4_PRO, "rocm:gfx950")),
    "aiter.mxmoe_hidden_8192": ("aiter", ask(WIDE, "rocm:gfx950", gate_mode="separated")),
    "aiter.scale_kwidth": ("aiter_grouped", ask(V4_PRO, "rocm:gfx1250")),
    "vllm.a4w4_bias": ("aiter", ask(BIASED, "rocm:gfx950", gate_mode="separated")),
    "vllm.floor_slices": ("aiter", ask(V4_PRO, "rocm:gfx950", "vllm=0.33.0", tp=7)),
    "vllm.triton_axis": ("triton", ask(dataclasses.replace(GPT_OSS, family="mixtral"), "cuda:sm90")),
    "vllm.marlin_tile": ("marlin", ask(dataclasses.replace(V4_PRO, intermediate=2304), "cuda:sm80")),
    "flashinfer.sm90_unchecked": ("flashinfer_cutlass", ask(V4_PRO, "cuda:sm90")),
    "triton_kernels.uninitialised_padding": (
        "triton_unfused",
        ask(V4_PRO, "cuda:sm100", "triton_kernels=1.0.0.post20260510", tp=16),
    ),
}
NOT_MET = {
    "aiter.gate_mode_default": ask(V4_PRO, "rocm:gfx950", gate_mode="separated"),
    "aiter.pad_convention": ask(V4_PRO, "rocm:gfx950", "aiter=0.1.16"),
    "aiter.cktile_256": ask(V4_FLASH, "rocm:gfx950"),
    "aiter.ck_ignores_pads": ask(V4_PRO, "rocm:gfx950"),
    "aiter.situ_defaults": ask(V4_PRO, "rocm:gfx950"),
    "aiter.shuffle_scale_moe": ask(V4_FLASH, "rocm:gfx950"),
    "aiter.lost_mark": ask(V4_PRO, "cuda:sm100"),
    "aiter.uninitialised_padding": ask(V4_FLASH, "rocm:gfx950"),
    "aiter.mxmoe_hidden_8192": ask(WIDE, "rocm:gfx950"),
    "aiter.scale_kwidth": ask(V4_PRO, "rocm:gfx1250", "aiter=0.1.19"),
    "vllm.a4w4_bias": ask(BIASED, "rocm:gfx950"),
    "vllm.floor_slices": ask(V4_PRO, "rocm:gfx950", "vllm=0.33.0", tp=8),
    "vllm.triton_axis": ask(GPT_OSS, "cuda:sm90"),
    "vllm.marlin_tile": ask(V4_PRO, "cuda:sm80"),
    "flashinfer.sm90_unchecked": ask(V4_PRO, "cuda:sm100"),
    "triton_kernels.uninitialised_padding": ask(V4_PRO, "cuda:sm100", "triton_kernels=3.5.1", tp=16),
}


def warned(request, backend=None):
    found = [w for v in explain(request) if backend in {None, v.backend} for w in v.warnings]
    return {text.rpartition("[")[2].partition(";")[0] for text in found}


def test_every_known_defect_is_tried():
    ours = {defect.name for defect in DEFECTS} | set(LAYOUT_DEFECTS)
    assert ours <= set(MET)
    assert set(MET) == set(NOT_MET)


def test_what_is_said_of_a_layouts_defect_names_one():
    assert set(LAYOUT_DEFECTS) <= {defect.name for layout in catalogue() for defect in layout.defects}


@pytest.mark.parametrize("name", MET)
def test_a_defect_is_warned_of_where_it_is_met(name):
    backend, request = MET[name]
    assert name in warned(request, backend)


@pytest.mark.parametrize("name", NOT_MET)
def test_a_defect_is_not_warned_of_elsewhere(name):
    assert name not in warned(NOT_MET[name])


def test_the_sizes_that_aiter_is_given_never_meet_a_padded_stack():
    for tp in range(1, 17):
        assert "aiter.stack_padding" not in warned(ask(V4_PRO, "rocm:gfx950", tp=tp, gate_mode="separated"), "aiter")


def test_an_engine_that_nobody_named_is_not_warned_of():
    assert "vllm.floor_slices" not in warned(ask(V4_PRO, "rocm:gfx950", tp=7))


def test_gpt_oss_has_a_loader_of_its_own():
    assert "vllm.floor_slices" not in warned(ask(GPT_OSS, "rocm:gfx950", "vllm=0.33", tp=4))


def test_the_decision_carries_the_warnings_of_the_chosen_one_only():
    decision = select(ask(V4_PRO, "rocm:gfx950"))
    assert decision.warnings == decision.verdict.warnings
    assert set(decision.warnings) <= set(decision.recipe.notes)
    assert any(
        text.startswith("aiter.fused_moe's default is GateMode.SEPARATED: pass INTERLEAVE with these weights")
        for text in decision.warnings
    )


def test_a_plain_model_on_a_plain_kernel_has_none():
    assert select(ask(QWEN3, "cpu"), "reference").warnings == ()
    assert Activation() == QWEN3.activation
