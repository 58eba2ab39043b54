"""Run vLLM's own MXFP4 expert loader on the CPU, dump what it loaded, and let `diagnose` say what happened.

    python -m zipfile -e vllm-0.33.0-*.whl vllm_wheel
    python benchmarks/diagnose_vllm.py vllm_wheel

Executed are vLLM's files of `OWN`: the expert module with its weight loader, the MXFP4 method that makes the parameters
and rounds their sizes, the expert map and the configuration. Everything else that they import (kernels, platforms,
distributed) is a stand-in that answers "no". Each case is one layer of a small DeepSeek-V4 checkpoint.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

from dump_vllm import dump_layer  # noqa: E402
from tests.checkpoints import make  # noqa: E402
from tests.models import recipe  # noqa: E402

from engine_files import EngineFiles, absent  # noqa: E402
from shardproof.checkpoint import Checkpoint  # noqa: E402
from shardproof.diagnose import diagnose  # noqa: E402
from shardproof.formats import ExpertModel, read_experts  # noqa: E402

MOE, QUANT = "vllm.model_executor.layers.fused_moe", "vllm.model_executor.layers.quantization"
OWN = (
    f"{MOE}.routed_experts", f"{MOE}.fused_moe_method_base", f"{MOE}.expert_map_manager", f"{MOE}.oracle.mxfp4",
    f"{MOE}.config", f"{MOE}.activation", f"{QUANT}.mxfp4", f"{QUANT}.base_config", "vllm.model_executor.utils",
    "vllm.utils.math_utils", f"{MOE}.all2all_utils",
)  # fmt: skip
EXPERTS, TOP_K = 4, 2


class Pluggable(torch.nn.Module):
    """Stands for vLLM's PluggableLayer: a module whose subclasses are registered by name."""

    @classmethod
    def register(cls, _name: str) -> Any:
        return lambda subclass: subclass


def _given(module: str, name: str) -> Any:
    """What a stand-in module gives: the real classes that a package passes on, or something that is not here."""
    if name == "PluggableLayer":
        return Pluggable
    if name == "OCP_MX_BLOCK_SIZE":
        return 32
    source = {"FusedMoEConfig": "config", "FusedMoEMethodBase": "fused_moe_method_base"}.get(name)
    if module == MOE and source:
        return getattr(importlib.import_module(f"{MOE}.{source}"), name)
    return absent(name)


@dataclass(frozen=True)
class Case:
    """One layer's sizes, how it is dealt, and which of vLLM's backends rounds its sizes."""

    hidden: int
    intermediate: int
    tp: int
    ep: int
    rank: int
    backend: str


def load(case: Case, model: ExpertModel) -> torch.nn.Module:
    """Make vLLM's expert module for one rank and feed it the checkpoint through its own weight loader."""
    config, mapping = (importlib.import_module(f"{MOE}.{n}") for n in ("config", "expert_map_manager"))
    method = importlib.import_module(f"{QUANT}.mxfp4").Mxfp4MoEMethod
    method.__init__ = _without_kernels(case.backend)
    parallel = config.FusedMoEParallelConfig(
        tp_size=case.tp, tp_rank=case.rank % case.tp, ep_size=case.ep, ep_rank=case.rank // case.tp, dp_size=1,
        dp_rank=0, pcp_size=1, pcp_rank=0, sp_size=1, use_ep=case.ep > 1, all2all_backend="", enable_eplb=False,
    )  # fmt: skip
    local, expert_map, _ = mapping.determine_expert_map(case.ep, parallel.ep_rank, EXPERTS)
    places = expert_map.tolist() if expert_map is not None else list(range(EXPERTS))
    manager = SimpleNamespace(
        local_num_experts=local, placement_strategy="linear", expert_map=expert_map, expert_mask=None,
        routing_tables=None, num_fused_shared_experts=0, map_global_to_local=places.__getitem__,
    )  # fmt: skip
    moe = config.FusedMoEConfig(
        num_experts=EXPERTS, experts_per_token=TOP_K, hidden_dim=case.hidden, intermediate_size=case.intermediate,
        num_local_experts=local, num_logical_experts=EXPERTS, device="cpu", in_dtype=torch.bfloat16,
        activation=importlib.import_module(f"{MOE}.activation").MoEActivation.SILU, routing_method=None,
        moe_parallel_config=parallel, max_num_tokens=16,
    )  # fmt: skip
    module = importlib.import_module(f"{MOE}.routed_experts").RoutedExperts
    quant = SimpleNamespace(
        online_quantization_config=None, get_name=lambda: "mxfp4", get_quant_method=lambda _layer, _prefix: method(moe)
    )  # fmt: skip
    experts = module("layers.0", torch.bfloat16, moe, quant, manager, "w1", "w2", "w3")
    _feed(experts, model)
    return experts


def _without_kernels(backend: str) -> Any:
    """A constructor of the MXFP4 method that is told its backend instead of asking which kernels are there."""
    base = importlib.import_module(f"{MOE}.fused_moe_method_base").FusedMoEMethodBase
    chosen = importlib.import_module(f"{MOE}.oracle.mxfp4").Mxfp4MoeBackend[backend]

    def construct(method: Any, moe: Any) -> None:
        base.__init__(method, moe)
        method.mxfp4_backend = chosen

    return construct


def _feed(experts: Any, model: ExpertModel) -> None:
    for (projection, name), source in model.layer("layers.0").sources.items():
        suffix = {"weight": "weight", "scale": "weight_scale"}[name]
        parameter = getattr(experts, f"{'w2' if projection == 'w2' else 'w13'}_{suffix}")
        for expert in range(EXPERTS):
            loaded = torch.from_numpy(source.matrix(model.checkpoint, expert).copy())
            parameter.weight_loader(parameter, loaded, f"experts.{suffix}", projection, expert)


def in_a_model(experts: torch.nn.Module) -> torch.nn.Module:
    """The module under the names that it has in vLLM: model.layers.0.mlp.experts.routed_experts."""
    names: Sequence[str] = ("routed_experts", "experts", "mlp", "0", "layers", "model")
    for name in names:
        outer = torch.nn.Module()
        outer.add_module(name, experts)
        experts = outer
    return experts


def examine(case: Case, folder: Path) -> None:
    """Load one case, dump it with the documented lines, and print what `diagnose` says."""
    make(folder / "model", "deepseek", experts=EXPERTS, hidden=case.hidden, intermediate=case.intermediate)
    model = read_experts(Checkpoint.open(folder / "model"))
    experts = load(case, model)
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=in_a_model(experts)), rank=case.rank)
    dump = dump_layer(worker, 0, str(folder))  # type: ignore[arg-type]
    hidden, inner = experts.hidden_size, experts.intermediate_size_per_partition
    print(f"\n=== {case}: padded to hidden {hidden}, intermediate {inner} ===", flush=True)
    print("   ", *(f"{n} {tuple(p.shape)}" for n, p in torch.load(dump).items()), sep="\n    ")
    aligned = recipe(hidden, inner)
    known = {"rank": case.rank, "tp": case.tp, "ep": case.ep, "recipe": aligned}
    for words, hints in (("everything known", known), ("nothing known", {})):
        found = diagnose(dump, model, **hints)  # type: ignore[arg-type]
        print(f"--- {words}: {sorted(found.names) or 'nothing is wrong'}\n{found}")


def main() -> None:
    """The cases: lawful slices that are padded, experts dealt to ranks, and slices that cut blocks in two."""
    sys.meta_path.insert(0, EngineFiles("vllm", Path(sys.argv[1]), OWN, _given))
    for case in (
        Case(256, 768, tp=8, ep=1, rank=6, backend="MARLIN"),
        Case(192, 768, tp=4, ep=2, rank=5, backend="FLASHINFER_TRTLLM_MXFP4_MXFP8"),
        Case(256, 96, tp=2, ep=1, rank=1, backend="MARLIN"),
        Case(256, 1440, tp=4, ep=1, rank=3, backend="EMULATION"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            examine(case, Path(folder))


if __name__ == "__main__":
    main()
