"""What triton_kernels chooses by architecture; its backends are `triton`, `triton_unfused` and AITER's Triton ones.

The file declares no backend: the registry finds none in it.
"""

from __future__ import annotations

from shardproof.backends.conditions import Condition, RunsOn, TensorParallelUpTo
from shardproof.backends.kernel import Variant, same_for_both, with_w13
from shardproof.backends.packages import Release

SOURCE = (
    "triton_kernels 3.5.1 (the copy in vLLM 0.33.0) and 1.0.0.post20260510, whose padding differs: layout versions 1 "
    "and 2. That 3.6 pads as the first and 3.8 as the second is taken from their dates, not compared."
)
CUDA = RunsOn(cuda=((90, 129),))
ROCM = RunsOn(rocm=("gfx90a", "gfx942", "gfx950", "gfx11*", "gfx12*"))
BOTH = RunsOn(cuda=CUDA.cuda, rocm=ROCM.rocm)

GENERATIONS = (
    (Release("triton_kernels", ("1.0.0", "3.8")), "@2"),
    (Release("triton_kernels", ("3.5.1", "3.6")), "@1"),
)
STRIDED = ("triton_kernels.strided_value", "triton_kernels.strided_scale")
BLACKWELL = ("triton_kernels.blackwell_value", "triton_kernels.blackwell_scale")


def on_cuda(*conditions: Condition, interleaved: bool = False) -> tuple[Variant, ...]:
    """One variant for each CUDA generation; I is rounded up to 64 as vLLM 0.33 does, H is left alone."""
    hopper = [
        _variant(
            "matmul_ogs, Hopper",
            (f"triton_kernels.hopper_value{version}", "triton_kernels.hopper_scale@1(num_warps=8)"),
            (32, 64), interleaved, RunsOn(cuda=((90, 90),)), generation, *conditions,
        )
        for generation, version in GENERATIONS
    ]  # fmt: skip
    others = [
        _variant(f"matmul_ogs, {name}", layouts, (32, 64), interleaved, arch, *conditions)
        for name, layouts, arch in (
            ("Blackwell", BLACKWELL, RunsOn(cuda=((100, 109),))),
            ("strided", STRIDED, RunsOn(cuda=((120, 129),))),
        )
    ]
    return (*hopper, *others)


def on_gfx950(*conditions: Condition, interleaved: bool = False) -> tuple[Variant, ...]:
    """gfx950: vLLM 0.33 swizzles the scales up to tp 2 only; 256 for both sizes."""
    arch = RunsOn(rocm=("gfx950",))
    swizzled = [
        _variant(
            "matmul_ogs, CDNA4 scales",
            (STRIDED[0], f"triton_kernels.cdna4_scale{version}"),
            (256, 256), interleaved, arch, TensorParallelUpTo(2), generation, *conditions,
        )
        for generation, version in GENERATIONS
    ]  # fmt: skip
    return (*swizzled, _variant("matmul_ogs", STRIDED, (256, 256), interleaved, arch, *conditions))


def on_other_rocm(align: int, *conditions: Condition, interleaved: bool = False) -> Variant:
    """The other AMD architectures: strided values and scales."""
    archs = RunsOn(rocm=tuple(arch for arch in ROCM.rocm if arch != "gfx950"))
    return _variant("matmul_ogs", STRIDED, (align, align), interleaved, archs, *conditions)


def _variant(
    name: str, layouts: tuple[str, str], align: tuple[int, int], interleaved: bool, *conditions: Condition
) -> Variant:
    value, scale = layouts
    w2 = same_for_both(weight=value, scale=scale, bias="raw.bias")
    w13 = {"weight": _in_rows(value), "scale": _in_rows(scale), "bias": "triton_kernels.bias_interleaved"}
    return Variant(
        name=name,
        layouts=with_w13(w2, **w13) if interleaved else w2,
        conditions=conditions,
        align_hidden=align[0],
        align_intermediate=align[1],
        gate_mode="interleaved" if interleaved else "separated",
        rows="gate and up rows alternate" if interleaved else "gate, then up",
    )


def _in_rows(identity: str) -> str:
    name, at, version = identity.partition("@")
    return f"{name}_interleaved{at}{version}"
