"""aiter_triton_fp8: AITER's Triton MoE with statically scaled fp8 activations."""

from __future__ import annotations

import dataclasses

from shardproof.backends.conditions import Activations, AskedFor, ExpertParallel, RunsOn
from shardproof.backends.kernel import Kernel
from shardproof.backends.packages import Needs
from shardproof.backends.triton_kernels import on_gfx950, on_other_rocm


class AiterTritonFp8(Kernel):
    """vLLM's AITER_MXFP4_FP8 (Quark checkpoints such as amd/gpt-oss-120b-w-mxfp4-a-fp8)."""

    name = "aiter_triton_fp8"
    known_as = ("AITER_MXFP4_FP8",)
    summary = "AITER's Triton MoE (a8w4) on AMD gfx950, gfx1250; static fp8 scales from the checkpoint"
    source = "vLLM 0.33 oracle/mxfp4.py and aiter_mxfp4_w4a8_moe.py"
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx950", "gfx1250")),
        Activations(("swiglu_oai",)),
        Needs(package="aiter"),
        ExpertParallel(only=False),
        AskedFor("fp8", "the checkpoint must hold static input scales"),
    )
    variants = tuple(
        dataclasses.replace(variant, activation_dtype="fp8")
        for variant in (*on_gfx950(interleaved=True), on_other_rocm(256, interleaved=True))
    )
