"""shardproof_gpu: this library's own GPU kernels (CUDA C++ on Hopper, Triton elsewhere)."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs, Package, register
from shardproof.backends.reference import RAW

for _name, _source in (
    ("cuda-bindings", "any version with NVRTC of CUDA 12.4 or later"),
    ("triton", "3.6 or later; Triton compiles the kernels from source, so no byte order hangs on it"),
):
    register(_name, Package(distributions=(_name,), any_version=True, source=_source))

HOPPER = RunsOn(cuda=((90, 90),))
PORTABLE = RunsOn(cuda=((80, 129),), rocm=("gfx942", "gfx950"))
HOPPER_LAYOUTS = {
    "w13.weight": "shardproof.hopper_w13",
    "w13.scale": "shardproof.hopper_w13_scale",
    "w13.bias": "raw.bias",
    "w2.weight": "shardproof.hopper_w2",
    "w2.scale": "shardproof.hopper_w2_scale",
    "w2.bias": "raw.bias",
}
E4M3 = "activations are e4m3 with one power-of-two scale for 128 values, as in DeepSeek-V4"


def _variants(dtype: str, *notes: str) -> tuple[Variant, Variant]:
    """The Hopper kernel, and the portable one where that cannot run; both read the same bytes for every dtype."""
    return (
        Variant(
            name="CUDA C++, Hopper",
            layouts=HOPPER_LAYOUTS,
            conditions=(HOPPER, Needs(package="cuda-bindings")),
            align_hidden=64,
            align_intermediate=64,
            activation_dtype=dtype,
            rows="32 rows of gate, 32 of up, alternating",
            notes=notes,
        ),
        Variant(
            name="Triton",
            layouts=RAW,
            conditions=(PORTABLE, Needs(package="triton")),
            activation_dtype=dtype,
            notes=notes,
        ),
    )


class ShardproofGpu(Kernel):
    """The whole layer from topk ids to reduced output; the activation dtype changes no byte."""

    name = "shardproof_gpu"
    summary = "shardproof's own GPU kernels: CUDA C++ on Hopper, Triton elsewhere; bfloat16 or e4m3 activations"
    source = (
        "shardproof.kernels.cuda and shardproof.kernels.triton. On AMD they were compiled, never "
        "run; for gfx1250 Triton 3.6 cannot assemble them."
    )
    conditions = (RunsOn(cuda=PORTABLE.cuda, rocm=PORTABLE.rocm), Activations(("silu", "swiglu_oai", "situ")))
    variants = (*_variants("bfloat16"), *_variants("fp8", E4M3))
