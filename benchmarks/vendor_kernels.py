"""Vendors' kernels run a MoE layer from bytes that shardproof packed; their own converters run beside them.

    python benchmarks/vendor_kernels.py --peers .peers [--shape small,odd,dsv4ep8] [--impl tk351,tknew,marlin,humming]

`--peers` is the folder that the rivals' setup script fills (their released packages and bench_peers.py). For each
implementation the converter's bytes are compared with shardproof's, then the layer runs from both, and from one
deliberately wrong layout; errors are relative to the dequantised float32 reference. `--no-gpu` compares bytes only
(humming converts on a GPU only and is left out). Exit code 1 if bytes or errors differ; results as JSON in --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np

from shardproof.layouts import find

SHAPES = {
    "small": {"H": 1024, "I": 512, "E": 8, "k": 4, "limit": 10.0},
    "odd": {"H": 2880, "I": 360 // 32 * 32, "E": 4, "k": 2, "limit": 7.0},  # padding along every axis
    "dsv4ep8": {"H": 4096, "I": 2048, "E": 32, "k": 6, "limit": 10.0},
}
HOPPER_SCALE = {"num_warps": 8, "kpad": 4}


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


def from_bytes(packed, like):
    """A tensor with the shape, strides and dtype of `like` that holds `packed` in memory order."""
    import torch

    order = sorted(range(like.ndim), key=lambda axis: -like.stride(axis))
    shape = [like.shape[axis] for axis in order]
    flat = torch.from_numpy(np.ascontiguousarray(packed)).to(like.device)
    return flat.view(like.dtype).view(shape).permute([order.index(axis) for axis in range(like.ndim)])


class Field:
    """One tensor of an implementation: how to reach it, its layout, and the canonical bytes for it."""

    def __init__(self, get, put, identity, canonical, parameters=None, real=None):
        self.get, self.put = get, put
        self.real = np.full_like(canonical.cpu().numpy(), 255) if real is None else real.cpu().numpy()
        self.layout, _ = find(identity)
        self.parameters = parameters or {}
        self.canonical = canonical.cpu().numpy()
        self.placed = self.layout.place(self.canonical.shape, self.parameters)

    @property
    def id(self):
        return self.layout.identity(self.parameters)

    def compare(self, theirs):
        """(equal where checkpoint bytes stand, equal everywhere)."""
        ours = self.placed.pack(self.canonical)
        if ours.size != theirs.size:
            raise SystemExit(f"{self.id}: {ours.size} bytes, the vendor's converter wrote {theirs.size}")
        content = self.placed.pack(self.real) != self.placed.pack(np.zeros_like(self.real))
        return bool((ours == theirs)[content].all()), bool((ours == theirs).all())


def storage(owner, name):
    """Getter and setter of a triton_kernels tensor's storage."""
    tensor = getattr(owner, name)
    return (lambda: tensor.storage.data), (lambda new: setattr(tensor.storage, "data", new))


def attribute(owner, name):
    """Getter and setter of an attribute or, for a dict, of an entry."""
    if isinstance(owner, dict):
        return (lambda: owner[name]), (lambda new: owner.__setitem__(name, new))
    return (lambda: getattr(owner, name)), (lambda new: setattr(owner, name, new))


def triton_fields(impl, problem, version, fused):
    """Hopper value and scale of both stacks, rows of w13 alternating for the fused activation."""
    rows = "_interleaved" if fused else ""
    scale = "weight_scale" if version == 1 else "b_mx_scale"
    fields = {}
    for stack, order in (("13", rows), ("2", "")):
        value = f"triton_kernels.hopper_value{order}@{version}"
        scales = f"triton_kernels.hopper_scale{order}@1"
        config = getattr(impl, f"pc{stack}")
        fields[f"w{stack}"] = Field(*storage(impl, f"w{stack}"), value, getattr(problem, f"w{stack}"))
        fields[f"s{stack}"] = Field(*storage(config, scale), scales, getattr(problem, f"s{stack}"), HOPPER_SCALE)
    return fields


def padded(tensor, halves, rows, columns, value):
    """Canonical bytes padded with `value` to `rows` a half and `columns` bytes, as a plan does before it lays out."""
    import torch

    experts, count, width = tensor.shape
    parts = tensor.view(experts, halves, count // halves, width)
    parts = torch.nn.functional.pad(parts, (0, columns - width, 0, rows - count // halves), value=value)
    return parts.reshape(experts, halves * rows, columns)


def padded_field(access, identity, tensor, halves, rows, columns):
    """A field of a kernel that wants padded sizes: weights padded with 0, scales with 127."""
    import torch

    canonical = padded(tensor, halves, rows, columns, 127 if find(identity)[0].field == "scale" else 0)
    return Field(*access, identity, canonical, real=padded(torch.full_like(tensor, 255), halves, rows, columns, 0))


def marlin_fields(impl, problem):
    """Marlin: H to 256 and I to 128, each half by itself."""
    hidden, inner = impl.H, impl.I
    return {
        "w13": padded_field(attribute(impl, "w13"), "marlin.weight", problem.w13, 2, inner, hidden // 2),
        "s13": padded_field(attribute(impl, "s13"), "marlin.scale", problem.s13, 2, inner, hidden // 32),
        "w2": padded_field(attribute(impl, "w2"), "marlin.weight", problem.w2, 1, hidden, inner // 2),
        "s2": padded_field(attribute(impl, "s2"), "marlin.scale", problem.s2, 1, hidden, inner // 32),
    }


def humming_fields(impl, problem):
    """W4A16 of humming: N to 256 and K to 128 at the end of the stack, as its preparation does."""
    up = lambda size, step: -(-size // step) * step  # noqa: E731
    fields = {}
    for stack, tensors in (("13", impl.t13), ("2", impl.t2)):
        weight, scale = getattr(problem, f"w{stack}"), getattr(problem, f"s{stack}")
        rows, values = up(weight.shape[1], 256), up(weight.shape[2] * 2, 128)
        access = attribute(tensors, "weight"), attribute(tensors, "weight_scale")
        fields[f"w{stack}"] = padded_field(access[0], "humming.weight", weight, 1, rows, values // 2)
        fields[f"s{stack}"] = padded_field(access[1], "humming.scale", scale, 1, rows, values // 32)
    return fields


IMPLEMENTATIONS = {
    "tk351": ("TK351", lambda impl, problem: triton_fields(impl, problem, 1, fused=True)),
    "tk351u": ("TK351Unfused", lambda impl, problem: triton_fields(impl, problem, 1, fused=False)),
    "tknew": ("TKNew", lambda impl, problem: triton_fields(impl, problem, 2, fused=True)),
    "marlin": ("Marlin", marlin_fields),
    "humming": ("Humming", humming_fields),
}


def error_of(problem, impl, tokens):
    """The layer's output for one routing, and its relative error against the float32 reference."""
    import torch

    ids, weights = problem.routing(tokens, 7)
    x = problem.x(tokens, 3)
    out = impl(x, ids, weights).float()
    reference = problem.reference(x, ids, weights, torch.arange(tokens, device=x.device))
    torch.cuda.synchronize()
    return out, ((out - reference).norm() / reference.norm()).item()


def wrong_bytes(field):
    """The same bytes in another order: every 2 KiB turned end for end."""
    packed = field.placed.pack(field.canonical)
    cut = packed.size // 2048 * 2048
    return np.concatenate([packed[:cut].reshape(-1, 2048)[:, ::-1].reshape(-1), packed[cut:]])


def agrees(result):
    """Whether the kernel gives the same from both packings, and something else from wrong bytes.

    Equal bytes may differ by rounding where a kernel adds in no fixed order (humming). A kernel that is wrong on a
    shape from its own converter's bytes as well says nothing against the bytes; `kernel_is_right` keeps that apart.
    """
    near = abs(result["error_ours"] - result["error_theirs"]) <= 0.01 * result["error_theirs"]
    return near and result["error_of_wrong_bytes"] > max(0.3, 3 * result["error_theirs"])


def examine(bench, name, shape, gpu, tokens):
    """One implementation on one shape: bytes, then errors from both, then from wrong bytes."""
    problem = bench.Problem(shape)
    class_name, describe = IMPLEMENTATIONS[name]
    impl = getattr(bench, class_name)(problem)
    fields = describe(impl, problem)
    result = {"impl": name, "shape": shape, "layouts": {key: field.id for key, field in fields.items()}}
    for key, field in fields.items():
        result[f"{key}_content_equal"], result[f"{key}_all_equal"] = field.compare(memory_bytes(field.get()))
    good = all(result[f"{key}_content_equal"] for key in fields)
    if gpu:
        theirs, result["error_theirs"] = error_of(problem, impl, tokens)
        for field in fields.values():
            field.put(from_bytes(field.placed.pack(field.canonical), field.get()))
        ours, result["error_ours"] = error_of(problem, impl, tokens)
        result["largest_difference"] = (ours - theirs).abs().max().item()
        fields["w13"].put(from_bytes(wrong_bytes(fields["w13"]), fields["w13"].get()))
        result["error_of_wrong_bytes"] = error_of(problem, impl, tokens)[1]
        result["kernel_is_right"] = result["error_theirs"] < 0.02
        good &= agrees(result)
    return {**result, "ok": bool(good)}


def main():
    """Run what was asked and say whether everything agreed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers", type=Path, required=True)
    options.add_argument("--shape", default="small,odd")
    options.add_argument("--impl", default=",".join(IMPLEMENTATIONS))
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
