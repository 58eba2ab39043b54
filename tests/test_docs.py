"""What the pages point to is there: links, anchors, files, error codes, options, variables, mistakes, imports."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import typer

import shardproof
from shardproof.cli.app import VERBS, application
from shardproof.mistakes import museum
from tests.test_errors import CODE, explained

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SOURCES = [p for p in (ROOT / "src").rglob("*") if p.suffix in {".py", ".c", ".h", ".cu"}]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    places = [ROOT, ROOT / "src" / "shardproof", ROOT / "docs", page.parent]
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples|kernels|formats|layouts|pack|backends|mistakes|"
                       r"checkpoint)/[\w./-]*\w)`", text_of(page))  # fmt: skip
    missing = [n for n in named if not any((place / n).exists() for place in places)]
    made_up = {"kernels/NAME.py", "kernels/NAME/implementation.py", "src/shardproof/layouts/acme.py"}
    golden = {n for n in missing if n.startswith("tests/golden/acme")}
    assert set(missing) <= made_up | golden


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_codes_exist(page: Path) -> None:
    named = {n for n in re.findall(r"[`\[]([a-z]+\.[a-z_0-9]+)[`\]]", text_of(page)) if CODE.fullmatch(n)}
    assert {n for n in named if n not in explained() and not n.endswith((".py", ".md", ".json"))} == set()


def options(command: object) -> set[str]:
    found = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    return found.union(*map(options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_exist(page: Path) -> None:
    known = options(typer.main.get_command(application())) | {"--help"}
    others = {"--nproc-per-node", "--cpu-time", "--ik", "--shape", "--check", "--inplace", "--strict", "--revision"}
    lines = [line for line in text_of(page).splitlines() if "benchmarks/" not in line and "pip " not in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    assert named - known - others == set()


@pytest.mark.parametrize("place", [*PAGES, *SOURCES], ids=lambda p: p.name)
def test_verbs_exist(place: Path) -> None:
    """Also those that errors and repairs send their readers to."""
    assert set(re.findall(r"`shardproof ([a-z]+)", text_of(place))) <= {*VERBS}


def test_variables_exist() -> None:
    source = "\n".join(text_of(p) for p in SOURCES)
    for page in PAGES:
        for name in re.findall(r"SHARDPROOF_[A-Z_]+", text_of(page)):
            assert f'"{name}"' in source, f"{page.name}: {name}"


def test_every_variable_is_documented() -> None:
    pages = "\n".join(map(text_of, PAGES))
    named = {n for p in SOURCES for n in re.findall(r'"(SHARDPROOF_[A-Z_]+)"', text_of(p))}
    assert {n for n in named if n not in pages} == set()


def test_every_mistake_is_in_the_list() -> None:
    page = text_of(ROOT / "docs" / "diagnose.md")
    section = page.partition("## Mistakes that are known")[2].partition("## Repair")[0]
    for name in {m.name for m in museum()}:
        stem, _, number = name.rpartition("_")
        assert name in section or (stem in section and f"_{number}" in section), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_imports_of_examples_work(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shardproof"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "shardproof":
                assert hasattr(shardproof, node.attr), ast.unparse(node)
