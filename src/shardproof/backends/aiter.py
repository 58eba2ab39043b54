"""aiter: AMD's fused MoE kernels on gfx950 (FlyDSL, CK, CK-Tile, Opus behind `aiter.fused_moe`)."""

from __future__ import annotations

from shardproof.backends.conditions import Activations, RunsOn
from shardproof.backends.kernel import Kernel, Variant, same_for_both, with_w13
from shardproof.backends.packages import Needs
from shardproof.experts import ActivationKind

SEPARATED = same_for_both(weight="aiter.w16", scale="aiter.e8", bias="raw.bias")
INTERLEAVED = with_w13(SEPARATED, weight="aiter.w16_gugu", scale="aiter.e8_gugu")

NATIVE_128 = Needs(package="aiter", since="0.1.18", because="native I % 128: #4130 of 2026-07-09, first tag v0.1.18")
GUGU = "16 rows of gate, 16 of up, alternating"
BOUND = "the kernel sees fp8 for every batch size only with AITER_BF16_FP8_MOE_BOUND=0; else bfloat16 for small ones"


def _interleaved(kind: ActivationKind, name: str, dtype: str, needs: Needs) -> list[Variant]:
    """The variant with I rounded up to 128 where AITER can, then the one with 256."""
    return _sized(kind, name, dtype, needs, INTERLEAVED, (BOUND,) if dtype == "mxfp8" else ())


def _separated(kind: ActivationKind, name: str, dtype: str, needs: Needs) -> list[Variant]:
    return _sized(kind, name, dtype, needs, SEPARATED, ())


def _sized(
    kind: ActivationKind, name: str, dtype: str, needs: Needs, layouts: dict[str, str], notes: tuple[str, ...]
) -> list[Variant]:
    # vLLM 0.33 rounds to 128 for silu and situ only; every AITER that has situ has native 128
    sizes = {"silu": ((128, (NATIVE_128,)), (256, ())), "situ": ((128, ()),), "swiglu_oai": ((256, ()),)}[kind]
    return [
        Variant(
            name=name,
            layouts=layouts,
            conditions=(Activations((kind,)), needs, *more),
            align_hidden=256,
            align_intermediate=size,
            activation_dtype=dtype,
            gate_mode="interleaved" if layouts is INTERLEAVED else "separated",
            rows=GUGU if layouts is INTERLEAVED else "gate, then up",
            notes=notes,
        )
        for size, more in sizes
    ]


GUI = Needs(package="aiter", since="0.1.15.post1", because="the version that vLLM #46122 was validated with")
FLYDSL = Needs(package="aiter", since="0.1.15", because="first tag with commit 5104dca, which vLLM #42595 asks for")
GATE_MODE = Needs(package="aiter", since="0.1.14", because="first tag with GateMode; vLLM #44893 fixed gpt-oss for it")
SITU = Needs(package="aiter", since="0.1.19", because="first tag with Situv2")
SITU_BF16 = Needs(package="aiter", since="0.1.20", because="first tag with the a16wmix kernel")


class Aiter(Kernel):
    """AITER's `fused_moe`, as vLLM's AITER_MXFP4_BF16 and AITER_MXFP4_MXFP4, SGLang and ATOM call it."""

    name = "aiter"
    known_as = ("AITER_MXFP4_BF16", "AITER_MXFP4_MXFP4")
    summary = "AITER fused MoE (FlyDSL, CK) on AMD gfx950; separated or interleaved gate mode by version"
    source = (
        "symbols and commits read in ROCm/aiter's tags v0.1.12 to v0.1.20.post1 and at e4048607 (2026-08-22); vLLM "
        "0.33 oracle/mxfp4.py; vLLM #42595, #44893, #46122, #51473. H is rounded up to 256 because stage 1 of FlyDSL "
        "reads K in steps of 256 (vLLM rounds to 128). That 0.1.14 lacks what DeepSeek-V4 needs rests on #42595's "
        "words only: its tag has GateMode but not commit 5104dca."
    )
    package = "aiter"
    conditions = (
        RunsOn(rocm=("gfx950",)),
        Activations(("silu", "swiglu_oai", "situ")),
        Needs(
            package="aiter",
            since="0.1.14",
            because="symbols GateMode, shuffle_weight(is_guinterleave=), swiglu_limit",
        ),
    )
    variants = (
        *_interleaved("silu", "flydsl_moe1_afp8_*_gui (a8w4)", "mxfp8", GUI),
        *_separated("silu", "flydsl_moe1_afp4_* (a4w4; from 0.1.18 also flydsl_mxmoe)", "mxfp4", FLYDSL),
        *_interleaved("swiglu_oai", "cktile and flydsl _gui (a16w4 for small batches)", "bfloat16", GATE_MODE),
        *_interleaved("swiglu_oai", "flydsl_moe1_afp8_*_gui (a8w4)", "mxfp8", GATE_MODE),
        *_separated("swiglu_oai", "flydsl_moe1_afp4_* (a4w4; bfloat16 below 256 tokens)", "mxfp4", GATE_MODE),
        *_separated("situ", "flydsl_moe1_abf16_wfp4_* (a16wmix)", "bfloat16", SITU_BF16),
        *_interleaved("situ", "flydsl_moe1_afp8_*_gui (a8w4; AITER_SITUV2_A8W4=1)", "mxfp8", SITU),
        *_separated("situ", "flydsl_moe1_afp4_* (a4w4; AITER_SITUV2_A4W4=1)", "mxfp4", SITU),
    )
