"""Source: the kernel of one tiling as text, for a GPU and, with a few definitions before it, for any C++ compiler.

origin     where a block begins on both sides
fill       runs of the source into shared memory, as wide as they are aligned
permute    pieces: loads from shared memory, words of the kernel's order, stores of up to 16 bytes
clear, send  where the order has holes, pieces go to shared memory first, and whole lines go out with the padding
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardproof.kernels.device.axes import Axis
from shardproof.kernels.device.staged import Staged, power_of_two, staged
from shardproof.kernels.device.tiles import Tiling
from shardproof.kernels.device.words import Moved, word

NAME = "shardproof_permute"
_MOST_THREADS = 256
_TYPES = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "uint2", 16: "uint4"}
_LANES = "xyzw"
GPU = """
#define DEV static __device__ __forceinline__
DEV unsigned permuted(unsigned a, unsigned b, unsigned s) { return __byte_perm(a, b, s); }
DEV unsigned turned(unsigned a, int n) { return __funnelshift_l(a, a, n); }
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel of one tiling: its text, the threads of a block, and the bytes a full block moves."""

    text: str
    threads: int
    blocks: int
    holes: bool


def kernel_of(tiling: Tiling, alignment: int) -> Kernel:
    """The kernel for destinations that begin at a multiple of `alignment` bytes (a power of two up to 16)."""
    held = staged(tiling)
    pieces = math.prod(a.size for a in tiling.tile)
    vectors = held.count * (held.run // held.fill)
    threads = _threads(pieces, vectors)
    span = tiling.span // 8 if tiling.holes else 0
    text = "\n".join([
        f"enum {{ THREADS = {threads}, SHARED = {held.bytes}, SPAN = {span} }};",
        _origin(tiling), _fill(held, threads), _permute(held, threads, alignment),
        *([_send(span, tiling.placed.pad_value, power_of_two(span, alignment), threads)] if span else []),
    ])  # fmt: skip
    return Kernel(text + "\n", threads, math.prod(a.size for a in tiling.blocks), bool(span))


def gpu_text(kernel: Kernel) -> str:
    """One translation unit for the GPU."""
    out = (
        "  __shared__ __align__(16) unsigned char lines[SPAN];\n  clear(lines, threadIdx.x);\n" if kernel.holes else ""
    )
    to = "lines" if kernel.holes else "target + to"
    send = "  __syncthreads();\n  send(lines, target + to, threadIdx.x);\n" if kernel.holes else ""
    return (
        f"{GPU}{kernel.text}"
        f'extern "C" __global__ void __launch_bounds__(THREADS) {NAME}('
        "const unsigned char* __restrict__ source, unsigned char* __restrict__ target) {\n"
        "  __shared__ __align__(16) unsigned char tile[SHARED];\n"
        f"{out}  long long from, to;\n  origin(blockIdx.x, from, to);\n  fill(source + from, tile, threadIdx.x);\n"
        f"  __syncthreads();\n  permute(tile, {to}, threadIdx.x);\n{send}}}\n"
    )


def _threads(pieces: int, vectors: int) -> int:
    """Threads a block: as many as share both kinds of work evenly."""
    most = min(_MOST_THREADS, -(-max(pieces, vectors) // 32) * 32)
    even = [t for t in range(32, most + 1, 32) if pieces % t == 0 and vectors % t == 0]
    return max((t for t in even if t >= most // 2), default=most)


def _decoded(number: str, axes: Sequence[Axis], *, open_ended: bool = False) -> list[str]:
    """Statements that set d0, d1, ... to the digits of a number; the last digit of an open end is what is left."""
    lines, rest = [], number
    for i, axis in enumerate(axes):
        if i == len(axes) - 1 and open_ended:
            lines.append(f"const unsigned d{i} = {rest};")
            break
        lines.append(f"const unsigned d{i} = {rest} % {axis.size}u, r{i} = {rest} / {axis.size}u;")
        rest = f"r{i}"
    return lines


def _summed(steps: Sequence[int], cast: str) -> str:
    """Sum of digits times steps; neighbours that are one number are left to the compiler."""
    return " + ".join(f"({cast})d{i} * {step}" for i, step in enumerate(steps) if step) or "0"


def _origin(tiling: Tiling) -> str:
    axes = tiling.blocks
    lines = [
        *_decoded("block", axes, open_ended=True),
        f"from = {_summed([a.source // 8 for a in axes], 'long long')};",
        f"to = {0 if tiling.holes else tiling.origin // 8}LL + {_summed([a.target // 8 for a in axes], 'long long')};",
    ]
    return _function("origin(unsigned block, long long& from, long long& to)", lines)


def _function(head: str, lines: Sequence[str]) -> str:
    return f"DEV void {head} {{\n" + "".join(f"  {line}\n" for line in lines) + "}"


def _loop(count: int, threads: int, body: Sequence[str]) -> list[str]:
    """Statements over `i` = t, t + threads, ... below `count`; `n` counts the rounds."""
    rounds = -(-count // threads)
    guard = "" if count % threads == 0 else f"if (i < {count}u) "
    return [
        "#pragma unroll",
        f"for (unsigned n = 0; n < {rounds}u; n++) {{",
        f"  const unsigned i = t + n * {threads}u;",
        f"  {guard}{{",
        *(f"    {line}" for line in body),
        "  }",
        "}",
    ]


def _fill(held: Staged, threads: int) -> str:
    """All loads of a thread are started before the first is stored."""
    vectors, wide = held.run // held.fill, held.fill
    narrow = power_of_two(wide, held.pitch)
    kind, count = _TYPES[wide], held.count * vectors
    where = [
        f"const unsigned row = i / {vectors}u, column = i % {vectors}u * {wide}u;",
        *_decoded("row", held.rows),
    ]
    steps = _summed([a.source // 8 for a in held.rows], "long long" if _far(held.rows) else "int")
    load = [*where, f"held[n] = *(const {kind}*)(source + ({steps}) + column);"]
    store = [f"const unsigned at = i / {vectors}u * {held.pitch}u + i % {vectors}u * {wide}u;"]
    if narrow >= wide:
        store.append(f"*({kind}*)(tile + at) = held[n];")
    else:
        store += [f"*(unsigned*)(tile + at + {4 * j}) = held[n].{_LANES[j]};" for j in range(wide // 4)]
    head = "fill(const unsigned char* source, unsigned char* tile, unsigned t)"
    declared = f"{kind} held[{-(-count // threads)}];"
    return _function(head, [declared, *_loop(count, threads, load), *_loop(count, threads, store)])


def _far(axes: Sequence[Axis]) -> bool:
    return sum((a.size - 1) * max(abs(a.source), abs(a.target)) // 8 for a in axes) >= 1 << 31


def _permute(held: Staged, threads: int, alignment: int) -> str:
    tiling = held.tiling
    axes = tiling.tile
    cast = "long long" if _far(tiling.inside) else "int"
    begin = tiling.origin // 8 if tiling.holes else 0
    body = [
        *_decoded("i", axes),
        f"const unsigned char* s = tile + ({_summed([held.place(a) // 8 for a in axes], 'unsigned')});",
        f"unsigned char* o = target + {begin} + ({_summed([a.target // 8 for a in axes], cast)});",
        *(line for line, _, _ in _loads(held)),
        *_stores(held, alignment),
    ]
    pieces = math.prod(a.size for a in axes)
    return _function(
        "permute(const unsigned char* tile, unsigned char* target, unsigned t)", _loop(pieces, threads, body)
    )


def _loads(held: Staged) -> list[tuple[str, int, list[str]]]:
    """(statement, first byte, a register for every 4 bytes) of each load of a piece."""
    found = []
    for number, (at, width) in enumerate(held.loads):
        name = f"x{number}"
        line = f"const {_TYPES[width] if width > 4 else 'unsigned'} {name} = *(const {_TYPES[width]}*)(s + {at});"
        registers = [name] if width <= 4 else [f"{name}.{_LANES[j]}" for j in range(width // 4)]
        found.append((line, at, registers))
    return found


def _stores(held: Staged, alignment: int) -> Iterator[str]:
    """Words of the kernel's order, joined into stores as wide as their place is aligned."""
    registers: dict[int, str] = {}
    for (_, at, names), (_, width) in zip(_loads(held), held.loads, strict=True):
        for byte in range(width):
            registers[at + byte] = names[byte // 4] + f"@{byte % 4}"
    bits = held.tiling.bits
    moves: dict[int, list[tuple[int, int]]] = {}
    for place, target in held.units:
        moves.setdefault(target // 8, []).append((place, target))
    for first, width in _chunks(held.tiling, sorted(moves), alignment):
        names, lines = [], []
        for number, at in enumerate(range(first, first + width, 4)):
            inside = [m for byte in range(at, min(at + 4, first + width)) for m in moves[byte]]
            names.append(f"w{number}")
            lines += word(names[-1], [_moved(registers, place, to - at * 8, bits) for place, to in inside])
        kind = _TYPES[width]
        value = f"({kind})w0" if width <= 4 else f"make_{kind}({', '.join(names)})"
        yield f"{{ const unsigned {', '.join(lines)}; *({kind}*)(o + {first}) = {value}; }}"


def _moved(registers: dict[int, str], place: int, to: int, bits: int) -> Moved:
    name, _, number = registers[place // 8].partition("@")
    return Moved((name, int(number)), place % 8, to, bits)


def _chunks(tiling: Tiling, filled: Sequence[int], alignment: int) -> Iterator[tuple[int, int]]:
    """(first byte, width) of the stores of a piece."""
    steps = [a.target // 8 for a in tiling.tile]
    if not tiling.holes:
        steps += [a.target // 8 for a in tiling.blocks] + [tiling.origin // 8, alignment]
    else:
        steps.append(tiling.origin // 8)
    wide = power_of_two(*steps)
    held, at = set(filled), 0
    while at < len(filled):
        first = filled[at]
        width = next(
            w for w in (16, 8, 4, 2, 1) if w <= wide and first % w == 0 and held >= set(range(first, first + w))
        )
        yield first, width
        at += width


def _send(span: int, pad: int, wide: int, threads: int) -> str:
    kind, narrow = _TYPES[wide], min(wide, 4)
    value = f"0x{pad * 0x01010101 & ((1 << 8 * narrow) - 1):x}u"
    cleared = [f"*({_TYPES[narrow]}*)(lines + i * {narrow}u) = ({_TYPES[narrow]}){value};"]
    sent = [f"*({kind}*)(target + i * {wide}u) = *(const {kind}*)(lines + i * {wide}u);"]
    return "\n".join([
        _function("clear(unsigned char* lines, unsigned t)", _loop(span // narrow, threads, cleared)),
        _function(
            "send(const unsigned char* lines, unsigned char* target, unsigned t)", _loop(span // wide, threads, sent)
        ),
    ])  # fmt: skip
