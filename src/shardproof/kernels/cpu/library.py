"""The shared library `_moe`: found beside this file, loaded once, its structs as ctypes sees them."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import platform
import warnings
from pathlib import Path

from shardproof.errors import KernelError

BAD_ID, NO_MEMORY, NO_ISA = 1, 2, 3
"""What `sp_forward` and `sp_product` return beside 0 (moe.h)."""

_ISA_VARIABLE = "SHARDPROOF_CPU_ISA"


class LayerStruct(ctypes.Structure):
    """`sp_layer` of moe.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("w13", "s13", "w2", "s2", "b13", "b2", "expert_map")),
        *((name, ctypes.c_int64) for name in ("map_length", "experts", "hidden", "inter")),
        *((name, ctypes.c_int32) for name in ("activation", "precision", "weight_before_w2", "isa")),
        *((name, ctypes.c_float) for name in ("limit", "alpha", "beta", "linear_beta")),
    )


class MatrixStruct(ctypes.Structure):
    """`sp_matrix` of moe.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "expert_map")),
        *((name, ctypes.c_int64) for name in ("map_length", "experts", "rows", "columns")),
        *((name, ctypes.c_int32) for name in ("precision", "isa")),
    )


class CallStruct(ctypes.Structure):
    """`sp_call` of moe.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "ids", "weights")),
        *((name, ctypes.c_int64) for name in ("tokens", "top_k", "x_stride", "out_stride")),
        *((name, ctypes.c_int32) for name in ("x_dtype", "out_dtype", "ids_are_64", "threads")),
        ("bad_index", ctypes.c_int64),
    )


def _library_path() -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_moe{suffix}"
        if path.is_file():
            return path
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises KernelError `kernel.missing` where the package was installed without a C compiler.
    """
    path = _library_path()
    if path is None:
        raise KernelError(
            "kernel.missing",
            "the CPU kernels were not built when shardproof was installed",
            found=f"no _moe library in {Path(__file__).parent}",
            needed="a C compiler at installation (gcc or clang)",
            next_step="install a compiler and reinstall shardproof, or use the reference backend",
        )
    loaded = ctypes.CDLL(str(path))
    loaded.sp_forward.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    loaded.sp_product.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    loaded.sp_isa_name.restype = ctypes.c_char_p
    loaded.sp_set_executor.argtypes = (ctypes.c_void_p,)
    loaded.sp_set_executor.restype = None
    loaded.sp_read.argtypes, loaded.sp_read.restype = (
        (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
        ctypes.c_uint64,
    )
    loaded.sp_workspace_bytes.restype = ctypes.c_int64
    return loaded


def usable_isas() -> tuple[str, ...]:
    """Names of the variants that this build has and this CPU can run, slowest ("portable") first."""
    lib = library()
    return tuple(lib.sp_isa_name(i).decode() for i in range(lib.sp_isa_count()) if lib.sp_isa_usable(i))


def isa_index(name: str | None) -> int:
    """The index of the variant called `name`; None: SHARDPROOF_CPU_ISA, else the best that this CPU can run.

    Raises KernelError `kernel.isa` for a name that this build or this CPU does not have.
    """
    lib = library()
    name = name or os.environ.get(_ISA_VARIABLE) or None
    if name is None:
        best = int(lib.sp_isa_best())
        if best == 0:
            _warn_portable(platform.machine())
        return best
    for index in range(lib.sp_isa_count()):
        if lib.sp_isa_name(index).decode() == name and lib.sp_isa_usable(index):
            return index
    raise KernelError(
        "kernel.isa",
        "this CPU or this build cannot run the instruction-set variant that was asked for",
        found=name,
        needed=f"one of {', '.join(usable_isas())}",
        next_step=f"leave isa and {_ISA_VARIABLE} unset to take the best one",
    )


@functools.cache
def _warn_portable(machine: str) -> None:
    """Say once that the layer will be slow here."""
    warnings.warn(
        f"shardproof: no vector variant of the CPU kernels fits this {machine} processor; the portable C path is used",
        RuntimeWarning,
        stacklevel=2,
    )
