"""Verify: finds any wrong byte and says where it comes from; names the known mistakes; refuses another checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from shardproof.checkpoint import Checkpoint
from shardproof.errors import PackedError, VerifyError
from shardproof.formats import read_experts
from shardproof.mistakes import explain, find_mistake, museum
from shardproof.pack import pack
from shardproof.packed import MANIFEST, load
from shardproof.plan import make_plan
from shardproof.verify import verify
from tests.checkpoints import make
from tests.models import AITER, GUGU, RAW, RECIPES, recipe


def opened(folder):
    return read_experts(Checkpoint.open(folder))


@pytest.fixture(scope="module", params=["deepseek", "gpt_oss"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make(folder, request.param, layers=2, experts=3, hidden=96, intermediate=160)
    return opened(folder)


def packed(model, folder, chosen=RAW, mistake=None, **options):
    plan = make_plan(model, chosen, allow_empty=True, **options)
    pack(model, plan, folder, mistake=mistake)
    return plan


def flip(folder, rank, layer, slot, at, to=None):
    """Change one byte of a packed tensor on disk; returns (found, expected)."""
    tensor = load(folder, rank).layers[layer].tensors[slot]
    writable = np.memmap(tensor.filename, dtype=np.uint8, mode="r+")
    offset = _offset(tensor)
    expected = int(writable[offset + at])
    writable[offset + at] = expected ^ 0x5A if to is None else to
    writable.flush()
    return int(writable[offset + at]), expected


def _offset(tensor) -> int:
    base = tensor
    while isinstance(base.base, np.memmap):
        base = base.base
    return tensor.ctypes.data - base.ctypes.data


# -- right ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_ranks_proves_nothing(model, tmp_path):
    packed(model, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({**manifest, "ranks": {}}))
    with pytest.raises(PackedError, match="the folder holds no rank, so there is nothing to prove") as caught:
        verify(tmp_path / "out", model)
    assert (caught.value.code, caught.value.found) == ("packed.incomplete", "0 of 1 ranks")


@pytest.mark.parametrize("chosen", RECIPES, ids=lambda r: r.backend)
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (3, 1), (2, 3), (7, 1)])
def test_what_pack_wrote_is_proven(model, tmp_path, chosen, tp, ep):
    plan = packed(model, tmp_path / "out", chosen, tp=tp, ep=ep)
    seen = []
    proof = verify(tmp_path / "out", model, report=lambda *a: seen.append(a))
    assert proof.ok
    assert proof.ranks == tuple(range(tp * ep))
    assert proof.bytes_compared == sum(plan.rank_bytes(r) for r in plan.ranks) == seen[-1][2] == seen[-1][3]
    assert len(seen) == 2 * tp * ep
    assert proof.digest == json.loads((tmp_path / "out" / MANIFEST).read_text())["digest"]
    assert f"exactly one of {tp} tensor-parallel ranks" in proof.statements[0]
    assert json.loads(json.dumps(proof.to_dict()))["ok"] is True


def test_some_ranks_are_proven_and_no_digest_is_claimed(model, tmp_path):
    pack(model, make_plan(model, RAW, tp=2), tmp_path / "out", rank_indices=[1])
    proof = verify(tmp_path / "out", model)
    assert (proof.ok, proof.ranks, proof.digest) == (True, (1,), None)


def test_replicas_are_proven_too(model, tmp_path):
    packed(model, tmp_path / "out", ep=2, placement=[[0, 1], [1, 2, 0]])
    assert verify(tmp_path / "out", model).ok
    flip(tmp_path / "out", 1, "layers.0", ("w2", "weight"), 5)  # in the second copy of expert 1
    assert not verify(tmp_path / "out", model).ok


# -- one wrong byte -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [(s, f) for s in ("w13", "w2") for f in ("weight", "scale")], ids=".".join)
def test_a_wrong_byte_is_found_and_traced_to_the_checkpoint(model, tmp_path, slot):
    """Raw layout and no padding, so that the place can be worked out by hand."""
    packed(model, tmp_path / "out", tp=5)
    stack, field = slot
    per = 16 if field == "weight" else 1
    width = 3 * per if stack == "w13" else per  # bytes a row: H = 3 blocks, I / 5 = 1 block
    rows = 64 if stack == "w13" else 96
    expert, row, column = 2, 41, width - 1
    found, expected = flip(tmp_path / "out", 3, "layers.1", slot, (expert * rows + row) * width + column)
    proof = verify(tmp_path / "out", model)
    assert not proof.ok
    (difference,) = proof.differences
    assert (difference.rank, difference.tensor) == (3, f"layers.1.experts.{stack}.{field}")
    assert (difference.wrong, difference.mistake) == (1, None)
    if stack == "w13":  # rows 32.. are w3; rank 3 holds block 3
        projection, source_row, source_column = "w3", 3 * 32 + row - 32, column
    else:
        projection, source_row, source_column = "w2", row, 3 * per + column
    name = model.layer("layers.1").sources[projection, field].name(expert)
    unit = "byte" if field == "weight" else "block"
    (line,) = difference.first
    assert f"= {name} expert 2 row {source_row} {unit} {source_column}: " in line
    assert line.endswith(f"found {found:#04x}, expected {expected:#04x}")
    assert str(difference).startswith(f"rank 3: layers.1.experts.{stack}.{field}: 1 of ")


@pytest.mark.parametrize("chosen", [AITER, GUGU], ids=lambda r: r.backend)
@pytest.mark.parametrize("slot", [(s, f) for s in ("w13", "w2") for f in ("weight", "scale")], ids=".".join)
def test_a_wrong_byte_in_a_shuffled_layout_names_the_byte_that_belongs_there(model, tmp_path, chosen, slot):
    """The trace must be right: the checkpoint byte that is named is the byte that was expected."""
    packed(model, tmp_path / "out", chosen, tp=2)
    stack, field = slot
    layer = load(tmp_path / "out", 1).layers["layers.0"]
    rng = np.random.default_rng(8)
    for at in rng.choice(layer.tensors[slot].size, 6, replace=False):
        folder = shutil.copytree(tmp_path / "out", tmp_path / f"copy{at}")
        found, expected = flip(folder, 1, "layers.0", slot, int(at))
        (difference,) = verify(folder, model).differences
        (line,) = difference.first
        assert line.startswith(f"byte {at} ")
        assert line.endswith(f"found {found:#04x}, expected {expected:#04x}")
        if "padding" in line:
            assert expected == (127 if field == "scale" else 0)
            continue
        words = line.partition(": ")[0].split()
        expert, row, column = int(words[-5]), int(words[-3]), int(words[-1])
        matching = [
            p for p in (("w1", "w3") if stack == "w13" else ("w2",))
            if model.layer("layers.0").sources[p, field].name(expert) == words[3]
        ]  # fmt: skip
        values = {
            int(model.layer("layers.0").sources[p, field].matrix(model.checkpoint, expert)[row, column])
            for p in matching
        }
        assert expected in values


@pytest.mark.parametrize("expert", range(9))
def test_one_wrong_byte_of_many_experts_is_no_mistake_of_the_museum(tmp_path, expert):
    """Two mistakes that undo each other give right bytes, so they must be held against the expert that is wrong."""
    make(tmp_path / "model", "deepseek", experts=9, hidden=64, intermediate=64)
    model = opened(tmp_path / "model")
    packed(model, tmp_path / "out")
    at = expert * 128 * 32 + 5 * 32 + 7
    flip(tmp_path / "out", 0, "layers.0", ("w13", "weight"), at)
    (difference,) = verify(tmp_path / "out", model).differences
    assert (difference.wrong, difference.mistake, difference.sentence) == (1, None, "")
    assert f"byte {at} = layers.0.ffn.experts.{expert}.w1.weight expert {expert} row 5 byte 7: " in difference.first[0]


def test_a_wrong_padding_byte_is_found(model, tmp_path):
    packed(model, tmp_path / "out", recipe(32, 128), tp=5)
    flip(tmp_path / "out", 0, "layers.0", ("w13", "scale"), 40 * 3, to=255)  # row 40 of w1's half: padding
    (difference,) = verify(tmp_path / "out", model).differences
    assert difference.first == ("byte 120 (padding of expert 0, row 40): found 0xff, expected 0x7f",)


def test_wrong_padding_of_the_layout_is_found(model, tmp_path):
    packed(model, tmp_path / "out", AITER, tp=5)
    size = load(tmp_path / "out", 0).layers["layers.0"].tensors["w2", "scale"].size
    _, expected = flip(tmp_path / "out", 0, "layers.0", ("w2", "scale"), size - 1, to=255)
    (difference,) = verify(tmp_path / "out", model).differences
    assert "padding" in difference.first[0]
    assert expected == 127


def test_a_wrong_bias_byte_is_found(tmp_path):
    make(tmp_path / "model", "gpt_oss", experts=2)
    model = opened(tmp_path / "model")
    packed(model, tmp_path / "out", tp=3)
    flip(tmp_path / "out", 1, "layers.0", ("w13", "bias"), (64 + 33) * 4 + 2)  # expert 1, second half, row 1
    (difference,) = verify(tmp_path / "out", model).differences
    assert "gate_up_proj_bias expert 1 row 33 byte 2: found" in difference.first[0]


def test_many_wrong_bytes_are_counted_and_the_first_four_shown(model, tmp_path):
    packed(model, tmp_path / "out")
    for at in range(10, 20):
        flip(tmp_path / "out", 0, "layers.0", ("w2", "weight"), at)
    flip(tmp_path / "out", 0, "layers.1", ("w13", "scale"), 0)
    one, two = verify(tmp_path / "out", model).differences
    assert (one.tensor, one.wrong, len(one.first)) == ("layers.0.experts.w2.weight", 10, 4)
    assert (two.tensor, two.wrong) == ("layers.1.experts.w13.scale", 1)


def test_a_recorded_digest_that_is_another(model, tmp_path):
    packed(model, tmp_path / "out")
    digest = str(load(tmp_path / "out").digest)
    for path in (tmp_path / "out").iterdir():
        path.write_bytes(path.read_bytes().replace(digest.encode(), b"0" * 32))
    (difference,) = verify(tmp_path / "out", model).differences
    assert difference.tensor == "(digest)"
    assert digest in difference.first[0]


# -- the checkpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"experts": 4}, {"hidden": 128}, {"intermediate": 96}, {"layers": 1}, {"config": {"swiglu_limit": 3}}],
    ids=str,
)  # fmt: skip
def test_another_model_is_refused(tmp_path, changes):
    sizes = {"layers": 2, "experts": 3, "hidden": 96, "intermediate": 160}
    make(tmp_path / "one", "deepseek", **sizes)
    make(tmp_path / "two", "deepseek", **{**sizes, **changes})
    packed(opened(tmp_path / "one"), tmp_path / "out")
    with pytest.raises(VerifyError) as caught:
        verify(tmp_path / "out", opened(tmp_path / "two"))
    error = caught.value
    assert error.code == "verify.checkpoint"
    assert error.layer == ("layers.1" if "layers" in changes else "layers.0")
    assert str(tmp_path / "one") in error.next_step


def test_the_same_shapes_with_other_weights_differ_everywhere(tmp_path):
    for seed in (1, 2):
        make(tmp_path / str(seed), "deepseek", seed=seed)
    packed(opened(tmp_path / "1"), tmp_path / "out")
    proof = verify(tmp_path / "out", opened(tmp_path / "2"))
    assert len(proof.differences) == 5  # four tensors and the digest
    assert not proof.ok


def test_a_copy_of_the_checkpoint_in_another_format_proves_it_as_well(tmp_path):
    """Identity is content: DeepSeek's names or Quark's, the bytes are the same."""
    config = {"model_type": "qwen3_moe", "swiglu_limit": None}
    for kind in ("quark", "compressed_tensors"):
        make(tmp_path / kind, kind, config=config)
    packed(opened(tmp_path / "quark"), tmp_path / "out", AITER, tp=3)
    assert verify(tmp_path / "out", opened(tmp_path / "compressed_tensors")).ok


# -- the folder -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_read(model, tmp_path):
    with pytest.raises(PackedError) as caught:
        verify(tmp_path, model)
    assert caught.value.code == "packed.not_found"


def test_a_rank_file_that_is_cut_off(model, tmp_path):
    packed(model, tmp_path / "out", tp=2)
    path = tmp_path / "out" / "rank-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackedError) as caught:
        verify(tmp_path / "out", model)
    assert caught.value.code == "packed.damaged"


def test_ranks_of_two_packings_are_not_proven_together(model, tmp_path):
    """Each file alone is right; together they do not hold the model."""
    packed(model, tmp_path / "tp", tp=2)
    packed(model, tmp_path / "ep", ep=2)
    shutil.copy(tmp_path / "ep" / "rank-00001-of-00002.safetensors", tmp_path / "tp")
    with pytest.raises(PackedError) as caught:
        verify(tmp_path / "tp", model)
    assert caught.value.code == "packed.mixed"


# -- the three mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen", "tp", "rank", "words"),
    [
        ("padded_offset", recipe(32, 128), 5, 4, "computed from the padded size 128 instead of 32"),
        ("padded_offset", AITER, 5, 1, "computed from the padded size 128 instead of 32"),
        ("deinterleaved", RAW, 1, 0, "de-interleaved (g0, u0, g1, u1, ...)"),
        ("deinterleaved", AITER, 2, 1, "de-interleaved (g0, u0, g1, u1, ...)"),
        ("wrong_shuffle", AITER, 2, 0, "aiter.w16_gugu where the kernel reads aiter.w16"),
        ("wrong_shuffle", GUGU, 2, 1, "aiter.w16 where the kernel reads aiter.w16_gugu"),
    ],
)
def test_each_mistake_is_named(model, tmp_path, name, chosen, tp, rank, words):
    packed(model, tmp_path / "out", chosen, tp=tp, mistake=find_mistake(name))
    proof = verify(tmp_path / "out", model)
    here = [d for d in proof.differences if d.rank == rank and d.tensor.startswith("layers.1")]
    assert here
    assert {d.mistake for d in here} == {name}
    weight = next(d for d in here if d.tensor.endswith("w13.weight"))
    assert words in weight.sentence
    assert "vLLM #42595" in weight.sentence
    assert "Repair: " in weight.sentence
    assert json.loads(json.dumps(proof.to_dict()))["differences"][0]["mistake"] == name


def test_a_rank_that_stayed_zero_is_called_so(model, tmp_path):
    packed(model, tmp_path / "out", recipe(32, 128), tp=5, mistake=find_mistake("padded_offset"))
    differences = [
        d for d in verify(tmp_path / "out", model).differences if d.rank == 4 and d.tensor.endswith(".weight")
    ]
    assert len(differences) == 4
    assert all("is all zero: the offset was computed" in d.sentence for d in differences)


def test_a_mistake_on_top_of_a_wrong_byte_is_not_claimed(model, tmp_path):
    packed(model, tmp_path / "out", mistake=find_mistake("deinterleaved"))
    flip(tmp_path / "out", 0, "layers.0", ("w13", "weight"), 100)
    causes = {d.tensor: d.mistake for d in verify(tmp_path / "out", model).differences}
    assert causes["layers.0.experts.w13.weight"] is None
    assert causes["layers.1.experts.w13.weight"] == "deinterleaved"


def test_a_search_in_vain_is_not_repeated(model, tmp_path, monkeypatch):
    """Of two tensors of a field without a cause the next ones learn; single mistakes, and what was found, stay."""
    searches = []

    def searching(scene, slot, *rest, most, first, **options):
        searches.append((slot, most, [m.name for combo in first for m in combo]))
        return explain(scene, slot, *rest, most=most, first=first, **options)

    monkeypatch.setattr("shardproof.verify.causes.explain", searching)
    w13, w2 = ("w13", "weight"), ("w2", "weight")
    packed(model, tmp_path / "out", tp=2, mistake=find_mistake("deinterleaved"))
    for rank, layer in ((0, "layers.0"), (0, "layers.1"), (1, "layers.0")):
        flip(tmp_path / "out", rank, layer, w13, 100)
    flip(tmp_path / "out", 1, "layers.1", w2, 100)
    causes = {(d.rank, d.tensor): d.mistake for d in verify(tmp_path / "out", model).differences}
    assert causes[1, "layers.1.experts.w13.weight"] == "deinterleaved"
    weights = [(most, names) for slot, most, names in searches if slot == w13]
    assert [most for most, _ in weights] == [3, 3, 1, 1]
    assert weights[0][1] == []
    assert weights[3][1] == ["deinterleaved"]
    assert [most for slot, most, _ in searches if slot == w2] == [3]


def test_no_mistake_in_the_museum_breaks_the_search_for_another_cause(model, tmp_path):
    """Every mistake is tried on every recipe; one that cannot be done there must not stop verify."""
    for number, chosen in enumerate([RAW, replace(AITER, align_hidden=64, align_intermediate=64)]):
        out = tmp_path / str(number)
        packed(model, out, chosen, tp=5)
        flip(out, 2, "layers.0", ("w13", "weight"), 7)
        (difference,) = verify(out, model).differences
        assert (difference.wrong, difference.mistake) == (1, None)


def test_the_museum_is_complete_and_its_mistakes_are_not_each_other():
    names = [m.name for m in museum()]
    assert {"padded_offset", "deinterleaved", "wrong_shuffle"} <= set(names)
    assert len(set(names)) == len(names)
    for mistake in museum():
        assert mistake.sentence
        assert mistake.explanation
        assert mistake.repair
