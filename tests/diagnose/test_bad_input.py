"""Dumps of every kind and quality: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from shardproof.diagnose import diagnose, put_back
from shardproof.errors import DiagnoseError, FormatError, ShardproofError
from tests.checkpoints import write_file
from tests.diagnose.cases import model_of
from tests.diagnose.conftest import Made

KEY = "layers.0"


def _right(
    made: Made, name: str = "v4_flash", rank: int = 1
) -> tuple[dict[str, np.ndarray], object, dict[str, object]]:
    model, plan, _ = made(name)
    hints = {"rank": rank, "tp": plan.tp, "ep": 1, "recipe": plan.recipe}
    return put_back(model, plan, KEY, plan.ranks[rank]), model, hints


def _refused(dump: object, model: object, **hints: object) -> ShardproofError:
    with pytest.raises(ShardproofError) as refused:
        diagnose(dump, model, **hints)  # type: ignore[arg-type]
    return refused.value


def test_names_of_engines_are_understood(made: Made) -> None:
    dump, model, hints = _right(made)
    parts = {name.split("experts.")[1]: array for name, array in dump.items()}
    for w13, w2, dot, scale in (
        ("model.layers.0.mlp.experts.w13", ".w2", "_weight", "_weight_scale"),
        ("model.layers.0.mlp.experts.gate_up_proj", ".down_proj", "", "_scale_inv"),
        ("layers.0.ffn.experts.w1", ".w2", ".weight", ".scale"),
    ):
        head = w13.rsplit(".", 1)[0]
        named = {
            w13 + dot: parts["w13.weight"], w13 + scale: parts["w13.scale"],
            head + w2 + dot: parts["w2.weight"], head + w2 + scale: parts["w2.scale"],
        }  # fmt: skip
        found = diagnose(named, model, **hints)  # type: ignore[arg-type]
        assert not found.findings
        assert len(found.layers[0].rows) == 4
        assert found.layers[0].layer == KEY


def test_dump_without_names(made: Made) -> None:
    dump, model, hints = _right(made)
    found = diagnose({str(i): a for i, a in enumerate(dump.values())}, model, layer=0, **hints)  # type: ignore[arg-type]
    assert not found.findings
    assert {r.slot for r in found.layers[0].rows} == {"w13.weight", "w13.scale", "w2.weight", "w2.scale"}


def test_files_of_every_kind(made: Made, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dump, model, hints = _right(made)
    np.savez(tmp_path / "dump.npz", **dump)
    torch.save({k: torch.from_numpy(v) for k, v in dump.items()}, tmp_path / "dump.pt")
    write_file(tmp_path / "dump.safetensors", {k: ("U8", v) for k, v in dump.items()})
    for suffix in ("npz", "pt", "safetensors"):
        assert not diagnose(tmp_path / f"dump.{suffix}", model, **hints).findings  # type: ignore[arg-type]


def test_torch_tensors_of_every_dtype_and_a_module(made: Made) -> None:
    torch = pytest.importorskip("torch")
    dump, model, hints = _right(made)
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Module()])
    kinds = {"weight": torch.float4_e2m1fn_x2, "scale": torch.float8_e8m0fnu}
    for name, array in dump.items():
        _, _, stack, field = name.rsplit(".", 3)
        tensor = torch.from_numpy(array).view(kinds[field]).reshape(8, -1)
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        module.layers[0].register_parameter(f"{stack}_{field}", parameter)
    assert not diagnose(module, model, **hints).findings  # type: ignore[arg-type]
    words = {k: torch.from_numpy(v).view(torch.int32) for k, v in dump.items()}
    assert not diagnose(words, model, **hints).findings  # type: ignore[arg-type]


def test_a_transposed_view_is_read_as_its_memory_is(made: Made) -> None:
    torch = pytest.importorskip("torch")
    dump, model, hints = _right(made, "v4_pro_raw")
    name = f"{KEY}.experts.w2.weight"
    views = {k: torch.from_numpy(v) for k, v in dump.items()}
    views[name] = views[name].reshape(6, 256, 64).transpose(1, 2)
    assert not diagnose(views, model, **hints).findings  # type: ignore[arg-type]
    views[name] = views[name].contiguous()
    assert diagnose(views, model, **hints).names == {"transposed"}  # type: ignore[arg-type]


def test_wrong_checkpoint_says_so_with_the_share(made: Made, tmp_path: Path) -> None:
    dump, _, hints = _right(made)
    _, _, shape = made("v4_flash")
    other = model_of(tmp_path, shape, seed=99)
    found = diagnose(dump, other, **hints)  # type: ignore[arg-type]
    assert "other_checkpoint" in found.names
    assert "0 % of the tensor's 16-byte pieces are in this layer" in str(found)


def test_one_stack_of_another_layer(made: Made) -> None:
    model, plan, _ = made("v4_flash")
    here, there = (put_back(model, plan, f"layers.{n}", plan.ranks[0]) for n in (0, 1))
    mixed = {k: there[k.replace("layers.0", "layers.1")] if "w2" in k else v for k, v in here.items()}
    found = diagnose(mixed, model, rank=0, tp=2, ep=1, recipe=plan.recipe)
    assert found.names == {"other_layer"}
    assert found.findings[0].tensors == ("w2.weight", "w2.scale")
    assert "the bytes are those of layers.1, not of layers.0" in found.sentence


def test_bias_in_another_dtype(made: Made) -> None:
    dump, model, hints = _right(made, "gpt_oss")
    name = f"{KEY}.experts.w13.bias"
    dump[name] = dump[name].view(np.float32).astype(ml_dtypes.bfloat16)
    assert diagnose(dump, model, **hints).names == {"bias_dtype"}  # type: ignore[arg-type]


def test_scale_values_as_float32_are_bytes_again(made: Made) -> None:
    dump, model, hints = _right(made)
    name = f"{KEY}.experts.w2.scale"
    dump[name] = np.ldexp(np.float32(1), dump[name].astype(np.int32) - 127).astype(np.float32)
    assert not diagnose(dump, model, **hints).findings  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dump", "code", "words"),
    [
        ({}, "diagnose.empty", "the dump holds no tensor"),
        ({"w13.weight": np.zeros(0, np.uint8)}, "diagnose.empty", "found: 1 tensors, all of them empty"),
        ({f"t{i}": np.zeros(4, np.uint8) for i in range(6)}, "diagnose.names", "no tensor of the dump has the name"),
        ({"layers.0.w13.scale": np.zeros(64, np.uint8)}, "diagnose.too_little", "too little to decide"),
        (
            {"layers.0.w13.weight": np.zeros(4, np.uint8), "layers.0.gate_up.weight": np.zeros(4, np.uint8)},
            "diagnose.names", "claim to be the same part",
        ),
        ("nowhere.safetensors", "diagnose.dump", "cannot be read"),
        (17, "diagnose.dump", "cannot be read"),
        ({"w13.weight": np.array([None, 1], dtype=object)}, "diagnose.dump", "an array of object"),
        ({"w13.weight": torch.empty(4, device="meta")}, "diagnose.dump", "a tensor without memory"),
    ],
)  # fmt: skip
def test_refusals(made: Made, dump: object, code: str, words: str) -> None:
    error = _refused(dump, made("v4_flash")[0])
    assert isinstance(error, DiagnoseError)
    assert error.code == code
    assert words in str(error)


def test_pickles_are_not_run(made: Made, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"layers.0.w13.weight": Payload()}, tmp_path / "evil.pt")
    assert _refused(tmp_path / "evil.pt", made("v4_flash")[0]).code == "diagnose.dump"
    np.savez(tmp_path / "evil.npz", w13=np.array([{}], dtype=object))
    assert _refused(tmp_path / "evil.npz", made("v4_flash")[0]).code == "diagnose.dump"


def test_a_layer_that_is_not_moe(made: Made) -> None:
    dump, model, hints = _right(made)
    renamed = {k.replace("layers.0", "layers.40"): v for k, v in dump.items()}
    error = _refused(renamed, model, **hints)
    assert isinstance(error, FormatError)
    assert error.code == "format.layer"


def test_layer_that_nothing_shows(made: Made) -> None:
    model, _, _ = made("v4_flash")
    noise = np.random.default_rng(0).integers(0, 255, 8 * 512 * 128, dtype=np.uint8)
    assert _refused({"w13.weight": noise}, model).code == "diagnose.layer"


def test_rank_outside_the_group(made: Made) -> None:
    dump, model, hints = _right(made)
    assert _refused(dump, model, **{**hints, "rank": 9}).code == "diagnose.rank"


@pytest.mark.parametrize(
    ("hints", "code"),
    [
        ({"tp": 2, "rank": -1}, "diagnose.rank"),
        ({"tp": 0}, "partition.size"),
        ({"ep": 0}, "partition.size"),
        ({"tp": 2, "ep": 10**8, "rank": 1}, "partition.size"),
    ],
)
def test_ranks_that_cannot_be(made: Made, hints: dict[str, int], code: str) -> None:
    model, plan, _ = made("v4_flash")
    assert _refused(put_back(model, plan, "layers.0", plan.ranks[1]), model, **hints).code == code
