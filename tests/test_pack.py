"""Packing: every checkpoint byte lands once, at the address that a second, naive computation gives; the rest is padding."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardproof
from shardproof.checkpoint import Checkpoint
from shardproof.errors import CheckpointError, PackError
from shardproof.experts import STACKS
from shardproof.formats import ExpertModel, read_experts
from shardproof.mxfp4 import PAD_SCALE
from shardproof.pack import pack, pack_in_memory, pack_layer
from shardproof.plan import Plan, make_plan
from tests.checkpoints import make
from tests.models import AITER, GUGU, RAW, RECIPES, recipe

E, H, INTERMEDIATE = 4, 96, 160  # 5 blocks: no TP but 1 and 5 divides them
DIGITS = 250  # a tag's digit as a byte: 1..250, so that 0 (padding) is no digit; scales skip 127 as well


def opened(folder):
    return read_experts(Checkpoint.open(folder))


# -- unique tags ----------------------------------------------------------------------------------------------------


def address(field, expert, projection, shape):
    """A number for every byte of the model, different for all."""
    base = (["weight", "scale"].index(field) * E + expert) * 3 + ["w1", "w3", "w2"].index(projection)
    return base * 100_000 + np.arange(np.prod(shape)).reshape(shape)


def digit_byte(field, numbers, place):
    digit = numbers // DIGITS**place % DIGITS
    if field == "weight":
        return (digit + 1).astype(np.uint8)
    return np.where(digit < 127, digit, digit + 1).astype(np.uint8)


def tag_of(field, planes):
    """The addresses that packed bytes name; -1 for padding."""
    pad = 0 if field == "weight" else PAD_SCALE
    tags = np.zeros(planes[0].shape, np.int64)
    for place, plane in enumerate(planes):
        value = plane.astype(np.int64)
        digit = value - 1 if field == "weight" else np.where(value < 127, value, value - 1)
        tags += digit * DIGITS**place
    return np.where((np.stack(planes) == pad).all(axis=0), -1, tags)


@pytest.fixture(scope="module", params=["deepseek", "gpt_oss"])
def planes(request, tmp_path_factory):
    """The same model three times: digit 0, 1 and 2 of every byte's tag."""
    models = []
    for place in range(3):
        folder = tmp_path_factory.mktemp(f"plane{place}")
        make(folder, request.param, experts=E, hidden=H, intermediate=INTERMEDIATE,
             fill=lambda f, _l, e, p, s, place=place: digit_byte(f, address(f, e, p, s), place))  # fmt: skip
        models.append(opened(folder))
    return models


def naive(field, stack, experts, blocks, padded_hidden, padded_intermediate):
    """A rank's stack in canonical order, as tags: cut by fancy indexing of logical values, padded by np.pad."""
    per = 16 if field == "weight" else 1
    values = np.concatenate([np.arange(b * 32, b * 32 + 32) for b in blocks]) if len(blocks) else np.zeros(0, int)
    units = np.concatenate([np.arange(b * per, b * per + per) for b in blocks]) if len(blocks) else np.zeros(0, int)
    out = []
    for expert in experts:
        if stack == "w13":
            parts = []
            for projection in ("w1", "w3"):
                whole = address(field, expert, projection, (INTERMEDIATE, H // 32 * per))[values]
                rows, columns = padded_intermediate - len(values), padded_hidden // 32 * per - whole.shape[1]
                parts.append(np.pad(whole, ((0, rows), (0, columns)), constant_values=-1))
            out.append(np.concatenate(parts))
        else:
            whole = address(field, expert, "w2", (H, INTERMEDIATE // 32 * per))[:, units]
            rows, columns = padded_hidden - H, padded_intermediate // 32 * per - whole.shape[1]
            out.append(np.pad(whole, ((0, rows), (0, columns)), constant_values=-1))
    return np.stack(out)


@pytest.mark.parametrize("chosen", [RAW, recipe(128, 64), AITER, GUGU], ids=["raw", "raw padded", "aiter", "gugu"])
@pytest.mark.parametrize("tp", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("ep", [1, 3])
def test_every_byte_lands_once_where_it_belongs(planes, chosen, tp, ep):
    plan = make_plan(planes[0], chosen, tp=tp, ep=ep, allow_empty=True)
    blocks = np.array_split(np.arange(INTERMEDIATE // 32), tp)
    owners = np.array_split(np.arange(E), ep)
    shape = plan.shape("layers.0")
    landed = []
    for rank in plan.ranks:
        packed = [pack_in_memory(model, plan, rank).layers["layers.0"] for model in planes]
        for stack in STACKS:
            for field in ("weight", "scale"):
                tags = tag_of(field, [p.canonical(stack, field) for p in packed])
                expected = naive(
                    field, stack, owners[rank.ep_rank], blocks[rank.tp_rank], shape.hidden, shape.intermediate
                )
                assert np.array_equal(tags, expected), (rank, stack, field)
                landed.append(tags[tags >= 0])
                if chosen.backend == "test_raw":  # canonical order itself: no inverse of ours is involved
                    flat = [p.tensors[stack, field] for p in packed]
                    assert np.array_equal(tag_of(field, flat), expected.ravel())
    everything = np.concatenate(landed)
    total = E * 3 * H * INTERMEDIATE
    assert len(np.unique(everything)) == len(everything) == total // 2 + total // 32


@pytest.mark.parametrize("chosen", [AITER, GUGU], ids=lambda r: r.backend)
def test_padding_of_the_layout_itself_is_declared(planes, chosen):
    """All bytes that no canonical byte maps to hold 127 or 0: count them."""
    plan = make_plan(planes[0], chosen, tp=2)
    packed = pack_in_memory(planes[0], plan, plan.ranks[1]).layers["layers.0"]
    for (stack, field), held in packed.tensors.items():
        if field == "bias":
            continue
        canonical = packed.canonical(stack, field)
        pad = PAD_SCALE if field == "scale" else 0
        assert (held == pad).sum() == held.size - (canonical != pad).sum()


# -- poison -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [0x77, 0xFF, 0x00])
@pytest.mark.parametrize("chosen", RECIPES, ids=lambda r: r.backend)
def test_every_byte_of_the_destination_is_written(tmp_path, chosen, poison):
    make(tmp_path, "gpt_oss", experts=3, hidden=H, intermediate=INTERMEDIATE)
    model = opened(tmp_path)
    plan = make_plan(model, chosen, tp=7, allow_empty=True)
    for rank in (plan.ranks[0], plan.ranks[6]):  # the last one has no block at all
        clean = pack_in_memory(model, plan, rank).layers["layers.0"].tensors
        dirty = {slot: np.full(held.size, poison, np.uint8) for slot, held in clean.items()}
        pack_layer(model, plan, "layers.0", rank, dirty)
        for slot, held in clean.items():
            assert np.array_equal(held, dirty[slot]), slot


def test_an_empty_rank_is_padding_throughout(tmp_path):
    make(tmp_path, "gpt_oss", hidden=H, intermediate=INTERMEDIATE)
    model = opened(tmp_path)
    plan = make_plan(model, AITER, tp=6, allow_empty=True)
    packed = pack_in_memory(model, plan, plan.ranks[5]).layers["layers.0"]
    for (_, field), held in packed.tensors.items():
        assert (held == (PAD_SCALE if field == "scale" else 0)).all()
    assert packed.valid == 0


# -- biases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_biases_are_cut_like_rows_and_counted_once(tmp_path, tp):
    made = make(tmp_path, "gpt_oss", hidden=H, intermediate=INTERMEDIATE)
    model = opened(tmp_path)
    plan = make_plan(model, recipe(128, 128), tp=tp)
    w13, w2 = [], []
    for rank in plan.ranks:
        layer = pack_in_memory(model, plan, rank).layers["layers.0"]
        halves = layer.tensors["w13", "bias"].view(np.float32).reshape(E, 2, -1)
        assert not halves[:, :, layer.valid :].any()
        w13.append(halves[:, :, : layer.valid])
        w2.append(layer.tensors["w2", "bias"].view(np.float32).reshape(E, -1))
    gate_up = np.concatenate(w13, axis=2)
    for expert in range(E):
        assert np.array_equal(gate_up[expert, 0], made.bias["layers.0", expert, "w1"])
        assert np.array_equal(gate_up[expert, 1], made.bias["layers.0", expert, "w3"])
        assert np.array_equal(sum(w2)[expert, :H], made.bias["layers.0", expert, "w2"])
    assert not any(part.any() for part in w2[1:])


def test_bfloat16_biases(tmp_path):
    made = make(tmp_path, "gpt_oss")
    model = opened(tmp_path)
    plan = make_plan(model, recipe(bias_dtype="bfloat16"))
    raw = pack_in_memory(model, plan, plan.ranks[0]).layers["layers.0"].tensors["w2", "bias"]
    found = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(4, 64)
    assert np.array_equal(found[2], made.bias["layers.0", 2, "w2"])


# -- experts ----------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_explicit_maps_and_replicas(planes, data):
    rows = data.draw(st.lists(st.permutations(range(E)).map(lambda p: p[:3]), min_size=2, max_size=4))
    if set().union(*rows) != set(range(E)):
        rows.append(list(range(E)))
    plan = make_plan(planes[0], RAW, ep=len(rows), placement=rows)
    for rank in plan.ranks:
        packed = [pack_in_memory(model, plan, rank).layers["layers.0"] for model in planes]
        tags = tag_of("scale", [p.canonical("w2", "scale") for p in packed])
        assert np.array_equal(tags, np.stack([address("scale", e, "w2", (H, 5)) for e in rows[rank.ep_rank]]))


# -- a scale that is NaN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "projection"), [("deepseek", "w1"), ("deepseek", "w2"), ("gpt_oss", "w3")])
def test_scale_byte_255_is_named(tmp_path, kind, projection):
    def fill(field, layer, expert, which, shape):
        out = np.full(shape, 120, np.uint8)
        if (field, layer, expert, which) == ("scale", "layers.0", 2, projection):
            out[37, 1] = 255
        return out

    made = make(tmp_path / "model", kind, fill=fill)
    model = opened(made.folder)
    with pytest.raises(PackError) as caught:
        pack(model, make_plan(model, AITER, tp=3), tmp_path / "out")
    error = caught.value
    assert (error.code, error.layer, error.expert) == ("pack.scale_nan", "layers.0", 2)
    assert error.found == f"255 at row 37, block 1 of {projection}"
    assert error.tensor.endswith({"deepseek": f"experts.2.{projection}.scale", "gpt_oss": "gate_up_proj_scales"}[kind])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_scale_bytes_0_and_254_are_data(tmp_path):
    make(tmp_path, "quark", fill=lambda f, _l, e, _p, s: np.full(s, 254 * (e % 2) if f == "scale" else 3, np.uint8))
    model = opened(tmp_path)
    plan = make_plan(model, RAW)
    held = pack_in_memory(model, plan, plan.ranks[0]).layers["layers.0"].canonical("w13", "scale")
    assert [set(np.unique(part)) for part in held] == [{0}, {254}, {0}, {254}]


class Job(NamedTuple):
    """A model, a plan, and where the output goes."""

    model: ExpertModel
    plan: Plan
    out: Path


# -- the folder -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """A small model, its plan on two ranks, and where the output goes."""
    make(tmp_path / "model", "deepseek", layers=2)
    model = opened(tmp_path / "model")
    return Job(model, make_plan(model, AITER, tp=2), tmp_path / "deep" / "out")


def nothing_left(out: Path) -> bool:
    return not out.exists() and (not out.parent.exists() or not list(out.parent.iterdir()))


def test_all_ranks_and_nothing_else(job):
    digests = pack(job.model, job.plan, job.out)
    assert sorted(digests) == [0, 1]
    assert sorted(p.name for p in job.out.iterdir()) == [
        "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "shardproof.json",
    ]  # fmt: skip
    assert [p.name for p in job.out.parent.iterdir()] == ["out"]


def test_some_ranks(job):
    pack(job.model, job.plan, job.out, rank_indices=[1])
    manifest = json.loads((job.out / "shardproof.json").read_text())
    assert list(manifest["ranks"]) == ["rank-00001-of-00002.safetensors"]
    assert manifest["digest"] is None


@pytest.mark.parametrize("index", [-1, 2])
def test_a_rank_that_is_not_there(job, index):
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out, rank_indices=[0, index])
    assert (caught.value.code, caught.value.rank, caught.value.needed) == ("pack.rank", index, "0..1")
    assert nothing_left(job.out)


def test_progress_is_told_to_the_last_byte(job):
    seen = []
    pack(job.model, job.plan, job.out, report=seen.append)
    assert [(p.rank.index, p.layer) for p in seen] == [(r, f"layers.{n}") for n in range(2) for r in range(2)]
    done = [p.done_bytes for p in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == sum(job.plan.rank_bytes(r) for r in job.plan.ranks)


@pytest.mark.parametrize("what", ["a file inside", "a hidden file inside", "a file"])
def test_an_output_that_is_there_already(job, what):
    job.out.parent.mkdir()
    if what == "a file":
        job.out.write_text("mine")
    else:
        job.out.mkdir()
        (job.out / (".x" if "hidden" in what else "x")).write_text("mine")
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out)
    assert (caught.value.code, caught.value.file) == ("pack.not_empty", job.out)
    assert [p.read_text() for p in job.out.parent.rglob("*") if p.is_file()] == ["mine"]


def test_an_empty_folder_is_filled(job):
    job.out.mkdir(parents=True)
    pack(job.model, job.plan, job.out)
    assert len(list(job.out.iterdir())) == 3


@pytest.mark.parametrize("harm", ["cut off", "gone"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_rank_file_that_was_harmed_is_written_again(job, harm, tp):
    """That they were there already must be true of bytes, not of names; with tp 1 no rank is left but the manifest."""
    plan = make_plan(job.model, AITER, tp=tp)
    pack(job.model, plan, job.out)
    path = job.out / f"rank-{tp - 1:05d}-of-{tp:05d}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if harm == "cut off":
        path.write_bytes(whole[:-1])
    assert sorted(pack(job.model, plan, job.out)) == list(range(tp))
    assert path.read_bytes() == whole
    assert [p.name for p in job.out.parent.iterdir()] == ["out"]


def test_a_mount_point_is_refused_before_any_work(job, monkeypatch):
    """It cannot be renamed to, and a part folder beside it would lie on another disk."""
    job.out.mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == job.out)
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out)
    assert (caught.value.code, caught.value.next_step) == ("pack.mount_point", f"write to {job.out / 'packed'}")
    assert list(job.out.parent.iterdir()) == [job.out]


@pytest.mark.parametrize("name", [".", "", "/"])
def test_an_output_without_a_name_of_its_own(job, monkeypatch, name):
    monkeypatch.chdir(job.model.checkpoint.root)
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, name)
    assert caught.value.code == "pack.not_empty"


class Stop(BaseException):
    """An interruption that no handler may swallow."""


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stop, MemoryError])
def test_an_interruption_can_be_taken_up_and_an_error_leaves_nothing(job, stop):
    def interrupt(progress):
        if progress.layer == "layers.1":
            raise stop

    with pytest.raises(stop):
        pack(job.model, job.plan, job.out, report=interrupt)
    assert not job.out.exists()
    if stop is MemoryError:
        assert nothing_left(job.out)
    seen = []
    pack(job.model, job.plan, job.out, report=seen.append)
    assert bool(seen) == (stop is MemoryError)
    assert [path.name for path in job.out.parent.iterdir()] == [job.out.name]


def test_ctrl_c_in_a_process_of_its_own(job):
    code = (
        "import sys, os, signal\n"
        "from shardproof.checkpoint import Checkpoint\nfrom shardproof.formats import ExpertModel, read_experts\n"
        "from shardproof.plan import Plan, make_plan\nfrom shardproof.pack import pack\nfrom tests.models import AITER\n"
        "model = read_experts(Checkpoint.open(sys.argv[1]))\n"
        "pack(model, make_plan(model, AITER, tp=2), sys.argv[2], report=lambda p: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    paths = [str(Path(shardproof.__file__).parents[1]), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", code, str(job.model.checkpoint.root), str(job.out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not job.out.exists()
    seen = []
    pack(job.model, job.plan, job.out, report=seen.append)
    assert {p.layer for p in seen} == {"layers.1"}, "the first layer was complete"


def test_a_full_disk_is_refused_before_any_work(job, monkeypatch):
    needed = sum(job.plan.rank_bytes(r) for r in job.plan.ranks)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=needed - 1))
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out)
    error = caught.value
    assert (error.code, error.found) == ("pack.disk_full", f"{needed - 1} bytes free")
    assert error.needed == f"{needed} bytes"
    assert "--ranks" in error.next_step
    assert nothing_left(job.out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_on_the_way(job, monkeypatch, number):
    real, calls = os.posix_fallocate, []

    def full(descriptor, offset, length):
        calls.append(length)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out)
    assert (caught.value.code, caught.value.found) == ("pack.disk_full", "no space left")
    assert len(calls) == 2
    assert nothing_left(job.out)


def test_a_limit_on_file_sizes(job):
    """The kernel itself refuses: RLIMIT_FSIZE below a rank's size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(PackError) as caught:
            pack(job.model, job.plan, job.out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.code, caught.value.found) == ("pack.io", os.strerror(errno.EFBIG))
    assert nothing_left(job.out)


def test_a_plan_of_another_checkpoint(job, tmp_path):
    """Of the same sizes it would pack, and claim to be of the first; of others it would read beyond them."""
    key, rank = next(iter(job.plan.layers)), job.plan.ranks[0]
    make(tmp_path / "quark", "quark")
    make(tmp_path / "small", "deepseek", hidden=32, intermediate=32)
    for name in ("quark", "small"):
        other = read_experts(Checkpoint.open(tmp_path / name))
        for call in (
            lambda m=other: pack(m, job.plan, job.out), lambda m=other: pack_in_memory(m, job.plan, rank),
            lambda m=other: pack_layer(m, job.plan, key, rank, {}),
        ):  # fmt: skip
            with pytest.raises(PackError) as caught:
                call()
            assert caught.value.code == "pack.plan"
    assert not job.out.exists()


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long(job, length):
    """Of the folder itself, or only of the part folder that grows beside it."""
    out = job.out.parent / ("n" * length)
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, out)
    assert (caught.value.code, caught.value.found) == ("pack.io", os.strerror(errno.ENAMETOOLONG))
    assert not job.out.parent.exists() or not list(job.out.parent.iterdir())


def test_a_parent_that_cannot_be_made(job):
    (job.out.parent).write_text("a file where a folder should be")
    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out)
    assert caught.value.code == "pack.io"


def test_a_checkpoint_that_changes_meanwhile(job):
    path = job.model.checkpoint.paths[0]

    def touch(progress):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    with pytest.raises(CheckpointError) as caught:
        pack(job.model, job.plan, job.out, report=touch)
    assert (caught.value.code, caught.value.file) == ("checkpoint.changed", path)
    assert nothing_left(job.out)


def test_another_process_that_was_faster(job):
    """Both saw an empty place; the second must not touch what the first wrote."""

    def other_wins(progress):
        job.out.mkdir(exist_ok=True)
        (job.out / "theirs").write_text("theirs")

    with pytest.raises(PackError) as caught:
        pack(job.model, job.plan, job.out, report=other_wins)
    assert caught.value.code == "pack.not_empty"
    assert [p.name for p in job.out.parent.rglob("*")] == ["out", "theirs"]


def test_memory_and_file_are_the_same_bytes(job):
    from shardproof.packed import load

    pack(job.model, job.plan, job.out)
    for rank in job.plan.ranks:
        in_memory, on_disk = pack_in_memory(job.model, job.plan, rank), load(job.out, rank.index)
        assert in_memory.digest == on_disk.digest
        for key, layer in in_memory.layers.items():
            for slot, held in layer.tensors.items():
                assert np.array_equal(held, on_disk.layers[key].tensors[slot])
