"""What a diagnosis says, word for word, and how the command says it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from shardproof import select
from shardproof.cli.diagnose import diagnose as command
from shardproof.diagnose import diagnose, put_back
from shardproof.mistakes import find_mistake
from tests.checkpoints import write_file
from tests.diagnose.conftest import Made

APP = typer.Typer()
APP.command()(command)
AITER = ["--backend", "aiter", "--platform", "rocm:gfx950", "--gate-mode", "separated"]


def _dump(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    path = folder / "dump.safetensors"
    write_file(path, {name: ("U8", array) for name, array in tensors.items()})
    return path


def test_the_sentence_of_the_seed(made: Made) -> None:
    """Rank 6 of vLLM #42595: the offset is beyond the checkpoint's rows, so nothing was loaded."""
    model, plan, _ = made("v4_pro")
    dump = put_back(model, plan, "layers.0", plan.ranks[6], [find_mistake("padded_offset")])
    found = diagnose(dump, model, rank=6, tp=8, ep=1, recipe=plan.recipe)
    assert found.sentence == (
        "rank 6 of 8 (tp 6/8, ep 0/1): w13.weight, w13.scale, w2.weight, w2.scale: the offset was computed from the padded "
        "size 128 instead of 96; see vLLM #42595, vLLM #43865, ATOM #309, TokenSpeed #356, SGLang #32781, "
        "TensorRT-LLM #18870, vLLM #52209"
    )
    assert found.findings[0].repair.startswith("cut from the checkpoint's own size")


def test_zero_shard_says_that_it_is_zero(made: Made) -> None:
    model, plan, _ = made("v4_pro_raw")
    dump = put_back(model, plan, "layers.0", plan.ranks[7], [find_mistake("padded_offset")])
    dump = {name: np.zeros_like(array) for name, array in dump.items()}
    found = diagnose(dump, model, rank=7, tp=8, ep=1, recipe=plan.recipe)
    assert "all zero: the offset was computed from the padded size 128 instead of 96" in found.sentence


def test_the_first_wrong_byte_is_where_it_is(made: Made) -> None:
    model, plan, _ = made("v4_pro")
    rank = plan.ranks[3]
    dump = put_back(model, plan, "layers.0", rank)
    placed = plan.placed("layers.0", rank, "w2", "weight")
    at = int(placed.address(2, 5, 7))
    dump["layers.0.experts.w2.weight"][at] ^= 0xFF
    found = diagnose(dump, model, rank=3, tp=8, ep=1, recipe=plan.recipe)
    row = next(r for r in found.layers[0].rows if r.slot == "w2.weight")
    start = plan.shape("layers.0").intervals[3][0] * 16
    assert (row.wrong, row.address, row.first) == (1, at, f"expert 2 w2 row 5 byte {start + 7}")
    assert row.expected_byte == row.found_byte ^ 0xFF  # type: ignore[operator]
    assert found.names == {"unexplained"}


def test_json_and_exit_codes(made: Made, tmp_path: Path) -> None:
    model, plan, _ = made("v4_flash")
    key, rank = "layers.0", plan.ranks[1]
    known = ["--against", str(model.checkpoint.root), "--rank", "1", "--tp", "2", *AITER]
    right = _dump(tmp_path, put_back(model, plan, key, rank))
    result = CliRunner().invoke(APP, [str(right), *known])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("nothing is wrong with layers.0")
    wrong = _dump(tmp_path, put_back(model, plan, key, rank, [find_mistake("wrong_shuffle")]))
    result = CliRunner().invoke(APP, [str(wrong), *known, "--json"])
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert (data["shardproof"], data["command"], data["ok"]) == (1, "diagnose", False)
    assert [f["name"] for f in data["layers"][0]["findings"]] == ["wrong_shuffle"]
    assert data["layers"][0]["findings"][0]["tensors"] == ["w13.weight", "w13.scale"]


def test_bundle_holds_no_byte_of_a_weight(made: Made, tmp_path: Path) -> None:
    model, plan, _ = made("v4_flash")
    dump = put_back(model, plan, "layers.0", plan.ranks[0], [find_mistake("gate_up_swapped")])
    diagnose(dump, model, rank=0, tp=2, ep=1, recipe=plan.recipe).bundle(tmp_path / "bundle.json")
    text = (tmp_path / "bundle.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert data["shardproof_bundle"] == 1
    assert "expected_byte" not in text
    assert "found_byte" not in text
    assert str(model.checkpoint.root) not in text
    assert data["layers"][0]["findings"][0]["name"] == "gate_up_swapped"


@pytest.mark.parametrize("name", ["padded_at_end", "deinterleaved", "gguf_nibbles", "not_shuffled", "experts_permuted"])
def test_repair_gives_what_the_backend_needs(made: Made, tmp_path: Path, name: str) -> None:
    from safetensors import safe_open

    model, plan, _ = made("v4_pro")
    key, rank = "layers.0", plan.ranks[3]
    dump = put_back(model, plan, key, rank, [find_mistake(name)])
    out = tmp_path / "repaired.safetensors"
    found = diagnose(dump, model, rank=3, tp=8, ep=1, recipe=plan.recipe, repair=out)
    assert not found.ok
    with safe_open(out, framework="numpy") as file:
        for slot, right in put_back(model, plan, key, rank).items():
            assert np.array_equal(file.get_tensor(slot), right), slot
        assert json.loads(file.metadata()["layouts"])[f"{key}.experts.w13.weight"] == "aiter.w16@1"


def test_repair_adds_the_padding_that_the_dump_lacks(made: Made, tmp_path: Path) -> None:
    """Raw parameters, as an engine holds them before it converts them: 96 values of I a rank, where AITER wants 128."""
    from safetensors import safe_open

    from shardproof.plan import make_plan

    model, plan, _ = made("v4_pro")
    raw = make_plan(model, select(model, platform="cpu", backend="reference", tp=8).recipe, tp=8)
    key, rank = "layers.0", plan.ranks[3]
    assert [p.shape(key).intermediate for p in (raw, plan)] == [96, 128]
    out = tmp_path / "repaired.safetensors"
    diagnose(put_back(model, raw, key, raw.ranks[3]), model, rank=3, tp=8, ep=1, recipe=plan.recipe, repair=out)
    with safe_open(out, framework="numpy") as file:
        for slot, right in put_back(model, plan, key, rank).items():
            assert np.array_equal(file.get_tensor(slot), right), slot


@pytest.mark.parametrize("name", ["padded_offset", "zero_experts", "scales_numeric", "truncated", "cast_weights"])
def test_repair_refuses_what_is_not_there(made: Made, tmp_path: Path, name: str) -> None:
    from shardproof.errors import DiagnoseError

    model, plan, _ = made("v4_pro")
    dump = put_back(model, plan, "layers.0", plan.ranks[3], [find_mistake(name)])
    out = tmp_path / "repaired.safetensors"
    with pytest.raises(DiagnoseError) as refused:
        diagnose(dump, model, rank=3, tp=8, ep=1, recipe=plan.recipe, repair=out)
    assert refused.value.code == "diagnose.repair_lost"
    assert refused.value.next_step == "pack the rank from the checkpoint instead"
    assert not out.exists()


def test_repair_needs_a_backend(made: Made, tmp_path: Path) -> None:
    from shardproof.errors import DiagnoseError

    model, plan, _ = made("v4_pro")
    with pytest.raises(DiagnoseError) as refused:
        diagnose(put_back(model, plan, "layers.0", plan.ranks[0]), model, repair=tmp_path / "x.safetensors")
    assert refused.value.code == "diagnose.repair_backend"
