"""Builds the CUDA kernels at run time through NVRTC and keeps the machine code on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardproof.errors import BackendError, ShardproofError

SOURCES = Path(__file__).parent / "csrc"
KINDS = {"silu": 0, "swiglu_oai": 1, "situ": 2}  # ACTIVATION of csrc/params.cuh


@dataclass(frozen=True, slots=True)
class Build:
    """One geometry of the layer kernel; the fields are the macros of csrc/params.cuh.

    `wgs` consumer warpgroups, each with `mw` tiles of 64 weight rows, `kw` of them sharing a tile by
    splitting K; `widths` are the token counts that are compiled, ascending; `w_depth` and `x_depth` stages
    of weights and tokens; `each` chunks of 64 values a warpgroup and stage; `narrow` takes warp-wide
    products; `overlap` unpacks weights while products run, `pair` chunks at a time; `once` lets weights
    leave the L2 cache first. Of e4m3 products (`fp8`), `direct` places codes as they are and multiplies the
    products of each block by its scale, for few tokens; others look scaled codes up. `results`: consumers leave
    rows of w2, and but for `narrow` activations, where else they leave sums (csrc/drain.cuh). `activation` is 0 silu,
    1 swiglu_oai, 2 situ; `checked` is for compute-sanitizer, which follows arrivals by thread. `many` is the
    kernel for many tokens (csrc/many.cu): `w_depth` stages of `each` chunks, weights and tokens together, `mw`
    and `kw` 1, `cluster` blocks that share a token tile. `consumer_regs` and `producer_regs` are registers a
    thread.
    """

    name: str
    wgs: int
    mw: int
    kw: int
    widths: tuple[int, ...]
    w_depth: int
    x_depth: int
    consumer_regs: int
    producer_regs: int
    each: int = 2
    fp8: bool = False
    narrow: bool = False
    overlap: bool = False
    pair: int = 1
    once: bool = True
    direct: bool = False
    results: bool = False
    many: bool = False
    cluster: int = 1
    activation: int = 0
    checked: bool = False

    @property
    def nmax(self) -> int:
        """Tokens a tile at most."""
        return self.widths[-1]

    @property
    def threads(self) -> int:
        """Threads a block: consumers, a warpgroup of producers, and but for `many` one of finishers (`mw` 1)."""
        return self.wgs * 128 + 128 + 128 * (self.mw == 1 and not self.many)

    @property
    def pieces(self) -> int:
        """Parts of a tile's tokens that take turns, where registers do not hold all their unscaled sums."""
        return 2 if self.many and self.fp8 and self.nmax > 192 else 1

    @property
    def boxes(self) -> bool:
        """Whether weights are copied by tensor maps (BOXES of csrc/params.cuh)."""
        return self.many or self.mw > 1

    @property
    def token_bytes(self) -> int:
        """Bytes of a stage that a token of csrc/many.cu has, scales included."""
        return self.each // 2 * 132 if self.fp8 else self.each * 128

    @property
    def chunks(self) -> int:
        """64-value chunks of K a stage."""
        return self.kw * self.each

    @property
    def row64(self) -> int:
        """64-row groups of a block tile."""
        return self.wgs // self.kw * self.mw

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a launch: `Shared::END_SMALL` of csrc/params.cuh, `Many::END`."""
        if self.many:
            stage = -(-self.nmax * self.token_bytes // 1024) * 1024 + self.wgs * self.each * (2048 + 128)
            return self.w_depth * (stage + 16) + 2 * (self.nmax * 8 + self.wgs * 512 + 32 + 32) + 128
        step = 2 if self.fp8 else 1
        atoms = self.chunks // step
        x = self.x_depth * atoms * self.nmax * 128
        w = self.w_depth * self.row64 * self.chunks * (2048 + 128)
        xs = self.x_depth * atoms * self.nmax * 4 if self.fp8 else 0
        tile = self.wgs * self.nmax * 256 if self.narrow or not self.results else self.nmax * self.row64 * 128
        drained = 2 * tile + self.wgs * 512
        staged = max(self.wgs * self.nmax * 128, self.nmax * self.row64 * 64)
        meta = 4 * self.nmax * 12 + 4 * 32 + 128
        barriers = 16 * (self.w_depth + self.x_depth) + 16 * 4 + 32 + 16
        return x + w + xs + (drained if self.mw == 1 else staged) + meta + barriers + (512 * 20 if self.kw > 1 else 0)

    @property
    def macros(self) -> list[str]:
        """The compiler's -D options."""
        values = {
            "WGS": self.wgs,
            "MW": self.mw,
            "KW": self.kw,
            "NMAX": self.nmax,
            **{f"N{i}": n for i, n in enumerate((*self.widths, 0, 0, 0)[:4])},
            "W_DEPTH": self.w_depth,
            "X_DEPTH": self.x_depth,
            "EACH": self.each,
            "FP8": int(self.fp8),
            "NARROW": int(self.narrow),
            "OVERLAP": int(self.overlap),
            "PAIR": self.pair,
            "DIRECT": int(self.direct),
            "ONCE": int(self.once),
            "PIECES": self.pieces,
            "CLUSTER": self.cluster,
            "MANY": int(self.many),
            "RESULTS": int(self.results),
            "ACTIVATION": self.activation,
            "CHECKED": int(self.checked),
            "CONSUMER_REGS": self.consumer_regs,
            "PRODUCER_REGS": self.producer_regs,
        }
        return [f"-D{k}={v}" for k, v in values.items()]


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
