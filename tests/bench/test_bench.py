"""Bench: subjects hold the weights they say, wrong results are called wrong, tables of geometries are what is read."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from shardproof.api import open_model, select
from shardproof.backends import Request, describe
from shardproof.backends.registry import find
from shardproof.bench import SHAPES, Subject, measure, tune, ways
from shardproof.bench.subject import _lay_out
from shardproof.bench.tune import rows, write
from shardproof.cli import main
from shardproof.errors import KernelError, PackedError
from shardproof.experts import Activation, ExpertSpec
from shardproof.layouts import find as find_layout
from shardproof.oracle import select as select_backend
from shardproof.pack import pack
from shardproof.plan import make_plan
from tests.answers import check_answer
from tests.checkpoints import make
from tests.layers import by_hand

SPEC = ExpertSpec("gpt_oss", 6, 96, 160, 2, Activation("swiglu_oai", 7.0), bias=True)


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (4, 1), (1, 3)])
@pytest.mark.parametrize(
    ("where", "backend"),
    [("cuda:sm90", "shardproof_gpu"), ("cuda:sm80", "shardproof_gpu"), ("cuda:sm90", "marlin"), ("cuda:sm90", "triton"),
     ("cuda:sm90", "humming"), ("cpu", "shardproof_cpu")],
)  # fmt: skip
def test_a_layer_for_any_backend_holds_the_subject(tp, ep, where, backend):
    subject = Subject.random("small", SPEC, tp, ep)
    recipe = select_backend(Request(SPEC, describe(where), tp, ep), backend).recipe
    layer = subject.layer(recipe)
    assert len(layer.experts) == 6 // ep
    for (stack, name), held in subject.content.items():
        found = layer.canonical(stack, name)
        parts, height, width = held.shape[1:]
        found = found.reshape(len(found), parts, -1, found.shape[-1])
        if name == "bias" and found.shape[-1] == 2:
            found = (found.copy().view("<u2").astype("<u4") << 16).view(np.uint8)
        assert np.array_equal(found[:, :, :height, :width], held), (stack, name)
        rest = found.copy()
        rest[:, :, :height, :width] = {"weight": 0, "scale": 127, "bias": 0}[name]
        assert (rest == {"weight": 0, "scale": 127, "bias": 0}[name]).all()


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@pytest.mark.parametrize(("backend", "where"), [("shardproof_cpu", "cpu"), ("marlin", "cuda:sm90")])
def test_a_packed_folder_is_its_checkpoint(tmp_path, kind, backend, where):
    made = make(tmp_path / "ckpt", kind, layers=2, experts=4, hidden=64, intermediate=160)
    model = open_model(tmp_path / "ckpt")
    plan = make_plan(model, select(model, platform=where, tp=2, backend=backend).recipe, tp=2)
    pack(model, plan, tmp_path / "out")
    spec = model.layers["layers.1"].spec
    x, ids = torch.randn(3, 64) / 64, torch.tensor([[0, 3], [1, 2], [2, 0]])
    weights = torch.rand(3, 2)
    total = torch.zeros(3, 64)
    for rank in (0, 1):
        subject = Subject.packed(tmp_path / "out", rank, "layers.1")
        total += subject.judge(torch.device("cpu"))(x, ids, weights)
    wanted = torch.from_numpy(by_hand(made, spec, x, ids, weights, "layers.1"))
    assert float((total.double() - wanted).norm() / wanted.norm()) < 1e-5
    with pytest.raises(PackedError, match=r"packed\.layer") as refused:
        Subject.packed(tmp_path / "out", 0, "layers.7")
    assert refused.value.needed == "layers.0, layers.1"


@pytest.mark.parametrize("identity", ["shardproof.hopper_w13", "marlin.weight", "raw.weight"])
def test_bytes_laid_out_by_gathers_are_those_of_the_layout(monkeypatch, identity):
    monkeypatch.setattr("shardproof.bench.subject._BATCH", 2 * 256 * 64)
    layout, parameters = find_layout(identity)
    canonical = np.random.default_rng(0).integers(0, 256, (5, 256, 64), dtype=np.uint8)
    placed = layout.place(canonical.shape, parameters)
    assert np.array_equal(_lay_out(canonical, placed, identity, "cpu:0"), placed.pack(canonical))


def test_every_shape_has_a_rank_that_our_backends_take():
    for spec, tp, ep in SHAPES.values():
        for backend, where in (("shardproof_cpu", "cpu"), ("shardproof_gpu", "cuda:sm90")):
            assert all(c.ok for c in find(backend).checks(Request(spec, describe(where), tp, ep)))


def test_rows_say_what_was_measured_and_wrong_results_are_called_wrong():
    subject = Subject.random("small", SPEC, 2)
    made = ways(subject)
    run = {way.name for way in made if way.prepared}
    assert run == {"shardproof_cpu", "shardproof_cpu_int16", "shardproof_cpu_float32"}
    reasons = {way.name: way.reason for way in made}
    assert reasons["marlin"] == "backend marlin cannot be used: platform: found cpu, needed cuda:sm75..sm129"
    found = measure(subject, made, 3, rounds=3)
    assert {row.name for row in found} == run
    assert all(row.ok and row.us >= row.best > 0 and row.mode == "eager" and row.to_rival is None for row in found)
    broken = next(way for way in made if way.name == "shardproof_cpu")
    broken.prepared._run = lambda x, *_: torch.zeros_like(x)
    rival = [dataclasses.replace(way, own=False) if way.name == "shardproof_cpu_int16" else way for way in made]
    by_name = {row.name: row for row in measure(subject, rival, 3, rounds=3)}
    assert not by_name["shardproof_cpu"].ok
    assert by_name["shardproof_cpu"].error == pytest.approx(1)
    ours = by_name["shardproof_cpu_float32"]
    assert ours.to_rival == pytest.approx(by_name["shardproof_cpu_int16"].us / ours.us)
    assert by_name["shardproof_cpu_int16"].to_rival is None


def test_one_is_asked_for_by_name():
    subject = Subject.random("small", SPEC)
    (way,) = ways(subject, names=["reference"])
    assert measure(subject, [way], 2, rounds=1)[0].error < 1e-6
    with pytest.raises(KernelError, match=r"kernel\.implementation"):
        ways(subject, names=["cuda9"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(capsys):
    assert main(["bench", "--shape", "gptosstp8", "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert "[kernel.device] there is no GPU here that torch can use" in said
    assert "needed: a GPU for --device cuda" in said
    assert "next: take --device cpu, or run this on a machine with a GPU and a torch that was built for it" in said


def test_command(tmp_path, capsys):
    make(tmp_path / "ckpt", "deepseek")
    assert main(["pack", str(tmp_path / "ckpt"), str(tmp_path / "out"), "--platform", "cpu"]) == 0
    capsys.readouterr()
    options = ["--device", "cpu", "--tokens", "1,5", "--rounds", "2", "--json"]
    assert main(["bench", str(tmp_path / "out"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in said["rows"]] == [1] * 3 + [5] * 3
    assert said["refused"]["shardproof_triton"] == "found device cpu, needed a GPU (cuda)"
    check_answer(said, "bench")
    assert main(["bench", str(tmp_path / "out"), "--device", "cpu", "--tokens", "2", "--rounds", "1"]) == 0
    assert "rival/ours" in capsys.readouterr().out
    assert main(["bench", "--shape", "dsv5", "--device", "cpu"]) == 2
    assert "packed.subject" in capsys.readouterr().err
    tuned = main(["bench", str(tmp_path / "out"), "--device", "cpu", "--tune", str(tmp_path / "t.json")])
    assert tuned == 2
    assert "there is nothing to tune: the Hopper kernels cannot run here" in capsys.readouterr().err


def test_a_tuned_table_is_what_the_kernels_read(tmp_path, monkeypatch):
    builds = pytest.importorskip("shardproof.kernels.cuda.builds")
    made = rows([(1, "small"), (4, "small"), (16, "wide"), (64, "mid")], top_k=6, experts=256)
    assert made == [(8 * 6 / 256, "small"), (32 * 6 / 256, "wide"), (None, "mid")]
    path = tmp_path / "t.json"
    write(path, {"Another": {"w4a8": [[None, "mid"]]}, "Mine": {"w4a8": [[None, "wide"]]}})
    write(path, {"Mine": {"w4a16": made}})
    held = json.loads(path.read_text())
    assert held["Another"] == {"w4a8": [[None, "mid"]]}
    assert held["Mine"]["w4a8"] == [[None, "wide"]]
    monkeypatch.setenv("SHARDPROOF_TUNING", str(path))
    builds.table.cache_clear()
    assert builds.choose(4 * 6 / 256, "w4a16", "Mine").name == "small"
    assert builds.choose(16 * 6 / 256, "w4a16", "Mine").name == "wide"
    assert builds.choose(999, "w4a16", "Mine").name == "mid"
    builds.table.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    subject = Subject.random("small", dataclasses.replace(SPEC, hidden=256, intermediate=256))
    made = ways(subject, "cuda")
    ours = {way.name for way in made if way.own and way.prepared}
    assert {"shardproof_triton", "shardproof_triton_w4a8"} <= ours
    found = measure(subject, made, 5, device="cuda", rounds=3)
    assert all(row.ok for row in found), found
    assert {row.mode for row in found if row.own} == {"graph"}
    if "shardproof_hopper" in ours:
        table, seen = tune(subject, made, [1, 64], rounds=3)
        assert set(next(iter(table.values()))) == {"w4a16", "w4a8", "w4a8 exact"}
        assert all(row["us"] > 0 for row in seen)
