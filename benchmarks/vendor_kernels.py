"""Vendors' kernels run a MoE layer from bytes that shardproof packed; their own converters run beside them.

    python benchmarks/vendor_kernels.py --peers .peers [--shape small,odd,dsv4ep8] [--impl tk351,tknew,marlin,humming]

`--peers` is the folder that the rivals' setup script fills (their released packages and bench_peers.py). For each
implementation the converter's bytes are compared with those that a plan packs, then the layer runs from both - from
ours through `moe`'s implementation - and from deliberately wrong bytes; errors are relative to the dequantised float32
reference. Where the class of bench_peers pads to other places than a plan, bytes are not compared (null). `--no-gpu`
compares bytes only (humming converts on a GPU only and is left out). Exit code 1 if bytes or errors differ; results as
JSON in --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardproof.backends import Request, describe
from shardproof.bench import Subject
from shardproof.experts import Activation, ExpertSpec
from shardproof.oracle import select

SHAPES = {
    "small": {"H": 1024, "I": 512, "E": 8, "k": 4, "limit": 10.0},
    "odd": {"H": 2880, "I": 360 // 32 * 32, "E": 4, "k": 2, "limit": 7.0},  # padding along every axis
    "dsv4ep8": {"H": 4096, "I": 2048, "E": 32, "k": 6, "limit": 10.0},
}


def load_bench(folder, gpu):
    """The rivals' module; it reads its options from sys.argv when it is imported."""
    os.environ["BENCH_FULL_E"] = "1"
    given, sys.argv = sys.argv, ["bench_peers", "--dir", str(folder), *([] if gpu else ["--nogpu"])]
    try:
        spec = importlib.util.spec_from_file_location("bench_peers", folder / "bench_peers.py")
        bench = importlib.util.module_from_spec(spec)
        sys.modules["bench_peers"] = bench
        spec.loader.exec_module(bench)
    finally:
        sys.argv = given
    bench.SHAPES.update(SHAPES)
    bench.expand_fake = lambda tensor, _experts: tensor  # keep the converted bytes where there is no GPU
    return bench


def memory_bytes(tensor):
    """A dense tensor's bytes in memory order."""
    import torch

    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    return tensor.permute(order).contiguous().view(torch.uint8).reshape(-1).cpu().numpy()


@dataclass(frozen=True)
class Kernel:
    """One of bench_peers' classes: who packs for it, who runs it, and where its converted tensors are.

    `fused` stands for gate and up rows in turn, which no backend asks for with silu: the layouts are named here.
    `pads_halves` says that the class pads I, each half of w13 by itself, as engines and plans do; others do not.
    """

    peer: str
    backend: str
    implementation: str
    tensors: Callable[[Any], dict[str, Any]]
    packages: tuple[str, ...] = ()
    fused: bool = False
    pads_halves: bool = False


def triton_tensors(scale):
    """Where a triton_kernels layer keeps values and scales."""
    return lambda impl: {
        "w13.weight": impl.w13.storage.data, "w13.scale": getattr(impl.pc13, scale).storage.data,
        "w2.weight": impl.w2.storage.data, "w2.scale": getattr(impl.pc2, scale).storage.data,
    }  # fmt: skip


def marlin_tensors(impl):
    """Where bench_peers' Marlin keeps its tensors."""
    return {"w13.weight": impl.w13, "w13.scale": impl.s13, "w2.weight": impl.w2, "w2.scale": impl.s2}


def humming_tensors(impl):
    """Where bench_peers' humming keeps its tensors."""
    return {
        "w13.weight": impl.t13["weight"], "w13.scale": impl.t13["weight_scale"],
        "w2.weight": impl.t2["weight"], "w2.scale": impl.t2["weight_scale"],
    }  # fmt: skip


OLD, NEW = ("triton_kernels=3.5.1",), ("triton_kernels=1.0.0.post20260510",)
KERNELS = {
    "tk351": Kernel("TK351", "triton_unfused", "triton_kernels", triton_tensors("weight_scale"), OLD, fused=True),
    "tk351u": Kernel("TK351Unfused", "triton_unfused", "triton_kernels_unfused", triton_tensors("weight_scale"), OLD),
    "tknew": Kernel("TKNew", "triton_unfused", "triton_kernels", triton_tensors("b_mx_scale"), NEW, fused=True),
    "marlin": Kernel("Marlin", "marlin", "marlin", marlin_tensors, pads_halves=True),
    "humming": Kernel("Humming", "humming", "humming", humming_tensors),
}


def packed_layer(kernel, problem):
    """The problem's weights as a plan packs them for the kernel, and the subject that holds them."""
    spec = ExpertSpec("deepseek_v4", problem.E, problem.H, problem.I, problem.k, Activation("silu", problem.limit))
    canonical = {
        (stack, name): getattr(problem, f"{letter}{stack[1:]}").cpu().numpy()
        for stack in ("w13", "w2")
        for name, letter in (("weight", "w"), ("scale", "s"))
    }
    content = {
        slot: held.reshape(problem.E, 2 if slot[0] == "w13" else 1, -1, held.shape[-1])
        for slot, held in canonical.items()
    }
    subject = Subject("problem", spec, 1, 1, 0, content)
    recipe = select(Request(spec, describe("cuda:sm90", kernel.packages)), kernel.backend).recipe
    if kernel.fused:
        w13 = {slot: in_turn(identity) for slot, identity in recipe.layouts.items() if slot[0] == "w13"}
        recipe = dataclasses.replace(recipe, backend="triton", layouts={**recipe.layouts, **w13})
    return subject.layer(recipe)


def in_turn(identity):
    """The layout's sibling whose rows of gate and up alternate."""
    name, at, version = identity.partition("@")
    return f"{name}_interleaved{at}{version}"


def equal_content(layer, slot, theirs, pads_halves):
    """(equal where checkpoint bytes stand, equal everywhere); None where the vendor's class pads to other places."""
    ours, placed = layer.tensors[slot], layer.placed(*slot)
    moved = slot[0] == "w13" and layer.shape.intermediate != layer.spec.intermediate and not pads_halves
    if ours.size != theirs.size or moved:
        return None, None
    real = np.zeros(placed.shape, dtype=np.uint8)
    parts, rows = (2, layer.spec.intermediate) if slot[0] == "w13" else (1, layer.spec.hidden)
    columns = (layer.spec.hidden if slot[0] == "w13" else layer.spec.intermediate) // (2 if slot[1] == "weight" else 32)
    real.reshape(len(real), parts, -1, real.shape[-1])[:, :, :rows, :columns] = 255
    content = placed.pack(real) != placed.pack(np.zeros_like(real))
    return bool((ours == theirs)[content].all()), bool((ours == theirs).all())


def error_of(problem, impl, tokens):
    """The layer's output for one routing, and its relative error against the float32 reference."""
    import torch

    ids, weights = problem.routing(tokens, 7)
    x = problem.x(tokens, 3)
    out = impl(x, ids, weights).float()
    reference = problem.reference(x, ids, weights, torch.arange(tokens, device=x.device))
    torch.cuda.synchronize()
    return out, ((out - reference).norm() / reference.norm()).item()


def wrong_bytes(packed):
    """The same bytes in another order: every 2 KiB turned end for end."""
    cut = packed.size // 2048 * 2048
    return np.concatenate([packed[:cut].reshape(-1, 2048)[:, ::-1].reshape(-1), packed[cut:]])


def agrees(result):
    """Whether the kernel gives the same from both packings, and something else from wrong bytes.

    Sums differ in their order (the vendor's own caller and the adapter add slots differently), so outputs agree to
    rounding. Where the vendor's converter pads less than its kernel needs (triton_kernels at I = 352), only our
    bytes need to be right.
    """
    near = result["error_ours"] <= max(1.5 * result["error_theirs"], 0.01) and result["error_ours"] < 0.02
    return near and result["error_of_wrong_bytes"] > max(0.3, 3 * result["error_theirs"])


def examine(bench, name, shape, gpu, tokens):
    """One implementation on one shape: bytes, then errors from both, then from wrong bytes."""
    problem, kernel = bench.Problem(shape), KERNELS[name]
    peer = getattr(bench, kernel.peer)(problem)
    layer = packed_layer(kernel, problem)
    result = {"impl": name, "shape": shape, "layouts": {".".join(s): i for s, i in layer.plan.recipe.layouts.items()}}
    equal = []
    for key, tensor in kernel.tensors(peer).items():
        slot = tuple(key.split("."))
        found = equal_content(layer, slot, memory_bytes(tensor), kernel.pads_halves)
        result[f"{key}_content_equal"], result[f"{key}_all_equal"] = found
        equal.append(found[0])
    good = False not in equal
    if gpu:
        from shardproof.moe import PreparedLayer

        theirs, result["error_theirs"] = error_of(problem, peer, tokens)
        adapter = PreparedLayer(layer, implementation=kernel.implementation, device="cuda")
        ours, result["error_ours"] = error_of(problem, adapter, tokens)
        result["largest_difference"] = (ours - theirs).abs().max().item()
        tensors = {**layer.tensors, ("w13", "weight"): wrong_bytes(layer.tensors["w13", "weight"])}
        broken = dataclasses.replace(layer, tensors=tensors)
        broken = PreparedLayer(broken, implementation=kernel.implementation, device="cuda")
        result["error_of_wrong_bytes"] = error_of(problem, broken, tokens)[1]
        result["kernel_is_right"] = result["error_theirs"] < 0.02
        good &= agrees(result)
    return {**result, "ok": bool(good)}


def main():
    """Run what was asked and say whether everything agreed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers", type=Path, required=True)
    options.add_argument("--shape", default="small,odd")
    options.add_argument("--impl", default=",".join(KERNELS))
    options.add_argument("--tokens", type=int, default=33)
    options.add_argument("--no-gpu", action="store_true")
    options.add_argument("--out", type=Path)
    args = options.parse_args()
    bench = load_bench(args.peers.resolve(), not args.no_gpu)
    results = []
    for shape in args.shape.split(","):
        for name in args.impl.split(","):
            if args.no_gpu and name == "humming":
                continue
            try:
                result = examine(bench, name, shape, not args.no_gpu, args.tokens)
            except Exception:
                result = {"impl": name, "shape": shape, "ok": False, "failed": traceback.format_exc()[-2000:]}
            results.append(result)
            print(json.dumps(result), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{sum(r['ok'] for r in results)} of {len(results)} agree")
    return 0 if results and all(r["ok"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
