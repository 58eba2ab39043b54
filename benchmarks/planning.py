"""Inspect and plan the largest models from their headers alone: how long it takes, in one process.

    python benchmarks/planning.py [--model v4-pro|k3|all] [--repeat 3]

Writes sparse checkpoints (headers with the published names, shapes and dtypes; no data) to a temporary folder, then
opens, recognises and plans each, and measures how long a packed rank of that plan takes to map.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.digest import Digest
from shardproof.formats import read_experts
from shardproof.packed import header, load, rank_file, write_manifest
from shardproof.plan import make_plan

AITER = Recipe(
    "aiter",
    {
        ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8",
        ("w2", "weight"): "aiter.w16", ("w2", "scale"): "aiter.e8",
    },
    align_hidden=256, align_intermediate=128,
)  # fmt: skip
MODELS = {
    "v4-pro": {
        "layers": 61, "experts": 384, "hidden": 7168, "intermediate": 3072, "files": 64,
        "name": "layers.{}.ffn.experts.{}.{}", "suffixes": (("weight", "I8"), ("scale", "F8_E8M0")),
        "config": {
            "model_type": "deepseek_v4", "expert_dtype": "fp4", "n_routed_experts": 384, "num_experts_per_tok": 6,
            "quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0"},
        },
    },
    "k3": {
        "layers": 92, "experts": 896, "hidden": 7168, "intermediate": 2048, "files": 128,
        "name": "language_model.model.layers.{}.block_sparse_moe.experts.{}.{}",
        "suffixes": (("weight_packed", "U8"), ("weight_scale", "U8")),
        "config": {
            "model_type": "kimi_k3", "num_experts": 896, "num_experts_per_tok": 8,
            "quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
        },
    },
}  # fmt: skip


def write_headers(folder: Path, model: dict) -> int:
    """Sparse files with the model's expert tensors; returns their number."""
    hidden, intermediate = model["hidden"], model["intermediate"]
    weight_map: dict[str, str] = {}
    files = model["files"]
    for number in range(files):
        entries, position = {}, 0
        for layer in range(model["layers"] * number // files, model["layers"] * (number + 1) // files):
            for expert in range(model["experts"]):
                for projection in ("w1", "w2", "w3"):
                    rows, columns = (hidden, intermediate) if projection == "w2" else (intermediate, hidden)
                    for (suffix, dtype), each in zip(model["suffixes"], (2, 32), strict=True):
                        size = rows * columns // each
                        name = f"{model['name'].format(layer, expert, projection)}.{suffix}"
                        where = [position, position + size]
                        entries[name] = {"dtype": dtype, "shape": [rows, columns // each], "data_offsets": where}
                        position += size
        if not entries:
            continue
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        text = json.dumps(entries).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + position)
        weight_map.update(dict.fromkeys(entries, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = {"hidden_size": hidden, "moe_intermediate_size": intermediate}
    (folder / "config.json").write_text(json.dumps({**model["config"], **sizes}))
    return len(weight_map)


def measure(folder: Path, tp: int, ep: int, repeat: int) -> dict[str, float]:
    """Seconds of each step, medians over `repeat` runs."""
    steps: dict[str, list[float]] = {"open": [], "read": [], "plan": [], "cpu": [], "load": []}
    for _ in range(repeat):
        times, busy = [time.perf_counter()], time.process_time()
        checkpoint = Checkpoint.open(folder)
        times.append(time.perf_counter())
        experts = read_experts(checkpoint)
        times.append(time.perf_counter())
        plan = make_plan(experts, AITER, tp=tp, ep=ep)
        times.append(time.perf_counter())
        for name, begin, end in zip(steps, times, times[1:], strict=False):
            steps[name].append(end - begin)
        steps["cpu"].append(time.process_time() - busy)
    out = folder / "packed"
    out.mkdir()
    rank = plan.ranks[-1]
    head, offsets = header(plan, rank, Digest())
    with (out / rank_file(rank)).open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + max(stop for _, stop in offsets.values()))
    write_manifest(out, plan, {rank.index: Digest()}, checkpoint)
    for _ in range(repeat):
        begin = time.perf_counter()
        load(out, rank.index)
        steps["load"].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="all", choices=["all", *MODELS])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in MODELS if given.model == "all" else [given.model]:
        with tempfile.TemporaryDirectory() as folder:
            count = write_headers(Path(folder), MODELS[name])
            for tp, ep in ((8, 1), (1, 8)):
                steps = measure(Path(folder), tp, ep, given.repeat)
                total = steps["open"] + steps["read"] + steps["plan"]
                text = ", ".join(f"{step} {steps[step]:.3f} s" for step in ("open", "read", "plan"))
                print(f"{name}: {count} tensors, tp {tp} ep {ep}: {total:.2f} s ({text})")
                print(f"    cpu {steps['cpu']:.2f} s; a packed rank loads in {steps['load'] * 1e3:.0f} ms")
                for path in (Path(folder) / "packed").iterdir():
                    path.unlink()
                (Path(folder) / "packed").rmdir()


if __name__ == "__main__":
    main()
