"""Tuning files that a layer could not choose by are refused, by name of file, GPU, products and row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardproof.bench.tune import write
from shardproof.cli import main
from shardproof.cli.bench import _tune
from shardproof.errors import KernelError
from shardproof.kernels.cuda import builds

ANY = '[[null, "wide"]]'
BF16 = ", ".join(name for name, build in builds.BUILDS.items() if not build.fp8)
KEYS = ", ".join(f"{p}{s}" for p in ("w4a16", "w4a8 exact", "w4a8") for s in ("", " few", " short"))
ROW, NUMBER = "[most tokens an expert or null, geometry]", "a number above 0, or null for any"
LAST, ASCENDING = "a last row with null, for any number of tokens", "ascending numbers, null the last"

WRONG = {
    "unknown geometry": ('{"G": {"w4a16": [[1, "small"], [null, "vast"]]}}', 'row 2 of "w4a16" of "G" names "vast"', f"a geometry for these products: {BF16}"),
    "products of another kind": ('{"G": {"w4a8": [[null, "mid8"]]}}', 'row 1 of "w4a8" of "G" names "mid8"', f"a geometry for these products: {BF16}"),
    "no name": ('{"G": {"w4a16": [[null, ["small"]]]}}', 'row 1 of "w4a16" of "G" names ["small"]', f"a geometry for these products: {BF16}"),
    "not JSON": ("{", "no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)", "a JSON object"),
    "empty": ("", "no JSON: Expecting value: line 1 column 1 (char 0)", "a JSON object"),
    "a list": ("[1]", "the file is [1]", "a JSON object; its keys are names of GPUs"),
    "a GPU without tables": ('{"G": null}', '"G" is null', f"a JSON object; its keys are {KEYS}"),
    "unknown products": (f'{{"G": {{"w4a4": {ANY}}}}}', '"w4a4" of "G"', f"one of {KEYS}"),
    "no rows": ('{"G": {"w4a16": []}}', '"w4a16" of "G" has no rows', LAST),
    "rows that are none": ('{"G": {"w4a16": {"1": "small"}}}', '"w4a16" of "G" is {"1": "small"}', "a list of rows"),
    "a row that is none": ('{"G": {"w4a16": ["small"]}}', 'row 1 of "w4a16" of "G" is "small"', ROW),
    "a row of three": ('{"G": {"w4a16": [[1, "small", 2]]}}', 'row 1 of "w4a16" of "G" is [1, "small", 2]', ROW),
    "text for a number": ('{"G": {"w4a16": [["1", "small"]]}}', 'row 1 of "w4a16" of "G" is for "1" tokens an expert', NUMBER),
    "true for a number": ('{"G": {"w4a16": [[true, "small"]]}}', 'row 1 of "w4a16" of "G" is for true tokens an expert', NUMBER),
    "no number": ('{"G": {"w4a16": [[NaN, "small"]]}}', 'row 1 of "w4a16" of "G" is for NaN tokens an expert', NUMBER),
    "below zero": ('{"G": {"w4a16": [[-1, "small"]]}}', 'row 1 of "w4a16" of "G" is for -1 tokens an expert', NUMBER),
    "not ascending": ('{"G": {"w4a16": [[8, "small"], [8, "wide"], [null, "mid"]]}}', '"w4a16" of "G" is for [8, 8, null] tokens an expert', ASCENDING),
    "null before the last": ('{"G": {"w4a8": [[null, "small"], [8, "wide"]]}}', '"w4a8" of "G" is for [null, 8] tokens an expert', ASCENDING),
    "no last row": ('{"G": {"w4a8 exact": [[8, "mid8"]]}}', '"w4a8 exact" of "G" ends at 8 tokens an expert', LAST),
}  # fmt: skip


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SHARDPROOF_TUNING", str(tmp_path / "mine.json"))
    monkeypatch.setattr(builds, "table", builds.table.__wrapped__)  # what another test asked for is not remembered
    return tmp_path / "mine.json"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, mine: Path) -> None:
    text, found, needed = WRONG[name]
    mine.write_text(text)
    with pytest.raises(KernelError) as caught:
        builds.choose(1, "w4a16", "another GPU")
    assert str(caught.value) == (
        f"[kernel.tuning] the tuning file cannot be used\n  file: {mine}\n  found: {found}\n  needed: {needed}\n"
        "  next: correct the file, or measure another one with `shardproof bench --shape dsv4 --tune NEW.json`"
    )


def test_a_file_that_cannot_be_read(mine: Path) -> None:
    for reason in ("No such file or directory", "Is a directory"):
        with pytest.raises(KernelError) as caught:
            builds.choose(1, "w4a16")
        assert (caught.value.code, caught.value.found) == ("kernel.tuning", reason)
        mine.mkdir(exist_ok=True)
    mine.rmdir()
    mine.write_bytes(b'{"\xff": {}}')
    with pytest.raises(KernelError, match=r"kernel\.tuning") as caught:
        builds.choose(1, "w4a16")
    assert "can't decode byte 0xff" in str(caught.value)


def test_rows_for_all_gpus_leave_the_others_where_they_are(mine: Path) -> None:
    mine.write_text(f'{{"*": {{"w4a16": {ANY}}}, "G": {{"w4a8 few": []}}}}')
    assert builds.choose(0.01, "w4a16", "G").name == "wide"
    assert builds.choose(1, "w4a8 exact", "G").name == "few16_8"


def test_compiling_ahead_refuses_it_too(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text('{"G": {"w4a16": [[null, "vast"]]}}')
    assert main(["bench", "--shape", "gptoss", "--compile"]) == 2
    assert "[kernel.tuning]" in capsys.readouterr().err


def test_a_table_is_not_measured_for_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    monkeypatch.setattr(sys.modules["shardproof.bench.tune"], "tune", lambda *_: pytest.fail("measured"))
    with pytest.raises(KernelError, match=r"kernel\.tuning"):
        _tune(SimpleNamespace(name=""), [], [1], 1, notes, as_json=False)
    with pytest.raises(KernelError, match=r"kernel\.tuning"):
        write(notes, {"G": {"w4a16": [(None, "wide")]}})
    assert notes.read_text() == "mine"
    write(tmp_path / "new.json", {"G": {"w4a16": [(None, "wide")]}})
    assert json.loads((tmp_path / "new.json").read_text()) == {"G": {"w4a16": [[None, "wide"]]}}
