"""A machine without a C compiler: the build goes through, packing and the layer work, and each says so once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCENARIO = """
import sys, warnings
from pathlib import Path
import shardproof
from shardproof.errors import KernelError
from shardproof.api import select
from shardproof.checkpoint import Checkpoint
from shardproof.formats import read_experts
from shardproof.kernels.cpu import ExpertMatrix
from shardproof.moe import PreparedLayer, moe
from shardproof.pack import pack_in_memory
from shardproof.plan import make_plan
from tests.checkpoints import make
from tests.layers import by_hand, close, inputs
import numpy as np

assert Path(shardproof.__file__).is_relative_to(sys.argv[1]), shardproof.__file__
made = make(Path(sys.argv[1]) / "checkpoint", "deepseek", intermediate=192)
model = read_experts(Checkpoint.open(made.folder))
decision = select(model, platform="cpu", tp=2)
assert decision.backend == "shardproof_cpu", decision.backend
plan = make_plan(model, decision.recipe, tp=2)
ranks = [pack_in_memory(model, plan, rank).layers["layers.0"] for rank in plan.ranks]
x, ids, weights = inputs(6, ranks[0].spec)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert close(moe(x, ranks, ids, weights), by_hand(made, ranks[0].spec, x, ids, weights))
    moe(x, ranks, ids, weights)
print(PreparedLayer(ranks[0]).implementation)
print(*(w.message for w in seen), sep="|")
try:
    ExpertMatrix(np.zeros(512, np.uint8), np.zeros(32, np.uint8), experts=1, rows=16, columns=64)
except KernelError as error:
    print(error.code)
"""


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info"))
    no_compiler = {**os.environ, "CC": "false"}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(
        build, cwd=tmp_path, env=no_compiler, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert built.stderr.count("building extension") == 2
    assert not list(tmp_path.rglob("*.so"))
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, tmp_path], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    implementation, warned, code = done.stdout.splitlines()
    assert implementation == "reference"
    assert warned.count("many times slower") == 1
    assert warned.count("CPU kernels were not built") == 1
    assert "|" not in warned
    assert done.stderr.count("packing with NumPy") == 1
    assert code == "kernel.missing"
