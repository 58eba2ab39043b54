"""Floors of an MXFP4 MoE layer on an H100: what memory and the matrix unit allow, in us.

    python benchmarks/moe_gpu.py [--shape dsv4,gptoss]

Our own times come from `shardproof bench --shape dsv4`, and those beside the rivals' from bench_peers.py with
`--plugin benchmarks/moe_gpu_plugin.py`.
"""

from __future__ import annotations

import argparse

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=",".join(SHAPES))
    for shape in parser.parse_args().shape.split(","):
        print(f"{shape}\n{'M':>6} {'experts':>8} {'MB':>8} {'memory':>8} {'bf16':>8} {'fp8':>8}  (us)")
        for tokens in BATCHES:
            print(f"{tokens:6d} " + " ".join(f"{v:8.1f}" for v in floors(shape, tokens).values()))


if __name__ == "__main__":
    main()
