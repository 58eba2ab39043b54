"""Run SGLang's own MXFP4 expert loader on the CPU, dump what it loaded, and let `diagnose` say what happened.

    python -m zipfile -e sglang-0.5.23-*.whl sglang_wheel
    python benchmarks/diagnose_sglang.py sglang_wheel

Executed are SGLang's expert layer with its weight loader and the method that makes the Marlin backend's parameters;
the layer's constructor, which asks a running server, is replaced by the attributes that the loader reads.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

from dump_sglang import dump_layer  # noqa: E402
from tests.checkpoints import make  # noqa: E402
from tests.models import recipe  # noqa: E402

from engine_files import EngineFiles, absent  # noqa: E402
from shardproof.checkpoint import Checkpoint  # noqa: E402
from shardproof.diagnose import diagnose  # noqa: E402
from shardproof.formats import ExpertModel, read_experts  # noqa: E402

LAYER, METHOD = "sglang.srt.layers.moe.fused_moe_triton.layer", "sglang.srt.layers.quantization.mxfp4_marlin_moe"
EXPERTS = 4


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _attributes(parameter: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(parameter, name, value)


def _given(_module: str, name: str) -> Any:
    """Two one-line functions of a module that imports a server; the layer's enum; else something that is not here."""
    if name == "FusedMoeWeightScaleSupported":
        return getattr(importlib.import_module(LAYER), name)
    return {"round_up": _round_up, "set_weight_attrs": _attributes}.get(name) or absent(name)


def load(model: ExpertModel, hidden: int, intermediate: int, tp: int, rank: int) -> torch.nn.Module:
    """Make SGLang's expert layer for one rank and feed it the checkpoint through its own weight loader."""
    kind = importlib.import_module(LAYER).FusedMoE
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    plain = {
        "hidden_size": hidden, "num_experts": EXPERTS, "num_local_experts": EXPERTS, "moe_tp_size": tp,
        "moe_tp_rank": rank, "moe_ep_size": 1, "moe_ep_rank": 0, "_num_global_routed": EXPERTS,
        "_num_local_routed": EXPERTS, "_expert_storage_rank": 0, "_has_fused_shared": False, "scheme": None,
        "num_fused_shared_experts": 0, "uses_expert_location": False, "use_presharded_weights": False,
        "use_triton_kernels": False, "use_flashinfer_trtllm_moe": False, "weight_load_method": None,
        "moe_runner_config": SimpleNamespace(is_gated=True), "quant_config": SimpleNamespace(get_name=lambda: "fp8"),
    }  # fmt: skip
    for name, value in plain.items():
        object.__setattr__(layer, name, value)
    method = importlib.import_module(METHOD).Mxfp4MarlinMoEMethod(None, "")
    object.__setattr__(layer, "quant_method", method)
    method.create_weights(layer, EXPERTS, hidden, intermediate // tp, torch.bfloat16, weight_loader=layer.weight_loader)
    for (projection, name), source in model.layer("layers.0").sources.items():
        suffix = {"weight": "weight", "scale": "weight_scale_inv"}[name]
        parameter = getattr(layer, f"{'w2' if projection == 'w2' else 'w13'}_{suffix}")
        for expert in range(EXPERTS):
            loaded = torch.from_numpy(source.matrix(model.checkpoint, expert).copy()).view(parameter.dtype)
            parameter.weight_loader(parameter, loaded, f"experts.{suffix}", projection, expert)
    return layer


def main() -> None:
    """A lawful slice that is padded, and one that cuts blocks in two."""
    sys.meta_path.insert(0, EngineFiles("sglang", Path(sys.argv[1]), (LAYER, METHOD), _given))
    for hidden, intermediate, tp, rank in ((256, 768, 8, 6), (256, 96, 2, 1)):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "model", "deepseek", experts=EXPERTS, hidden=hidden, intermediate=intermediate)
            model = read_experts(Checkpoint.open(Path(folder) / "model"))
            experts: torch.nn.Module = load(model, hidden, intermediate, tp, rank)
            for name in ("experts", "mlp", "0", "layers", "model"):
                outer = torch.nn.Module()
                outer.add_module(name, experts)
                experts = outer
            dump = dump_layer(experts, 0, folder, rank)
            print(f"\n=== hidden {hidden}, intermediate {intermediate}, rank {rank} of tp {tp} ===")
            kept = torch.load(dump)
            print(*(f"{n} {tuple(p.shape)} {p.dtype}" for n, p in kept.items()), sep="\n")
            inner = next(p.shape[1] // 2 for n, p in kept.items() if n.endswith("w13_weight"))
            known = {"rank": rank, "tp": tp, "ep": 1, "recipe": recipe(hidden, inner)}
            for words, hints in (("everything known", known), ("nothing known", {})):
                found = diagnose(dump, model, **hints)  # type: ignore[arg-type]
                print(f"--- {words}: {sorted(found.names) or 'nothing is wrong'}\n{found}")


if __name__ == "__main__":
    main()
