"""Builds the CUDA kernels at run time through NVRTC and keeps the machine code on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from shardproof.errors import BackendError, ShardproofError
from shardproof.kernels.cuda.geometry import Build

SOURCES = Path(__file__).parent / "csrc"
KINDS = {"silu": 0, "swiglu_oai": 1, "situ": 2}  # ACTIVATION of csrc/params.cuh


def _mma_first(n: int, kind: str, k: int, types: str, trans: str) -> str:
    """Writes the accumulators without reading them."""
    outs = ", ".join(f"%{i}" for i in range(n // 2))
    a = n // 2
    args = ", ".join(f'"=f"(d[{i}])' for i in range(n // 2))
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{types} {{{outs}}}, "
        f"{{%{a}, %{a + 1}, %{a + 2}, %{a + 3}}}, %{a + 4}, 0, 1, 1{trans};"
    )
    return (
        f"  static DEV void {kind}_first(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {{\n"
        f'    asm volatile("{text}" : {args} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));\n  }}\n'
    )


def _mma(n: int, kind: str, k: int, types: str, trans: str) -> str:
    outs = ", ".join(f"%{i}" for i in range(n // 2))
    a = n // 2
    args = ", ".join(f'"+f"(d[{i}])' for i in range(n // 2))
    keep = f"setp.ne.b32 p, %{a + 5}, 0;"
    text = (
        f"{{.reg .pred p; {keep} wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{types} {{{outs}}}, "
        f"{{%{a}, %{a + 1}, %{a + 2}, %{a + 3}}}, %{a + 4}, p, 1, 1{trans};}}"
    )
    return (
        f"  static DEV void {kind}(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int keep = 1) {{\n"
        f'    asm volatile("{text}" : {args}'
        ' : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(keep));\n  }\n'
    )


def mma_text(build: Build) -> str:
    """`Mma<N>` for every width: 64 weight rows from registers times N tokens from shared memory."""
    text = ["template <int N> struct Mma;\n"]
    for n in (w // build.pieces for w in build.widths):
        kind = ("e4m3", 32, "e4m3.e4m3", "") if build.fp8 else ("bf16", 16, "bf16.bf16", ", 0")
        body = _mma(n, *kind) + (_mma_first(n, *kind) if build.many or build.direct else "")
        text.append(f"template <> struct Mma<{n}> {{\n{body}}};\n")
    return "".join(text)


def source_text(entry: str, build: Build) -> str:
    """One translation unit: the csrc files as they include each other, once each, and the wgmma text."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        lines = []
        for line in (SOURCES / name).read_text().splitlines():
            if line.startswith('#include "'):
                lines.append(expand(line.split('"')[1]))
            elif line.startswith("// Mma<N> comes from"):
                lines.append(mma_text(build))
            elif line != "#pragma once":
                lines.append(line)
        return "\n".join(lines)

    return expand(entry) + "\n"


def cache_folder() -> Path:
    """Where compiled kernels are kept: SHARDPROOF_CACHE, else the user's cache folder.

    Raises ShardproofError `system.file` for a user without a home.
    """
    root = os.environ.get("SHARDPROOF_CACHE")
    try:
        return Path(root) if root else Path.home() / ".cache" / "shardproof"
    except RuntimeError as reason:  # a container's user of whom the system knows a number only
        raise _not_kept(None, str(reason)) from reason


def _not_kept(folder: Path | None, found: str | None) -> ShardproofError:
    return ShardproofError(
        "system.file", "compiled kernels cannot be kept", file=folder, found=found,
        needed="a folder that this user may write", next_step="set SHARDPROOF_CACHE to such a folder",
    )  # fmt: skip


_INSTALL = "pip install 'shardproof[cuda]', which brings NVRTC"


def _nvrtc(source: str, options: list[str]) -> tuple[bytes, str]:
    """The cubin of a source text and what the compiler said."""
    from cuda.bindings import nvrtc

    def check(result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise BackendError(
                "backend.compile",
                "NVRTC refused the kernel",
                found=str(result[0]),
                needed="CUDA 12.4 or later",
                next_step=_INSTALL,
            )
        return result[1] if len(result) > 1 else None

    program = check(nvrtc.nvrtcCreateProgram(source.encode(), b"shardproof.cu", 0, [], []))
    encoded = [o.encode() for o in options]
    status = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    log = _room(check(nvrtc.nvrtcGetProgramLogSize(program)))
    check(nvrtc.nvrtcGetProgramLog(program, log))
    if int(status[0]) != 0:
        raise BackendError(
            "backend.compile",
            "the kernel does not compile",
            found=log.decode()[-2000:],
            needed="CUDA 12.4 or later",
            next_step=_INSTALL,
        )
    size = check(nvrtc.nvrtcGetCUBINSize(program))
    code = _room(size)
    check(nvrtc.nvrtcGetCUBIN(program, code))
    return code[:size], log.rstrip(b"\0").decode()


def _room(size: int) -> bytes:
    """Bytes that NVRTC writes into: never one alone, as Python has each single byte once, for everybody."""
    return bytes(size + 1)


def compiled(name: str, source: str, options: list[str]) -> bytes:
    """The cubin of a source text, from the cache (files that begin with `name`) or from NVRTC.

    Raises BackendError `backend.compile`, ShardproofError `system.file` where the cache cannot be written.
    """
    key = hashlib.sha256("\0".join([source, *options]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{key}.cubin"
    try:
        if path.is_file():
            return path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)  # refused now and not after seconds of compiling
        with tempfile.TemporaryDirectory(dir=path.parent) as room:
            part = Path(room) / path.name
            part.write_bytes(code := _nvrtc(source, options)[0])
            part.replace(path)
    except OSError as reason:
        raise _not_kept(path.parent, reason.strerror) from reason
    return code


def _options(build: Build, arch: str) -> list[str]:
    return [f"-arch={arch}", "-std=c++17", "-default-device", *build.macros]


def machine_code(entry: str, build: Build, arch: str = "sm_90a") -> bytes:
    """The cubin of `entry` for `build`, from the cache or from NVRTC (a few seconds)."""
    name = f"{Path(entry).stem}-{build.name}-{build.activation}"
    return compiled(name, source_text(entry, build), _options(build, arch))


def assembler_report(entry: str, build: Build, arch: str = "sm_90a") -> str:
    """What ptxas says of a kernel, compiled anew: registers, bytes spilled, and if it lets no products overlap."""
    return _nvrtc(source_text(entry, build), [*_options(build, arch), "--ptxas-options=-v"])[1]
