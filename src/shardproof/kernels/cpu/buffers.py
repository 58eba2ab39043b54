"""Raw pointers out of NumPy arrays and torch CPU tensors, after checking dtype, device, shape and strides."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from shardproof.errors import KernelError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Tensor: TypeAlias = npt.NDArray[Any] | torch.Tensor

DTYPE_CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
"""The codes of moe.h for tensors in and out."""


@dataclass(slots=True)
class Buffer:
    """One tensor as C sees it: strides in elements; `owner` keeps the memory alive."""

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    owner: object

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def code(self) -> int:
        """The dtype's code in moe.h."""
        return DTYPE_CODES[self.dtype]

    @property
    def row_stride(self) -> int:
        """Elements between two rows; a single row's stride is its length, whatever the tensor says."""
        return self.strides[0] if self.shape[0] > 1 else self.shape[1]

    @property
    def contiguous(self) -> bool:
        """True if elements follow each other in row-major order."""
        shape = self.shape
        if len(shape) == 2 and self.strides == (shape[1], 1):
            return True  # what nearly every call brings
        if self.size == 0:
            return True
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True


@functools.cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype == ml_dtypes.bfloat16 else dtype.name


@functools.cache
def _torch_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def view(tensor: object, name: str) -> Buffer:
    """Look at a NumPy array or torch CPU tensor.

    Raises KernelError `kernel.device`, `kernel.grad`, `kernel.dtype`, `kernel.stride`.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch_view(tensor, name, torch)
    if isinstance(tensor, np.ndarray):
        item, dtype = tensor.itemsize, _dtype_name(tensor.dtype)
        strides = tuple(s // item for s in tensor.strides)
        if any(s % item for s in tensor.strides) or not tensor.dtype.isnative:
            raise KernelError(
                "kernel.stride",
                "strides must be whole elements, in native byte order",
                tensor=name,
                found=f"strides {tensor.strides} of {tensor.dtype.str}",
                next_step="copy it with np.ascontiguousarray, in native byte order",
            )
        return Buffer(tensor.ctypes.data, dtype, tensor.shape, strides, item, tensor)
    raise KernelError(
        "kernel.dtype",
        "not a tensor",
        tensor=name,
        found=type(tensor).__name__,
        needed="a NumPy array or a torch CPU tensor",
        next_step="convert it, for instance with numpy.asarray or torch.as_tensor",
    )


def _torch_view(tensor: Any, name: str, torch: Any) -> Buffer:
    if not tensor.is_cpu:
        raise KernelError(
            "kernel.device",
            "the CPU kernels were given a tensor of another device",
            tensor=name,
            found=tensor.device,
            needed="cpu",
            next_step="move it with .cpu(), or use that device's backend",
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise KernelError(
            "kernel.grad",
            "the CPU kernels have no backward",
            tensor=name,
            found="requires_grad",
            needed="a tensor without gradient",
            next_step="run under torch.no_grad() or torch.inference_mode()",
        )
    dtype = _torch_name(tensor.dtype)
    return Buffer(tensor.data_ptr(), dtype, tensor.shape, tensor.stride(), tensor.itemsize, tensor)


def _expect(buffer: Buffer, name: str, dtypes: tuple[str, ...]) -> None:
    if buffer.dtype not in dtypes:
        raise KernelError(
            "kernel.dtype",
            "the tensor has the wrong dtype",
            tensor=name,
            found=buffer.dtype,
            needed=" or ".join(dtypes),
            next_step="convert the tensor; a scale or weight is never cast: view its bytes as uint8",
        )


def expect_contiguous(buffer: Buffer, name: str) -> None:
    """Raises KernelError `kernel.stride`."""
    if not buffer.contiguous:
        raise KernelError(
            "kernel.stride",
            "the tensor is not contiguous",
            tensor=name,
            found=f"shape {buffer.shape}, strides {buffer.strides}",
            needed="row-major without gaps",
            next_step="call .contiguous()",
        )


def constant(tensor: Tensor | None, name: str, dtype: type[np.generic], size: int | None) -> Buffer | None:
    """A weight, scale, bias or map: contiguous, of `dtype`, with exactly `size` elements (None: any)."""
    if tensor is None:
        return None
    buffer = view(tensor, name)
    _expect(buffer, name, (np.dtype(dtype).name,))
    expect_contiguous(buffer, name)
    if size is not None and buffer.size != size:
        raise KernelError(
            "kernel.layout",
            "the buffer does not hold this layer in the CPU layout",
            tensor=name,
            found=f"{buffer.size} elements",
            needed=f"{size} elements",
            next_step="pack the layer for backend 'cpu' with these sizes",
        )
    return buffer


def activations(tensor: Tensor, name: str, hidden: int, tokens: int | None = None) -> Buffer:
    """Check x or out: [M, hidden] float32, bfloat16 or float16; columns adjacent, rows any stride."""
    buffer = view(tensor, name)
    _expect(buffer, name, tuple(DTYPE_CODES))
    if len(buffer.shape) != 2 or buffer.shape[1] != hidden or (tokens is not None and tokens != buffer.shape[0]):
        raise KernelError(
            "kernel.shape",
            "the tensor has the wrong shape",
            tensor=name,
            found=list(buffer.shape),
            needed=f"[{'M' if tokens is None else tokens}, {hidden}]",
            next_step="give one row a token, of the layer's own H",
        )
    rows_overlap = name == "out" and buffer.shape[0] > 1 and abs(buffer.strides[0]) < hidden
    if buffer.size and (buffer.strides[1] != 1 or rows_overlap):
        raise KernelError(
            "kernel.stride",
            "a row's values must be adjacent, and rows of out apart",
            tensor=name,
            found=f"strides {buffer.strides}",
            needed="column stride 1",
            next_step="call .contiguous()",
        )
    return buffer


def experts_of_tokens(topk_ids: Tensor, tokens: int) -> Buffer:
    """Check topk_ids [M, k] int32 or int64, contiguous."""
    ids = view(topk_ids, "topk_ids")
    _expect(ids, "topk_ids", ("int32", "int64"))
    _expect_of_tokens(ids, "topk_ids", tokens, ids)
    return ids


def routing(topk_ids: Tensor, topk_weights: Tensor, tokens: int) -> tuple[Buffer, Buffer]:
    """Check topk_ids [M, k] int32 or int64 and topk_weights [M, k] float32, both contiguous."""
    ids, weights = experts_of_tokens(topk_ids, tokens), view(topk_weights, "topk_weights")
    _expect(weights, "topk_weights", ("float32",))
    _expect_of_tokens(weights, "topk_weights", tokens, ids)
    return ids, weights


def _expect_of_tokens(buffer: Buffer, name: str, tokens: int, ids: Buffer) -> None:
    if len(buffer.shape) != 2 or buffer.shape[0] != tokens or buffer.shape != ids.shape:
        raise KernelError(
            "kernel.shape",
            "the tensor has the wrong shape",
            tensor=name,
            found=list(buffer.shape),
            needed=f"[{tokens}, k], the same for ids and weights",
            next_step="give k expert ids and k weights for each row of x",
        )
    expect_contiguous(buffer, name)


def empty_like(x: Tensor) -> Tensor:
    """A new contiguous tensor of x's kind, dtype and shape, not initialised."""
    if isinstance(x, np.ndarray):
        return np.empty(x.shape, dtype=x.dtype)
    return x.new_empty(x.shape)
