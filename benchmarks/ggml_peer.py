"""The MXFP4 experts of ggml and of ik_llama.cpp's ggml through ctypes: the peers that moe_cpu.py measures.

A peer is a folder with libggml*.so and a form of its weights:
    mxfp4      as in the file
    repack     ggml's own interleaved order, where its build has one for MXFP4
    mxfp4_r8   ik_llama.cpp's: 8 rows interleaved, made of mxfp4 by its own `iqk_repack_tensor`
Both libraries fit into one process: symbols stay local to each. The graph is that of the library's own models, for
a MoE block without router: MUL_MAT_ID for gate and up, swiglu, MUL_MAT_ID for down, routing weights, sum over the
experts; where the library has them (ik_llama.cpp), gate, up and swiglu are one operation, and so are weights and sum.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

F32, I32, MXFP4 = 0, 26, 39
SILU = 10  # ggml_unary_op
P, I64, SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t

Form: TypeAlias = Literal["mxfp4", "repack", "mxfp4_r8"]


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", SIZE), ("mem_buffer", P), ("no_alloc", ctypes.c_bool))


SIGNATURES = {
    "ggml_init": (P, (InitParams,)),
    "ggml_free": (None, (P,)),
    "ggml_new_tensor_1d": (P, (P, ctypes.c_int, I64)),
    "ggml_new_tensor_2d": (P, (P, ctypes.c_int, I64, I64)),
    "ggml_new_tensor_3d": (P, (P, ctypes.c_int, I64, I64, I64)),
    "ggml_mul_mat_id": (P, (P, P, P, P)),
    "ggml_swiglu_split": (P, (P, P, P)),
    "ggml_mul": (P, (P, P, P)),
    "ggml_add": (P, (P, P, P)),
    "ggml_view_2d": (P, (P, P, I64, I64, SIZE, SIZE)),
    "ggml_new_graph": (P, (P,)),
    "ggml_build_forward_expand": (None, (P, P)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (P, (P, P)),
    "ggml_backend_cpu_init": (P, ()),
    "ggml_backend_cpu_buffer_type": (P, ()),
    "ggml_backend_cpu_set_n_threads": (None, (P, ctypes.c_int)),
    "ggml_backend_buffer_set_usage": (None, (P, ctypes.c_int)),
    "ggml_backend_buffer_get_base": (P, (P,)),
    "ggml_backend_buffer_get_size": (SIZE, (P,)),
    "ggml_backend_buffer_free": (None, (P,)),
    "ggml_backend_buft_name": (ctypes.c_char_p, (P,)),
    "ggml_backend_graph_compute": (ctypes.c_int, (P, P)),
    "ggml_backend_tensor_set": (None, (P, P, SIZE, SIZE)),
    "ggml_backend_tensor_get": (None, (P, P, SIZE, SIZE)),
}
REPACKING = {  # ggml's
    "ggml_backend_cpu_reg": (P, ()),
    "ggml_backend_reg_get_proc_address": (P, (P, ctypes.c_char_p)),
    "ggml_backend_reg_dev_get": (P, (P, SIZE)),
}
FUSED = {  # ik_llama.cpp's
    "iqk_repack_tensor": (None, (P,)),
    "ggml_moe_up_gate": (P, (P, P, P, P, P, ctypes.c_int)),
    "ggml_mul_multi_add": (P, (P, P, P)),
}


class Ggml:
    """The loaded libraries of one folder; attribute access gives typed functions."""

    def __init__(self, folder: Path) -> None:
        names = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
        self._libs = [ctypes.CDLL(str(folder / n)) for n in names if (folder / n).exists()]
        self.fuses = any(hasattr(lib, "ggml_moe_up_gate") for lib in self._libs)
        for name, (result, arguments) in {**SIGNATURES, **(FUSED if self.fuses else REPACKING)}.items():
            function = next(getattr(lib, name) for lib in self._libs if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    @property
    def forms(self) -> tuple[Form, Form]:
        """The forms of weights that this library multiplies."""
        return ("mxfp4", "mxfp4_r8") if self.fuses else ("mxfp4", "repack")

    def repack_buffer_type(self) -> int | None:
        """The buffer type that reorders weights when they are set; None if this build has none."""
        registry = self.ggml_backend_cpu_reg()
        address = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        listing = ctypes.CFUNCTYPE(ctypes.POINTER(P), P)(address)(self.ggml_backend_reg_dev_get(registry, 0))
        index = 0
        while listing and listing[index]:
            if b"REPACK" in self.ggml_backend_buft_name(listing[index]).upper():
                return listing[index]
            index += 1
        return None


def gguf_blocks(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Canonical weight [E, N, K/2] and scale [E, N, K/32] -> ggml's 17-byte blocks [E, N, K/32, 17]."""
    experts, rows, half = weight.shape
    codes = weight.reshape(experts, rows, half // 16, 16)
    low, high = codes & 15, codes >> 4  # even and odd columns
    natural = np.stack([low, high], axis=-1).reshape(experts, rows, half // 16, 32)
    blocks = np.empty((experts, rows, half // 16, 17), dtype=np.uint8)
    blocks[..., 0] = scale
    blocks[..., 1:] = natural[..., :16] | natural[..., 16:] << 4
    return blocks


def advise_pages(start: int, size: int, huge: bool) -> None:
    """Ask for huge pages (or none) in memory that nobody has touched: these libraries' own malloc does not."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    advice = mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE
    if last > first and ctypes.CDLL(None).madvise(P(first), SIZE(last - first), advice):
        raise OSError("this kernel has no transparent huge pages")


def share_of_huge_pages(start: int, size: int) -> float:
    """Of the resident mappings that [start, start + size) lies in: the share in pages of 2 MiB (Linux only)."""
    resident = huge = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(word, 16) for word in name.split("-"))
            inside = begin < start + size and end > start
        elif inside and name == "Rss:":
            resident += int(rest[0])
        elif inside and name in {"AnonHugePages:", "FilePmdMapped:", "ShmemPmdMapped:"}:
            huge += int(rest[0])
    return huge / resident if resident else 0.0


class GgmlLayer:
    """One MoE layer in ggml; `stacks` are gguf_blocks of w1, w3, w2 (whole layer) or of one matrix (MUL_MAT_ID)."""

    def __init__(self, ggml: Ggml, stacks: list[np.ndarray], *, top_k: int, threads: int, form: Form,
                 huge_pages: bool = True) -> None:  # fmt: skip
        self.g, self.top_k, self.graphs = ggml, top_k, {}
        self.backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        buffer_type = ggml.repack_buffer_type() if form == "repack" else ggml.ggml_backend_cpu_buffer_type()
        if not buffer_type:
            raise LookupError("this ggml build has no repack buffer type")
        context = ggml.ggml_init(InitParams(1 << 20, None, True))
        self.weights = [
            ggml.ggml_new_tensor_3d(context, MXFP4, s.shape[2] * 32, s.shape[1], s.shape[0]) for s in stacks
        ]
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        ggml.ggml_backend_buffer_set_usage(buffer, 1)  # weights
        self.memory = (ggml.ggml_backend_buffer_get_base(buffer), ggml.ggml_backend_buffer_get_size(buffer))
        advise_pages(*self.memory, huge_pages)
        for tensor, data in zip(self.weights, stacks, strict=True):
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
            if form == "mxfp4_r8":
                ggml.iqk_repack_tensor(tensor)
        self.rows = stacks[-1].shape[1]
        self.columns = stacks[0].shape[2] * 32

    def _build(self, tokens: int) -> dict[str, int]:
        g, k = self.g, self.top_k
        context = g.ggml_init(InitParams(1 << 20, None, True))
        x = g.ggml_new_tensor_3d(context, F32, self.columns, 1, tokens)
        ids = g.ggml_new_tensor_2d(context, I32, k, tokens)
        weights = g.ggml_new_tensor_3d(context, F32, 1, k, tokens)
        if len(self.weights) == 1:
            out = g.ggml_mul_mat_id(context, self.weights[0], x, ids)
        elif g.fuses:
            h = g.ggml_moe_up_gate(context, self.weights[1], self.weights[0], x, ids, SILU)
            out = g.ggml_mul_multi_add(context, g.ggml_mul_mat_id(context, self.weights[2], h, ids), weights)
        else:
            out = self._steps(context, x, ids, weights, tokens)
        graph = g.ggml_new_graph(context)
        g.ggml_build_forward_expand(graph, out)
        buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(context, g.ggml_backend_cpu_buffer_type())
        return {"x": x, "ids": ids, "weights": weights, "out": out, "graph": graph, "buffer": buffer}

    def _steps(self, context: int, x: int, ids: int, weights: int, tokens: int) -> int:
        g, k, row = self.g, self.top_k, self.rows * 4
        gate = g.ggml_mul_mat_id(context, self.weights[0], x, ids)
        up = g.ggml_mul_mat_id(context, self.weights[1], x, ids)
        down = g.ggml_mul_mat_id(context, self.weights[2], g.ggml_swiglu_split(context, gate, up), ids)
        scaled = g.ggml_mul(context, down, weights)
        views = [g.ggml_view_2d(context, scaled, self.rows, tokens, row * k, row * i) for i in range(k)]
        out = views[0]
        for view in views[1:]:
            out = g.ggml_add(context, out, view)
        return out

    def prepare(self, tokens: int) -> None:
        """Build and allocate the graph for this many tokens, outside of what is timed."""
        if tokens not in self.graphs:
            self.graphs[tokens] = self._build(tokens)

    def load(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        """Put inputs in place, outside of what is timed."""
        self.prepare(len(x))
        graph = self.graphs[len(x)]
        named = [("x", x), ("ids", ids)] + ([("weights", weights)] if len(self.weights) > 1 else [])
        for name, data in named:
            self.g.ggml_backend_tensor_set(graph[name], data.ctypes.data, 0, data.nbytes)

    def run(self, tokens: int) -> None:
        """Compute: this is what is timed."""
        if self.g.ggml_backend_graph_compute(self.backend, self.graphs[tokens]["graph"]):
            raise RuntimeError("ggml could not compute the graph")

    def result(self, tokens: int) -> np.ndarray:
        """[tokens, rows] for the whole layer, [tokens, top_k, rows] for one matrix."""
        shape = (tokens, self.rows) if len(self.weights) > 1 else (tokens, self.top_k, self.rows)
        out = np.empty(shape, dtype=np.float32)
        tensor = self.graphs[tokens]["out"]
        self.g.ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
        return out
