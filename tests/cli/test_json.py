"""Every command's `--json` is what docs/json.md says, to the last field; the page is what the types say."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import typer

from shardproof.cli import main
from shardproof.cli.answers import ANSWERS, Benched, Compiled, Demonstrated, Refusal, Tuned
from shardproof.cli.app import application
from tests.answers import Seen, check, check_answer, fields_of
from tests.checkpoints import make

DOCS = Path(__file__).parents[2] / "docs"
AMD = ("--platform", "rocm:gfx950", "--with", "aiter=0.1.15")
ELSEWHERE = [Benched, Tuned, Compiled, Demonstrated]  # tests/bench, kernels/cuda, test_demo; Tuned needs a GPU


def commands() -> set[str]:
    """Every command that has --json."""
    verbs = typer.main.get_command(application())
    found = {(name,): verb for name, verb in verbs.commands.items()}  # type: ignore[attr-defined]
    found |= {("layouts", name): verb for name, verb in found.pop(("layouts",)).commands.items()}
    return {" ".join(name) for name, verb in found.items() if any("--json" in p.opts for p in verb.params)}


def test_every_command_with_json_is_documented() -> None:
    assert commands() == set(ANSWERS)


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_json", DOCS / "generate_json.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/generate_json.py"


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    make(tmp_path / "ckpt", "gpt_oss", layers=2, experts=4, hidden=128, intermediate=192)
    return tmp_path / "ckpt"


def test_answers_are_what_is_documented(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: Seen = set()

    def ask(code: int, *arguments: object, variant: int = 0) -> None:
        """Run a command with --json and hold its answer against its type."""
        capsys.readouterr()
        given = [str(a) for a in arguments]
        assert main([*given, "--json"]) == code
        data = json.loads(capsys.readouterr().out)
        if code == 2:
            assert data.pop("shardproof") == 1
            check(data, Refusal, given[0], seen)
            return
        command = " ".join(given[: 2 if given[0] == "layouts" else 1])
        check_answer(data, command, seen, variant)

    out = tmp_path / "out"
    ask(0, "inspect", ckpt)
    ask(0, "plan", ckpt, "--tp", "4", *AMD)
    ask(0, "plan", ckpt, "--tp", "1..8", *AMD, variant=1)
    ask(0, "explain", ckpt, *AMD)
    ask(1, "explain", ckpt, "--backend", "aiter", "--platform", "cuda:sm90", variant=1)
    ask(0, "pack", ckpt, out, "--tp", "2", *AMD)
    ask(2, "pack", ckpt, out, "--tp", "4", *AMD)
    ask(0, "verify", out, "--against", ckpt)
    dump = out / "rank-00000-of-00002.safetensors"
    ask(0, "diagnose", dump, "--against", ckpt)
    ask(1, "diagnose", dump, "--against", ckpt, "--tp", "2", "--rank", "1")
    _break(dump)
    ask(1, "verify", out, "--against", ckpt)
    _lose_an_expert(tmp_path / "broken")
    ask(1, "inspect", tmp_path / "broken")
    (ckpt / "model-00002-of-00002.safetensors").write_bytes(b"\0" * 100)
    ask(2, "plan", ckpt)
    ask(0, "layouts", "list")
    ask(0, "layouts", "show", "aiter.e8")
    ask(0, "layouts", "address", "aiter.w16", "--shape", "2,64,64", "--element", "1,17,9")
    ask(0, "layouts", "at", "aiter.e8", "--shape", "2,64,64", "--byte", "3")
    every = fields_of([Refusal, *(k for kinds in ANSWERS.values() for k in kinds if k not in ELSEWHERE)])
    assert every - seen == {("Problem", "rank")}, "a documented field that no command gave"


def _break(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _lose_an_expert(folder: Path) -> None:
    make(folder, "deepseek", experts=4, config={"n_routed_experts": 5})
    shutil.copy(folder / "config.json", folder / "copy.json")
