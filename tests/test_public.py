"""What is public: named, sorted, there, typed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import shardproof

SOURCE = Path(shardproof.__file__).parent
ROOMS = ("backends", "checkpoint", "formats", "layouts", "mistakes", "pack", "plan")


def test_public_names_are_sorted_and_there():
    assert shardproof.__all__ == sorted(shardproof.__all__)
    for name in shardproof.__all__:
        assert getattr(shardproof, name) is not None
        assert name in dir(shardproof)
    assert "ShardproofError" in shardproof.__all__


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shardproof.nothing


def test_what_type_checkers_see_is_what_is_there():
    text = (SOURCE / "__init__.py").read_text().partition("if TYPE_CHECKING:")[2].partition("\n\n")[0]
    seen = {n.strip() for line in re.findall(r"import (.+)", text) for n in line.split(",")}
    assert seen == set(shardproof.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_offers(room):
    module = importlib.import_module(f"shardproof.{room}")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert module.__doc__


def test_everything_public_is_documented():
    for name in shardproof.__all__:
        assert inspect.getdoc(getattr(shardproof, name)), name
    for room in ROOMS:
        module = importlib.import_module(f"shardproof.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert inspect.getdoc(value), f"{room}.{name}"


def test_the_package_is_typed():
    assert (SOURCE / "py.typed").exists()


def test_the_version_is_the_projects():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == shardproof.__version__
    assert project["scripts"] == {"shardproof": "shardproof.cli:main"}


def test_verbs_are_there_whatever_was_imported_first():
    """`shardproof.verify` is a module and a function at once, so import order must not matter."""
    import subprocess

    for first in ("shardproof.verify", "shardproof.pack", "shardproof.cli", "shardproof.moe"):
        verbs = ", ".join(f"callable(shardproof.{verb})" for verb in ("verify", "pack", "diagnose", "moe"))
        code = f"import {first}, shardproof; print({verbs})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(SOURCE.parent)},
        )
        assert done.stdout.split() == ["True"] * 4, done.stderr


def test_no_drawer_for_odds_and_ends():
    names = {m.name.rpartition(".")[2] for m in pkgutil.walk_packages([str(SOURCE)], "shardproof.")}
    assert not names & {"utils", "helpers", "common", "misc"}
