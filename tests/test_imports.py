"""What importing shardproof costs and needs, and which room may import which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardproof

SOURCE = Path(shardproof.__file__).parent
HEAVY = (
    "torch",
    "transformers",
    "triton",
    "vllm",
    "rich",
    "typer",
    "huggingface_hub",
    "accelerate",
    "gguf",
    "safetensors",
)
LIGHT_ROOMS = (
    "errors", "mxfp4", "experts", "partition", "checkpoint", "layouts", "formats", "backends", "oracle", "plan", "mistakes",
    "digest", "packed", "pack", "verify", "api",
)  # fmt: skip

# The house, from the top down: a room may import the rooms below it and no other. `shardproof/__init__.py` names them
# all for its users; every room may read the version from it.
HOUSE = (
    "__main__", "cli", "demo", "bench", "integrations", "distributed", "moe", "api", "diagnose", "verify", "kernels", "repack",
    "pack", "packed", "digest", "mistakes", "plan", "oracle", "backends", "formats", "layouts", "checkpoint", "partition",
    "experts", "mxfp4", "callable_module", "arguments", "errors",
)  # fmt: skip


def run(code: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- weight -------------------------------------------------------------------------------------------------------------

BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is not installed (blocked)")

sys.meta_path.insert(0, Blocked())
"""


def test_import_brings_nothing_heavy():
    loaded = run("import sys, shardproof; print(*sys.modules)").split()
    assert "shardproof" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {*HEAVY, "numpy", "ml_dtypes"}


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_a_room_below_the_kernels_needs_no_torch(room):
    loaded = run(f"import sys, shardproof.{room}; print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_a_verb_loads_what_it_needs_and_no_more():
    """What a first `shardproof pack` waits for: no other verb, no mail, no HTML, no numpy.ma for `np.unique`."""
    code = "import sys; from shardproof.cli import main; main(['pack', '--help']); print(*sys.modules)"
    loaded = set(run(code).splitlines()[-1].split())
    assert "shardproof.cli.pack" in loaded
    assert not loaded & {"shardproof.cli.verify", "shardproof.diagnose", "shardproof.demo"}
    code = (
        "import sys, shardproof.api, shardproof.pack\n"
        "from shardproof.pack.program import program\n"
        "for name in ('aiter.e8', 'marlin.weight'): program(name, (2, 64, 64), 0, isa=2)\n"
        "print(*sys.modules)"
    )
    assert not set(run(code).split()) & {"importlib.metadata", "email", "numpy.ma", "html"}


def test_everything_public_works_without_torch_installed():
    names = ("torch", "transformers", "triton", "huggingface_hub")
    code = BLOCKER.format(names=names) + (
        "import shardproof\n"
        "for name in shardproof.__all__: getattr(shardproof, name)\n"
        "from shardproof import verify, pack\n"
        "from shardproof.backends import detect\n"
        "print(detect())\n"
        "try:\n    import torch\nexcept ImportError as reason: print(reason)\n"
    )
    assert run(code).splitlines() == ["cpu", "torch is not installed (blocked)"]


def test_the_time_of_an_import_is_shown(capsys):
    """Best of five; printed and not judged, since machines differ."""
    code = "import time; a = time.perf_counter(); import shardproof; print(time.perf_counter() - a)"
    best = min(float(run(code)) for _ in range(5))
    with capsys.disabled():
        print(f"\nimport shardproof: {best * 1000:.1f} ms (best of 5)")


# -- direction ----------------------------------------------------------------------------------------------------------


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int]]:
    """Rooms that a file imports, also inside functions and under TYPE_CHECKING, with line numbers."""
    package = ("shardproof", *path.relative_to(SOURCE).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            home = base if node.level else node.module or ""
            names = [f"{home}.{alias.name}" for alias in node.names] if home == "shardproof" else [home]
        found += [(name.split(".")[1], node.lineno) for name in names if name.startswith("shardproof.")]
    return found


def files() -> list[Path]:
    return [p for p in sorted(SOURCE.rglob("*.py")) if p != SOURCE / "__init__.py"]


def test_every_room_stands_in_the_house():
    rooms = {room_of(path) for path in files()}
    assert rooms <= set(HOUSE), "name the new room in HOUSE, at its floor"
    assert len(HOUSE) == len(set(HOUSE))


def test_imports_only_go_down():
    level = {room: floor for floor, room in enumerate(HOUSE)}
    wrong, seen = [], 0
    for path in files():
        here = room_of(path)
        for target, line in imports(path):
            if target in level and target != here:
                seen += 1
                if level[target] <= level[here]:
                    wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {target}, which is above {here}")
    assert not wrong, "\n".join(wrong)
    assert seen > 100  # the reader of imports works


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import shardproof.plan", ["plan"]), ("from shardproof.pack.pack import x", ["pack"]),
        ("from shardproof import moe, __version__", ["moe", "__version__"]), ("from . import header", ["checkpoint"]),
        ("from .. import errors", ["errors"]), ("from ..plan.shape import Cut", ["plan"]), ("import numpy", []),
        ("def f():\n    from shardproof.verify import verify", ["verify"]),
    ],
)  # fmt: skip
def test_the_reader_of_imports(monkeypatch, text, expected):
    monkeypatch.setattr(Path, "read_text", lambda _self: text)
    assert [room for room, _ in imports(SOURCE / "checkpoint" / "made_up.py")] == expected


def top_level_imports(path: Path) -> set[str]:
    """Packages that are imported when a module is imported: not inside functions, not under TYPE_CHECKING."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
            pending.append(node)
    return found


def test_torch_is_imported_only_where_tensors_are_computed_with():
    allowed = {"kernels", "moe", "distributed", "integrations"}
    wrong = [
        str(p.relative_to(SOURCE)) for p in files() if "torch" in top_level_imports(p) and room_of(p) not in allowed
    ]
    assert not wrong
    assert any("torch" in top_level_imports(p) for p in files())
