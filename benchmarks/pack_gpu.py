"""Packing into GPU memory: the permutation against a device copy, and whole layers against the engines' way.

    python benchmarks/pack_gpu.py [--experts 48] [--repeat 7] [--folder DIR] [--only permute,limits,layers]

Needs an NVIDIA GPU with torch, Triton, cuda-bindings and NVRTC. Figures of one table come from one run, interleaved,
medians. The permutation is measured on bytes that are on the device already ("GB/s" counts bytes written), between
events around several launches that take turns on two sets of buffers; the copy beside it is `Tensor.copy_` of as many
bytes, measured alike. A whole layer goes from page cache to kernel order on the device, host clock.
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
from shardproof.kernels.device import upload
from shardproof.kernels.device.gather import gather_of
from shardproof.kernels.device.permute import DeviceTiles, device_permuter
from shardproof.kernels.device.stage import Stage
from shardproof.kernels.device.upload import pack_layer_on_device, staged_bytes
from shardproof.layouts import catalogue
from shardproof.pack import pack_in_memory
from shardproof.pack.native.run import default_threads
from shardproof.plan import make_plan

SHAPES = {"weight": (96, 768, 3584), "scale": (384, 768, 224), "bias": (32768, 768, 2)}
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


def on_device(cases: dict[str, Callable[[int], object]], repeat: int, launches: int = 6) -> dict[str, float]:
    """Median seconds of one launch; `call(turn)` takes the buffers of its turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    ballast = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    for turn in range(repeat + 1):
        for name, call in cases.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            ballast.fill_(turn)  # longer than it takes to queue every launch, so the host is not measured
            begin.record()
            for number in range(launches):
                call(number % 2)
            end.record()
            end.synchronize()
            if turn:
                times[name].append(begin.elapsed_time(end) / 1e3 / launches)
    return {name: statistics.median(values) for name, values in times.items()}


def permutations(repeat: int) -> None:
    """On the device, every layout of the catalogue: tiles and index arrays against a copy of as many bytes."""
    print("\nPermuting on the device (GB/s written; ratio to a device copy)")
    print("| layout | MB | copy_ | tiles | index arrays | torch view/permute/contiguous |\n|---|---|---|---|---|---|")
    for layout in catalogue():
        placed = layout.place(SHAPES[layout.field], layout.filled())
        permuter, made = device_permuter(placed, "cuda"), gather_of(placed)
        assert isinstance(permuter, DeviceTiles)
        assert made is not None
        gather = made.on("cuda")
        sources = [torch.randint(0, 256, (staged_bytes(placed),), dtype=torch.uint8, device="cuda") for _ in "ab"]
        outs = [torch.full((placed.nbytes,), placed.pad_value, dtype=torch.uint8, device="cuda") for _ in "ab"]
        gather.run(sources[0], outs[0])
        outs[1].fill_(0x77)
        permuter.run(sources[0], outs[1])
        assert torch.equal(outs[0], outs[1]), layout.name
        cases = {
            "copy": lambda i, o=outs: o[1 - i].copy_(o[i]),
            "tiles": lambda i, p=permuter, a=sources, o=outs: p.run(a[i], o[i]),
            "gather": lambda i, g=gather, a=sources, o=outs: g.run(a[i], o[i]),
        }
        plain = {"aiter.w16": shuffle_weight, "aiter.e8": _shuffle_scale}.get(layout.name)
        if plain is not None:
            shaped = [source.view(SHAPES[layout.field]) for source in sources]
            cases["plain"] = lambda i, p=plain, a=shaped: p(a[i])
        found = on_device(cases, repeat)
        cells = [f"{placed.nbytes / s / 1e9:.0f} ({found['copy'] / s:.2f})" for s in found.values()]
        cells += ["-"] * (4 - len(cells))
        print(f"| {layout.name} | {placed.nbytes / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


class _Filling(Stage):
    """Stages without sending anything up."""

    def take(self, _: int) -> None: ...

    def has_room(self, _: int) -> bool:
        return True


def limits(folder: Path, experts: int, repeat: int) -> None:
    """What a layer can be limited by: cutting, digesting and staging on the CPU, and the way up."""
    write_checkpoint(folder, "deepseek", experts)
    model = read_experts(Checkpoint.open(folder))
    plan = make_plan(model, Recipe("aiter", {**AITER, **BIAS}, align_hidden=256, align_intermediate=128), tp=8)
    rank = plan.ranks[3]
    slots = plan.fields("layers.0")
    out = {s: torch.empty(plan.placed("layers.0", rank, *s).nbytes, dtype=torch.uint8, device="cuda") for s in slots}
    size = sum(t.numel() for t in out.values())
    pinned = torch.ones(128 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device="cuda")
    up = interleaved({"up": lambda: there.copy_(pinned, non_blocking=True)}, repeat)["up"]
    print(f"\nPinned memory to the device, 128 MiB: {pinned.numel() / up / 1e9:.1f} GB/s")

    def pack(**options: int) -> None:
        pack_layer_on_device(model, plan, "layers.0", rank, out, **options)

    cases = {}
    for threads in (1, 4, 8, 12, 16):
        cases[f"staging only, {threads} threads"] = lambda t=threads: _without_up(lambda: pack(threads=t))
    for scratch in (32, 64, 128, 256):
        cases[f"all, scratch {scratch} MiB"] = lambda s=scratch: pack(scratch=s << 20)
    for threads in (8, 12):
        cases[f"all, {threads} threads"] = lambda t=threads: pack(threads=t)
    print("| what | ms | GB/s |\n|---|---|---|")
    for name, seconds in interleaved(cases, repeat).items():
        print(f"| {name} | {seconds * 1e3:.1f} | {size / seconds / 1e9:.1f} |", flush=True)


def _without_up(call: Callable[[], object]) -> None:
    upload.Stage = _Filling
    try:
        call()
    finally:
        upload.Stage = Stage


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
        torch.cuda.empty_cache()
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
    parser.add_argument("--only", default="permute,limits,layers")
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {default_threads()} threads")
    if "permute" in given.only:
        permutations(given.repeat)
    for name, run in (("limits", limits), ("layers", layers)):
        if name in given.only:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                run(Path(folder), given.experts, given.repeat)


if __name__ == "__main__":
    main()
