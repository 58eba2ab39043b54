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
wave = 32 if backend == "cuda" or arch.startswith("gfx12") else 64
target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, wave)
value = "*fp8e4nv" if mode == "scaled8" else "*bf16"
if arch == "gfx1250":
    # Triton 3.6's assembler does not take its own code for kernels of this many arguments: the code alone is read
    from triton.backends.amd.compiler import HIPBackend
    HIPBackend.make_hsaco = staticmethod(lambda *_: b"")
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
            sizes = {"BM": block, "BN": 128 if block <= 64 else 64, "BK": 128}  # as TritonExperts chooses them
            flags = {"ACTIVATION": 0, "WEIGHT_FIRST": False, "BIAS": False, "MODE": mode}
            constants[name] = (flags | sizes)[name]
        else:
            signature[name] = "i32"
        if signature[name][0] == "*" or name in ("H", "I", "x_pitch", "h_pitch"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attrs)
    made = triton.compile(source, target=target, options={"num_warps": 4})
    asm = made.asm
    text = asm["ptx"] if backend == "cuda" else asm["amdgcn"]
    spills = re.findall(r"\\.vgpr_spill_count:\\s+(\\d+)", text)
    wanted = r"\\b(wgmma\\.mma_async\\S*|tcgen05\\.mma\\S*|mma\\.sync\\S*|v_mfma\\w+|v_wmma\\w+)"
    found = sorted(set(re.findall(wanted, text)))
    scratch = re.findall(r"\\.private_segment_fixed_size:\\s+(\\d+)", text)
    most = lambda counts: max(map(int, counts), default=0)
    out[kernel.__name__] = {
        "spills": most(spills), "scratch": most(scratch), "found": found, "shared": made.metadata.shared,
    }
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


SHARED = {
    "gfx942": 65536,
    "gfx950": 163840,
    "gfx1250": 327680,
    "80": 166912,
    "90": 232448,
    "100": 232448,
    "120": 101376,
}
"""Bytes of shared memory that a block may have."""


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("backend", "arch", "mode", "instruction"),
    [
        ("hip", "gfx950", "scaled8", "v_mfma_scale_f32_"),
        ("hip", "gfx950", "scaled", "v_mfma_f32_"),
        ("hip", "gfx942", "scaled", "v_mfma_f32_"),
        ("hip", "gfx1250", "scaled8", "v_wmma_scale_f32_"),
        ("cuda", "80", "scaled", "mma.sync"),
        ("cuda", "90", "scaled", "wgmma.mma_async"),
        ("cuda", "90", "scaled8", "wgmma.mma_async"),
        ("cuda", "100", "scaled", ""),
        ("cuda", "120", "scaled", "mma.sync"),
    ],
)
def test_instructions(backend: str, arch: str, mode: str, instruction: str, block: int) -> None:
    for name, result in compiled(backend, arch, mode, block).items():
        assert (result["spills"], result["scratch"]) == (0, 0), name
        assert result["shared"] <= SHARED[arch], name
        assert any(f.startswith(instruction) for f in result["found"]), (name, result)
