"""CpuExperts: one MoE layer's packed experts, run by the C kernels on NumPy arrays or torch CPU tensors."""

from __future__ import annotations

import ctypes
import math
import sys
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np

from shardproof.arguments import thread_count
from shardproof.errors import KernelError
from shardproof.experts import Activation
from shardproof.kernels.cpu.buffers import Buffer, activations, constant, empty_like, routing
from shardproof.kernels.cpu.library import BAD_ID, NO_MEMORY, CallStruct, LayerStruct, isa_index, library
from shardproof.kernels.cpu.threads import choose_executor, default_threads
from shardproof.mxfp4 import BLOCK

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Tensor: TypeAlias = npt.NDArray[Any] | torch.Tensor

Precision: TypeAlias = Literal["int8", "int16", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_KINDS = ("silu", "swiglu_oai", "situ")


class CpuExperts:
    """The routed experts of one layer in the CPU layout, ready to run.

    The layout is a permutation of canonical bytes (w13 rows are [w1; w3]); E, N, K as in canonical form:

        w13 weight  "e (2g n 8r) (k 4q 4b) -> e n k q g r b"    scale  "e (2g n 8r) k -> e n k g r"
        w2  weight  "e (n 16r) (k 4q 4b) -> e n k q r b"        scale  "e (n 16r) k -> e n k r"

    Buffers are uint8 NumPy arrays or torch CPU tensors of any shape, contiguous, of exactly
    E*2I*H/2, E*2I*H/32, E*H*I/2 and E*H*I/32 bytes; they are read where they are (a mapped file stays mapped)
    and must not change while the object lives. Biases are float32 in canonical order, [E, 2I] and [E, H].

    `hidden` H and `intermediate` I are multiples of 32. `expert_map` int32 [global experts] gives the local
    expert of each global id or -1; without it ids are local. Arithmetic: weights and scales are exact;
    products take activations as `precision` says (int8 or int16 with one scale per 32, or float32); sums,
    activation and combination are float32. The bits of a token's result depend neither on the other tokens,
    nor on the number of threads, nor on the instruction set. A bias of w2 is multiplied by the routing
    weight, unless `weight_before_w2`: then w2 sees the weighted h, and its bias is added as it is.

    Raises KernelError `kernel.shape`, `kernel.layout`, `kernel.dtype`, `kernel.stride`, `kernel.device`,
    `kernel.precision`, `kernel.isa`, `kernel.map`, `kernel.missing`.
    """

    def __init__(
        self,
        w13_weight: Tensor,
        w13_scale: Tensor,
        w13_bias: Tensor | None,
        w2_weight: Tensor,
        w2_scale: Tensor,
        w2_bias: Tensor | None,
        *,
        experts: int,
        hidden: int,
        intermediate: int,
        activation: Activation | None = None,
        weight_before_w2: bool = False,
        precision: Precision = "int8",
        expert_map: Tensor | None = None,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        check_sizes(experts, {"hidden": (hidden, BLOCK), "intermediate": (intermediate, BLOCK)})
        check_precision(precision)
        w13, w2 = experts * 2 * intermediate * hidden, experts * hidden * intermediate
        self._held: dict[str, Buffer | None] = {
            "w13": constant(w13_weight, "w13 weight", np.uint8, w13 // 2),
            "s13": constant(w13_scale, "w13 scale", np.uint8, w13 // BLOCK),
            "w2": constant(w2_weight, "w2 weight", np.uint8, w2 // 2),
            "s2": constant(w2_scale, "w2 scale", np.uint8, w2 // BLOCK),
            "b13": constant(w13_bias, "w13 bias", np.float32, experts * 2 * intermediate),
            "b2": constant(w2_bias, "w2 bias", np.float32, experts * hidden),
            "expert_map": constant(expert_map, "expert map", np.int32, None),
        }
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.activation = activation or Activation()
        self.weight_before_w2, self.precision, self.threads = weight_before_w2, precision, thread_count(threads)
        self._struct = self._layer_struct(isa_index(isa))
        self._address = ctypes.addressof(self._struct)

    def _layer_struct(self, isa: int) -> LayerStruct:
        """Fill the struct of moe.h; pointers stay valid because `_held` keeps the buffers."""
        act, mapped = self.activation, self._held["expert_map"]
        if mapped is not None:
            check_map(mapped, self.experts)
        return LayerStruct(
            **{name: None if held is None else held.pointer for name, held in self._held.items()},
            map_length=0 if mapped is None else mapped.size,
            experts=self.experts,
            hidden=self.hidden,
            inter=self.intermediate,
            activation=_KINDS.index(act.kind),
            precision=PRECISIONS.index(self.precision),
            weight_before_w2=self.weight_before_w2,
            isa=isa,
            limit=math.inf if act.limit is None else act.limit,
            alpha=act.alpha,
            beta=act.beta,
            linear_beta=act.linear_beta,
        )

    @property
    def isa(self) -> str:
        """The instruction-set variant that runs this layer."""
        return str(library().sp_isa_name(self._struct.isa).decode())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all local experts' weights and scales."""
        return 3 * self.experts * self.hidden * self.intermediate * 17 // 32

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, out: Tensor | None = None) -> Tensor:
        """Run the layer: the sum of each token's experts, weighted.

        x [M, H] float32, bfloat16 or float16; topk_ids [M, k] int32 or int64, -1 (or what the map sends to
        -1) is skipped; topk_weights [M, k] float32. Returns `out`, or a new [M, H] array like
        x. `out` may be x itself. M = 0 and k = 0 are fine (k = 0 gives zeros).

        Raises KernelError `kernel.shape`, `kernel.dtype`, `kernel.stride`, `kernel.device`, `kernel.grad`,
        `kernel.id`, `kernel.memory`.
        """
        source = activations(x, "x", self.hidden)
        ids, weights = routing(topk_ids, topk_weights, source.shape[0])
        out = empty_like(x) if out is None else out
        target = activations(out, "out", self.hidden, tokens=source.shape[0])
        # fields in their order: half the time of naming them, and this is what one token waits for
        call = CallStruct(
            source.pointer, target.pointer, ids.pointer, weights.pointer, source.shape[0], ids.shape[1],
            source.row_stride, target.row_stride, source.code, target.code, ids.itemsize == 8,
            self.threads or default_threads(),
        )  # fmt: skip
        choose_executor()
        code = library().sp_forward(self._address, ctypes.addressof(call))
        if code:
            mapped = self._held["expert_map"]
            raise_failure(code, call, topk_ids, self.experts if mapped is None else mapped.size, self._struct.isa)
        return out

    __call__ = forward


def raise_failure(code: int, call: CallStruct, topk_ids: Tensor, known: int, isa: int) -> NoReturn:
    """Turn what the C core returned into an error; `known` ids name an expert."""
    if code == BAD_ID:
        token, slot = divmod(call.bad_index, call.top_k)
        raise KernelError(
            "kernel.id",
            f"topk_ids[{token}, {slot}] names no expert of this layer",
            tensor="topk_ids",
            found=int(topk_ids[token, slot]),
            needed=f"0 to {known - 1}, or -1 to skip",
            next_step="ids are global, not local to an expert-parallel rank; -1 skips a slot",
        )
    if code == NO_MEMORY:
        raise KernelError(
            "kernel.memory",
            "no memory for the activations of one pass",
            found=call.tokens,
            next_step="give fewer tokens at a time",
        )
    name = library().sp_isa_name(isa).decode()
    raise KernelError(
        "kernel.isa",
        "this CPU cannot run the chosen variant",
        found=name,
        next_step="leave the choice to shardproof: give no isa",
    )


def check_precision(precision: str) -> None:
    """Raises KernelError `kernel.precision`."""
    if precision not in PRECISIONS:
        raise KernelError(
            "kernel.precision",
            "no such precision mode",
            found=precision,
            needed=" or ".join(PRECISIONS),
            next_step="choose one of those",
        )


def check_sizes(experts: int, sizes: dict[str, tuple[int, int]]) -> None:
    """`sizes`: name -> (size, what it must be a multiple of). Raises KernelError `kernel.shape`."""
    for name, (size, unit) in sizes.items():
        if size <= 0 or size % unit:
            raise KernelError(
                "kernel.shape",
                f"the {name} size is not a whole number of {unit}-value blocks",
                found=size,
                needed=f"a positive multiple of {unit}",
                next_step="pad with weight 0 and scale 127 when packing",
            )
    if experts <= 0 or experts > sys.maxsize >> 32:
        raise KernelError(
            "kernel.shape",
            "no layer has so many experts" if experts > 0 else "a layer needs at least one expert",
            found=experts,
            needed=f"1 to {sys.maxsize >> 32}",
            next_step="give the number of experts of the layer",
        )


def check_map(mapped: Buffer, experts: int) -> None:
    """Raises KernelError `kernel.map` where the map names no local expert."""
    values = np.ctypeslib.as_array((ctypes.c_int32 * mapped.size).from_address(mapped.pointer))
    wrong = np.flatnonzero((values < -1) | (values >= experts))
    if wrong.size:
        raise KernelError(
            "kernel.map",
            f"expert_map[{wrong[0]}] is not a local expert",
            tensor="expert map",
            expert=int(wrong[0]),
            found=int(values[wrong[0]]),
            needed=f"-1 to {experts - 1}",
            next_step="map each global id to the row of a local expert, or to -1",
        )
