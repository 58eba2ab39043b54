"""ExpertMatrix: one matrix of every expert times the tokens that are routed to it, without the rest of the layer."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from shardproof.arguments import thread_count
from shardproof.errors import KernelError
from shardproof.kernels.cpu.buffers import Buffer, activations, constant, expect_contiguous, experts_of_tokens, view
from shardproof.kernels.cpu.layer import PRECISIONS, Precision, check_map, check_precision, check_sizes, raise_failure
from shardproof.kernels.cpu.library import CallStruct, MatrixStruct, isa_index, library
from shardproof.kernels.cpu.threads import choose_executor, default_threads
from shardproof.mxfp4 import BLOCK

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Tensor: TypeAlias = npt.NDArray[Any] | torch.Tensor

ROWS = 16
"""Rows of one weight tile."""


class ExpertMatrix:
    """One MXFP4 matrix [N, K] for each of E experts, in the layout of w2: what a layer of another kind is built from.

        weight  "e (n 16r) (k 4q 4b) -> e n k q r b"    scale  "e (n 16r) k -> e n k r"

    uint8 NumPy arrays or torch CPU tensors, contiguous, of exactly E*N*K/2 and E*N*K/32 bytes; they are read where
    they are and must not change while the object lives. `rows` N is a multiple of 16, `columns` K one of 32.
    `precision`, `expert_map`, `threads`, `isa` and the promise of equal bits: see CpuExperts.

    Raises KernelError `kernel.shape`, `kernel.layout`, `kernel.dtype`, `kernel.stride`, `kernel.device`,
    `kernel.precision`, `kernel.isa`, `kernel.map`, `kernel.missing`.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        *,
        experts: int,
        rows: int,
        columns: int,
        precision: Precision = "int8",
        expert_map: Tensor | None = None,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        check_sizes(experts, {"columns": (columns, BLOCK), "rows": (rows, ROWS)})
        check_precision(precision)
        self.experts, self.rows, self.columns, self.threads = experts, rows, columns, thread_count(threads)
        self._weight = cast("Buffer", constant(weight, "weight", np.uint8, experts * rows * columns // 2))
        self._scale = cast("Buffer", constant(scale, "scale", np.uint8, experts * rows * columns // BLOCK))
        self._map = constant(expert_map, "expert map", np.int32, None)
        if self._map is not None:
            check_map(self._map, experts)
        self._struct = MatrixStruct(
            weight=self._weight.pointer,
            scale=self._scale.pointer,
            expert_map=None if self._map is None else self._map.pointer,
            map_length=0 if self._map is None else self._map.size,
            experts=experts,
            rows=rows,
            columns=columns,
            precision=PRECISIONS.index(precision),
            isa=isa_index(isa),
        )

    def forward(self, x: Tensor, topk_ids: Tensor, out: Tensor | None = None) -> Tensor:
        """out[m, j] = matrix of expert topk_ids[m, j] times x[m]; zeros where the id is skipped.

        x [M, K] float32, bfloat16 or float16; topk_ids [M, k] int32 or int64, -1 (or what the map sends to -1) is
        skipped. Returns `out` (contiguous, of any of these dtypes), or a new [M, k, N] array of x's kind and
        dtype. A row of x for every (token, slot): call it with M*k tokens and k = 1.

        Raises KernelError `kernel.shape`, `kernel.dtype`, `kernel.stride`, `kernel.device`, `kernel.grad`,
        `kernel.id`, `kernel.memory`.
        """
        source = activations(x, "x", self.columns)
        ids = experts_of_tokens(topk_ids, source.shape[0])
        shape = (*ids.shape, self.rows)
        if out is None:
            out = np.empty(shape, x.dtype) if isinstance(x, np.ndarray) else x.new_empty(shape)
        target = self._check_out(out, shape)
        call = CallStruct(
            x=source.pointer,
            out=target.pointer,
            ids=ids.pointer,
            weights=None,
            tokens=source.shape[0],
            top_k=ids.shape[1],
            x_stride=source.row_stride,
            out_stride=self.rows,
            x_dtype=source.code,
            out_dtype=target.code,
            ids_are_64=ids.itemsize == 8,
            threads=self.threads or default_threads(),
        )
        choose_executor()
        code = library().sp_product(ctypes.addressof(self._struct), ctypes.addressof(call))
        if code:
            known = self.experts if self._map is None else self._map.size
            raise_failure(code, call, topk_ids, known, self._struct.isa)
        return out

    __call__ = forward

    def _check_out(self, out: Tensor, shape: tuple[int, ...]) -> Buffer:
        target = view(out, "out")
        if target.shape != shape:
            raise KernelError(
                "kernel.shape",
                "the tensor has the wrong shape",
                tensor="out",
                found=list(target.shape),
                needed=list(shape),
                next_step="allocate it with this shape, or leave it out",
            )
        expect_contiguous(target, "out")
        return activations(out.reshape(-1, self.rows), "out", self.rows)
