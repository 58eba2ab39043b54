"""The tables of docs/backends.md are what the declarations say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from shardproof.backends import support
from shardproof.backends.registry import catalogue

DOCS = Path(__file__).parents[2] / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("generate_backends", DOCS / "generate_backends.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    page = (DOCS / "backends.md").read_text(encoding="utf-8")
    assert generator().fill(page) == page, "run: python docs/generate_backends.py"


def test_a_page_that_lost_a_marker_is_refused():
    page = (DOCS / "backends.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="0 parts named support"):
        generator().fill(page.replace("<!-- begin support -->", ""))


def test_every_backend_is_in_every_table():
    for table in (support.support(), support.layouts()):
        assert {line.split("`")[1] for line in table.splitlines()[2:]} == {b.name for b in catalogue()}


def test_tables_are_rectangular():
    for table in (support.support(), support.layouts(), support.choices(lambda _: "x")):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_readme_is_up_to_date():
    module = generator()
    page = module.README.read_text(encoding="utf-8")
    assert module.fill(page, module.PARTS[module.README]) == page, "run: python docs/generate_backends.py"
