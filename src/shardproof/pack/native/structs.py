"""The structs of engine.h: arrays of cuts and jobs as NumPy records, single structs as ctypes."""

from __future__ import annotations

import ctypes

import numpy as np

P, I32, I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

ROW_LOOP = np.dtype([("count", "i8"), ("rows", "i8"), ("base", "i8"), ("dst", "i8")])
COLUMN_LOOP = np.dtype([("count", "i8"), ("src", "i8"), ("dst", "i8")])
PART = np.dtype([(name, "i4") for name in ("dst", "row", "column", "size", "index", "keep", "shift")])
CUT = np.dtype(
    [("src", "u8")]
    + [(n, "i8") for n in ("stride", "rows", "bytes", "at_row", "at_column", "first_row", "first_column")]
    + [("place", "u8", 2), ("digested", "i8")]
)
JOB = np.dtype(
    [("program", "u8"), ("cuts", "u8"), ("dst", "u8"), ("begin", "i8"), ("end", "i8")]
    + [(name, "i4") for name in ("cuts_each", "field", "total", "part")]
)

TERM = np.dtype(
    [(name, "i4") for name in ("dst", "window", "wide", "index", "control", "keep", "matrix", "order")]
    + [("in", "u8"), ("store", "u8")]
)

RUN, TILE16, SHUFFLE, COPY, WORDS, LINES = range(6)
PORTABLE, AVX2, AVX512 = range(3)
PACK, UNPACK, UNPACK_BLOCK = range(3)
FIELDS = {"weight": 0, "scale": 1, "bias": 2}


class ProgramStruct(ctypes.Structure):
    """`Program` of engine.h."""

    _fields_ = [
        *((name, I32) for name in ("kernel", "group_rows", "row_loops", "column_loops", "parts")),
        *((name, I32) for name in ("word", "near")),
        *((name, I32) for name in ("pad", "filler", "add", "highest")),
        *((name, I64) for name in ("row_limit", "matrix_rows", "stack_rows", "width", "padded")),
        *((name, I64) for name in ("tile_bytes", "offset")),
        *((name, P) for name in ("rows", "columns", "group_row", "group_base", "part", "masks", "tables")),
        *((name, P) for name in ("piece", "term")),
        *((name, I64) for name in ("pieces", "terms", "block", "whole_lines")),
        *((name, I64) for name in ("fold_index", "fold_control", "fold_keep", "way", "bytes")),
        ("back", P), *((name, I64) for name in ("backs", "back_piece", "back_block")),
    ]  # fmt: skip


class BatchStruct(ctypes.Structure):
    """`Batch` of engine.h."""

    _fields_ = [
        ("jobs", P), ("count", I64), ("next", I64), ("stop", I64), ("totals", P), ("weight_keys", P),
        ("scale_keys", P), ("scale_bytes", P), ("scale_before", P), ("keys", I64), ("isa", I64), ("fault", I64),
        ("fault_job", I64), ("fault_row", I64), ("fault_at", I64), ("open", I64), ("left", P), ("running", I64),
        ("fresh", I64), ("weight_tiles", P),
    ]  # fmt: skip
