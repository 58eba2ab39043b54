"""The engine as other compilers build it: a part that a compiler does not know is left out, not the whole engine."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path

import pytest

from shardproof.pack import native
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model, packed

library = importlib.import_module("shardproof.pack.native.library")  # the package has a function of that name
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
SOURCES = Path(native.__file__).parent
pytestmark = pytest.mark.skipif(not COMPILERS or native.library() is None, reason="needs the engine and a C compiler")


def _built(compiler: str, out: Path, *flags: str) -> Path:
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    command = [compiler, "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-fPIC", "-shared"]
    subprocess.run([*command, "-Wl,-z,defs", *flags, *sources, "-o", str(out)], check=True)
    return out


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_without_amx_leaves_only_that_out(tmp_path, monkeypatch, compiler):
    """As GCC 10 builds it: nothing of AMX is in the file, the rest is chosen as ever, bytes and digests are the same."""
    made = model(tmp_path, "deepseek", experts=2, hidden=1024, intermediate=512)
    plan = make_plan(made, RECIPES["aiter"])
    wanted = packed(made, plan, "layers.0", threads=2)
    best = library.isa()
    whole = library.opened(_built(compiler, tmp_path / "whole.so"))[0]
    without = library.opened(_built(compiler, tmp_path / "without.so", "-DSHARDPROOF_NO_AMX"))[0]
    assert whole is not None
    assert whole.sp_has_tiles() == native.library().sp_has_tiles()
    assert without is not None
    assert without.sp_isa() == native.library().sp_isa()
    monkeypatch.setattr(library, "_load", lambda: (without, ""))
    assert not library.has_tiles()
    assert library.isa() == best
    found = packed(made, plan, "layers.0", threads=2)
    assert found[0] == wanted[0]
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        assert all((ours[slot] == theirs[slot]).all() for slot in theirs)
