"""Where compiled kernels are kept: a folder that cannot be written is said with its remedy, before anything compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardproof.errors import ShardproofError
from shardproof.kernels.cuda import compile as kernel_compile


def test_what_is_compiled_is_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(kernel_compile, "_nvrtc", lambda *_: (b"code", ""))
    assert kernel_compile.compiled("name", "source", []) == b"code"
    (file,) = (tmp_path / "new" / "cache").iterdir()
    assert file.read_bytes() == b"code"
    file.write_bytes(b"kept")
    assert kernel_compile.compiled("name", "source", []) == b"kept"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(kernel_compile, "_nvrtc", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ShardproofError) as caught:
        kernel_compile.compiled("name", "source", [])
    assert str(caught.value) == (
        f"[system.file] compiled kernels cannot be kept\n  file: {tmp_path / 'file' / 'cache'}\n  found: Not a directory\n"
        "  needed: a folder that this user may write\n  next: set SHARDPROOF_CACHE to such a folder"
    )


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SHARDPROOF_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ShardproofError, match="set SHARDPROOF_CACHE to such a folder") as caught:
        kernel_compile.cache_folder()
    assert (caught.value.code, caught.value.found) == ("system.file", "Could not determine home directory.")
