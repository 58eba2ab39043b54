"""The examples run as their first lines say, and say so themselves where an argument is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_one_layer_on_ranks(tmp_path: Path) -> None:
    make(tmp_path, "deepseek", layers=2, experts=4, hidden=128, intermediate=192)
    done = run("moe_on_ranks.py", tmp_path, "layers.1")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "4 experts of 192 x 128; ranks hold [64, 64, 64] values"
    largest, difference = (float(part.split()[-1]) for part in second.split(","))
    assert difference <= 1e-5 * largest


@pytest.mark.parametrize("name", ["moe_on_ranks.py", "moe_distributed.py", "dump_transformers.py"])
def test_a_missing_argument(name: str) -> None:
    done = run(name)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"examples/{name}" in done.stderr
