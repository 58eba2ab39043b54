"""The Triton kernels compiled for GPUs that are not here; the instructions they become are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

SCRIPT = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shardproof.kernels.triton import gemm

backend, arch, mode, block = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
value = "*fp8e4nv" if mode == "scaled8" else "*bf16"
out = {}
for kernel in (gemm.gate_up, gemm.down):
    signature, constants, attrs = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in ("x", "h") and not (kernel is gemm.gate_up and name == "h"):
            signature[name] = value
        elif name == "h":
            signature[name] = "*bf16"
        elif name in ("xs", "hs", "weight", "scale"):
            signature[name] = "*u8"
        elif name in ("bias", "y", "route"):
            signature[name] = "*fp32"
        elif name in ("tiles", "slots"):
            signature[name] = "*i32"
        elif name in ("limit", "alpha", "beta", "linear_beta"):
            signature[name] = "fp32"
        elif name.isupper() and len(name) > 1:
            signature[name] = "constexpr"
            sizes = {"BM": block, "BN": 128 if block <= 64 else 64, "BK": 128}
            flags = {"ACTIVATION": 0, "WEIGHT_FIRST": False, "BIAS": False, "MODE": mode}
            constants[name] = (flags | sizes)[name]
        else:
            signature[name] = "i32"
        if signature[name][0] == "*" or name in ("H", "I", "x_pitch", "h_pitch"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attrs)
    asm = triton.compile(source, target=target, options={"num_warps": 4}).asm
    text = asm["ptx"] if backend == "cuda" else asm["amdgcn"]
    spills = re.findall(r"\\.vgpr_spill_count:\\s+(\\d+)", text)
    wanted = r"\\b(wgmma\\.mma_async\\S*|tcgen05\\.mma\\S*|mma\\.sync\\S*|v_mfma\\w+|v_wmma\\w+)"
    found = sorted(set(re.findall(wanted, text)))
    out[kernel.__name__] = {"spills": max(map(int, spills), default=0), "found": found}
print(json.dumps(out))
"""


def compiled(backend: str, arch: str, mode: str, block: int) -> dict[str, dict[str, object]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-", backend, arch, mode, str(block)],
        input=SCRIPT, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "arch", "mode", "block", "instruction"),
    [
        ("hip", "gfx950", "scaled8", 32, "v_mfma_scale_f32_"),
        ("hip", "gfx950", "scaled", 32, "v_mfma_f32_"),
        ("hip", "gfx942", "scaled", 32, "v_mfma_f32_"),
        ("cuda", "80", "scaled", 16, "mma.sync"),
        ("cuda", "90", "scaled", 32, "wgmma.mma_async"),
        ("cuda", "100", "scaled", 32, ""),
    ],
)
def test_instructions(backend: str, arch: str, mode: str, block: int, instruction: str) -> None:
    for name, result in compiled(backend, arch, mode, block).items():
        assert result["spills"] == 0, name
        assert any(f.startswith(instruction) for f in result["found"]), (name, result)
