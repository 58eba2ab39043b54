"""Finding and loading the shared library; one message where there is none."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

from shardproof.arguments import variable
from shardproof.pack.native.structs import (
    AVX2,
    AVX512,
    CUT,
    JOB,
    PART,
    PORTABLE,
    TERM,
    BatchStruct,
    ProgramStruct,
)  # fmt: skip

log = logging.getLogger("shardproof.pack")

_SIZES = 0
for _size in (
    *(ctypes.sizeof(ProgramStruct), CUT.itemsize, JOB.itemsize, PART.itemsize, TERM.itemsize),
    ctypes.sizeof(BatchStruct),
):
    _SIZES = _SIZES * 1000 + _size

_OTHER_VERSION = "it was built from another version of shardproof: build it again"

ENGINE = "SHARDPROOF_ENGINE"
"""Environment: `numpy` leaves the engine alone; `portable`, `avx2`, `avx512` hold it back; `amx` is the default."""


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    built = sorted(Path(__file__).parent.glob("_engine*.so"))
    if not built:
        return None, "it was not built (no C compiler at installation)"
    return opened(built[0])


def opened(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library in a file; or None, and why."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError as reason:
        return None, f"it cannot be loaded: {reason}"
    if not hasattr(found, "sp_sizes"):
        return None, _OTHER_VERSION
    found.sp_sizes.restype = ctypes.c_int64
    if found.sp_sizes() != _SIZES:
        return None, _OTHER_VERSION
    found.sp_start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    found.sp_start.restype = None
    found.sp_wait.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.sp_guard.argtypes = [ctypes.c_int]
    return found, ""


@cache
def _say_once(reason: str) -> None:
    log.warning("packing with NumPy, several times slower: the native engine is missing; %s", reason)


def _asked() -> str | None:
    return variable(ENGINE, "amx", "avx512", "avx2", "portable", "numpy")


def library() -> ctypes.CDLL | None:
    """The engine, or None where it is missing (said once in the log) or switched off."""
    if _asked() == "numpy":
        return None
    found, reason = _load()
    if found is None:
        _say_once(reason)
    return found


def why_not() -> str | None:
    """Why packing goes through NumPy here; None where the native engine runs."""
    if _asked() == "numpy":
        return f"{ENGINE}=numpy"
    return _load()[1] or None


def isa() -> int:
    """The instruction set that is used: PORTABLE, AVX2 or AVX512."""
    found = library()
    asked = {"portable": PORTABLE, "avx2": AVX2}.get(_asked() or "", AVX512)
    return PORTABLE if found is None else min(asked, int(found.sp_isa()))


def has_tiles() -> bool:
    """Whether digests of weights may be taken with AMX."""
    found = library()
    return found is not None and _asked() != "avx512" and bool(found.sp_has_tiles())
