"""Packing speed: kernels against plain copies, and whole layers against the way serving engines load them.

    python benchmarks/pack.py [--experts 24] [--repeat 7] [--folder DIR] [--best]
                              [--only kernels|unpack|layers|memory|repack]

All figures of one table come from one run, interleaved, medians; ratios are what to look at. "Engines' way" is the
published loading scheme: parameters of zeros, one tensor an expert opened, narrowed and copied in, then each
parameter turned into kernel order by torch's view, permute and contiguous. "GB/s" counts bytes that are written.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardproof import repack
from shardproof.api import open_model
from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.digest import place
from shardproof.formats import read_experts
from shardproof.layouts import find
from shardproof.pack import native, pack, pack_in_memory, pack_layer
from shardproof.pack.memory import anonymous, arena
from shardproof.pack.native.library import isa
from shardproof.pack.native.run import default_threads
from shardproof.pack.native.structs import FIELDS
from shardproof.pack.program import program
from shardproof.pack.unpack import Packed, unpack, unpack_tensors
from shardproof.packed import PackedExperts
from shardproof.plan import make_plan

AITER = {
    ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8",
    ("w2", "weight"): "aiter.w16", ("w2", "scale"): "aiter.e8",
}  # fmt: skip
BIAS = {("w13", "bias"): "raw.bias", ("w2", "bias"): "raw.bias"}
KERNELS = [
    ("aiter.w16", 64, 768, 3584), ("aiter.w16_gugu", 64, 768, 3584), ("raw.weight", 64, 768, 3584),
    ("triton_kernels.hopper_value", 64, 768, 3584), ("marlin.weight", 64, 768, 3584),
    ("gguf.mxfp4_weight", 64, 768, 3584),
    ("aiter.e8", 1024, 768, 224), ("triton_kernels.blackwell_scale", 1024, 768, 224),
    ("triton_kernels.hopper_scale", 1024, 768, 224), ("marlin.scale", 1024, 768, 224),
]  # fmt: skip
_COPY = """
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#pragma GCC target("avx2")
int64_t touch(const uint8_t *s, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i += 4096) sum += ((const volatile uint8_t *)s)[i];
  return sum;
}
void plain(uint8_t *d, const uint8_t *s, int64_t n) { memcpy(d, s, n); }
void stream(uint8_t *d, const uint8_t *s, int64_t n) {
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    __m256i a = _mm256_loadu_si256((const __m256i *)(s + i)), b = _mm256_loadu_si256((const __m256i *)(s + i + 32));
    _mm256_stream_si256((__m256i *)(d + i), a);
    _mm256_stream_si256((__m256i *)(d + i + 32), b);
  }
  _mm_sfence();
}
"""


summary: Callable[[list[float]], float] = statistics.median


def interleaved(cases: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds of each case (with --best the fastest round); every round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeat + 1):
        for name, call in cases.items():
            begin = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: summary(values) for name, values in times.items()}


def copies() -> ctypes.CDLL:
    """Plain memcpy and a non-temporal copy, compiled here."""
    folder = Path(tempfile.mkdtemp())
    (folder / "plain.c").write_text(_COPY)
    built = folder / "plain.so"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", str(built), str(folder / "plain.c")], check=True)
    library = ctypes.CDLL(str(built))
    for call in (library.plain, library.stream):
        call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    library.touch.argtypes, library.touch.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
    return library


def kernels(repeat: int) -> None:
    """Warm memory to warm memory, all threads."""
    library, threads = copies(), default_threads()
    pool = ThreadPoolExecutor(threads)
    print(f"\nPermuting into warm memory, {threads} threads (ratio to the non-temporal copy)")
    print("| layout | MB | memcpy | NT copy | permute | permute + digest |\n|---|---|---|---|---|---|")
    for identity, experts, rows, width in KERNELS:
        layout, _ = find(identity)
        placed = layout.place((experts, rows, width))
        source, out = anonymous(experts * rows * width, huge_pages=True), anonymous(placed.nbytes, huge_pages=True)
        source[...], out[...] = 5, 1
        size = min(source.nbytes, out.nbytes) // 64 * 64

        def copy(call: Callable, n=size, a=out.ctypes.data, b=source.ctypes.data) -> None:
            step = -(-n // threads // 64) * 64
            list(pool.map(lambda at: call(a + at, b + at, min(step, n - at)), range(0, n, step)))

        made = program(identity, placed.shape, 0, isa=isa())
        assert made is not None
        runs = [_jobs(made, source, out, placed.shape, FIELDS[name]) for name in ("bias", layout.field)]
        found = interleaved(
            {
                "memcpy": lambda c=copy: c(library.plain), "nt": lambda c=copy: c(library.stream),
                "permute": lambda j=runs[0], m=made: native.run(j[0], totals=1, columns=1024, scratch=m.scratch),
                "digest": lambda j=runs[1], m=made: native.run(j[0], totals=1, columns=1024, scratch=m.scratch),
            },
            repeat,
        )  # fmt: skip
        cells = [f"{source.nbytes / s / 1e9:.1f} ({found['nt'] / s:.2f})" for s in found.values()]
        print(f"| {identity} | {source.nbytes / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


def _jobs(made, source: np.ndarray, out: np.ndarray, shape: tuple[int, int, int], field: int) -> tuple:
    experts, rows, width = shape
    cuts = np.zeros(experts, dtype=native.CUT)
    for e in range(experts):
        at, seeds = source.ctypes.data + e * rows * width, place("l", e, "w1", "weight")
        cuts[e] = (at, width, rows, width, 0, 0, 0, 0, seeds, 1)
    step = max(1, (2 << 20) // made.group_bytes)
    begins = np.arange(0, made.groups, step)
    jobs = np.zeros(len(begins), dtype=native.JOB)
    for number, begin in enumerate(begins.tolist()):
        end = min(begin + step, made.groups)
        jobs[number] = (made.address, cuts.ctypes.data, out.ctypes.data, begin, end, 1, field, 0, 0)
    return jobs, cuts


def unpacking(repeat: int) -> None:
    """Kernel bytes back to canonical ones in warm memory: NumPy and the engine, all threads."""
    print("\nUnpacking into fresh memory (GB/s; ratio to NumPy's)\n| layout | MB | NumPy | engine |\n|---|---|---|---|")
    for identity, experts, rows, width in KERNELS:
        layout, parameters = find(identity)
        shape = (experts // 4, rows, width)
        placed = layout.place(shape, parameters)
        kernel = placed.pack(np.random.default_rng(0).integers(0, 128, shape, dtype=np.uint8))
        named = layout.identity(parameters)
        assert np.array_equal(unpack(named, shape, kernel), placed.unpack(kernel))
        cases = {
            "numpy": lambda p=placed, k=kernel: p.unpack(k),
            "engine": lambda n=named, s=shape, k=kernel: unpack(n, s, k),
        }
        found, size = interleaved(cases, repeat), int(np.prod(shape))
        cells = [f"{size / s / 1e9:.1f} ({found['numpy'] / s:.1f}x)" for s in found.values()]
        print(f"| {identity} | {size / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


# -- whole layers -----------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, kind: str, experts: int) -> None:
    """One layer with the published sizes and names, of random bytes, in four files."""
    hidden, intermediate = (7168, 3072) if kind == "deepseek" else (2880, 2880)
    rng = np.random.default_rng(0)
    tensors: list[tuple[str, str, list[int], int]] = []
    if kind == "deepseek":
        for e in range(experts):
            for projection in ("w1", "w2", "w3"):
                rows, columns = (hidden, intermediate) if projection == "w2" else (intermediate, hidden)
                name = f"layers.0.ffn.experts.{e}.{projection}"
                tensors += [
                    (f"{name}.weight", "I8", [rows, columns // 2], 256),
                    (f"{name}.scale", "F8_E8M0", [rows, columns // 32], 131),
                ]  # fmt: skip
    else:
        head = "model.layers.0.mlp.experts"
        for stack, rows in (("gate_up_proj", 2 * intermediate), ("down_proj", hidden)):
            tensors += [
                (f"{head}.{stack}_blocks", "U8", [experts, rows, 90, 16], 256),
                (f"{head}.{stack}_scales", "U8", [experts, rows, 90], 131),
                (f"{head}.{stack}_bias", "BF16", [experts, rows], 1),
            ]  # fmt: skip
    weight_map = {}
    for number in range(4):
        part, header, position = tensors[number::4], {}, 0
        for name, dtype, shape, _ in part:
            size = int(np.prod(shape)) * (2 if dtype == "BF16" else 1)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
            position += size
        text = json.dumps(header).encode()
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        weight_map.update(dict.fromkeys(header, file))
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, *_, top in part:
                begin, end = header[name]["data_offsets"]
                stream.write(rng.integers(0, top, end - begin, dtype=np.uint8).tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "hidden_size": hidden, "moe_intermediate_size": intermediate, "num_experts_per_tok": 4,
        **({"model_type": "deepseek_v4", "expert_dtype": "fp4", "n_routed_experts": experts,
            "quantization_config": {"quant_method": "fp8"}} if kind == "deepseek" else
           {"model_type": "gpt_oss", "num_local_experts": experts, "quantization_config": {"quant_method": "mxfp4"}}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def shuffle_weight(w: torch.Tensor) -> torch.Tensor:
    """(16, 16) tiles by view, permute, contiguous."""
    e, n, k = w.shape
    return w.view(e, n // 16, 16, k // 16, 16).permute(0, 1, 3, 2, 4).contiguous()


def shuffle_scale(s: torch.Tensor) -> torch.Tensor:
    """32 x 8 tiles over the rows of the whole stack, padded to 256 rows and 8 columns."""
    e, n, k = s.shape
    rows, columns = -(-e * n // 256) * 256, -(-k // 8) * 8
    padded = torch.full((rows, columns), 127, dtype=torch.uint8)
    padded[: e * n, :k] = s.reshape(e * n, k)
    return padded.view(rows // 32, 2, 16, columns // 8, 2, 4).permute(0, 3, 5, 2, 4, 1).contiguous()


def engines_way(folder: Path, kind: str, plan, rank) -> dict:
    """Zeros, per-expert copies, then one conversion a parameter."""
    shape = plan.shape("layers.0")
    held = {e: local for local, e in enumerate(plan.experts("layers.0", rank))}
    start, stop = (32 * b for b in shape.intervals[rank.tp_rank])
    hidden, inner, count = shape.hidden, shape.intermediate, len(held)
    w13 = torch.zeros(count, 2 * inner, hidden // 2, dtype=torch.uint8)
    s13 = torch.full((count, 2 * inner, hidden // 32), 127, dtype=torch.uint8)
    w2 = torch.zeros(count, hidden, inner // 2, dtype=torch.uint8)
    s2 = torch.full((count, hidden, inner // 32), 127, dtype=torch.uint8)
    mapping = [(f".{e}.{p}.", e, p) for e in range(shape.spec.experts) for p in ("w1", "w2", "w3")]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if kind == "gpt_oss":
                    _load_fused(name, file, (w13, s13, w2, s2), (start, stop), held)
                    continue
                expert, projection = next((e, p) for text, e, p in mapping if text in name)
                if expert not in held:
                    continue
                tensor = file.get_tensor(name).view(torch.uint8)
                weight, local = name.endswith(".weight"), held[expert]
                if projection == "w2":
                    target, unit = (w2[local], 2) if weight else (s2[local], 32)
                    part = tensor.narrow(1, start // unit, (stop - start) // unit)
                else:
                    target = (w13 if weight else s13)[local]
                    target = target.narrow(0, 0 if projection == "w1" else inner, inner)
                    part = tensor.narrow(0, start, stop - start)
                target[: part.shape[0], : part.shape[1]].copy_(part)
    return {
        "w13.weight": shuffle_weight(w13), "w13.scale": shuffle_scale(s13), "w2.weight": shuffle_weight(w2),
        "w2.scale": shuffle_scale(s2),
    }  # fmt: skip


def _load_fused(name: str, file, params: tuple, cut: tuple[int, int], held: dict[int, int]) -> None:
    w13, s13, w2, s2 = params
    start, stop = cut
    if name.endswith("bias"):
        return
    tensor = file.get_tensor(name)[min(held) : max(held) + 1]
    tensor = tensor.reshape(*tensor.shape[:2], -1)
    if "gate_up" in name:
        target = w13 if name.endswith("blocks") else s13
        inner = target.shape[1] // 2
        target[:, : stop - start, : tensor.shape[2]].copy_(tensor[:, 2 * start : 2 * stop : 2])
        target[:, inner : inner + stop - start, : tensor.shape[2]].copy_(tensor[:, 2 * start + 1 : 2 * stop : 2])
    else:
        target, unit = (w2, 2) if name.endswith("blocks") else (s2, 32)
        part = tensor[:, :, start // unit : stop // unit]
        target[:, : part.shape[1], : part.shape[2]].copy_(part)


_PIECE = 2 << 20

CASES = {
    "V4-Pro tp 8": ("deepseek", 8, 1, 3), "V4-Pro ep 8": ("deepseek", 1, 8, 3), "gpt-oss tp 4": ("gpt_oss", 4, 1, 1),
}  # fmt: skip


def opened(folder: Path, kind: str, tp: int, ep: int):
    """Model and plan of a case."""
    recipe = Recipe("aiter", {**AITER, **(BIAS if kind == "gpt_oss" else {})}, align_hidden=256, align_intermediate=128)
    model = read_experts(Checkpoint.open(folder))
    return model, make_plan(model, recipe, tp=tp, ep=ep)


def fresh_copy(copy: Callable, pool: ThreadPoolExecutor, source: np.ndarray) -> None:
    """The first floor: as many bytes, from warm memory into fresh huge pages, without regard to any order."""
    size, at = source.nbytes // _PIECE * _PIECE, source.ctypes.data
    out = anonymous(size, huge_pages=True)
    begin = out.ctypes.data
    list(pool.map(lambda i: copy(begin + i, at + i, _PIECE), range(0, size, _PIECE)))


def map_source(library: ctypes.CDLL, pool: ThreadPoolExecutor, model, plan, rank) -> None:
    """What the second floor adds: the pages that hold the rank's bytes are mapped, touched once and unmapped."""
    layer, ranges, maps = model.layer("layers.0"), [], []
    for path in model.checkpoint.paths:
        with path.open("rb") as stream:
            maps.append(np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8))
    for stack, field in plan.fields("layers.0"):
        for cut in plan.cuts("layers.0", rank, stack, field):
            source = layer.sources[cut.projection, field]
            for e in plan.experts("layers.0", rank):
                start = maps[source.file[e]].ctypes.data + int(source.start[e]) + cut.rows[0] * source.row_stride
                ranges.append((start, (cut.rows[1] - cut.rows[0]) * source.row_stride - 1))
    list(pool.map(lambda part: library.touch(*part), ranges))


def layers(folders: dict[str, Path], repeat: int) -> None:
    """From page cache into fresh and warm memory."""
    print("\nOne layer of one rank, from page cache (ms; ratio to the engines' way). Floors: fresh huge pages and one")
    print("copy into them (the faster of memcpy and a non-temporal one); besides, the source's pages mapped, touched,")
    print("unmapped")
    print("| case | MB out | engines' way | fresh, huge pages | fresh, 4 KiB pages | warm | copy | copy and map |")
    print("|---|---|---|---|---|---|---|---|")
    library, pool = copies(), ThreadPoolExecutor(default_threads())
    for name, (kind, tp, ep, index) in CASES.items():
        model, plan = opened(folders[kind], kind, tp, ep)
        rank = plan.ranks[index]
        sizes = {slot: plan.placed("layers.0", rank, *slot).nbytes for slot in plan.fields("layers.0")}
        warm, source = arena(sizes, huge_pages=True), anonymous(sum(sizes.values()), huge_pages=True)
        source[...] = 5

        def fresh(huge: bool, p=plan, f=folders[kind], r=rank) -> object:
            return pack_in_memory(read_experts(Checkpoint.open(f)), p, r, huge_pages=huge)

        theirs = engines_way(folders[kind], kind, plan, rank)
        ours = pack_in_memory(model, plan, rank).layers["layers.0"].tensors
        for (stack, field), tensor in ours.items():
            if field != "bias":
                same = np.array_equal(theirs[f"{stack}.{field}"].numpy().reshape(-1), tensor)
                assert same, f"{name}: {stack}.{field} is not what the engines' way gives"
        found = interleaved(
            {
                "theirs": lambda k=kind, p=plan, r=rank: engines_way(folders[k], k, p, r),
                "huge": lambda f=fresh: f(huge=True), "small": lambda f=fresh: f(huge=False),
                "warm": lambda m=model, p=plan, r=rank, w=warm: pack_layer(m, p, "layers.0", r, w),
                "copy": lambda s=source: fresh_copy(library.stream, pool, s),
                "plain": lambda s=source: fresh_copy(library.plain, pool, s),
                "map": lambda m=model, p=plan, r=rank: map_source(library, pool, m, p, r),
            },
            repeat,
        )  # fmt: skip
        found["copy"] = min(found["copy"], found.pop("plain"))
        found["map"] += found["copy"]
        cells = [f"{s * 1e3:.1f} ({found['theirs'] / s:.1f}x)" for s in found.values()]
        print(f"| {name} | {sum(sizes.values()) / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


def repacking(folder: Path, repeat: int) -> None:
    """Packed ranks as the source of a rank of half as many, without the checkpoint; NumPy or the engine unpacks."""
    orders = {"AITER": AITER, "Marlin": {slot: f"marlin.{slot[1]}" for slot in AITER}}
    recipes = {name: Recipe(name, order, align_hidden=256, align_intermediate=128) for name, order in orders.items()}
    model, held = read_experts(Checkpoint.open(folder)), {"checkpoint": folder}
    for name, recipe in recipes.items():
        held[name] = folder.parent / name
        pack(model, make_plan(model, recipe, tp=8), held[name])
    print("\nOne rank of tp 4 from all ranks of tp 8 (ms; ratio to NumPy's unpacking)")
    print("| from | to | MB | NumPy | engine |\n|---|---|---|---|---|")
    for source, target in (("AITER", "AITER"), ("AITER", "Marlin"), ("Marlin", "AITER"), ("checkpoint", "AITER")):
        plan = make_plan(model, recipes[target], tp=4)
        rank = plan.ranks[1]

        def made(where=held[source], p=plan, r=rank) -> PackedExperts:
            return pack_in_memory(open_model(where), p, r)

        def plainly(m=made) -> PackedExperts:
            repack.unpack_tensors = numpy_unpacks
            try:
                return m()
            finally:
                repack.unpack_tensors = unpack_tensors

        right = pack_in_memory(model, plan, rank)
        for found in (made(), plainly()):
            assert found.digest == right.digest
            for slot, tensor in right.layers["layers.0"].tensors.items():
                assert np.array_equal(found.layers["layers.0"].tensors[slot], tensor), f"{source} to {target}: {slot}"
        times = interleaved({"numpy": plainly, "engine": made}, repeat)
        cells = [f"{s * 1e3:.0f} ({times['numpy'] / s:.1f}x)" for s in times.values()]
        print(f"| {source} | {target} | {plan.rank_bytes(rank) / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


def numpy_unpacks(tensors: Sequence[Packed], *, threads: int | None = None, keep: object = None) -> None:
    """`unpack_tensors` by NumPy, an expert a thread: of the same ranks and experts, to the same places."""

    def one(tensor: Packed, local: int) -> None:
        layout, parameters = find(tensor.identity)
        whole = layout.place(tensor.shape, parameters).read(tensor.kernel, local, 1)[0]
        for cut in tensor.cuts[local]:
            rows, width, stride = int(cut["rows"]), int(cut["bytes"]), int(cut["stride"])
            memory = (ctypes.c_uint8 * ((rows - 1) * stride + width)).from_address(int(cut["src"]))
            out = np.ndarray((rows, width), np.uint8, memory, strides=(stride, 1))
            top, left = int(cut["at_row"]), int(cut["at_column"])
            out[...] = whole[top : top + rows, left : left + width]

    asked = [(t, local) for t in tensors for local in np.flatnonzero(t.cuts["rows"].any(axis=1)).tolist()]
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        list(pool.map(one, *zip(*asked, strict=True)))
    del keep


def memory(folders: dict[str, Path]) -> None:
    """Peak anonymous memory of each way, in a process of its own."""
    print("\nPeak anonymous memory, and as a multiple of the packed bytes")
    print("| case | MB out | engines' way | shardproof |\n|---|---|---|---|")
    for name, (kind, *_) in CASES.items():
        cells = []
        for way in ("theirs", "ours"):
            ended = subprocess.run(
                [sys.executable, __file__, "--measure", way, name, str(folders[kind])],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            peak, size = json.loads(ended.stdout)
            cells.append(f"{peak / 1e6:.0f} MB ({peak / size:.2f}x)")
        print(f"| {name} | {size / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


def measure(way: str, name: str, folder: Path) -> None:
    """Print [peak, packed bytes] of one way."""
    kind, tp, ep, index = CASES[name]
    model, plan = opened(folder, kind, tp, ep)
    rank = plan.ranks[index]

    def anonymous_now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

    before, peak, stop = anonymous_now(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], anonymous_now())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = engines_way(folder, kind, plan, rank) if way == "theirs" else pack_in_memory(model, plan, rank)
    stop.set()
    watcher.join()
    print(json.dumps([max(peak[0], anonymous_now()) - before, plan.rank_bytes(rank)]))
    del held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", choices=["kernels", "unpack", "layers", "memory", "repack"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--best", action="store_true", help="the fastest round, for a machine that others use")
    given = parser.parse_args()
    if given.best:
        globals()["summary"] = min
    if given.measure:
        measure(given.measure[0], given.measure[1], Path(given.measure[2]))
        return
    machine = f"{os.cpu_count()} cores, {default_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, torch {torch.__version__}")
    if given.only in (None, "kernels"):
        kernels(given.repeat)
    if given.only in (None, "unpack"):
        unpacking(given.repeat)
    if given.only in ("kernels", "unpack"):
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as top:
        folders = {kind: Path(top) / kind for kind in ("deepseek", "gpt_oss")}
        for kind, folder in folders.items():
            folder.mkdir()
            write_checkpoint(folder, kind, given.experts)
        if given.only in (None, "layers"):
            layers(folders, given.repeat)
        if given.only in (None, "memory"):
            memory(folders)
        if given.only in (None, "repack"):
            repacking(folders["deepseek"], given.repeat)


if __name__ == "__main__":
    main()
