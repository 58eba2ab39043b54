"""Packing into GPU memory: the permutation against a device copy, and whole layers against the engines' way.

    python benchmarks/pack_gpu.py [--experts 48] [--repeat 7] [--folder DIR]

Needs an NVIDIA GPU with torch and Triton. All figures of one table come from one run, interleaved, medians. The
permutation is measured on bytes that are on the device already ("GB/s" counts bytes written); the copy beside it is
`Tensor.copy_` of as many bytes. A whole layer goes from page cache to kernel order on the device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.pack import AITER, BIAS, shuffle_weight, write_checkpoint

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.formats import read_experts
from shardproof.kernels.device.gather import gather_of
from shardproof.kernels.device.upload import pack_layer_on_device, staged_bytes
from shardproof.layouts import find
from shardproof.pack import pack_in_memory
from shardproof.plan import make_plan

LAYOUTS = [
    ("aiter.w16", 96, 768, 3584), ("triton_kernels.hopper_value", 96, 768, 3584), ("marlin.weight", 96, 768, 3584),
    ("triton_kernels.blackwell_value_shuffled", 96, 768, 3584), ("aiter.e8", 384, 768, 224),
    ("triton_kernels.hopper_scale", 384, 768, 224), ("triton_kernels.blackwell_scale", 384, 768, 224),
]  # fmt: skip
HOPPER = {
    ("w13", "weight"): "triton_kernels.hopper_value", ("w13", "scale"): "triton_kernels.hopper_scale",
    ("w2", "weight"): "triton_kernels.hopper_value", ("w2", "scale"): "triton_kernels.hopper_scale",
}  # fmt: skip


def interleaved(cases: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds, the device idle before and after each call."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeat + 2):
        for name, call in cases.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if turn > 1:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def permutations(repeat: int) -> None:
    """On the device: gather against copy."""
    print("\nPermuting on the device (GB/s written; ratio to a device copy)")
    print("| layout | MB | copy_ | shardproof | torch view/permute/contiguous |\n|---|---|---|---|---|")
    for identity, experts, rows, width in LAYOUTS:
        layout, parameters = find(identity)
        placed = layout.place((experts, rows, width), parameters)
        made = gather_of(placed)
        assert made is not None
        gather = made.on("cuda")
        source = torch.randint(0, 255, (staged_bytes(placed),), dtype=torch.uint8, device="cuda")
        out = torch.full((placed.nbytes,), placed.pad_value, dtype=torch.uint8, device="cuda")
        again = torch.empty_like(out)
        cases = {
            "copy": lambda a=again, b=out: a.copy_(b), "gather": lambda g=gather, a=source, b=out: g.run(a, b),
        }  # fmt: skip
        plain = {"aiter.w16": shuffle_weight, "aiter.e8": _shuffle_scale}.get(identity)
        if plain is not None:
            shaped = source.view(experts, rows, width)
            cases["plain"] = lambda p=plain, a=shaped: p(a)
        gather.run(source, out)
        if source.numel() == experts * rows * width and not layout.add:  # no padding of the layout's own
            right = placed.pack(source.view(experts, rows, width).cpu().numpy())
            assert (out.cpu().numpy() == right).all(), identity
        found = interleaved(cases, repeat)
        cells = [f"{out.numel() / s / 1e9:.0f} ({found['copy'] / s:.2f})" for s in found.values()]
        print(f"| {identity} | {out.numel() / 1e6:.0f} | {' | '.join(cells + ['-'] * (3 - len(cells)))} |", flush=True)


def _shuffle_scale(scale: torch.Tensor) -> torch.Tensor:
    e, n, k = scale.shape
    return scale.reshape(e * n // 32, 2, 16, k // 8, 2, 4).permute(0, 3, 5, 2, 4, 1).contiguous()


def _theirs(model, plan, rank) -> list[torch.Tensor]:
    """One tensor an expert: opened, narrowed, copied up into zeros; then converted (AITER's order)."""
    layer, params = model.layer("layers.0"), {}
    for stack, name in AITER:
        experts, rows, width = plan.canonical_shape("layers.0", rank, stack, name)
        value = 127 if name == "scale" else 0
        params[stack, name] = torch.full((experts, rows, width), value, dtype=torch.uint8, device="cuda")
        for local, expert in enumerate(plan.experts("layers.0", rank)):
            for cut in plan.cuts("layers.0", rank, stack, name):
                matrix = torch.from_numpy(layer.sources[cut.projection, name].matrix(model.checkpoint, expert).copy())
                part = matrix[slice(*cut.rows), slice(*cut.columns)]
                target = params[stack, name][local, cut.at_row : cut.at_row + part.shape[0], : part.shape[1]]
                target.copy_(part)
    return [
        shuffle_weight(params[stack, name]) if name == "weight" else _padded_shuffle(params[stack, name])
        for stack, name in AITER
    ]


def _padded_shuffle(scale: torch.Tensor) -> torch.Tensor:
    """As `shuffle_scale`, on the device."""
    e, n, k = scale.shape
    rows, columns = -(-e * n // 256) * 256, -(-k // 8) * 8
    padded = torch.full((rows, columns), 127, dtype=torch.uint8, device=scale.device)
    padded[: e * n, :k] = scale.reshape(e * n, k)
    return padded.view(rows // 32, 2, 16, columns // 8, 2, 4).permute(0, 3, 5, 2, 4, 1).contiguous()


def layers(folder: Path, experts: int, repeat: int) -> None:
    """From page cache to the device."""
    write_checkpoint(folder, "deepseek", experts)
    model = read_experts(Checkpoint.open(folder))
    print("\nOne V4-Pro layer of one rank, page cache to device (median ms; bytes are compared with the CPU's)")
    print("| order | MB | engines' way | shardproof | GB/s |\n|---|---|---|---|---|")
    for title, layouts in (("aiter", AITER), ("hopper", HOPPER)):
        recipe = Recipe(title, {**layouts, **BIAS}, align_hidden=256, align_intermediate=128)
        plan = make_plan(model, recipe, tp=8)
        rank = plan.ranks[3]
        right = pack_in_memory(model, plan, rank).layers["layers.0"].tensors
        out = {slot: torch.empty(t.nbytes, dtype=torch.uint8, device="cuda") for slot, t in right.items()}
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pack_layer_on_device(model, plan, "layers.0", rank, out)
        scratch = torch.cuda.max_memory_allocated() - before
        for slot, tensor in right.items():
            assert (out[slot].cpu().numpy() == tensor).all(), slot
        cases = {"ours": lambda p=plan, r=rank, o=out: pack_layer_on_device(model, p, "layers.0", r, o)}
        if title == "aiter":
            cases["theirs"] = lambda p=plan, r=rank: _theirs(model, p, r)
        found = interleaved(cases, repeat)
        size = sum(t.nbytes for t in right.values())
        theirs = f"{found['theirs'] * 1e3:.0f}" if "theirs" in found else "-"
        ratio = f" ({found['theirs'] / found['ours']:.1f}x)" if "theirs" in found else ""
        print(
            f"| {title} | {size / 1e6:.0f} | {theirs} | {found['ours'] * 1e3:.0f}{ratio} | "
            f"{size / found['ours'] / 1e9:.1f} |  (device scratch {scratch / 1e6:.0f} MB)", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    permutations(given.repeat)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        layers(Path(folder), given.experts, given.repeat)


if __name__ == "__main__":
    main()
