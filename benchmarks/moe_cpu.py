"""The CPU MoE layer beside ggml, ik_llama.cpp and torch, with the memory's read speed measured in the same rounds.

Every round visits every implementation in turn: a pause (so that the last one's threads are asleep), calls that
are not timed (so that its own are awake), then timed calls, each with fresh random routing. Reported are medians
over all timed calls, the best call, and the ratio of medians to each peer's better form of weights.

ggml: `pip install llama-cpp-python` compiles it for this machine (into any environment), then
    python benchmarks/moe_cpu.py --ggml <that environment>/lib/python3.11/site-packages/llama_cpp/lib
Without --ggml, an installed llama_cpp is looked for; without one, ggml is left out, and the output says so.
ik_llama.cpp: its ggml alone is enough, built as a shared library from its source, then --ik <build folder>/src:
    cmake -S ggml -B <build folder> -DCMAKE_CXX_STANDARD=20 -DGGML_BUILD_TESTS=OFF
    cmake --build <build folder> --target ggml     (cmake asks for a file ggml.pc.in; an empty one does)
torch's way is dequantise (table look-up) + float32 matmul, expert by expert: slow, so only with --torch.

    python benchmarks/moe_cpu.py                              gpt-oss-20b's layer: E 32, H = I = 2880, top 4
    python benchmarks/moe_cpu.py --shape 32,7168,384,6        a DeepSeek-V4-Pro rank at TP 8
    python benchmarks/moe_cpu.py --product                    MUL_MAT_ID alone, of that layer's w2
    python benchmarks/moe_cpu.py --pages small                everybody's weights on 4 KiB pages instead of 2 MiB
    python benchmarks/moe_cpu.py --cpu-time                   one thread's CPU time, on a machine that is busy
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ggml_peer import Ggml, GgmlLayer, gguf_blocks, share_of_huge_pages
from shardproof.experts import Activation
from shardproof.kernels.cpu import CpuExperts, ExpertMatrix, default_threads, usable_isas
from shardproof.kernels.cpu.library import library
from shardproof.mxfp4 import E2M1, E8M0
from shardproof.pack.memory import anonymous

PAUSE, WARM, TIMED = 0.01, 0.012, 0.03


class Layer:
    """Random canonical weights of one layer and their two packed forms."""

    def __init__(self, experts: int, hidden: int, inter: int, top_k: int) -> None:
        self.experts, self.hidden, self.inter, self.top_k = experts, hidden, inter, top_k
        rng = np.random.default_rng(7)
        shapes = {"w1": (inter, hidden), "w3": (inter, hidden), "w2": (hidden, inter)}
        self.weight = {p: rng.integers(0, 256, (experts, n, k // 2), dtype=np.uint8) for p, (n, k) in shapes.items()}
        self.scale = {p: rng.integers(112, 118, (experts, n, k // 32), dtype=np.uint8) for p, (n, k) in shapes.items()}

    def packed(self) -> tuple[np.ndarray, ...]:
        """The CPU layout: see shardproof.kernels.cpu.CpuExperts."""
        w13, s13 = (np.concatenate([f["w1"], f["w3"]], axis=1) for f in (self.weight, self.scale))
        e, n, k = self.experts, self.inter // 8, self.hidden // 32
        m, j = self.hidden // 16, self.inter // 32
        return (
            np.ascontiguousarray(w13.reshape(e, 2, n, 8, k, 4, 4).transpose(0, 2, 4, 5, 1, 3, 6)).reshape(-1),
            np.ascontiguousarray(s13.reshape(e, 2, n, 8, k).transpose(0, 2, 4, 1, 3)).reshape(-1),
            np.ascontiguousarray(self.weight["w2"].reshape(e, m, 16, j, 4, 4).transpose(0, 1, 3, 4, 2, 5)).reshape(-1),
            np.ascontiguousarray(self.scale["w2"].reshape(e, m, 16, j).transpose(0, 1, 3, 2)).reshape(-1),
        )

    def blocks(self, projections: tuple[str, ...]) -> list[np.ndarray]:
        """The blocks that ggml reads."""
        return [gguf_blocks(self.weight[p], self.scale[p]) for p in projections]


class Inputs:
    """x, ids and weights of one call; `fresh` draws new ids."""

    def __init__(self, layer: Layer, tokens: int, product: bool) -> None:
        self.rng, self.layer, self.tokens = np.random.default_rng(tokens), layer, tokens
        self.x = torch.from_numpy(self.rng.standard_normal((tokens, layer.hidden)).astype(np.float32))
        self.weights = torch.from_numpy(self.rng.random((tokens, layer.top_k)).astype(np.float32))
        self.out = torch.empty_like(self.x)
        self.rows = torch.empty((tokens, layer.top_k, layer.hidden))
        self.x = self.x[:, : layer.inter].contiguous() if product else self.x
        self.matrices = 1 if product else 3
        self.fresh()

    def fresh(self) -> None:
        order = np.argsort(self.rng.random((self.tokens, self.layer.experts)), axis=1)[:, : self.layer.top_k]
        self.ids = torch.from_numpy(np.ascontiguousarray(order.astype(np.int32)))

    @property
    def bytes(self) -> int:
        """Weight and scale bytes of the experts that are hit."""
        used = len(np.unique(self.ids.numpy()))
        return used * self.matrices * self.layer.hidden * self.layer.inter * 17 // 32

    @property
    def flops(self) -> int:
        """Two for each weight and token."""
        return 2 * self.matrices * self.layer.hidden * self.layer.inter * self.layer.top_k * self.tokens


def torch_way(layer: Layer) -> Callable[[Inputs], object]:
    """Dequantise with a table of byte pairs, then float32 matmul, expert by expert."""
    table = torch.from_numpy(np.stack([E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=1)).contiguous()
    pairs, scales = table.view(torch.int64).reshape(-1), torch.from_numpy(E8M0)
    weight = {p: torch.from_numpy(w) for p, w in layer.weight.items()}
    scale = {p: torch.from_numpy(s) for p, s in layer.scale.items()}

    def dequantise(p: str, e: int) -> torch.Tensor:
        values = pairs[weight[p][e].long()].view(torch.float32)
        step = scales[scale[p][e].long()]
        return (values.view(*step.shape, 32) * step[..., None]).view(values.shape)

    def run(inputs: Inputs) -> None:
        inputs.out.zero_()
        for e in torch.unique(inputs.ids).tolist():
            token, slot = (inputs.ids == e).nonzero(as_tuple=True)
            x = inputs.x[token]
            h = torch.nn.functional.silu(x @ dequantise("w1", e).T) * (x @ dequantise("w3", e).T)
            inputs.out.index_add_(0, token, (h @ dequantise("w2", e).T) * inputs.weights[token, slot, None])

    return run


def own_way(layer: Layer, packed: tuple, isa: str, precision: str, threads: int) -> Callable[[Inputs], object]:
    experts = CpuExperts(
        packed[0], packed[1], None, packed[2], packed[3], None,
        experts=layer.experts, hidden=layer.hidden, intermediate=layer.inter,
        activation=Activation(), precision=precision, isa=isa, threads=threads,
    )  # fmt: skip
    return lambda inputs: experts.forward(inputs.x, inputs.ids, inputs.weights, inputs.out)


def own_product(layer: Layer, packed: tuple, isa: str, precision: str, threads: int) -> Callable[[Inputs], object]:
    matrix = ExpertMatrix(
        packed[2], packed[3], experts=layer.experts, rows=layer.hidden, columns=layer.inter,
        precision=precision, isa=isa, threads=threads,
    )  # fmt: skip
    return lambda inputs: matrix.forward(inputs.x, inputs.ids, inputs.rows)


def peers_of(name: str, folder: Path, layer: Layer, args: argparse.Namespace) -> dict[str, GgmlLayer]:
    """Every form of weights of the library in `folder` that is asked for, as "name form"."""
    ggml, blocks = Ggml(folder), layer.blocks(("w2",) if args.product else ("w1", "w3", "w2"))
    asked = args.forms.split(",") if args.forms else ggml.forms
    each = {"top_k": layer.top_k, "threads": args.threads, "huge_pages": args.pages == "huge"}
    return {f"{name} {f}": GgmlLayer(ggml, blocks, form=f, **each) for f in ggml.forms if f in asked}


def on_pages(tensors: tuple[np.ndarray, ...], huge: bool) -> tuple[np.ndarray, ...]:
    """Copies in memory like that of `pack_in_memory`, on pages of one size."""
    placed = tuple(anonymous(t.nbytes, huge_pages=huge) for t in tensors)
    for to, tensor in zip(placed, tensors, strict=True):
        to[...] = tensor
    return placed


def say_pages(packed: tuple[np.ndarray, ...], peers: dict[str, GgmlLayer]) -> None:
    shares = [("ours", share_of_huge_pages(packed[0].ctypes.data, packed[0].nbytes))]
    shares += [(name, share_of_huge_pages(*peer.memory)) for name, peer in peers.items()]
    print("weights on 2 MiB pages: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares))


def peer_way(peer: GgmlLayer) -> Callable[[Inputs], object]:
    return lambda inputs: peer.run(inputs.tokens)


def ggml_folder(asked: Path | None) -> Path | None:
    if asked is not None:
        return asked
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


def measure(ways: dict, peers: dict, inputs: Inputs, rounds: int, clock: Callable[[], float]) -> dict:
    """Seconds of every timed call, by name."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            time.sleep(PAUSE)
            start, timed = time.perf_counter(), 0
            while True:
                inputs.fresh()
                if name in peers:
                    peers[name].load(inputs.x.numpy(), inputs.ids.numpy(), inputs.weights.numpy())
                warm, before = time.perf_counter() - start > WARM, clock()
                run(inputs)
                if warm:
                    times[name].append(clock() - before)
                    timed += 1
                if time.perf_counter() - start > WARM + TIMED and timed:
                    break
    return times


def read_way(threads: int) -> tuple[Callable[[Inputs], object], int]:
    buffer = np.ones(1 << 26, dtype=np.int64)  # 512 MiB, far beyond any cache here
    return lambda _: library().sp_read(buffer.ctypes.data, buffer.nbytes, threads), buffer.nbytes


def report(name: str, times: list[float], inputs: Inputs, read: float, best: dict[str, float]) -> None:
    median = statistics.median(times)
    speed = inputs.bytes / median / 1e9
    line = f"  {name:24s} {median * 1e3:9.3f} ms  best {min(times) * 1e3:9.3f}"
    line += f"  {inputs.flops / median / 1e9:7.1f} GFLOP/s  {speed:5.1f} GB/s"
    if inputs.tokens <= 8:
        line += f" = {100 * speed / read:3.0f} % of read"
    line += "".join(f"  {seconds / median:5.2f}x {peer}" for peer, seconds in best.items())
    print(line, f" n={len(times)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="32,2880,2880,4", help="E,H,I,top_k")
    parser.add_argument("--product", action="store_true", help="one matrix alone (w2: K = I, N = H)")
    parser.add_argument("--tokens", default="1,8,64,512")
    parser.add_argument("--isa", default=None, help="variants, comma separated; default: avx2 and the best")
    parser.add_argument("--precision", default="int8", help="int8,int16,float32")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--cpu-time", action="store_true", help="one thread's CPU time: for a busy machine")
    parser.add_argument("--pages", choices=("huge", "small"), default="huge", help="what all weights lie on")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ggml", type=Path, default=None, help="folder with libggml*.so")
    parser.add_argument("--ik", type=Path, default=None, help="folder with ik_llama.cpp's libggml.so")
    parser.add_argument("--forms", default=None, help="of the peers' weights: mxfp4,repack,mxfp4_r8; default: all")
    parser.add_argument("--torch", action="store_true", help="also dequantise + matmul")
    args = parser.parse_args()
    clock = time.thread_time if args.cpu_time else time.perf_counter
    args.threads = 1 if args.cpu_time else args.threads
    torch.set_num_threads(args.threads)
    layer = Layer(*map(int, args.shape.split(",")))
    isas = args.isa.split(",") if args.isa else list(dict.fromkeys([*usable_isas()[1:2], usable_isas()[-1]]))
    packed = on_pages(layer.packed(), args.pages == "huge")
    own = own_product if args.product else own_way
    ways = {f"{p} {isa}": own(layer, packed, isa, p, args.threads) for p in args.precision.split(",") for isa in isas}
    peers: dict[str, GgmlLayer] = {}
    folders = {"ggml": ggml_folder(args.ggml), "ik": args.ik}
    for name, folder in folders.items():
        if folder is None:
            print(f"{name}: not here, left out")
        else:
            peers |= peers_of(name, folder, layer, args)
    ways |= {name: peer_way(peer) for name, peer in peers.items()}
    if args.torch and not args.product:
        ways["torch dequantise + matmul"] = torch_way(layer)
    say_pages(packed, peers)
    read, read_bytes = read_way(args.threads)
    print(f"{platform.machine()}, {args.threads} threads, load {os.getloadavg()[0]:.2f}, E,H,I,k = {args.shape}")
    for tokens in map(int, args.tokens.split(",")):
        inputs = Inputs(layer, tokens, args.product)
        for peer in peers.values():
            peer.prepare(tokens)
        rounds = args.rounds if tokens < 256 else (args.rounds + 2) // 3
        times = measure({**ways, "read": read}, peers, inputs, rounds, clock)
        speed = read_bytes / statistics.median(times["read"]) / 1e9
        best = read_bytes / min(times["read"]) / 1e9
        print(f"{tokens} tokens (read {speed:.1f} GB/s, best {best:.1f}; load {os.getloadavg()[0]:.2f})")
        medians = {name: statistics.median(times[name]) for name in peers}
        best_form = {
            f: min(m for name, m in medians.items() if name.startswith(f)) for f, folder in folders.items() if folder
        }
        for name in ways:
            report(name, times[name], inputs, speed, best_form)


if __name__ == "__main__":
    main()
