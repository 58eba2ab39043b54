"""The CPU backend's kernels: plain C, chosen for the instruction set at run time.

    CpuExperts      one layer's packed experts; `forward` runs the whole layer
    ExpertMatrix    one matrix of every expert; `forward` is a routed product alone
    usable_isas     the variants that this build has and this CPU can run

`torch_op` registers the layer with `torch.library`; it is not imported here.
"""

from shardproof.kernels.cpu.layer import CpuExperts, Precision
from shardproof.kernels.cpu.library import usable_isas
from shardproof.kernels.cpu.product import ExpertMatrix
from shardproof.kernels.cpu.threads import default_threads

__all__ = ["CpuExperts", "ExpertMatrix", "Precision", "default_threads", "usable_isas"]
