"""Time and memory of `diagnose` on one layer and rank of DeepSeek-V4-Pro's sizes, on random weights.

python benchmarks/diagnose_layer.py FOLDER [experts] makes the checkpoint once, packs rank 6 of tp 8 for AITER, then
examines it: right with everything known, right with nothing known, and with mistakes put back in.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shardproof.backends import Recipe
from shardproof.checkpoint import Checkpoint
from shardproof.diagnose import diagnose, put_back
from shardproof.formats import read_experts
from shardproof.mistakes import find_mistake
from shardproof.plan import make_plan

HIDDEN, INTERMEDIATE, TP, RANK = 7168, 3072, 8, 3
AITER = Recipe(
    backend="aiter", align_hidden=128, align_intermediate=128, gate_mode="separated",
    layouts={
        ("w13", "weight"): "aiter.w16", ("w13", "scale"): "aiter.e8",
        ("w2", "weight"): "aiter.w16", ("w2", "scale"): "aiter.e8",
    },
)  # fmt: skip


def checkpoint(folder: Path, experts: int) -> None:
    """One layer of random weights in DeepSeek's native format, written expert by expert."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"w1": (INTERMEDIATE, HIDDEN), "w3": (INTERMEDIATE, HIDDEN), "w2": (HIDDEN, INTERMEDIATE)}
    header: dict[str, object] = {}
    position = 0
    for expert in range(experts):
        for projection, (rows, columns) in shapes.items():
            for name, dtype, width in (("weight", "I8", columns // 2), ("scale", "F8_E8M0", columns // 32)):
                stop = position + rows * width
                header[f"layers.3.ffn.experts.{expert}.{projection}.{name}"] = {
                    "dtype": dtype, "shape": [rows, width], "data_offsets": [position, stop],
                }  # fmt: skip
                position = stop
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _ in range(experts):
            for rows, columns in shapes.values():
                out.write(rng.bytes(rows * columns // 2))
                out.write(rng.integers(110, 125, rows * columns // 32, dtype=np.uint8).tobytes())
    config = {
        "model_type": "deepseek_v4", "expert_dtype": "fp4", "n_routed_experts": experts, "hidden_size": HIDDEN,
        "moe_intermediate_size": INTERMEDIATE, "num_experts_per_tok": 6, "swiglu_limit": 10.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def anonymous() -> Iterator[list[float]]:
    """The largest anonymous memory of this process in GiB, looked up every 50 ms; mapped files are not in it."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            peak[0] = max(peak[0], *(int(line.split()[1]) / 2**20 for line in lines if line.startswith("RssAnon")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def spoil(folder: Path, dump: Path, names: tuple[str, ...]) -> None:
    """Pack the rank with mistakes put back in, one file a tensor (in a process of its own: it holds all in memory)."""
    model = read_experts(Checkpoint.open(folder))
    plan = make_plan(model, AITER, tp=TP)
    for name, array in put_back(model, plan, "layers.3", plan.ranks[RANK], [find_mistake(n) for n in names]).items():
        np.save(dump / f"{name}.npy", array)


def main(folder: Path, experts: int) -> None:
    """Make, pack, examine, print."""
    if not (folder / "config.json").exists():
        checkpoint(folder, experts)
    model = read_experts(Checkpoint.open(folder))
    known = {"rank": RANK, "tp": TP, "ep": 1, "recipe": AITER}
    two = ("gguf_nibbles", "deinterleaved")
    for names, hints in (((), known), ((), {}), (("wrong_shuffle",), known), (two, known)):
        dump = folder / f"dump-{'-'.join(names) or 'right'}"
        dump.mkdir(exist_ok=True)
        if not any(dump.iterdir()):
            worker = multiprocessing.Process(target=spoil, args=(folder, dump, names))
            worker.start()
            worker.join()
        tensors = {p.stem: np.load(p, mmap_mode="r") for p in sorted(dump.iterdir())}
        with anonymous() as peak:
            before, cpu = time.perf_counter(), time.process_time()
            found = diagnose(tensors, model, **hints)  # type: ignore[arg-type]
            took, cpu = time.perf_counter() - before, time.process_time() - cpu
        size = sum(t.nbytes for t in tensors.values()) / 1e9
        told = "everything known" if hints else "nothing known"
        print(f"{experts} experts, {size:.2f} GB, {'+'.join(names) or 'right'}, {told}: {took:.1f} s, "
              f"{cpu:.1f} s of CPU, {peak[0]:.2f} GiB, {sorted(found.names) or 'no finding'}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 96)
