"""The fixed words of the command line: exit codes, plain text, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shardproof.cli import main
from tests.checkpoints import make

AMD = ("--platform", "rocm:gfx950", "--with", "aiter=0.1.15")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    make(folder, "deepseek", layers=2, experts=4, hidden=128, intermediate=192)
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_inspect_shows_format_evidence_and_layers(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", checkpoint)
    assert code == 0
    assert "format    deepseek" in out
    assert "expert_dtype is 'fp4'" in out
    assert "complete: every expert, projection and scale is there" in out


def test_inspect_reports_a_missing_expert_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "deepseek", experts=4, config={"n_routed_experts": 5})
    code, out, _ = run(capsys, "inspect", str(tmp_path))
    assert code == 1
    assert "[format.missing_expert] an expert is not in the checkpoint" in out
    assert "expert: 4" in out


def test_plan_prints_slices_padding_and_proof(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", checkpoint, "--tp", "4", *AMD)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.lstrip().startswith(("0 ", "3 "))]
    assert rows[0][:8] == ["0", "0", "0", "0..64", "64", "256", "128", "192"]
    assert rows[1][:8] == ["3", "3", "0", "160..192", "32", "256", "128", "224"]
    assert "proven: 4 experts of [192, 128]" in out


def test_plan_of_a_range_compares_sizes(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", checkpoint, "--tp", "1..8", "--backend", "aiter", *AMD, "--json")
    rows = json.loads(out)["sizes"]
    assert code == 0
    assert [row["tp"] for row in rows] == list(range(1, 9))
    assert [row["blocks"] for row in rows[:6]] == [[6], [3], [2], [2, 1], [2, 1], [1]]
    assert rows[7]["error"]["code"] == "partition.empty_rank"


def test_explain_gives_every_backend_a_verdict(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", checkpoint, "--platform", "rocm:gfx950", "--with", "aiter=0.1.13", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["backend"] == "triton_unfused"
    verdicts = {v["backend"]: v for v in data["verdicts"]}
    assert not verdicts["aiter"]["fits"]
    assert verdicts["reference"]["fits"]
    assert [v["backend"] for v in data["verdicts"]][:2] == ["aiter", "triton_unfused"]


def test_explain_exits_1_where_the_named_backend_cannot(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", checkpoint, "--backend", "aiter", "--platform", "cuda:sm90")
    assert code == 1
    assert "refused: backend aiter cannot be used: platform" in out


def test_pack_then_verify(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_folder = str(tmp_path / "packed")
    code, out, _ = run(capsys, "pack", checkpoint, out_folder, "--tp", "2", *AMD)
    assert code == 0
    assert "2 of 2 ranks for aiter" in out
    assert sorted(p.name for p in Path(out_folder).iterdir()) == [
        "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "shardproof.json",
    ]  # fmt: skip
    code, out, _ = run(capsys, "verify", out_folder, "--against", checkpoint, "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_ranks_that_complete_a_folder(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What this run packed, and what the folder holds with it."""
    folder, options = str(tmp_path / "packed"), ("--tp", "3", "--allow-empty", *AMD)
    code, out, _ = run(capsys, "pack", checkpoint, folder, "--ranks", "0", *options)
    assert code == 0
    assert "1 of 3 ranks for aiter" in out
    assert "the folder holds" not in out
    assert "(not all ranks)" in out
    _, out, _ = run(capsys, "pack", checkpoint, folder, "--ranks", "1", *options)
    assert "1 of 3 ranks for aiter" in out
    assert "; the folder holds 2 of 3" in out
    code, out, _ = run(capsys, "pack", checkpoint, folder, "--ranks", "2", *options)
    assert code == 0
    assert "; the folder holds all 3" in out
    assert "(not all ranks)" not in out
    _, out, _ = run(capsys, "pack", checkpoint, folder, "--ranks", "1-2", *options, "--json")
    data = json.loads(out)
    assert (data["ranks"], data["held"], data["of"]) == ([1, 2], [0, 1, 2], 3)
    assert data["digest"] == json.loads((Path(folder) / "shardproof.json").read_text())["digest"]


def test_a_packed_folder_is_inspected_as_one(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rank files hold the same names: no checkpoint's duplicates, and nothing to remove."""
    folder = str(tmp_path / "packed")
    run(capsys, "pack", checkpoint, folder, "--tp", "2", "--ranks", "1", *AMD)
    code, _, err = run(capsys, "inspect", folder)
    assert code == 2
    assert "packed.incomplete" in err
    code, out, _ = run(capsys, "verify", folder, "--against", checkpoint)
    assert code == 0
    assert "not packed, so not compared: ranks 0" in out
    assert "every byte is right: 1 of 2 ranks" in out
    run(capsys, "pack", checkpoint, folder, "--tp", "2", "--ranks", "0", *AMD)
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    assert f"packed      {folder}" in out
    assert "+ packed folder: aiter, tp 2 x ep 1" in out
    assert "complete: every expert, projection and scale is there" in out


def test_verify_finds_one_flipped_byte_and_exits_1(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packed"
    run(capsys, "pack", checkpoint, str(folder), "--tp", "2", *AMD)
    path = folder / "rank-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    code, out, _ = run(capsys, "verify", str(folder), "--against", checkpoint)
    assert code == 1
    assert "WRONG: 1 tensor differs" in out
    assert "rank 1: layers.1.experts.w2.scale: 1 of" in out


def test_a_packed_folder_is_packed_again_for_other_ranks(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, direct = (str(tmp_path / name) for name in ("first", "second", "direct"))
    run(capsys, "pack", checkpoint, first, "--tp", "2", *AMD)
    code, _, _ = run(capsys, "pack", first, second, "--tp", "3", "--backend", "reference")
    assert code == 0
    run(capsys, "pack", checkpoint, direct, "--tp", "3", "--backend", "reference")
    for path in Path(direct).glob("*.safetensors"):
        assert path.read_bytes() == (Path(second) / path.name).read_bytes()


def test_ranks_and_layers_can_be_chosen(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "some"
    code, out, _ = run(
        capsys, "pack", checkpoint, str(folder), "--tp", "4", "--ranks", "1,3", "--layers", "1", *AMD, "--json"
    )
    assert code == 0
    assert json.loads(out)["ranks"] == [1, 3]
    assert json.loads(out)["digest"] is None
    manifest = json.loads((folder / "shardproof.json").read_text())
    assert list(manifest["plan"]["layers"]) == ["layers.1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "CKPT", "--tp", "0"), "[partition.size] tp must be at least 1"),
        (("plan", "CKPT", "--tp", "7"), "[partition.empty_rank] 1 of 7 tensor-parallel ranks would hold no block"),
        (("plan", "CKPT", "--tp", "many"), "[partition.range] cannot read --tp"),
        (("plan", "CKPT", "--policy", "fair"), "[partition.policy] unknown policy"),
        (("plan", "CKPT", "--placement", "nowhere.json"), "[partition.placement] unknown expert placement"),
        (("plan", "CKPT", "--ep", "5"), "[partition.empty_rank]"),
        (("plan", "CKPT", "--backend", "aitr"), "[backend.unknown]"),
        (("plan", "CKPT", "--backend", "aiter", "--platform", "cuda:sm90"), "[backend.refused]"),
        (("plan", "CKPT", "--platform", "tpu"), "[backend.platform] cannot read the platform"),
        (("plan", "CKPT", "--format", "gguff"), "[format.unknown] no such format"),
        (("plan", "CKPT", "--gate-mode", "mixed"), "[backend.gate_mode] unknown gate mode"),
        (("pack", "CKPT", "OUT", "--tp", "1..4"), "[partition.range] this command takes one tensor-parallel size"),
        (("pack", "CKPT", "OUT", "--ranks", "9"), "[pack.rank] no such rank"),
        (("pack", "CKPT", "OUT", "--layers", "9"), "[plan.layer] the plan has no such layer"),
        (("verify", "CKPT", "--against", "CKPT"), "[packed.not_found] not a packed folder"),
        (("inspect", "nowhere"), "[checkpoint.not_found] no such file or folder"),
    ],
)
def test_refusals_exit_2_with_a_code_and_leave_nothing(
    arguments: tuple[str, ...], expected: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_folder = tmp_path / "out"
    filled = [{"CKPT": checkpoint, "OUT": str(out_folder)}.get(a, a) for a in arguments]
    platform = [] if "--platform" in filled or filled[0] in ("verify", "inspect") else list(AMD)
    code, _, err = run(capsys, *filled, *platform)
    assert code == 2
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_json_errors_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", "nowhere", "--json")
    assert code == 2
    assert json.loads(out)["error"]["code"] == "checkpoint.not_found"


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "pack")
    assert code == 2
    assert "Missing argument" in err


def test_python_dash_m_and_plain_output_in_a_pipe(checkpoint: str) -> None:
    command = [sys.executable, "-m", "shardproof", "inspect", checkpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "MoE layers" in done.stdout


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path / "none" / "x.html", tmp_path):  # no such folder; a folder where a file should be
        code, _, err = run(capsys, "layouts", "view", "aiter.w16", "-o", str(place))
        assert (code, err.startswith("shardproof: [pack.io] the output cannot be written")) == (2, True)


@pytest.mark.parametrize("option", ["--bundle", "--repair"])
def test_diagnose_looks_for_the_folder_first(option: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "diagnose", "no-dump", "--against", checkpoint, option, "/nowhere/x")
    assert code == 2
    assert "[pack.io]" in err
    assert "found: no folder /nowhere" in err


def test_diagnose_has_no_option_that_does_nothing(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "diagnose", "dump", "--against", checkpoint, "--gate-mode", "separated")
    assert code == 2
    assert "says nothing without --backend" in err


def test_diagnose_refuses_a_rank_beyond_the_ranks(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --ep recognised as 1, rank 3 of tp 2 is no rank; it was once taken as rank 1."""
    run(capsys, "pack", checkpoint, str(tmp_path / "p"), "--tp", "2", "--layers", "1", *AMD)
    dump = str(tmp_path / "p" / "rank-00001-of-00002.safetensors")
    assert run(capsys, "diagnose", dump, "--against", checkpoint, "--tp", "2", "--rank", "1")[0] == 0
    code, _, err = run(capsys, "diagnose", dump, "--against", checkpoint, "--tp", "2", "--rank", "3")
    assert code == 2
    assert "[diagnose.rank] no such rank" in err
    assert "needed: 0..1 for tp 2, ep 1" in err


def test_ctrl_c_is_said_in_a_verb_and_while_loading(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("shardproof.cli.inspect.read_experts", "shardproof.cli._run"):
        with monkeypatch.context() as patch:
            patch.setattr(place, pressed)
            code, _, err = run(capsys, "inspect", checkpoint)
        assert code == 130
        assert "shardproof: interrupted" in err


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "130 interrupted" in " ".join(out.split())
