from __future__ import annotations

import itertools

import pytest

from shardproof.backends import Platform, describe, packages
from shardproof.backends.packages import PACKAGES, Package, check_names, order, register, same_release, version_of
from shardproof.errors import BackendError


def test_versions_sort_as_pep_440_sorts_them():
    dev, post = ["0.1.15.dev3", "0.1.15rc0"], ["0.1.15.post1", "0.1.15.post2", "0.1.15.post10"]
    texts = ["main", "0.1.14", *dev, "0.1.15", *post, "0.1.16.dev1", "0.1.16", "0.2", "1.0"]
    for low, high in itertools.pairwise(texts):
        assert order(low) < order(high), (low, high)


@pytest.mark.parametrize(
    ("one", "other"), [("1.0", "1.0.0"), ("v0.1.18", "0.1.18"), ("0.1.18+rocm7", "0.1.18"), ("1.0-post1", "1.0.post1")]
)
def test_spellings_of_one_version_are_equal(one, other):
    assert order(one) == order(other)


def test_a_post_release_build_is_before_it_and_after_the_one_before():
    assert order("0.1.15.post1") < order("0.1.15.post2.dev4+g1234567") < order("0.1.15.post2")


def test_versions_agree_with_the_packaging_library():
    version = pytest.importorskip("packaging.version").Version
    texts = [
        f"{r}{s}"
        for r in ("0.1", "0.1.9", "0.1.10", "1.0")
        for s in (".dev1", "rc1", "", ".post1.dev2", ".post1", "+x")
    ]
    for one, other in itertools.combinations(texts, 2):
        if "+" not in one + other:
            assert (order(one) < order(other)) == (version(one) < version(other)), (one, other)


def test_releases():
    assert same_release("0.1.15.post3", "0.1.15")
    assert same_release("0.33.1", "0.33")
    assert not same_release("0.1.150", "0.1.15")
    assert not same_release("0.1", "0.1.15")
    assert not same_release("main", "0.1.15")


@pytest.fixture
def installed(monkeypatch):
    there: dict[str, str] = {}
    monkeypatch.setattr(packages, "_installed", there.get)
    return there


def test_the_distribution_named_aiter_is_another_package(installed):
    installed["aiter"] = "0.13.20191203"
    assert version_of("aiter", Platform("rocm", "gfx950")) == (None, "missing")
    installed["amd-aiter"] = "0.1.18"
    assert version_of("aiter", Platform("rocm", "gfx950")) == ("0.1.18", "installed")


def test_what_is_named_overrules_what_is_installed(installed):
    installed["amd-aiter"] = "0.1.18"
    assert version_of("aiter", Platform("rocm", "gfx950", {"aiter": "0.1.15"})) == ("0.1.15", "named")
    assert version_of("aiter", Platform("rocm", "gfx950", {"amd-aiter": "0.1.16"})) == ("0.1.16", "named")


def test_a_described_platform_has_the_newest_known_of_everything(installed):
    assert version_of("aiter", describe("rocm:gfx950")) == ("0.1.20.post1", "assumed")
    assert version_of("deep_gemm", describe("cuda:sm100")) == ("", "assumed")
    assert installed == {}


def test_vllm_carries_its_own_triton_kernels(installed):
    assert version_of("triton_kernels", describe("cuda:sm90", ["vllm=0.33.0"])) == ("3.5.1", "carried")
    assert version_of("triton_kernels", Platform("cuda", "sm90")) == (None, "missing")
    installed["vllm"] = "0.33.0"
    assert version_of("triton_kernels", Platform("cuda", "sm90")) == ("3.5.1", "carried")
    installed["triton_kernels"] = "3.6.0"
    assert version_of("triton_kernels", Platform("cuda", "sm90")) == ("3.6.0", "installed")


def test_a_misspelt_package_name_is_refused():
    with pytest.raises(BackendError) as refused:
        check_names(describe("rocm:gfx950", ["aitre=0.1.15"]))
    assert refused.value.code == "backend.package"
    assert refused.value.found == "aitre=0.1.15"
    assert "aiter" in refused.value.next_step


def test_another_package_of_a_known_name_is_refused():
    register("aiter", PACKAGES["aiter"])
    with pytest.raises(BackendError) as refused:
        register("aiter", Package(distributions=("aiter",), source="a mistake"))
    assert refused.value.code == "backend.duplicate"
    assert PACKAGES["aiter"].distributions == ("amd-aiter",)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_known_releases_are_sorted_and_sourced(name):
    known = PACKAGES[name].known
    assert [order(v) for v in known] == sorted(order(v) for v in known)
    assert PACKAGES[name].source
    assert all(PACKAGES[name].knows(v) for v in known)
