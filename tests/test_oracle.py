"""select(): the chosen backend, and the answer of every other one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproof.backends import Check, Platform, Recipe, Request, describe, packages
from shardproof.backends.priorities import PRIORITIES
from shardproof.backends.registry import catalogue
from shardproof.errors import BackendError, PartitionError
from shardproof.experts import Activation, ExpertSpec
from shardproof.oracle import Verdict, explain, select
from tests.backends.homes import GPT_OSS, KIMI_K3, QWEN3, SMOLLM, V4_FLASH, V4_PRO

NAMES = [backend.name for backend in catalogue()]
TO_COME: set[str] = set()
"""Names that priority lists may hold before their files are there."""


def chosen(spec, where, *named, **question):
    return select(Request(spec, describe(where, named), 8, **question)).backend


@pytest.mark.parametrize(
    ("spec", "where", "backend"),
    [
        (V4_PRO, "rocm:gfx950", "aiter"),
        (V4_PRO, "rocm:gfx942", "triton_unfused"),
        (V4_PRO, "cuda:sm100", "flashinfer_trtllm"),
        (V4_PRO, "cuda:sm120", "deep_gemm"),
        (V4_PRO, "cuda:sm90", "humming"),
        (V4_PRO, "cuda:sm80", "marlin"),
        (V4_PRO, "cuda:sm75", "marlin"),
        (GPT_OSS, "rocm:gfx950", "aiter"),
        (GPT_OSS, "rocm:gfx942", "aiter_triton_bf16"),
        (GPT_OSS, "cuda:sm90", "triton"),
        (GPT_OSS, "cuda:sm100", "flashinfer_trtllm"),
        (GPT_OSS, "cuda:sm120", "flashinfer_cutlass"),
        (GPT_OSS, "cuda:sm80", "marlin"),
        (KIMI_K3, "rocm:gfx950", "aiter"),
        (KIMI_K3, "rocm:gfx942", "emulation"),
        (QWEN3, "rocm:gfx950", "aiter"),
        (QWEN3, "xpu:any", "xpu"),
    ],
)
def test_who_is_chosen(spec, where, backend):
    assert chosen(spec, where) == backend


def test_deepseek_v4_on_rocm_is_aiter_then_triton_unfused():
    request = Request(V4_PRO, describe("rocm:gfx950"), 8)
    decision = select(request)
    assert decision.priority == ("aiter", "triton_unfused")
    assert decision.reason == (
        "first that fits of: aiter -> triton_unfused (vLLM 0.33 oracle/mxfp4.py, line 438; turned round by vLLM #42595)"
    )
    assert [v.place for v in decision.verdicts[:3]] == [1, 2, None]
    assert chosen(V4_PRO, "rocm:gfx950", "aiter=0.1.13") == "triton_unfused"


def test_the_vision_or_flash_builds_of_a_family_share_its_list():
    spec = ExpertSpec("deepseek_v4_1", 384, 5120, 2304, 6, Activation("silu", 10.0))
    assert select(Request(spec, describe("rocm:gfx950"), 8)).priority == ("aiter", "triton_unfused")


def test_asking_by_name_gives_it_or_fails():
    request = Request(V4_PRO, describe("rocm:gfx950"), 8)
    decision = select(request, "triton_unfused")
    assert (decision.backend, decision.reason) == ("triton_unfused", "asked for by name")
    with pytest.raises(BackendError) as refused:
        select(request, "marlin")
    error = refused.value
    assert error.code == "backend.refused"
    assert error.what == "backend marlin cannot be used: platform"
    assert error.found == "rocm:gfx950"
    assert error.needed == "cuda:sm75..sm129"
    assert error.next_step == (
        "run or plan for cuda:sm75..sm129; these would fit: aiter, triton_unfused, emulation, reference, shardproof_gpu"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trition", "did you mean triton"),
        ("AITER", "did you mean aiter"),
        ("AITER_MXFP4_BF16", "did you mean aiter or "),
        ("batched_marlin", "did you mean marlin"),
        ("", "`shardproof explain CKPT` shows them all"),
        ("zzz", "`shardproof explain CKPT` shows them all"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, hint):
    with pytest.raises(BackendError) as refused:
        select(Request(V4_PRO, describe("rocm:gfx950")), name)
    assert refused.value.code == "backend.unknown"
    assert refused.value.found == repr(name)
    assert refused.value.needed == "one of: " + ", ".join(NAMES)
    assert hint in refused.value.next_step


def test_nothing_fits_lists_each_ones_reason():
    with pytest.raises(BackendError) as refused:
        select(Request(V4_PRO, describe("cuda:sm70"), 8))
    error = refused.value
    assert error.code == "backend.none"
    assert error.what == "no backend fits deepseek_v4 on cuda:sm70"
    for name in set(NAMES) - {"reference", "emulation"}:
        assert f"\n    {name}: " in error.found
    assert "marlin: platform: cuda:sm70, needs cuda:sm75..sm129" in error.found
    assert "fits but is not in the priority list: emulation, reference" in error.next_step


def test_the_reference_is_chosen_by_itself_on_cpu_only(monkeypatch):
    monkeypatch.setattr(packages, "_installed", {"torch": "2.13.0"}.get)
    decision = select(Request(SMOLLM, Platform("cpu")))
    assert decision.priority[-1] == "reference"
    assert decision.backend in {"shardproof_cpu", "reference"}
    for kind, arch in (("cuda", "sm90"), ("rocm", "gfx950"), ("xpu", "bmg")):
        with pytest.raises(BackendError) as refused:
            select(Request(SMOLLM, Platform(kind, arch)))
        assert refused.value.code == "backend.none"
        assert "not in the priority list: reference" in refused.value.next_step


def test_a_machine_without_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda _: None)
    verdicts = {v.backend: v for v in explain(Request(V4_PRO, Platform("rocm", "gfx950"), 8))}
    failed = verdicts["aiter"].failed
    assert failed == Check(
        "package",
        ok=False,
        found="aiter is not installed",
        needed="aiter >= 0.1.14 (symbols GateMode, shuffle_weight(is_guinterleave=), swiglu_limit)",
        remedy="install amd-aiter, or name it to plan for another machine: --with aiter=VERSION",
    )


def test_a_version_that_was_not_given_is_said_to_be_assumed():
    decision = select(Request(V4_PRO, describe("rocm:gfx950"), 8))
    note = "no version of aiter was given; taken as the newest known one, 0.1.20.post1 (say --with aiter=VERSION)"
    assert decision.notes == (note,)
    assert note in decision.recipe.notes
    assert select(Request(V4_PRO, describe("rocm:gfx950", ["aiter=0.1.18"]), 8)).notes == ()
    unversioned = select(Request(V4_PRO, describe("cuda:sm120"), 8)).notes
    assert unversioned == (
        "no version of deep_gemm was given; taken as one like that known here (say --with deep_gemm=VERSION)",
    )


def test_a_package_that_was_named_and_passed_over_is_said():
    decision = select(Request(V4_PRO, describe("rocm:gfx950", ["aiter=9.9"]), 8))
    assert decision.backend == "triton_unfused"
    said = [note for note in decision.notes if note.startswith("aiter was passed over: version: found aiter 9.9")]
    assert len(said) == 1
    assert said[0] in decision.recipe.notes
    by_name = select(Request(V4_PRO, describe("rocm:gfx950", ["aiter=9.9"]), 8), "triton_unfused")
    assert not any("passed over" in note for note in by_name.notes)
    unnamed = select(Request(V4_PRO, describe("cuda:sm80"), 8))
    assert not any("passed over" in note for note in unnamed.notes)


def test_nothing_is_assumed_where_no_version_matters():
    assert select(Request(SMOLLM, describe("cpu")), "reference").notes == ()
    assert select(Request(SMOLLM, describe("cpu")), "shardproof_cpu").notes == ()


def test_a_misspelt_package_is_not_ignored():
    with pytest.raises(BackendError) as refused:
        select(Request(V4_PRO, describe("rocm:gfx950", ["aitre=0.1.13"]), 8))
    assert refused.value.code == "backend.package"


def test_sizes_below_one_are_refused():
    for tp, ep in ((0, 1), (1, 0), (-2, 1)):
        with pytest.raises(PartitionError) as refused:
            Request(V4_PRO, describe("cpu"), tp, ep)
        assert refused.value.code == "partition.size"


def test_priority_lists_name_backends_that_exist():
    for listed in PRIORITIES:
        assert set(listed.order) - set(NAMES) <= TO_COME
        assert len(set(listed.order)) == len(listed.order)
        assert listed.source


def test_every_platform_kind_has_a_list():
    for where in ("cpu", "cuda:sm70", "cuda:sm90", "rocm:gfx1100", "xpu:any"):
        request = Request(QWEN3, describe(where))
        assert any(listed.concerns(request) for listed in PRIORITIES)


def test_a_decision_as_json():
    decision = select(Request(V4_PRO, describe("rocm:gfx950", ["aiter=0.1.15"]), 8))
    data = json.loads(json.dumps(decision.to_dict()))
    assert data["backend"] == "aiter"
    assert data["priority"] == ["aiter", "triton_unfused"]
    assert (data["platform"], data["family"], data["tp"], data["ep"]) == ("rocm:gfx950", "deepseek_v4", 8, 1)
    assert Recipe.from_dict(data["recipe"]) == decision.recipe
    assert [v["backend"] for v in data["verdicts"]] == [v.backend for v in decision.verdicts]
    marlin = next(v for v in data["verdicts"] if v["backend"] == "marlin")
    assert (marlin["fits"], marlin["failed"], marlin["recipe"]) == (False, "platform", None)
    assert marlin["checks"][0] == {
        "condition": "platform",
        "ok": False,
        "found": "rocm:gfx950",
        "needed": "cuda:sm75..sm129",
        "remedy": "run or plan for cuda:sm75..sm129",
    }


def test_rows_for_a_table():
    decision = select(Request(V4_PRO, describe("rocm:gfx950"), 8))
    rows = {row["backend"]: row for row in decision.rows()}
    assert (rows["aiter"]["verdict"], rows["aiter"]["place"]) == ("chosen", "1")
    assert (rows["triton_unfused"]["verdict"], rows["triton_unfused"]["place"]) == ("fits", "2")
    assert rows["marlin"] == {
        "backend": "marlin",
        "place": "",
        "verdict": "refused",
        "condition": "platform",
        "found": "rocm:gfx950",
        "needed": "cuda:sm75..sm129",
        "remedy": "run or plan for cuda:sm75..sm129",
    }


def test_the_first_failed_check_is_the_verdicts_reason():
    good, bad, worse = Check("a", True, "1", "1"), Check("b", False, "1", "2"), Check("c", False, "1", "3")
    assert Verdict("x", "", (good, bad, worse)).failed is bad
    assert Verdict("x", "", (good,)).failed is None
    assert not Verdict("x", "", (good, bad)).ok


SPEC = st.builds(
    ExpertSpec,
    family=st.sampled_from(["deepseek_v4", "gpt_oss", "kimi_k3", "qwen3_moe", "unknown"]),
    experts=st.integers(1, 512),
    hidden=st.integers(1, 300).map(lambda b: 32 * b),
    intermediate=st.integers(1, 120).map(lambda b: 32 * b),
    top_k=st.integers(1, 16),
    activation=st.sampled_from([Activation("silu"), Activation("swiglu_oai", 7.0), Activation("situ")]),
    bias=st.booleans(),
)
PLATFORM = st.builds(
    describe,
    st.sampled_from(
        [
            *("cpu", "xpu:any", "rocm:gfx942", "rocm:gfx950", "rocm:gfx1250"),
            *(f"cuda:sm{capability}" for capability in (70, 80, 89, 90, 100, 120)),
        ]
    ),
    st.sampled_from([[], ["aiter=0.1.13"], ["aiter=0.1.15"], ["aiter=9"], ["triton_kernels=3.5.1"], ["vllm=0.33"]]),
)
REQUEST = st.builds(
    Request,
    SPEC,
    PLATFORM,
    st.integers(1, 16),
    st.integers(1, 16),
    st.sampled_from([None, "separated", "interleaved"]),
    st.sampled_from([None, "bfloat16", "fp8", "mxfp8", "mxfp4"]),
)


@settings(max_examples=150, deadline=None)
@given(REQUEST)
def test_every_backend_answers_and_the_chosen_one_passes_all_its_checks(request):
    verdicts = explain(request)
    assert sorted(v.backend for v in verdicts) == NAMES
    for verdict in verdicts:
        assert verdict.checks
        assert (verdict.recipe is not None) == verdict.ok == (verdict.failed is None)
        if verdict.recipe is not None:
            assert request.gate_mode in {None, verdict.recipe.gate_mode}
            assert request.activation_dtype in {None, verdict.recipe.activation_dtype}
            assert ("w13", "bias") not in verdict.recipe.layouts or request.spec.bias
    fitting = [v for v in verdicts if v.ok and v.place]
    if not fitting:
        with pytest.raises(BackendError) as refused:
            select(request)
        assert refused.value.code == "backend.none"
        return
    decision = select(request)
    assert decision.verdict.ok
    assert decision.verdict.place == min(v.place for v in fitting)


@settings(max_examples=60, deadline=None)
@given(REQUEST, st.sampled_from(NAMES))
def test_asked_by_name_it_is_that_one_or_its_own_reason(request, name):
    failed = next(v for v in explain(request) if v.backend == name).failed
    if failed is None:
        assert select(request, name).backend == name
        return
    with pytest.raises(BackendError) as refused:
        select(request, name)
    assert refused.value.code == "backend.refused"
    assert (refused.value.found, refused.value.needed) == (failed.found, failed.needed)
    assert failed.remedy in refused.value.next_step


def test_no_torch_is_imported():
    code = (
        "import sys; from shardproof.oracle import select; from shardproof.backends import Request, describe;"
        "from shardproof.experts import ExpertSpec;"
        "select(Request(ExpertSpec('qwen3_moe', 8, 512, 256, 2), describe('rocm:gfx950')));"
        "assert not {'torch', 'aiter', 'triton', 'vllm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_flash_at_tp_8_needs_no_padding_by_aiter():
    request = Request(V4_FLASH, describe("rocm:gfx950"), 8)
    recipe = select(request).recipe
    assert request.rank_intermediate == 256
    assert request.rank_intermediate % recipe.align_intermediate == 0
