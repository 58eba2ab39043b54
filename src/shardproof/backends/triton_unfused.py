"""triton_unfused: triton_kernels' matmul, the activation as a kernel of its own."""

from __future__ import annotations

from shardproof.backends.conditions import Activations
from shardproof.backends.kernel import Kernel
from shardproof.backends.packages import Needs
from shardproof.backends.triton_kernels import BOTH, SOURCE, on_cuda, on_gfx950, on_other_rocm

SILU, OAI = Activations(("silu",)), Activations(("swiglu_oai",))


class TritonUnfused(Kernel):
    """vLLM's TRITON_UNFUSED: DeepSeek-V4's second choice on ROCm, and the base for LoRA."""

    name = "triton_unfused"
    known_as = ("TRITON_UNFUSED",)
    summary = "triton_kernels without fused activation, bfloat16 activations; any routing"
    source = (
        f"vLLM 0.33 oracle/mxfp4.py; {SOURCE} vLLM leaves it out of its CUDA lists for a bug with speculative "
        "decoding. Rows of w13 stay as loaded: separated for silu; for swiglu_oai as gpt-oss stores them."
    )
    package = "triton_kernels"
    conditions = (BOTH, Activations(("silu", "swiglu_oai")), Needs(package="triton_kernels"))
    variants = (
        *on_gfx950(SILU),
        on_other_rocm(128, SILU),
        *on_cuda(SILU),
        *on_gfx950(OAI, interleaved=True),
        on_other_rocm(256, OAI, interleaved=True),
        *on_cuda(OAI, interleaved=True),
    )
