"""docs/how-to-add-a-backend.md: its file is put into a copy of the package, and its check is run against that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shardproof

PACKAGE = Path(shardproof.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "how-to-add-a-backend.md"

TABLES = """
from shardproof.backends import support
assert "| `toy_npu` | cuda:sm90, xpu | toy >= 1.1 | silu | no bias | yes | bfloat16 | - |" in support.support()
assert "| `toy_npu` | wide, bfloat16 | xpu | 128, 128 | up, then gate |" in support.layouts()
assert "- **toy_npu**: a made-up kernel on XPU and NVIDIA sm90." in support.sources()
"""
UNKNOWN = """
from shardproof.backends.registry import catalogue
assert "toy_npu" not in [backend.name for backend in catalogue()]
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def house(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "shardproof", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(house: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(house)},
        cwd=house, check=False,
    )  # fmt: skip


def test_one_new_file_is_found_judged_chosen_and_listed(house):
    file, check = blocks()
    where = re.match(r"# src/(\S+)\n", file)
    assert where is not None, "the first line of the file's block names its path"
    assert run(house, UNKNOWN).returncode == 0, "the copy has it before the file is there"
    (house / where[1]).write_text(file, encoding="utf-8")
    for code in (check, TABLES):
        done = run(house, code)
        assert done.returncode == 0, done.stderr


def test_two_backends_of_one_name_are_refused(house):
    file, check = blocks()
    for name in ("toy_npu", "toy_npu_again"):
        (house / "shardproof" / "backends" / f"{name}.py").write_text(file, encoding="utf-8")
    done = run(house, check)
    assert done.returncode == 1
    assert "[backend.duplicate] two backends share a name" in done.stderr
    assert "found: toy_npu" in done.stderr
