"""Loading and launching the kernels through the CUDA driver."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from shardproof.errors import KernelError
from shardproof.kernels.cuda.compile import machine_code
from shardproof.kernels.cuda.geometry import Build


class TensorMap(ctypes.Structure):
    """`CUtensorMap` of the driver."""

    _fields_ = (("words", ctypes.c_uint64 * 16),)


class Boxes(ctypes.Structure):
    """`Boxes` of csrc/params.cuh."""

    _fields_ = (("weight", TensorMap * 2), ("scale", TensorMap * 2))


class GemmArgs(ctypes.Structure):
    """`Gemm` of csrc/params.cuh."""

    _fields_ = (
        *[(n, ctypes.c_void_p) for n in ("weight", "scale", "row_scale", "bias")],
        *[(n, ctypes.c_int) for n in ("row64s", "chunks", "row_tiles")],
    )


class Args(ctypes.Structure):
    """`Params` of csrc/params.cuh."""

    _fields_ = (
        ("gemm", GemmArgs * 2),
        *[(n, ctypes.c_void_p) for n in ("x", "xq", "xs", "h", "hs", "y", "out", "ids", "expert_map", "weights")],
        *[(n, ctypes.c_void_p) for n in ("tiles", "slots", "tile_count", "sync")],
        *[(n, ctypes.c_int) for n in ("tokens", "top_k", "experts", "map_size", "hidden", "intermediate")],
        *[(n, ctypes.c_int) for n in ("x_pitch", "h_pitch", "y_pitch")],
        *[(n, ctypes.c_int) for n in ("small_route", "round_x", "round_h", "weight_first")],
        *[(n, ctypes.c_float) for n in ("limit", "alpha", "beta", "linear_beta")],
        ("powers", ctypes.c_uint32 * 6),
        *[(n, ctypes.c_void_p) for n in ("hq", "groups")],
        ("exponent_one", ctypes.c_uint32),
    )


def _check(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise KernelError(
            "kernel.cuda",
            "the CUDA driver refused a call",
            found=str(result[0]),
            needed="CUDA_SUCCESS",
            next_step="look at nvidia-smi (memory, driver, earlier faults), then run again in a new process",
        )
    return result[1] if len(result) > 1 else None


def tensor_map(
    address: int, chunk_bytes: int, sizes: tuple[int, int, int], end: int, box: tuple[int, int]
) -> TensorMap:
    """The tensor map of bytes [experts][row groups][chunks][chunk_bytes] (`sizes`) that are copied in boxes.

    `box` is (row groups, chunks). Copies put zeros past each end but of chunks: there past `end`, up to which they read
    on in memory.
    """
    from cuda.bindings import driver

    experts, row_groups, chunks = sizes
    whole, run = driver.cuuint64_t, driver.cuuint32_t
    element = 8  # bytes: a box has at most 256 elements a dimension
    made = _check(
        driver.cuTensorMapEncodeTiled(
            driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT64,
            4,
            address,
            [whole(n) for n in (chunk_bytes // element, end, row_groups, experts)],
            [whole(n * chunk_bytes) for n in (1, chunks, chunks * row_groups)],
            [run(n) for n in (chunk_bytes // element, box[1], box[0], 1)],
            [run(1)] * 4,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return TensorMap.from_buffer_copy(ctypes.string_at(made.getPtr(), ctypes.sizeof(TensorMap)))


@functools.cache
def function(entry: str, build: Build, device: int) -> Any:
    """The loaded kernel of `entry` for `build` on `device` (its primary context must exist)."""
    import torch
    from cuda.bindings import driver

    with torch.cuda.device(device):
        func = loaded(machine_code(entry, build), f"shardproof_{entry.removesuffix('.cu')}")
        if not entry.endswith("route.cu"):
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(driver.cuFuncSetAttribute(func, limit, build.shared_bytes))
    return func


def loaded(code: bytes, name: str) -> Any:
    """The kernel `name` of a cubin, in the current context."""
    from cuda.bindings import driver

    return _check(driver.cuModuleGetFunction(_check(driver.cuModuleLoadData(code)), name.encode()))


def launch(
    func: Any, grid: int, block: int, shared: int, stream: int, overlap: bool, *args: Any, cluster: int = 1
) -> None:
    """Launches on `stream`; with `overlap` it may start while its predecessor runs and waits inside."""
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = shared
    config.hStream = stream
    attributes = []
    if overlap:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attributes[-1].value.programmaticStreamSerializationAllowed = 1
    if cluster > 1:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attributes[-1].value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
    if attributes:
        config.attrs, config.numAttrs = attributes, len(attributes)
    pointers = (ctypes.c_void_p * len(args))(*[ctypes.addressof(a) for a in args])
    _check(driver.cuLaunchKernelEx(config, func, ctypes.addressof(pointers), 0))
