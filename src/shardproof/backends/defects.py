"""Known vendor defects as data: what goes wrong, in which versions, and for which sizes.

shardproof writes the safe form of every layout; these are warnings about what the vendor's own code does around it.
"""

from __future__ import annotations

from shardproof.backends.backend import Recipe, Request
from shardproof.backends.defect import Defect

_TRITON = ("aiter_triton_bf16", "aiter_triton_fp8", "aiter_triton_mxfp4")

DEFECTS: tuple[Defect, ...] = (
    Defect(
        name="aiter-gate-mode-default",
        package="aiter",
        since="0.1.14",
        backends=("aiter",),
        meets=lambda _q, recipe, _s: recipe.gate_mode == "interleaved",
        text="aiter.fused_moe's default is GateMode.SEPARATED: pass INTERLEAVE with these weights, or the text "
        "is garbage",
        source="vLLM #44893, aiter #3586",
    ),
    Defect(
        name="aiter-lost-is-shuffled",
        package="aiter",
        backends=("aiter",),
        text="aiter knows shuffled weights by a Python attribute that copies lose: set is_shuffled on w13 and w2"
        " after loading",
        source="vLLM #42061, aiter #2194, ATOM #1932",
    ),
    Defect(
        name="aiter-e8-padding",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, recipe, sizes: any(
            layout == "aiter.e8" and ((sizes.experts * rows) % 256 != 0 or columns % 256 != 0)
            for layout, rows, columns in (
                (recipe.layouts["w13", "scale"], 2 * sizes.intermediate, sizes.hidden),
                (recipe.layouts["w2", "scale"], sizes.hidden, sizes.intermediate),
            )
        ),
        text="aiter's own e8m0_shuffle leaves the padding of these scales uninitialised (255 is NaN); packed "
        "scales hold 127 there, so their bytes differ from aiter's in the padding",
        source="reproduced on its source at e4048607",
    ),
    Defect(
        name="aiter-pad-convention",
        package="aiter",
        since="0.1.14",
        before="0.1.16",
        backends=("aiter",),
        meets=lambda _q, _r, sizes: bool(sizes.hidden_pad or sizes.intermediate_pad),
        text="FlyDSL and CK-Tile read hidden_pad and intermediate_pad differently, so padded sizes lose accuracy",
        source="vLLM #44679; repaired by aiter #3401, first tag v0.1.16",
    ),
    Defect(
        name="aiter-cktile-256",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, recipe, sizes: recipe.gate_mode == "interleaved" and sizes.intermediate % 256 != 0,
        text="CK-Tile's second stage is wrong where I is no multiple of 256; sizes without a tuned FlyDSL or "
        "Opus row may be sent there",
        source="aiter #5232, #5233, open in August 2026",
    ),
    Defect(
        name="aiter-ck-ignores-pads",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, _r, sizes: bool(sizes.intermediate_pad),
        text="aiter's CK kernels ignore intermediate_pad and read the padding: it must be zero (packed weights "
        "hold zeros)",
        source="aiter #5413, vLLM #55251",
    ),
    Defect(
        name="aiter-asm-stack-rows",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, recipe, sizes: recipe.activation_dtype == "mxfp4" and sizes.ragged_rows,
        text="the one-stage assembly kernel divides a scale stack that is padded to 256 rows by the number of "
        "experts, and so reads wrong ones",
        source="inferred from its source at e4048607, not run",
    ),
    Defect(
        name="aiter-mxmoe-hidden",
        package="aiter",
        since="0.1.18",
        backends=("aiter",),
        meets=lambda _q, recipe, sizes: recipe.activation_dtype == "mxfp4" and sizes.hidden > 8192,
        text="the native a4w4 kernel keeps scale addresses for H up to 8192 only and reads wrong scales beyond, "
        "unasserted",
        source="emulation of its source at e4048607, not run",
    ),
    Defect(
        name="aiter-situ-defaults",
        package="aiter",
        backends=("aiter",),
        meets=lambda request, _r, _s: request.spec.activation.kind == "situ",
        text="kernels of aiter disagree on SiTU's default beta and linear_beta (1 and 1, or 4 and 25): pass both",
        source="read at e4048607",
    ),
    Defect(
        name="aiter-scale-moe-blocks",
        package="aiter",
        since="0.1.18",
        backends=("aiter", *_TRITON),
        meets=lambda _q, _r, sizes: sizes.ragged_blocks,
        text="aiter's shuffle_scale_moe writes a wrong permutation for these sizes, in silence (K/32 is no "
        "multiple of 8): do not use it",
        source="reproduced on its source at e4048607",
    ),
    Defect(
        name="aiter-gfx1250-kwidth",
        package="aiter",
        since="0.1.20",
        backends=("aiter_grouped", *_TRITON),
        meets=lambda request, _r, _s: request.platform.arch == "gfx1250",
        text="aiter's shuffle_scale_moe defaults to scale_kwidth 8 on gfx1250 while its kernels read 4: do not "
        "use the default",
        source="aiter #4562, #4826, #4836 (August 2026)",
    ),
    Defect(
        name="vllm-a4w4-bias",
        package="vllm",
        backends=("aiter",),
        meets=lambda request, recipe, _s: request.spec.bias and recipe.activation_dtype == "mxfp4",
        text="vLLM passes biases to aiter for 16-bit activations only and drops them, in silence, with mxfp4 ones",
        source="read in vLLM 0.33",
    ),
    Defect(
        name="vllm-floor-slices",
        package="vllm",
        meets=lambda request, _r, _s: (
            request.spec.family != "gpt_oss" and request.spec.intermediate % (32 * request.tp) != 0
        ),
        text="vLLM's generic loader cuts weights and scales of this size at different places (I/tp is no "
        "multiple of 32), in silence: give it packed ranks",
        source="measured on vLLM 0.33's loader; gpt-oss has a loader of its own",
    ),
    Defect(
        name="vllm-triton-axis",
        package="vllm",
        backends=("triton",),
        meets=lambda request, _r, _s: request.spec.family != "gpt_oss",
        text="vLLM's generic converter for TRITON interleaves the packed K axis of w13 instead of its rows",
        source="read in vLLM 0.33, not run",
    ),
    Defect(
        name="vllm-marlin-tile",
        package="vllm",
        backends=("marlin",),
        meets=lambda request, _r, _s: request.rank_intermediate % 64 != 0 or request.spec.hidden % 64 != 0,
        text="vLLM's compressed-tensors and INC methods do not round sizes up, and its Marlin repack reads out "
        "of bounds for sizes that are no multiple of 64",
        source="vLLM #47769, #49615, #38022",
    ),
    Defect(
        name="flashinfer-sm90-unchecked",
        package="flashinfer",
        backends=("flashinfer_cutlass",),
        meets=lambda request, _r, _s: request.platform.compute_capability == 90,
        text="FlashInfer's SM90 mixed GEMM does not check that weights are interleaved: raw ones give garbage",
        source="flashinfer #3334",
    ),
    Defect(
        name="triton-blackwell-padding",
        package="triton_kernels",
        since="1.0.0.post20260510",
        before="2",
        backends=("triton", "triton_unfused"),
        meets=lambda request, _r, sizes: (
            request.platform.compute_capability // 10 == 10
            and (sizes.hidden % 256 != 0 or sizes.intermediate % 256 != 0)
        ),
        text="triton_kernels' own converter leaves the padding of Blackwell values uninitialised; packed weights"
        " hold zeros",
        source="triton_kernels of May 2026, bytes compared",
    ),
)


def warnings(request: Request, recipe: Recipe) -> tuple[str, ...]:
    """The warnings for a recipe, each with its name and source."""
    return tuple(f"{d.text} [{d.name}; {d.source}]" for d in DEFECTS if d.here(request, recipe))
