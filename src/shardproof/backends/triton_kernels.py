"""What triton_kernels chooses by architecture; its backends are `triton`, `triton_unfused` and AITER's Triton ones.

The file declares no backend: the registry finds none in it.
"""

from __future__ import annotations

from shardproof.backends.conditions import Condition, RunsOn, TensorParallelUpTo
from shardproof.backends.kernel import Variant

SOURCE = (
    "triton_kernels 3.5.1 (the copy in vLLM 0.33.0) and 1.0.0.post20260510. Their padding differs (Hopper values: N to "
    "16 or 64, K/2 to 32 or 64 bytes); that of 3.6 and 3.8 was not compared. Strided scales are taken to be in "
    "checkpoint order."
)
CUDA = RunsOn(cuda=((90, 129),))
ROCM = RunsOn(rocm=("gfx90a", "gfx942", "gfx950", "gfx11*", "gfx12*"))
BOTH = RunsOn(cuda=CUDA.cuda, rocm=ROCM.rocm)

HOPPER_SCALE = "triton_kernels.hopper_scale(num_warps=8)"
ON_CUDA = (
    (RunsOn(cuda=((90, 90),)), "triton_kernels.hopper_value", HOPPER_SCALE),
    (RunsOn(cuda=((100, 109),)), "triton_kernels.blackwell_value", "triton_kernels.blackwell_scale"),
    (RunsOn(cuda=((120, 129),)), "triton_kernels.strided", "raw.scale"),
)


def on_cuda(*conditions: Condition, rows: str = "") -> tuple[Variant, ...]:
    """One variant for each CUDA generation; I is rounded up to 64 as vLLM 0.33 does, H is left alone."""
    return tuple(
        _variant(f"matmul_ogs on {arch.brief}", value, scale, rows, 32, 64, arch, *conditions)
        for arch, value, scale in ON_CUDA
    )


def on_gfx950(*conditions: Condition, rows: str = "") -> tuple[Variant, ...]:
    """gfx950: vLLM 0.33 swizzles the scales up to tp 2 only; 256 for both sizes."""
    arch = RunsOn(rocm=("gfx950",))
    return (
        _variant(
            "matmul_ogs, CDNA4 scales", "triton_kernels.strided", "triton_kernels.cdna4_scale", rows, 256, 256,
            arch, TensorParallelUpTo(2), *conditions,
        ),
        _variant("matmul_ogs", "triton_kernels.strided", "raw.scale", rows, 256, 256, arch, *conditions),
    )  # fmt: skip


def on_other_rocm(align: int, *conditions: Condition, rows: str = "") -> Variant:
    """The other AMD architectures: strided values and scales."""
    archs = RunsOn(rocm=tuple(arch for arch in ROCM.rocm if arch != "gfx950"))
    return _variant("matmul_ogs", "triton_kernels.strided", "raw.scale", rows, align, align, archs, *conditions)


def _variant(
    name: str, value: str, scale: str, rows: str, hidden: int, intermediate: int, *conditions: Condition
) -> Variant:
    w2 = {"weight": value, "scale": scale, "bias": "raw.bias"}
    w13 = {field: _in_rows(identity, rows) for field, identity in w2.items()}
    return Variant(
        name=name,
        layouts={f"{s}.{field}": i for s, named in (("w13", w13), ("w2", w2)) for field, i in named.items()},
        conditions=conditions,
        align_hidden=hidden,
        align_intermediate=intermediate,
        gate_mode="interleaved" if rows else "separated",
        rows="gate and up rows alternate" if rows else "gate, then up",
    )


def _in_rows(identity: str, rows: str) -> str:
    name, bracket, parameters = identity.partition("(")
    return f"{name}{rows}{bracket}{parameters}"
