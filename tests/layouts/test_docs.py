"""The documentation of the layouts is what the code says, and its examples run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import shardproof
from shardproof.layouts.registry import everything
from shardproof.layouts.shown.describe import renewed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_catalogue_table_is_up_to_date():
    text = (DOCS / "layouts.md").read_text(encoding="utf-8")
    assert text == renewed(text), "run python docs/generate_layouts.py"
    for layout in everything():
        assert f"| `{layout.name}@{layout.version}` |" in text


def test_the_pictures_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from generate_layouts import drawings

    for path, text in drawings().items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/generate_layouts.py"


def test_pictures_named_in_the_page_exist():
    for name in re.findall(r"\]\((pictures/[^)]+)\)", (DOCS / "layouts.md").read_text(encoding="utf-8")):
        assert (DOCS / name).stat().st_size > 500


def test_the_python_of_the_page_runs():
    (code,) = blocks("layouts.md", "python")
    exec(compile(code, "docs/layouts.md", "exec"), {})


def test_the_commands_of_the_page_are_understood(capsys, tmp_path, monkeypatch):
    import numpy as np

    from shardproof.cli import main

    monkeypatch.chdir(tmp_path)
    np.save("canonical.npy", np.zeros((2, 32, 32), dtype=np.uint8))
    lines = [
        line for block in blocks("layouts.md", "") for line in block.splitlines() if line.startswith("shardproof ")
    ]
    assert len(lines) == 7
    for line in lines:
        assert main(line.split()[1:]) == 0, line
    capsys.readouterr()


def test_a_made_up_layout_needs_one_file_and_no_other_edit(tmp_path):
    (code,) = blocks("how-to-add-a-layout.md", "python")
    assert len(code.splitlines()) < 40
    shutil.copytree(
        Path(shardproof.__file__).parent, tmp_path / "shardproof", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (tmp_path / "shardproof" / "layouts" / "acme.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "layouts")])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "acme",
        "tests/layouts/test_every_layout.py",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 3 * 7
    listed = "import sys; from shardproof.cli import main; sys.exit(main(['layouts', 'list']))"
    shown = subprocess.run([sys.executable, "-c", listed], env=environment, capture_output=True, text=True, check=True)
    assert "acme.w13@1" in shown.stdout
    refused = "from shardproof.layouts import find; find('acme.w2')[0].place((2, 20, 32))"
    fails = subprocess.run(
        [sys.executable, "-c", refused], env=environment, capture_output=True, text=True, check=False
    )
    assert "N a multiple of 8: 16 or 24" in fails.stderr
