"""The kernels' own text, compiled for the CPU: blocks and threads become loops, barriers the ends of loops."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from shardproof.kernels.device.source import Kernel

HEAD = """
#include <string.h>
#define DEV static
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static unsigned permuted(unsigned a, unsigned b, unsigned s) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= (unsigned)(both >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}
static unsigned turned(unsigned a, int n) { return a << n | a >> (32 - n); }
"""
RUN = """
extern "C" void run(const unsigned char* source, unsigned char* target, unsigned blocks) {
  alignas(16) static unsigned char tile[SHARED + 16];
  %(lines)s
  for (unsigned b = 0; b < blocks; b++) {
    long long from, to;
    origin(b, from, to);
    memset(tile, 0xA5, sizeof tile);
    for (unsigned t = 0; t < THREADS; t++) { %(clear)s fill(source + from, tile, t); }
    for (unsigned t = 0; t < THREADS; t++) permute(tile, %(to)s, t);
    %(send)s
  }
}
"""
HOLES = {
    "lines": "alignas(16) static unsigned char lines[SPAN];", "clear": "clear(lines, t);", "to": "lines",
    "send": "for (unsigned t = 0; t < THREADS; t++) send(lines, target + to, t);",
}  # fmt: skip
WHOLE = {"lines": "", "clear": "", "to": "target + to", "send": ""}
COMPILER = shutil.which("c++") or shutil.which("g++")


class OnCpu:
    """Many kernels in one library."""

    def __init__(self, folder: Path, kernels: list[Kernel]) -> None:
        assert COMPILER
        self._kernels = kernels
        parts = [HEAD]
        for number, kernel in enumerate(kernels):
            run = (RUN % (HOLES if kernel.holes else WHOLE)).replace("void run(", f"void run_{number}(")
            parts.append(f"namespace n{number} {{\n{kernel.text}{run}}}\n")
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text("".join(parts))
        flags = ["-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-fsanitize=alignment",
                 "-fsanitize-undefined-trap-on-error"]  # fmt: skip
        subprocess.run([COMPILER, *flags, "-o", str(library), str(source)], check=True)
        self._library = ctypes.CDLL(str(library))

    def run(self, number: int, source: np.ndarray, target: np.ndarray) -> None:
        """Run one kernel over all its blocks."""
        call = self._library[f"run_{number}"]
        call(
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_void_p(target.ctypes.data),
            self._kernels[number].blocks,
        )


def aligned(size: int, at: int = 0) -> np.ndarray:
    """Bytes that begin `at` bytes after a multiple of 64."""
    room = np.empty(size + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + at
    return room[start : start + size]
