"""triton: triton_kernels' matmul with the fused OAI activation (gpt-oss)."""

from __future__ import annotations

from shardproof.backends.conditions import Activations
from shardproof.backends.kernel import Kernel
from shardproof.backends.packages import Needs
from shardproof.backends.routing import RoutesBySoftmax
from shardproof.backends.triton_kernels import BOTH, SOURCE, on_cuda, on_gfx950, on_other_rocm


class Triton(Kernel):
    """vLLM's TRITON: OpenAI's kernels as gpt-oss uses them, routing inside the layer."""

    name = "triton"
    known_as = ("TRITON",)
    summary = "triton_kernels with fused swiglu_oai, bfloat16 activations; gpt-oss"
    source = f"vLLM 0.33 oracle/mxfp4.py; {SOURCE}"
    package = "triton_kernels"
    conditions = (BOTH, Activations(("swiglu_oai",)), Needs(package="triton_kernels"), RoutesBySoftmax())
    variants = (
        *on_cuda(interleaved=True),
        *on_gfx950(interleaved=True),
        on_other_rocm(256, interleaved=True),
    )
