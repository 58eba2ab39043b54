"""Compiling ahead: every geometry that a layer may choose, under the very key under which a call looks it up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cuda.bindings.nvrtc")

from tests.answers import check_answer  # noqa: E402

from shardproof.cli import main  # noqa: E402
from shardproof.errors import BackendError  # noqa: E402
from shardproof.kernels.cuda import ahead, builds  # noqa: E402
from shardproof.kernels.cuda import compile as kernel_compile  # noqa: E402


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_choice_is_among_the_geometries() -> None:
    found = set(ahead.geometries())
    each = [0.01 * 1.3**i for i in range(50)]
    for precision in ("w4a16", "w4a8", "w4a8 exact"):
        for shape in ("", "few", "short"):
            assert {builds.choose(n, precision, shape=shape) for n in each} <= found


def test_a_users_table_counts(monkeypatch, tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"My GPU": {"w4a16": [[null, "narrow"]]}}')
    for module in (ahead, builds):
        monkeypatch.setattr(module, "BUILDS", {**builds.BUILDS, "narrow": builds.NARROW})
    assert builds.NARROW not in ahead.geometries()
    monkeypatch.setenv("SHARDPROOF_TUNING", str(path))
    assert builds.NARROW in ahead.geometries()


def test_a_call_finds_what_was_compiled(cache, monkeypatch) -> None:
    monkeypatch.setattr(ahead, "geometries", lambda: [builds.SHORT])
    assert [name for name, _ in ahead.compile_ahead("swiglu_oai")] == ["short"]
    held = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(held) == 2

    def refused(*_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(kernel_compile, "_nvrtc", refused)
    called = replace(builds.SHORT, activation=1)
    assert kernel_compile.machine_code("moe.cu", called)
    assert kernel_compile.machine_code("route.cu", called)
    with pytest.raises(AssertionError, match="compiled again"):
        kernel_compile.machine_code("moe.cu", builds.SHORT)  # another activation


def test_bench_compiles_without_a_gpu(cache, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ahead, "geometries", lambda: [builds.SHORT])
    assert main(["bench", "--shape", "gptoss", "--compile", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    check_answer(answer, "bench", variant=2)
    assert answer["activation"] == "swiglu_oai"
    assert list(answer["seconds"]) == ["short"]
    assert answer["folder"] == str(cache)
    assert main(["bench", "--shape", "gptoss", "--compile"]) == 0
    said = capsys.readouterr().out
    assert "1 geometry for swiglu_oai" in said
    assert str(cache) in said.replace("\n", "")


def test_nothing_to_compile_for_is_refused(capsys) -> None:
    assert main(["bench", "--compile"]) == 2
    assert "there is nothing to bench" in capsys.readouterr().err


def test_a_missing_compiler_is_named(cache, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"(?s)backend\.compile.*cannot be compiled here.*shardproof\[cuda\]"):
        list(ahead.compile_ahead("silu"))
    assert not cache.exists()
