"""What the system may refuse the engine: AMX, pages asked for together, pages at all; and engines inside engines."""

from __future__ import annotations

import importlib
import mmap
import os
import platform
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from shardproof.errors import PackError
from shardproof.pack import gathered, native, pack_layer
from shardproof.pack import layer as layer_module
from shardproof.pack.layer import pack_ranks
from shardproof.pack.program import program
from shardproof.plan import make_plan
from tests.pack.recipes import RECIPES, model, packed, poisoned
from tests.pack.test_faults import damage
from tests.pack.threads import left_over

run = importlib.import_module("shardproof.pack.native.run")  # the package has a function of that name
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(native.library() is None, reason="needs the native engine")

REFUSE = """
    import ctypes, errno, struct

    def refuse(call, argument, value, reason):
        '''From now on the system answers a call whose argument has this value with an error.'''
        steps = [(0x20, 0, 0, 0), (0x15, 0, 3, call), (0x20, 0, 0, 16 + 8 * argument), (0x15, 0, 1, value),
                 (0x06, 0, 0, 0x00050000 | reason), (0x06, 0, 0, 0x7FFF0000)]
        filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(filters)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
"""


def _apart(script: str) -> str:
    """What a process of its own prints after calls were refused in it."""
    whole = textwrap.dedent(REFUSE) + textwrap.dedent(script)
    ended = subprocess.run(
        [sys.executable, "-c", whole],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT / "src")},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


PACKED = """
    from pathlib import Path
    import tempfile
    from shardproof.pack.layer import pack_ranks
    from shardproof.pack.memory import arena
    from shardproof.pack.native.library import has_tiles
    from shardproof.plan import make_plan
    from tests.pack.recipes import RECIPES, model

    with tempfile.TemporaryDirectory() as folder:
        made = model(Path(folder), "deepseek", experts=2, hidden=1024, intermediate=1024)
        plan = make_plan(made, RECIPES["aiter"])
        sizes = {slot: plan.placed("layers.0", plan.ranks[0], *slot).nbytes for slot in plan.fields("layers.0")}
        out = arena(sizes, huge_pages=False)
        print(has_tiles(), *pack_ranks(made, plan, "layers.0", {plan.ranks[0]: out}, fresh=True).values())
        print({slot: hash(data.tobytes()) for slot, data in out.items()})
"""
IS_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86's system calls")


@IS_X86
@pytest.mark.parametrize("reason", ["EPERM", "EINVAL", "ENOSYS"])
def test_amx_is_refused(reason):
    """In a container's filter, or by an older kernel: digests without it are the same."""
    as_ever = _apart(PACKED)
    refused = _apart(f"refuse(158, 0, 0x1023, errno.{reason})\n" + textwrap.dedent(PACKED))
    assert refused.split()[0] == "False"
    assert refused.split()[1:] == as_ever.split()[1:]


@IS_X86
def test_pages_are_not_given_together():
    """A kernel before 5.14 knows no MADV_POPULATE_WRITE: pages come by faults."""
    refused = """
        refuse(28, 2, 23, errno.EINVAL)
        page = ctypes.CDLL(None, use_errno=True)
        assert page.madvise(None, ctypes.c_size_t(0), 23) == -1
        assert ctypes.get_errno() == errno.EINVAL
    """
    assert _apart(textwrap.dedent(refused) + textwrap.dedent(PACKED)) == _apart(PACKED)


@pytest.mark.parametrize("fresh", [True, False])
def test_pages_of_the_output_that_cannot_be(tmp_path, fresh):
    """A mapped file without room behind it, as on a full disk: whether pages are asked for together or not, an error."""
    made = model(tmp_path / "in", experts=2, hidden=512, intermediate=512)
    plan = make_plan(made, RECIPES["aiter"])
    key, rank = "layers.0", plan.ranks[0]
    out = poisoned(plan, key, rank)
    with (tmp_path / "out").open("w+b") as stream:
        size = out["w2", "weight"].nbytes
        stream.truncate(size)
        out["w2", "weight"] = np.frombuffer(mmap.mmap(stream.fileno(), size), dtype=np.uint8)
        stream.truncate(4096)
        with pytest.raises(PackError) as caught:
            pack_ranks(made, plan, key, {rank: out}, fresh=fresh)
    assert caught.value.code == "pack.io"
    assert (caught.value.tensor, caught.value.rank) == ("w2.weight", rank)
    assert caught.value.found.startswith("bus error at ")
    assert left_over() == 0


class Inside:
    """Scales are put together in the callback, by an engine inside the engine; `seen`: how many were running then."""

    def __init__(self, monkeypatch, tmp_path):
        self.model = model(tmp_path, experts=6, hidden=512, intermediate=512)
        self.plan = make_plan(self.model, RECIPES["aiter"])
        self.rank = self.plan.ranks[0]
        self.seen: list[int] = []
        monkeypatch.setattr(layer_module, "stand_in_files", lambda *given: given[2][1] == "weight")
        ordinary = gathered.run_tensors

        def looking(*given):
            return ordinary(*given, meanwhile=self.look)

        monkeypatch.setattr(gathered, "run_tensors", looking)

    def look(self):
        self.seen.append(len(run._in_use))

    def pack(self, made=None):
        program.cache_clear()  # the engine starts with the first layout that is new
        out = poisoned(self.plan, "layers.0", self.rank)
        return pack_layer(made or self.model, self.plan, "layers.0", self.rank, out, threads=2), out


def test_an_engine_inside_the_engine(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        inside = Inside(patch, tmp_path)
        digest, out = inside.pack()
    assert max(inside.seen) == 2
    (wanted,), (right,) = packed(inside.model, inside.plan, "layers.0")
    assert digest == wanted
    for slot in right:
        np.testing.assert_array_equal(out[slot], right[slot], err_msg=str(slot))
    assert not run._in_use
    assert left_over() == 0


@pytest.mark.parametrize("how", ["error", "ctrl-c"])
def test_an_engine_inside_the_engine_is_stopped(tmp_path, how):
    """By an error of what it moves, or by Ctrl-C: both engines have ended, and nobody writes on."""
    with pytest.MonkeyPatch.context() as patch:
        inside = Inside(patch, tmp_path)
        made = inside.model
        if how == "error":
            made = damage(made, 3, "w1", 5, 2, 255)
        else:
            patch.setattr(inside, "look", lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises((PackError, KeyboardInterrupt)) as caught:
            inside.pack(made)
    if how == "error":
        assert (caught.value.code, caught.value.expert) == ("pack.scale_nan", 3)
    else:
        assert caught.type is KeyboardInterrupt
    assert not run._in_use
    assert run._guarded == 0
    assert left_over() == 0
