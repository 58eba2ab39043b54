"""The exception tree, its wording, and the page that explains every code."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardproof
from shardproof import errors
from shardproof.errors import EXIT_FINDING, EXIT_FINE, EXIT_REFUSED, ShardproofError
from shardproof.partition import Rank

SOURCE = Path(shardproof.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
ROOMS = (
    "argument",
    "checkpoint",
    "format",
    "partition",
    "plan",
    "layout",
    "backend",
    "pack",
    "packed",
    "verify",
    "diagnose",
    "kernel",
    "system",
)
CODE = re.compile(rf"(?:{'|'.join(ROOMS)})\.[a-z][a-z0-9_]*")


def test_the_tree_that_is_drawn_is_the_tree_that_is():
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"(?P<branch>    (?:[│ ]   )*(?:[├└]── )?)(?P<name>\w+(?:Error|Exception))\b", line)
        if match:
            depth = (len(match["branch"]) - 4) // 4
            del parents[depth:]
            drawn[match["name"]] = parents[-1] if parents else "Exception"
            parents.append(match["name"])
    assert drawn == {name: kind.__base__.__name__ for name, kind in CLASSES.items()}


def test_every_class_says_what_it_is_for():
    assert all(kind.__doc__ and kind.__doc__.endswith(".") for kind in CLASSES.values() if kind is not ShardproofError)


def full() -> ShardproofError:
    return errors.PackError(
        "pack.scale_nan", "a scale byte is 255", file=Path("m/x.safetensors"), tensor="t", layer="layers.3", expert=0,
        rank=Rank(1, 0, 2, 1), found=255, needed="bytes 0..254", next_step="quantise it again",
    )  # fmt: skip


def test_wording():
    assert str(full()) == (
        "[pack.scale_nan] a scale byte is 255\n"
        "  file: m/x.safetensors\n"
        "  tensor: t\n"
        "  layer: layers.3\n"
        "  expert: 0\n"
        "  rank: 1 of 2 (tp 1/2, ep 0/1)\n"
        "  found: 255\n"
        "  needed: bytes 0..254\n"
        "  next: quantise it again"
    )
    assert str(ShardproofError("a.b", "it is so")) == "[a.b] it is so"


def test_a_zero_is_a_value():
    assert ShardproofError("a.b", "x", expert=0, found=0).fields() == {"expert": "0", "found": "0"}


def test_as_data():
    data = json.loads(json.dumps(full().to_dict()))
    assert data == {
        "code": "pack.scale_nan", "what": "a scale byte is 255", "file": "m/x.safetensors", "tensor": "t",
        "layer": "layers.3", "expert": "0", "rank": "1 of 2 (tp 1/2, ep 0/1)", "found": "255", "needed": "bytes 0..254",
        "next_step": "quantise it again",
    }  # fmt: skip


def test_through_a_process_boundary():
    again = pickle.loads(pickle.dumps(full()))
    assert type(again) is errors.PackError
    assert again.__dict__ == full().__dict__
    assert str(again) == str(full())


@pytest.mark.parametrize("kind", CLASSES.values(), ids=list(CLASSES))
def test_one_except_catches_all(kind):
    with pytest.raises(ShardproofError):
        raise kind("a.b", "x")


def test_exit_codes():
    assert (EXIT_FINE, EXIT_FINDING, EXIT_REFUSED) == (0, 1, 2)
    assert {kind.exit_code for kind in CLASSES.values()} == {EXIT_REFUSED}


# -- codes --------------------------------------------------------------------------------------------------------------


def errors_made() -> Iterator[tuple[str, ast.Call]]:
    """Every call of an exception class in the source, with the place where it stands."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES and node.args:
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def strings() -> dict[str, set[str]]:
    """Every string constant of the source that reads like a code, with the files it stands in."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found.setdefault(node.value, set()).add(path.name)
    return found


def explained() -> list[str]:
    return re.findall(r"^\| `([a-z_0-9.]+)` \|", PAGE.read_text(), flags=re.MULTILINE)


def test_every_code_is_explained():
    missing = {code: sorted(files) for code, files in strings().items() if code not in explained()}
    assert not missing, "add a line to docs/errors.md"
    assert len(strings()) > 80  # the search itself works


def test_explanations_are_complete_sorted_and_of_known_rooms():
    codes = explained()
    assert len(set(codes)) == len(codes)
    assert all(CODE.fullmatch(code) for code in codes)
    for section in PAGE.read_text().split("\n## ")[1:]:
        here = re.findall(r"^\| `([a-z_0-9.]+)` \|", section, flags=re.MULTILINE)
        assert here == sorted(here)
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 3, line
            assert all(cells), line


def test_codes_are_written_out_so_that_they_can_be_found():
    """No code is put together from parts, and each class raises codes of its own rooms."""
    own = {
        "ArgumentError": ("argument",),
        "CheckpointError": ("checkpoint",), "FormatError": ("format",), "PartitionError": ("partition", "plan"),
        "LayoutError": ("layout",), "BackendError": ("backend",), "PackError": ("pack",), "PackedError": ("packed",),
        "VerifyError": ("verify",), "DiagnoseError": ("diagnose",), "KernelError": ("kernel",),
    }  # fmt: skip
    assert set(own) == set(CLASSES) - {"ShardproofError"}
    raised = 0
    for place, node in errors_made():
        code = node.args[0]
        assert not isinstance(code, ast.JoinedStr), place
        if isinstance(code, ast.Constant) and node.func.id in own:
            raised += 1
            assert code.value.partition(".")[0] in own[node.func.id], f"{place}: {code.value}"
    assert raised > 80


def test_every_error_says_the_next_step():
    without = []
    for place, node in errors_made():
        steps = [keyword.value for keyword in node.keywords if keyword.arg == "next_step"]
        parts = [part for step in steps for part in ast.walk(step)]
        if not steps or any(isinstance(part, ast.Constant) and part.value is None for part in parts):
            without.append(place)
    assert not without
