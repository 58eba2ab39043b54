"""triton_kernels (OpenAI): the value and scale swizzles of its MXFP4 matmul, in both generations in use.

Version 1 of a layout is generation 3.5.1 (as vLLM 0.33.0 ships it), version 2 that of May 2026. The tensors are
[E, K, N] with K contiguous ("transposed weights"); what is described is their bytes in memory order.
A fused gated activation reads rows gate 0, up 0, gate 1, up 1, ...: the layouts named `..._interleaved`.
"""

from __future__ import annotations

import dataclasses

from shardproof.layouts.defect import Clause, Defect
from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register
from shardproof.layouts.rows import in_rows

_OLD = "triton_kernels 3.5.1 (vLLM 0.33.0)"
_NEW = "triton_kernels of 2026-05 (tokenspeed-triton-kernels 1.0.0.post20260510)"

HOPPER_WORD = (6, 7, 8, 15, 3, 4, 5, 12, 0, 1, 2, 9, 13, 10, 11, 14)
"""Where bit b of the code in slot q goes inside 16 bits, at index 4 q + b: the codes of slots 0, 1, 2 become
bfloat16 numbers by one shift and one mask each, slot 3 by three."""

NEW_PADDING = Defect(
    name="triton_kernels.uninitialised_padding",
    what="the Blackwell value layout of 2026-05 pads the row pitch with uninitialised memory",
    safe="padding is 0",
    package="triton_kernels",
    versions="2026-05",
    source=f"tensor_details/layout_details/blackwell_value.py; {_NEW}",
    when=(Clause("columns", "not a multiple of", 256),),
)
K_BOUND = Defect(
    name="triton_kernels.k_bound",
    what="loads of the right side were bounded by the padded K only after a later repair (pull request 10343)",
    safe="padded K holds zero weights, so what is read beyond K adds nothing",
    package="triton_kernels",
    versions="before pull request 10343",
    source="triton pull request 10343",
    where="reader",
    when=(Clause("columns", "not a multiple of", 128),),
)
EXACT_CDNA4 = Defect(
    name="triton_kernels.cdna4_exact",
    what="generation 3.5.1 refuses scales whose blocks are no multiple of 8 or rows no multiple of 32",
    safe="version 1 refuses with the legal sizes named; version 2 pads",
    package="triton_kernels",
    versions="3.5.1",
    source=f"tensor_details/layout_details/cdna4_scale.py; {_OLD}",
    effect="error",
    when=(Clause("blocks", "not a multiple of", 8),),
)

STRIDED_VALUE = register(
    Layout(
        name="triton_kernels.strided_value",
        field="weight",
        pattern="e n k -> e n k",
        summary="no swizzle: K contiguous",
        source=f"StridedLayout(-2); {_NEW}",
        held_against=("vendor bytes", "index formula"),
        golden=("tknew_strided_m2_value_*",),
    )
)
STRIDED_SCALE = register(
    Layout(
        name="triton_kernels.strided_scale",
        field="scale",
        pattern="e n k -> e n k",
        summary="no swizzle: K contiguous",
        source=f"StridedLayout(-2); {_NEW}",
        held_against=("index formula",),
    )
)
HOPPER_VALUE = register(
    Layout(
        name="triton_kernels.hopper_value",
        field="weight",
        unit="bit",
        pattern="e (n 2w 4t 2s) (k 4m 2v 4c 2o 4b) -> e n t k s c m o word[v w b]",
        pad={"n": 16, "k": 256},
        tables={"word": HOPPER_WORD},
        summary="32-bit words that hold the 8 codes of one wgmma fragment, bits permuted for a cheap upcast",
        source=f"HopperMXValueLayout(mma_version=3); {_OLD}",
        held_against=("vendor kernel", "vendor bytes", "index formula"),
        golden=("tk351_hopper_value_*",),
        defects=(K_BOUND,),
    )
)
HOPPER_VALUE_2 = register(
    dataclasses.replace(
        HOPPER_VALUE,
        version=2,
        pad={"n": 64, "k": 512},
        source=f"HopperMXValueLayout(mma_version=3); {_NEW}",
        golden=("tknew_hopper_value_*",),
    )
)
HOPPER_SCALE = register(
    Layout(
        name="triton_kernels.hopper_scale",
        field="scale",
        pattern="e (n 2p {num_warps}w 2h 8r) (k 2q) -> e n w k p r q h",
        pad={"n": "32*{num_warps}", "k": "{kpad}"},
        parameters={"num_warps": 8, "kpad": 4},
        summary="scales beside the warps that use them; vLLM pads K to 4 blocks (kpad), the library itself to 2",
        source=f"HopperMXScaleLayout(num_warps); {_OLD} and {_NEW}",
        held_against=("vendor kernel", "vendor bytes", "index formula"),
        golden=("tk351_hopper_scale_*", "tknew_hopper_scale_*"),
    )
)
BLACKWELL_VALUE = register(
    Layout(
        name="triton_kernels.blackwell_value",
        field="weight",
        pattern="e n k -> e n k",
        pad={"k": 128},
        summary="K contiguous, row pitch a multiple of 128 bytes",
        source=f"BlackwellMXValueLayout; {_OLD} and {_NEW}",
        held_against=("vendor bytes", "index formula"),
        golden=("tk351_blackwell_value_*", "tknew_blackwell_value_2x*"),
        defects=(NEW_PADDING,),
    )
)
BLACKWELL_VALUE_SHUFFLED = register(
    Layout(
        name="triton_kernels.blackwell_value_shuffled",
        field="weight",
        pattern="e (n 256r) (k 64b) -> e k n r b",
        pad={"n": 256, "k": 128},
        summary="tiles of 256 rows x 64 bytes, contiguous for one bulk copy (block_k 128, block_n 256)",
        source=f"BlackwellMX4ValueShuffledLayout; {_NEW}",
        held_against=("vendor bytes", "index formula"),
        golden=("tknew_blackwell_value_shuffled_*",),
    )
)
BLACKWELL_SCALE = register(
    Layout(
        name="triton_kernels.blackwell_scale",
        field="scale",
        pattern="e (n 4w 32r) (k 4s) -> e n k r w s",
        pad={"n": 128, "k": 8},
        summary="the 128 x 4 tile of the block-scaled tensor cores, K padded to 8 blocks",
        source=f"BlackwellMXScaleLayout; {_OLD} and {_NEW}",
        held_against=("vendor bytes", "index formula"),
        golden=("tk351_blackwell_scale_*", "tknew_blackwell_scale_*"),
    )
)
CDNA4_SCALE = register(
    Layout(
        name="triton_kernels.cdna4_scale",
        field="scale",
        pattern="e (n 2p 16r) (k 2q 4s) -> e n k s r q p",
        summary="tiles of 32 rows x 8 blocks for gfx950",
        source=f"CDNA4MXScaleLayout; {_OLD}",
        held_against=("vendor bytes", "reader formula", "index formula"),
        golden=("tk351_cdna4_scale_*",),
        defects=(EXACT_CDNA4,),
    )
)
CDNA4_SCALE_2 = register(
    dataclasses.replace(
        CDNA4_SCALE,
        version=2,
        pad={"n": 32, "k": 8},
        source=f"CDNA4MXScaleLayout; {_NEW}",
        golden=("tknew_cdna4_scale_*",),
        defects=(),
    )
)
GFX1250_SCALE = register(
    Layout(
        name="triton_kernels.gfx1250_scale",
        field="scale",
        pattern="e (n 4w 32r) (k 4s) -> e n k r w s",
        pad={"n": 128, "k": 4},
        summary="the 128 x 4 tile, for gfx1250",
        source=f"GFX1250MXScaleLayout; {_NEW}",
        held_against=("vendor bytes", "index formula"),
        golden=("tknew_gfx1250_scale_*",),
    )
)
BIAS_INTERLEAVED = register(
    Layout(
        name="triton_kernels.bias_interleaved",
        field="bias",
        pattern="e 2h n b -> e n h b",
        summary="gate and up alternate, as a fused gated activation reads them",
        source=f"matmul_ogs with FusedActivation; {_OLD}",
        held_against=("index formula",),
    )
)
_INTERLEAVED_BYTES = {
    HOPPER_VALUE.identity(): ("tk351_interleaved_hopper_value_*",),
    HOPPER_VALUE_2.identity(): ("tknew_interleaved_hopper_value_*",),
    HOPPER_SCALE.identity(): ("tk351_interleaved_hopper_scale_*", "tknew_interleaved_hopper_scale_*"),
}
INTERLEAVED = tuple(
    register(
        in_rows(
            layout,
            "interleaved",
            f"{layout.name}_interleaved",
            golden=(bytes_of := _INTERLEAVED_BYTES.get(layout.identity(), ())),
            held_against=("vendor kernel", "vendor bytes", "index formula") if bytes_of else ("index formula",),
        )
    )
    for layout in (
        STRIDED_VALUE,
        STRIDED_SCALE,
        HOPPER_VALUE,
        HOPPER_VALUE_2,
        HOPPER_SCALE,
        BLACKWELL_VALUE,
        BLACKWELL_VALUE_SHUFFLED,
        BLACKWELL_SCALE,
        CDNA4_SCALE,
        CDNA4_SCALE_2,
        GFX1250_SCALE,
    )
)
"""The same for w13 of kernels with a fused gated activation."""
