"""Marlin (vLLM): weights, scales and biases of its MoE kernels, for 16-bit and 8-bit activations.

Read and compared at vLLM 0.33.0. vLLM pads the hidden size to 256 and the intermediate size to 128 beforehand.
"""

from __future__ import annotations

from shardproof.layouts.defect import Defect
from shardproof.layouts.layout import Layout
from shardproof.layouts.registry import register

_VLLM = "vLLM 0.33.0"

SCALE_249 = Defect(
    name="marlin.scale_249",
    what="for 8-bit activations 6 is added to scale bytes up to 249, and 249 becomes 255, which is NaN",
    safe="bytes above 248 are refused",
    package="vllm",
    versions="0.33.0",
    source="mxfp4_marlin_process_scales in marlin_utils_fp4.py",
)
FLOAT16 = Defect(
    name="marlin.float16_scales",
    what="scales pass through the model's dtype on their way to E8M0; float16 cannot hold most of them",
    safe="bytes are moved as bytes",
    package="vllm",
    versions="0.33.0",
    source="prepare_moe_mxfp4_layer_for_marlin in marlin_utils_fp4.py",
)

WEIGHT = register(
    Layout(
        name="marlin.weight",
        field="weight",
        unit="nibble",
        pattern="e (n 4j 2a 8t) (k 2c 4u 2d) -> e k n t u j d a c",
        summary="16 (k) x 64 (n) tiles of 32-bit words, one mma fragment a thread, codes k-pairs apart",
        source=f"gptq_marlin_repack(num_bits=4), its torch reference; {_VLLM}",
        held_against=("vendor kernel", "vendor bytes", "index formula"),
        golden=("marlin_a16_*",),
    )
)
SCALE = register(
    Layout(
        name="marlin.scale",
        field="scale",
        pattern="e (n 2a 2b 2c 8d) k -> e k n d a c b",
        summary="[K/32, N], columns permuted inside 64, the middle two of each four swapped",
        source=f"marlin_permute_scales, mxfp4_marlin_process_scales; {_VLLM}",
        held_against=("vendor kernel", "vendor bytes", "index formula"),
        golden=("marlin_a16_*",),
        defects=(FLOAT16,),
    )
)
WEIGHT_A8 = register(
    Layout(
        name="marlin.weight_a8",
        field="weight",
        unit="nibble",
        pattern="e (n 2a 2b 8c) (k 2d 4f 4g) -> e k n c f a b g d",
        summary="32 (k) x 32 (n) tiles for 8-bit activations",
        source=f"gptq_marlin_repack(num_bits=4, is_a_8bit=True), its torch reference; {_VLLM}",
        held_against=("vendor bytes", "index formula"),
        golden=("marlin_a8_*",),
    )
)
SCALE_A8 = register(
    Layout(
        name="marlin.scale_a8",
        field="scale",
        pattern="e (n 4a 4b 2c) k -> e k n b a c",
        add=6,
        highest=248,
        summary="[K/32, N], columns permuted inside 32; 6 is added to each exponent (E2M1 to E4M3)",
        source=f"marlin_permute_scales, mxfp4_marlin_process_scales(float8_e4m3fn); {_VLLM}",
        held_against=("vendor bytes", "index formula"),
        golden=("marlin_a8_*",),
        defects=(SCALE_249, FLOAT16),
    )
)
BIAS = register(
    Layout(
        name="marlin.bias",
        field="bias",
        pattern="e (n 4a 4b 2c) i -> e n b a c i",
        summary="numbers permuted inside 32",
        source=f"marlin_permute_bias; {_VLLM}",
        held_against=("vendor bytes", "index formula"),
        golden=("marlin_bias_*",),
    )
)
