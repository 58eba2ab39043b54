"""FlashInfer: TRTLLM-gen (SM100), CUTLASS on SM100 and CUTLASS on SM90 (MXFP4 x bfloat16).

Read and compared at FlashInfer 0.7.2.post1; vLLM 0.33.0 calls it. Its CUTLASS kernels take the up half first.
"""

from __future__ import annotations

from shardproof.layouts.cutlass import SCALE_128X4
from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register
from shardproof.layouts.rows import in_rows
from shardproof.layouts.triton_kernels import HOPPER_WORD

_FLASHINFER = "FlashInfer 0.7.2.post1"
_SM90_READ = f"{_FLASHINFER}, transcribed index walk"

TRTLLM_W2 = register(
    Layout(
        name="flashinfer.trtllm_w2",
        field="weight",
        stacks=("w2",),
        pattern="e (n 8a 4b) k -> e n b a k",
        multiple={"n": 128},
        summary="rows permuted inside 32 for the epilogue tile of 128, bytes of a row untouched",
        source=f"get_shuffle_matrix_a_row_indices(epilogue_tile_m=128); {_FLASHINFER}",
        held_against=("vendor bytes", "index formula"),
        golden=("flashinfer_trtllm_w2_*",),
    )
)
TRTLLM_W2_SCALE = register(
    Layout(
        name="flashinfer.trtllm_w2_scale",
        field="scale",
        stacks=("w2",),
        pattern="e (n 4w 8a 4b) (k 4s) -> e n k b a w s",
        pad={"k": 4},
        summary="the same row permutation, then the 128 x 4 tile",
        source=f"get_shuffle_matrix_sf_a_row_indices, block_scale_interleave; {_FLASHINFER}",
        held_against=("vendor bytes", "index formula"),
        golden=("flashinfer_trtllm_w2_*",),
    )
)
TRTLLM_W2_BIAS = register(
    Layout(
        name="flashinfer.trtllm_w2_bias",
        field="bias",
        stacks=("w2",),
        pattern="e (n 8a 4b) i -> e n b a i",
        multiple={"n": 128},
        summary="the row permutation of the weights",
        source=f"get_w2_permute_indices_with_cache; {_FLASHINFER}",
        held_against=("index formula",),
    )
)
TRTLLM_W13 = register(
    in_rows(
        TRTLLM_W2,
        "up_first_interleaved",
        "flashinfer.trtllm_w13",
        held_against=("vendor bytes", "index formula"),
        golden=("flashinfer_trtllm_w13_*",),
    )
)
TRTLLM_W13_SCALE = register(
    in_rows(
        TRTLLM_W2_SCALE,
        "up_first_interleaved",
        "flashinfer.trtllm_w13_scale",
        held_against=("vendor bytes", "index formula"),
        golden=("flashinfer_trtllm_w13_*",),
    )
)
TRTLLM_W13_BIAS = register(in_rows(TRTLLM_W2_BIAS, "up_first_interleaved", "flashinfer.trtllm_w13_bias"))

SM90_W2 = register(
    Layout(
        name="flashinfer.sm90_w2",
        field="weight",
        unit="bit",
        stacks=("w2",),
        pattern="e (n 2w 8r) (k 2f 2m 2v 4c 2o 4b) -> e n m r k f c o word[v w b]",
        tables={"word": HOPPER_WORD},
        summary="blocks of 16 rows x 32 bytes in the order of mma fragments, with the Hopper word",
        source=f"interleave_moe_weights_for_sm90_mixed_gemm('fp4'); {_SM90_READ}",
        held_against=("index formula",),
    )
)
SM90_W2_SCALE = register(
    Layout(
        name="flashinfer.sm90_w2_scale",
        field="scale",
        stacks=("w2",),
        pattern="e (n 4w 16r) (k 4s) -> e n k r w s",
        summary="tiles of 64 rows x 4 blocks, rows folded 4 by 16",
        source=f"interleave_moe_scales_for_sm90_mixed_gemm; {_FLASHINFER}",
        held_against=("vendor bytes", "index formula"),
        golden=("flashinfer_sm90_scale_fold_*",),
    )
)
SM90_W13 = register(in_rows(SM90_W2, "up_first", "flashinfer.sm90_w13"))
SM90_W13_SCALE = register(in_rows(SM90_W2_SCALE, "up_first", "flashinfer.sm90_w13_scale"))

_RAW_UP_FIRST = "e 2h n k -> e ~h n k"
UP_FIRST_WEIGHT = register(
    Layout(
        name="flashinfer.up_first_weight",
        field="weight",
        pattern=_RAW_UP_FIRST,
        summary="[up; gate], bytes untouched (SM100 CUTLASS, MXFP4 x MXFP8)",
        source=f"cutlass_fused_moe; {_FLASHINFER}",
        held_against=("index formula",),
    )
)
UP_FIRST_SCALE = register(in_rows(SCALE_128X4, "up_first", "flashinfer.up_first_scale_128x4"))
UP_FIRST_BIAS = register(
    Layout(
        name="flashinfer.up_first_bias",
        field="bias",
        pattern=_RAW_UP_FIRST,
        summary="[up; gate]",
        source=f"cutlass_fused_moe; {_FLASHINFER}",
        held_against=("index formula",),
    )
)
