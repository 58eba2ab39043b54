"""What a first user meets: wrong inputs, guesses, long lists, reprs - each with its words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import shardproof
from shardproof.cli import main, show
from shardproof.errors import ShardproofError
from shardproof.oracle import Decision
from shardproof.plan import Plan
from tests.checkpoints import make, write_file

AMD = ("--platform", "rocm:gfx950", "--with", "aiter=0.1.15")
NEWEST = ("--platform", "rocm:gfx950")  # interleaved rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "ckpt"
    make(folder, "deepseek", layers=6, experts=4, hidden=128, intermediate=192, files=3)
    return folder


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "out"
    assert main(["pack", str(checkpoint), str(folder), "--tp", "2", *AMD]) == 0
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 2, out
    return dict(json.loads(out)["error"])


# -- long lists -------------------------------------------------------------------------------------------------------


def test_verify_shows_the_first_tensors_of_a_kind(
    checkpoint: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(packed, tmp_path / "wrong")
    for path in folder.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        head = 8 + int.from_bytes(data[:8], "little")
        data[head:] = bytes(byte ^ 1 for byte in data[head:])
        path.write_bytes(data)
    code, out, _ = run(capsys, "verify", folder, "--against", checkpoint)
    assert code == 1
    shown = [line.rpartition(": ")[0] for line in out.splitlines() if line.startswith("rank ")]
    assert shown == [
        "rank 0: layers.0.experts.w2.scale", "rank 1: layers.0.experts.w2.scale", "rank 0: layers.0.experts.w2.weight",
    ]  # fmt: skip
    assert f"... and {48 - show.SHOWN} more of the same kind (--json lists all)" in out
    assert "WRONG: 48 tensors differ, on ranks 0, 1 (2 ranks, " in out
    code, out, _ = run(capsys, "verify", folder, "--against", checkpoint, "--json")
    assert (code, len(json.loads(out)["differences"])) == (1, 48)


def test_inspect_shows_the_first_problems_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "deepseek", experts=4)
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = {f"x.{name}": file for name, file in data["weight_map"].items()}
    index.write_text(json.dumps(data))
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 1
    assert out.count("[checkpoint.index_tensor]") == show.SHOWN
    assert "... and 47 more of the same kind (--json lists all)" in out
    assert "50 problems" in out
    _, out, _ = run(capsys, "inspect", tmp_path, "--json")
    assert len(json.loads(out)["problems"]) == 50


def test_diagnose_shows_the_first_layers_of_a_kind(
    checkpoint: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = packed / "rank-00001-of-00002.safetensors"
    code, out, _ = run(capsys, "diagnose", dump, "--against", checkpoint, "--tp", "2", "--rank", "0")
    assert code == 1
    assert out.count("\nlayers.") == show.SHOWN + 1
    assert "layers.3 to layers.5: ... and 3 more of the same kind (--json lists all)" in out
    _, out, _ = run(capsys, "diagnose", dump, "--against", checkpoint, "--tp", "2", "--rank", "0", "--json")
    assert len(json.loads(out)["layers"]) == 6


# -- the wrong folder, the wrong file ---------------------------------------------------------------------------------


def test_verify_refuses_a_folder_as_its_own_proof(
    checkpoint: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(packed)
    for against in (packed, link, packed / ".." / packed.name):
        error = refused(capsys, "verify", packed, "--against", against)
        assert (error["code"], error["what"]) == (
            "verify.itself", "a packed folder compared with itself proves nothing",
        )  # fmt: skip
        assert error["next_step"] == f"shardproof verify {packed} --against {checkpoint}"
    spaced = shutil.copytree(packed, tmp_path / "o u t")
    error = refused(capsys, "verify", spaced, "--against", spaced)
    assert error["next_step"] == f"shardproof verify '{spaced}' --against {checkpoint}"
    again = tmp_path / "again"
    assert run(capsys, "pack", packed, again, "--tp", "3", "--backend", "reference")[0] == 0
    assert run(capsys, "verify", again, "--against", packed)[0] == 0  # another packing does prove something


def test_verify_names_only_what_differs(
    checkpoint: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 3, "swiglu_limit": 7.0}))
    error = refused(capsys, "verify", packed, "--against", other)
    assert (error["found"], error["needed"]) == ("top_k 3, activation.limit 7.0", "top_k 2, activation.limit 10.0")
    make(tmp_path / "short", "deepseek", layers=1, experts=4, hidden=128, intermediate=192)
    error = refused(capsys, "verify", packed, "--against", tmp_path / "short")
    assert (error["found"], error["needed"]) == ("layer no such layer", "layer layers.1")


def test_a_file_that_is_no_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        error = refused(capsys, "inspect", checkpoint / name)
        assert (error["code"], error["found"]) == ("checkpoint.file_type", f"a file named {name}")
        assert error["next_step"] == f"give the folder that holds the weights, perhaps {checkpoint}"


def test_one_rank_is_no_model(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("inspect",), ("plan", "--tp", "2", *AMD)):
        error = refused(capsys, command[0], packed / "rank-00000-of-00002.safetensors", *command[1:])
        assert (error["code"], error["what"]) == ("packed.one_rank", "this is one rank of a packed folder, not a model")
        assert error["next_step"] == f"give the folder: {packed}"


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_one_shard_of_several(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "all"
    make(folder, kind, layers=2, files=3)
    name = "model-00002-of-00003.safetensors"
    code, out, _ = run(capsys, "inspect", folder / name)
    assert code == 1
    assert "[format.one_shard] this is one file of 3, and its experts are not whole without the others" in out
    others = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    assert f"needed: {others} as well, which model.safetensors.index.json names" in out
    assert f"next: give the folder: {folder}" in out
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / name, tmp_path / "alone")
    shutil.copy(folder / "config.json", tmp_path / "alone")
    _, out, _ = run(capsys, "inspect", tmp_path / "alone" / name)
    assert f"needed: {others} as well\n" in out
    assert "next: download model-00001-of-00003.safetensors and what else is missing (2 files)" in out


def test_one_shard_that_is_whole_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All experts in the first file, the rest of the model in the second."""
    make(tmp_path, "deepseek", files=1)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    code, out, _ = run(capsys, "inspect", tmp_path / "model-00001-of-00002.safetensors")
    assert code == 0
    assert "complete" in out


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
def test_what_is_guessed_without_a_config_is_said(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, kind, layers=2)
    (tmp_path / "config.json").unlink()
    said = (
        "guessed, for there is no config.json: top-k 1, activation silu, the routing weight after w2; packing does not "
        "need it, running the layer does"
    )
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert (code, f"note: {said}\n" in out) == (0, True)
    for command in (("plan", tmp_path), ("pack", tmp_path, tmp_path / "out")):
        _, out, _ = run(capsys, *command, "--backend", "reference", "--json")
        assert said in json.loads(out)["notes"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    _, out, _ = run(capsys, "inspect", tmp_path, *(["--format", kind]))
    assert "guessed, for config.json does not say: top-k 1; packing" in out


def test_nothing_is_guessed_with_a_config(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "inspect", checkpoint, "--json")
    assert json.loads(out)["notes"] == []


def test_next_steps(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "inspect", "no where")
    assert error["next_step"] == f"correct the path; it was looked for in {Path.cwd()}"
    error = refused(capsys, "inspect", tmp_path)
    assert error["next_step"] == "give the folder with the weights, or finish the download"
    error = refused(capsys, "pack", checkpoint, tmp_path / "out", "--tp", "2", "--ranks", "2", *AMD)
    assert (error["code"], error["needed"]) == ("pack.rank", "0..1")
    assert error["next_step"] == "name one of these, or plan for more ranks than tp 2 x ep 1"


# -- packed from something else ---------------------------------------------------------------------------------------


def test_stale_names_the_difference_and_not_what_was_said(
    checkpoint: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "pack", checkpoint, packed, "--tp", "2", *NEWEST, "--with", "aiter=0.1.16")
    assert error["code"] == "pack.stale"
    assert "notes" not in error["found"] + error["needed"]
    assert "version 0.1.15" in error["found"]
    assert "version 0.1.16" in error["needed"]
    ep = ("pack", checkpoint, packed, "--tp", "1", "--ep", "2", *AMD)
    error = refused(capsys, *ep)
    assert (error["found"], error["needed"]) == ("tp 2, ep 1", "tp 1, ep 2")


@pytest.mark.parametrize("recipe", [None, [], {"layouts": None}, "gone"])
def test_a_manifest_whose_record_is_damaged(
    recipe: object, checkpoint: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(packed, tmp_path / "damaged")
    manifest = json.loads((folder / "shardproof.json").read_text())
    manifest["plan"]["recipe"] = recipe
    if recipe == "gone":
        del manifest["plan"]["recipe"]
    (folder / "shardproof.json").write_text(json.dumps(manifest))
    assert refused(capsys, "pack", checkpoint, folder, "--tp", "2", *AMD)["code"] == "pack.stale"
    assert refused(capsys, "inspect", folder)["code"] == "packed.damaged"
    assert refused(capsys, "verify", folder, "--against", checkpoint)["code"] == "packed.damaged"


def test_stale_names_the_first_experts_that_are_elsewhere(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "pack", checkpoint, out, "--ep", "2", *AMD)
    error = refused(capsys, "pack", checkpoint, out, "--ep", "2", "--placement", "round_robin", *AMD)
    assert error["found"] == ("shapes[0].owners[0][1] 1, shapes[0].owners[1][0] 2")  # 0, 1 | 2, 3 became 0, 2 | 1, 3
    assert error["needed"] == "shapes[0].owners[0][1] 2, shapes[0].owners[1][0] 1"


def test_notes_make_no_other_packing(checkpoint: Path, packed: Path) -> None:
    """What users were told is no part of what was packed."""
    import dataclasses

    model = shardproof.open_model(checkpoint)
    plan = shardproof.load(packed).plan
    told = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, notes=("something else",)))
    assert shardproof.pack(model, told, packed).keys() == {0, 1}
    assert told == plan


# -- diagnose ---------------------------------------------------------------------------------------------------------


def test_a_rank_needs_the_number_of_ranks(checkpoint: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = packed / "rank-00001-of-00002.safetensors"
    error = refused(capsys, "diagnose", dump, "--against", checkpoint, "--rank", "1")
    assert error == {
        "code": "diagnose.rank", "what": "a rank says nothing without the number of tensor-parallel ranks",
        "rank": "1", "needed": "tp beside rank, and ep where it is not 1",
        "next_step": "give --tp (and --ep), or leave --rank out: it is recognised",
    }  # fmt: skip


def test_a_wrong_rank_is_all_that_is_wrong(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interleaved rows: without a backend the order of scales was once taken from the wrong rank's content."""
    run(capsys, "pack", checkpoint, tmp_path / "p", "--tp", "2", "--layers", "0", *NEWEST)
    dump = tmp_path / "p" / "rank-00001-of-00002.safetensors"
    _, out, _ = run(capsys, "diagnose", dump, "--against", checkpoint, "--tp", "2", "--rank", "0", "--json")
    (layer,) = json.loads(out)["layers"]
    assert [finding["name"] for finding in layer["findings"]] == ["other_tp_rank"]
    assert {row["slot"]: row["needed"] for row in layer["tensors"]} == {
        "w13.weight": "aiter.w16_gugu@1", "w13.scale": "aiter.e8_gugu@1", "w2.weight": "aiter.w16@1",
        "w2.scale": "aiter.e8@1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("d.npy", b"no array at all", "not arrays as NumPy writes them, or cut off"),
        ("d.npz", b"no array at all", "not arrays as NumPy writes them, or cut off"),
        ("d.npz", b"PK\x03\x04 cut off", "File is not a zip file"),
        ("d.safetensors", b"\xff" * 64, "the header's length cannot be right: not a safetensors file, or cut off"),
    ],
)
def test_a_damaged_dump_is_to_be_dumped_again(
    name: str, content: bytes, found: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(capsys, "diagnose", tmp_path / name, "--against", checkpoint)
    assert (error["code"], error["next_step"]) == (
        "diagnose.dump", "dump the layer again; docs/diagnose.md shows how",
    )  # fmt: skip
    assert error["found"].startswith(found)


def test_one_tensor_as_npy(checkpoint: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = shardproof.load(packed, 1).layers["layers.2"]
    np.save(tmp_path / "layers.2.w13.weight.npy", layer.tensors["w13", "weight"])
    code, out, _ = run(capsys, "diagnose", tmp_path / "layers.2.w13.weight.npy", "--against", checkpoint)
    assert (code, out.splitlines()[0]) == (0, "nothing is wrong with layers.2: every byte is where it is needed")


def test_a_path_that_is_no_dump(checkpoint: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "diagnose", packed, "--against", checkpoint)
    assert (error["found"], error["next_step"]) == ("a folder", "give one of its files, a rank each")
    error = refused(capsys, "diagnose", "nothing.pt", "--against", checkpoint)
    assert (error["found"], error["next_step"]) == ("no such file", "correct the path")


# -- Python -----------------------------------------------------------------------------------------------------------


def decided(checkpoint: Path) -> tuple[shardproof.ExpertModel, Decision, Plan]:
    model = shardproof.open_model(checkpoint)
    decision = shardproof.select(model, platform="rocm:gfx950", packages="aiter=0.1.15", tp=2)
    return model, decision, shardproof.make_plan(model, decision.recipe, tp=2)


def test_a_path_where_a_model_is_needed(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    _, decision, plan = decided(checkpoint)
    for where in (checkpoint, str(checkpoint)):
        for verb, arguments in (
            (shardproof.select, (where,)),
            (shardproof.make_plan, (where, decision.recipe)),
            (shardproof.pack, (where, plan, tmp_path / "out")),
            (shardproof.verify, (packed, where)),
        ):
            with pytest.raises(ShardproofError) as caught:
                verb(*arguments)
            error = caught.value
            assert (error.code, error.what) == ("format.model", "this is not an opened model")
            assert str(checkpoint) in str(error.found)
            assert error.next_step == "open the checkpoint first: shardproof.open_model(PATH)"
    assert list(tmp_path.iterdir()) == []


def test_one_package_or_several(checkpoint: Path) -> None:
    model = shardproof.open_model(checkpoint)
    chosen = [
        shardproof.select(model, platform="rocm:gfx950", packages=packages, tp=2).recipe
        for packages in ("aiter=0.1.15", ["aiter=0.1.15"])
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0].version == "0.1.15"


def test_reprs_are_one_line(checkpoint: Path, packed: Path) -> None:
    model, decision, plan = decided(checkpoint)
    rank = shardproof.load(packed, 1)
    assert repr(model) == f"ExpertModel(deepseek_v4, format deepseek, 6 MoE layers, {str(checkpoint)!r})"
    assert repr(decision) == "Decision(aiter for rocm:gfx950, tp 2 x ep 1)"
    assert repr(plan) == "Plan(deepseek_v4, tp 2 x ep 1 for aiter, 6 layers)"
    assert repr(rank) == "PackedExperts(rank 1 of 2 (tp 1/2, ep 0/1), 6 layers for aiter, 2,506,752 bytes)"
    layer = rank.layers["layers.3"]
    assert repr(layer) == "PackedLayer(layers.3, rank 1 of 2 (tp 1/2, ep 0/1), 4 experts for aiter, 417,792 bytes)"
    assert len(repr(model.layer("layers.0"))) < 300


def test_names_with_spaces_and_other_alphabets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "mein modell ü 模型", tmp_path / "gepackt ü"
    make(folder, "quark")
    assert run(capsys, "inspect", folder)[0] == 0
    assert run(capsys, "pack", folder, out, "--backend", "reference")[0] == 0
    assert run(capsys, "verify", out, "--against", folder)[0] == 0
    tensors = {f"{k}.{f}": ("U8", t) for (k, f), t in shardproof.load(out).layers["layers.0"].tensors.items()}
    write_file(tmp_path / "dump ü.safetensors", tensors)
    assert run(capsys, "diagnose", tmp_path / "dump ü.safetensors", "--against", folder)[0] == 0


# -- numbers and maps that are slips of the hand ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [("plan", "CKPT", "--tp"), ("pack", "CKPT", "OUT", "--ranks"), ("pack", "CKPT", "OUT", "--layers")]
)
@pytest.mark.parametrize("text", ["1..99999999999999", "0-65535,7", "1..99999999999999999999"])
def test_a_range_that_would_fill_the_memory(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...], text: str
) -> None:
    places = {"CKPT": checkpoint, "OUT": tmp_path / "out"}
    error = refused(capsys, *[places.get(word, word) for word in option], text)
    assert (error["code"], error["needed"]) == ("partition.range", "at most 65536")


def test_no_part_of_a_range_is_dropped(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "plan", checkpoint, "--tp", "5..1,3")
    assert (error["code"], error["what"]) == ("partition.range", "cannot read --tp")


@pytest.mark.parametrize(
    ("rows", "code", "found"),
    [
        ("[[0, 1], [2, 3.5]]", "partition.expert_id", "3.5"),
        ('[[0, 1], [2, "3"]]', "partition.expert_id", "'3'"),
        ("[[0, 1], [2, true]]", "partition.expert_id", "True"),
        ('["01", "23"]', "partition.placement", "map.json (not a list of lists)"),
        ('{"0": [0, 1]}', "partition.placement", "map.json (not a list of lists)"),
        ("[[0, 1]", "partition.placement", "map.json (not JSON)"),
    ],
)
def test_expert_ids_are_not_guessed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rows: str, code: str, found: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.json").write_text(rows)
    error = refused(capsys, "plan", checkpoint, "--ep", "2", "--placement", "map.json")
    assert (error["code"], error["found"]) == (code, found)


def test_a_placement_that_is_too_long_for_a_name(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "plan", checkpoint, "--placement", "n" * 300)["code"] == "partition.placement"


# -- without torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("bench", "--shape", "gptoss"), ("diagnose", "DUMP", "--against", "CKPT")])
def test_what_needs_torch_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "dump.pt").write_bytes(b"PK")
    places = {"CKPT": checkpoint, "DUMP": tmp_path / "dump.pt"}
    error = refused(capsys, *[places.get(word, word) for word in command])
    assert (error["code"], error["needed"], error["next_step"]) == ("system.package", "torch", "pip install torch")


def test_a_part_of_an_installed_package_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install numpy` would not help."""

    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name="numpy.nothing")

    monkeypatch.setattr("shardproof.cli.app.application", lambda _: broken)
    with pytest.raises(ModuleNotFoundError):
        main(["inspect"])


# -- files of other kinds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_weights_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, folder: bool
) -> None:  # fmt: skip
    (tmp_path / name).write_bytes(b"GGUF" + bytes(64))
    error = refused(capsys, "inspect", tmp_path if folder else tmp_path / name)
    assert name in error["found"]
    assert error["next_step"] == "give the checkpoint as safetensors: files of this kind are not read"


def test_a_git_lfs_pointer_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4270000000\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 1
    assert "this is a Git LFS pointer, not the file itself" in out
    assert "next: git lfs pull" in out
