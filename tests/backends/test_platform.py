from __future__ import annotations

import sys

import pytest

from shardproof.backends import Platform, describe, detect
from shardproof.errors import BackendError


@pytest.mark.parametrize(
    ("text", "kind", "arch", "capability"),
    [
        ("cpu", "cpu", "", 0),
        ("cuda:sm90", "cuda", "sm90", 90),
        ("CUDA:SM_100a", "cuda", "sm100a", 100),
        ("cuda:sm120", "cuda", "sm120", 120),
        ("rocm:gfx950", "rocm", "gfx950", 0),
        ("rocm:gfx90a", "rocm", "gfx90a", 0),
        ("rocm:gfx1250", "rocm", "gfx1250", 0),
        ("xpu:bmg", "xpu", "bmg", 0),
    ],
)
def test_describe(text, kind, arch, capability):
    platform = describe(text)
    assert (platform.kind, platform.arch, platform.compute_capability) == (kind, arch, capability)
    assert platform.described


@pytest.mark.parametrize("text", ["", "gpu", "cuda", "cuda:90", "cuda:sm9", "rocm:sm90", "rocm:gfx", "cpu:avx2", "xpu"])
def test_what_is_no_platform_is_refused_with_examples(text):
    with pytest.raises(BackendError) as refused:
        describe(text)
    assert refused.value.code == "backend.platform"
    assert refused.value.found == text
    assert refused.value.needed == "cpu, cuda:sm90, rocm:gfx950, xpu:NAME"


def test_packages_are_read():
    assert describe("cpu", ["aiter=0.1.15.post1", "amd-quark=0.13"]).packages == {
        "aiter": "0.1.15.post1",
        "amd-quark": "0.13",
    }


@pytest.mark.parametrize("text", ["aiter", "aiter=", "=0.1", "aiter=0.1 15", "aiter==0.1"])
def test_what_is_no_package_version_is_refused(text):
    with pytest.raises(BackendError) as refused:
        describe("cpu", [text])
    assert refused.value.found == text
    assert refused.value.needed == "NAME=VERSION"


def test_a_platform_prints_as_it_is_written():
    assert str(describe("rocm:gfx950")) == "rocm:gfx950"
    assert str(Platform("cpu")) == "cpu"


def test_this_machine_is_looked_at_and_what_is_named_counts(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    platform = detect(["aiter=0.1.15"])
    assert platform == Platform("cpu", packages={"aiter": "0.1.15"})
    assert not platform.described
    with pytest.raises(BackendError):
        detect(["aiter"])
