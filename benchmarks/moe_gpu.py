"""Floors of an MXFP4 MoE layer on an H100 and, where there is a GPU, shardproof's own times beside them.

    python benchmarks/moe_gpu.py                         the floors alone, without a GPU
    python benchmarks/moe_gpu.py --shape dsv4 --run      our layer, each M
    python benchmarks/moe_gpu.py --shape dsv4 --tune t.json    every geometry at each M; writes a tuning table

The table with the rivals comes from bench_peers.py with `--plugin benchmarks/moe_gpu_plugin.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

SHAPES = {
    "dsv4": (4096, 2048, 256, 6),
    "gptoss": (2880, 2880, 128, 4),
    "dsv4tp8": (4096, 256, 256, 6),
    "dsv4ep8": (4096, 2048, 32, 6),
}
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 8192)
BANDWIDTH, BF16, FP8 = (
    3.0e12,
    770e12,
    1540e12,
)  # bytes/s copied, flop/s of a large product, measured; twice that


def floors(shape: str, tokens: int) -> dict[str, float]:
    """Expected experts touched, bytes, and the floors in us: memory, bf16 products, fp8 products."""
    hidden, inter, experts, top_k = SHAPES[shape]
    touched = experts * (1 - (1 - top_k / experts) ** tokens)
    size = touched * 3 * hidden * inter * (1 / 2 + 1 / 32)
    flops = 6 * tokens * top_k * hidden * inter
    return {
        "experts": touched,
        "MB": size / 1e6,
        "memory": size / BANDWIDTH * 1e6,
        "bf16": flops / BF16 * 1e6,
        "fp8": flops / FP8 * 1e6,
    }


def make_layer(shape: str, precision: str):
    import torch

    from shardproof.experts import Activation
    from shardproof.kernels.cuda.layer import HopperExperts

    hidden, inter, experts, _ = SHAPES[shape]

    def draw(size: int, low: int = 0, high: int = 256):
        return torch.randint(low, high, (size,), dtype=torch.uint8, device="cuda")

    n = experts * hidden * inter
    return HopperExperts(
        draw(n), draw(n // 16, 118, 122), draw(n // 2), draw(n // 32, 118, 122),
        experts=experts, hidden=hidden, intermediate=inter, activation=Activation("silu", limit=10.0),
        precision=precision,
    )  # fmt: skip


def measure(layer, shape: str, tokens: int, build=None) -> float:
    """Median us of a call over graphs of four different routings, so that weights are cold."""
    import torch

    hidden, _, experts, top_k = SHAPES[shape]
    sets = []
    for _ in range(4):
        ids = torch.rand(tokens, experts, device="cuda").topk(top_k, 1).indices.int().contiguous()
        x = torch.randn(tokens, hidden, device="cuda").bfloat16()
        sets.append((x, ids, torch.rand(tokens, top_k, device="cuda"), torch.empty_like(x)))
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()

    def call() -> None:
        for x, ids, weights, out in sets:
            layer.run(build or layer.build_for(tokens, top_k), x, ids, weights, out)

    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(15):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(sets))
    return statistics.median(times)


def tune(shape: str, path: str) -> None:
    import torch

    from shardproof.kernels.cuda import builds

    _, _, experts, top_k = SHAPES[shape]
    table = {}
    for precision in ("w4a16", "w4a8", "w4a8 exact"):
        layer, rows = make_layer(shape, precision.split()[0]), []
        for tokens in BATCHES:
            fit = [b for b in builds.BUILDS.values() if not b.fp8 or precision == "w4a8 exact"]
            best = min(fit, key=lambda b: measure(layer, shape, tokens, b))
            rows.append([2 * tokens * top_k / experts, best.name])
        rows[-1][0] = None
        table[precision] = rows
    Path(path).write_text(json.dumps({torch.cuda.get_device_name(): table}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=",".join(SHAPES))
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--tune")
    args = parser.parse_args()
    for shape in args.shape.split(","):
        if args.tune:
            tune(shape, args.tune)
            continue
        ours = [make_layer(shape, p) for p in ("w4a16", "w4a8")] if args.run else []
        print(f"{shape}\n{'M':>6} {'experts':>8} {'MB':>8} {'memory':>8} {'bf16':>8} {'fp8':>8}  ours w4a16, w4a8 (us)")
        for tokens in BATCHES:
            f = floors(shape, tokens)
            times = " ".join(f"{measure(layer, shape, tokens):9.1f}" for layer in ours)
            print(f"{tokens:6d} " + " ".join(f"{v:8.1f}" for v in f.values()) + "  " + times)


if __name__ == "__main__":
    main()
