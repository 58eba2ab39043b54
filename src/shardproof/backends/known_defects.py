"""Known vendor defects as data: what goes wrong, in which versions, and for which sizes.

shardproof writes the safe form of every layout; these are warnings about what the vendor's own code does around it.
"""

from __future__ import annotations

from shardproof.backends.backend import Recipe, Request
from shardproof.backends.defects import KernelDefect, Occurs, Sizes, of_layouts


def _stack_padding(_request: Request, recipe: Recipe, sizes: Sizes) -> bool:
    """Whether E8 pads a stack: rows of the whole to 256, blocks to 8."""
    return any(
        identity.startswith("aiter.e8") and ((sizes.experts * rows) % 256 != 0 or columns % 256 != 0)
        for (stack, field), identity in recipe.layouts.items()
        if field == "scale"
        for rows, columns in (sizes.matrix(stack),)
    )


def _native_a4w4(_request: Request, recipe: Recipe, sizes: Sizes) -> bool:
    return recipe.activation_dtype == "mxfp4" and sizes.hidden > 8192


LAYOUT_DEFECTS: dict[str, Occurs] = {
    "aiter.uninitialised_padding": Occurs(meets=_stack_padding),
    "aiter.mxmoe_hidden_8192": Occurs(since="0.1.18", meets=_native_a4w4),
    "aiter.shuffle_scale_moe": Occurs(since="0.1.18"),
    "aiter.scale_kwidth": Occurs(since="0.1.20"),
    "triton_kernels.uninitialised_padding": Occurs(since="1.0.0.post20260510", before="2"),
}
"""Versions are the first tags that have the function: mxmoe and shuffle_scale_moe v0.1.18; #4562 is in v0.1.20."""

_TRITON = ("aiter_triton_bf16", "aiter_triton_fp8", "aiter_triton_mxfp4")

DEFECTS: tuple[KernelDefect, ...] = (
    KernelDefect(
        name="aiter.gate_mode_default",
        package="aiter",
        since="0.1.14",
        backends=("aiter",),
        meets=lambda _q, recipe, _s: recipe.gate_mode == "interleaved",
        text="aiter.fused_moe's default is GateMode.SEPARATED: pass INTERLEAVE with these weights, or the text "
        "is garbage",
        source="vLLM #44893, aiter #3586",
    ),
    KernelDefect(
        name="aiter.pad_convention",
        package="aiter",
        since="0.1.14",
        before="0.1.16",
        backends=("aiter",),
        meets=lambda _q, _r, sizes: bool(sizes.hidden_pad or sizes.intermediate_pad),
        text="FlyDSL and CK-Tile read hidden_pad and intermediate_pad differently, so padded sizes lose accuracy",
        source="vLLM #44679; repaired by aiter #3401, first tag v0.1.16",
    ),
    KernelDefect(
        name="aiter.cktile_256",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, recipe, sizes: recipe.gate_mode == "interleaved" and sizes.intermediate % 256 != 0,
        text="CK-Tile's second stage is wrong where I is no multiple of 256; sizes without a tuned FlyDSL or "
        "Opus row may be sent there",
        source="aiter #5232, #5233, open in August 2026",
    ),
    KernelDefect(
        name="aiter.ck_ignores_pads",
        package="aiter",
        backends=("aiter",),
        meets=lambda _q, _r, sizes: bool(sizes.intermediate_pad),
        text="aiter's CK kernels ignore intermediate_pad and read the padding: it must be zero (packed weights "
        "hold zeros)",
        source="aiter #5413, vLLM #55251",
    ),
    KernelDefect(
        name="aiter.situ_defaults",
        package="aiter",
        backends=("aiter",),
        meets=lambda request, _r, _s: request.spec.activation.kind == "situ",
        text="kernels of aiter disagree on SiTU's default beta and linear_beta (1 and 1, or 4 and 25): pass both",
        source="read at e4048607",
    ),
    KernelDefect(
        name="aiter.shuffle_scale_moe",
        package="aiter",
        since="0.1.18",
        backends=("aiter", *_TRITON),
        meets=lambda _q, _r, sizes: sizes.ragged_blocks,
        text="aiter's shuffle_scale_moe writes a wrong permutation for these sizes, in silence (K/32 is no "
        "multiple of 8): do not use it",
        source="reproduced on its source at e4048607",
    ),
    KernelDefect(
        name="vllm.a4w4_bias",
        package="vllm",
        backends=("aiter",),
        meets=lambda request, recipe, _s: request.spec.bias and recipe.activation_dtype == "mxfp4",
        text="vLLM passes biases to aiter for 16-bit activations only and drops them, in silence, with mxfp4 ones",
        source="read in vLLM 0.33",
    ),
    KernelDefect(
        name="vllm.floor_slices",
        package="vllm",
        meets=lambda request, _r, _s: (
            request.spec.family != "gpt_oss" and request.spec.intermediate % (32 * request.tp) != 0
        ),
        text="vLLM's generic loader cuts weights and scales of this size at different places (I/tp is no "
        "multiple of 32), in silence: give it packed ranks",
        source="measured on vLLM 0.33's loader; gpt-oss has a loader of its own",
    ),
    KernelDefect(
        name="vllm.triton_axis",
        package="vllm",
        backends=("triton",),
        meets=lambda request, _r, _s: request.spec.family != "gpt_oss",
        text="vLLM's generic converter for TRITON interleaves the packed K axis of w13 instead of its rows",
        source="read in vLLM 0.33, not run",
    ),
    KernelDefect(
        name="vllm.marlin_tile",
        package="vllm",
        backends=("marlin",),
        meets=lambda request, _r, _s: request.rank_intermediate % 64 != 0 or request.spec.hidden % 64 != 0,
        text="vLLM's compressed-tensors and INC methods do not round sizes up, and its Marlin repack reads out "
        "of bounds for sizes that are no multiple of 64",
        source="vLLM #47769, #49615, #38022",
    ),
    KernelDefect(
        name="flashinfer.sm90_unchecked",
        package="flashinfer",
        backends=("flashinfer_cutlass",),
        meets=lambda request, _r, _s: request.platform.compute_capability == 90,
        text="FlashInfer's SM90 mixed GEMM does not check that weights are interleaved: raw ones give garbage",
        source="flashinfer #3334",
    ),
)


def warnings(request: Request, recipe: Recipe) -> tuple[str, ...]:
    """The warnings for a recipe, each with its name and source."""
    of_kernels = {defect.name: str(defect) for defect in DEFECTS if defect.here(request, recipe)}
    return tuple({**of_kernels, **of_layouts(request, recipe, LAYOUT_DEFECTS)}.values())
