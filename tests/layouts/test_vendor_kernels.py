"""Vendors' own converters and kernels, from the folder of released packages that SHARDPROOF_PEERS names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardproof.layouts.registry import everything

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "vendor_kernels.py"
RECORD = ROOT / "benchmarks" / "results" / "vendor_kernels.json"
PEERS = os.environ.get("SHARDPROOF_PEERS", "")
needs_peers = pytest.mark.skipif(not PEERS, reason="SHARDPROOF_PEERS does not name the folder of vendors' packages")


def agreed(tmp_path, *options):
    out = tmp_path / "results.json"
    command = [sys.executable, SCRIPT, "--peers", PEERS, "--out", out, *options]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return json.loads(out.read_text())


def note(results, held, evidence):
    for result in results:
        for identity in result["layouts"].values():
            held(identity.partition("(")[0], evidence)


@needs_peers
def test_converters_write_the_same_bytes(tmp_path, held):
    pytest.importorskip("triton", reason="triton is not installed: the vendors' converters cannot be imported")
    results = agreed(tmp_path, "--no-gpu", "--shape", "small,odd")
    assert len(results) == 8
    note(results, held, "vendor bytes")


@pytest.mark.gpu
@needs_peers
def test_kernels_run_from_packed_bytes(tmp_path, held):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    results = agreed(tmp_path, "--shape", "small,odd")
    assert {result["impl"] for result in results} == {"tk351", "tk351u", "tknew", "marlin", "humming"}
    note(results, held, "vendor kernel")


def test_claims_of_vendor_kernels_stand_in_the_record_of_a_run():
    results = json.loads(RECORD.read_text()) if RECORD.exists() else []
    ran = {i.partition("(")[0] for r in results if r["ok"] and "error_ours" in r for i in r["layouts"].values()}
    claimed = {f"{x.name}@{x.version}" for x in everything() if "vendor kernel" in x.held_against}
    own = {name for name in claimed if name.startswith("shardproof.")}  # tests/kernels runs these
    assert claimed - own == ran
