"""The layer from packed experts: sums over ranks, metamorphic truths, choice of an implementation, refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from shardproof.errors import KernelError
from shardproof.kernels import implementation as registry
from shardproof.kernels.implementation import Implementation, implementations
from shardproof.moe import PreparedLayer, moe, served_ids
from tests.checkpoints import make
from tests.layers import INTERLEAVED, RAW, SEPARATED, by_hand, close, inputs, pack_ranks

KINDS = ("deepseek", "gpt_oss", "quark", "compressed_tensors")


@pytest.fixture(params=KINDS)
def ckpt(request, tmp_path):
    return make(tmp_path / "ckpt", request.param, intermediate=192)


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (2, 2), (3, 4)])
def test_all_ranks_together_are_the_layer(ckpt, tp, ep):
    for recipe in (RAW, SEPARATED):
        ranks = pack_ranks(ckpt.folder, recipe, tp=tp, ep=ep)
        x, ids, weights = inputs(6, ranks[0].spec)
        assert close(moe(x, ranks, ids, weights), by_hand(ckpt, ranks[0].spec, x, ids, weights))


def test_one_rank_alone_is_not_the_layer(ckpt):
    """Each rank's part is needed: leave one out and the sum is wrong."""
    ranks = pack_ranks(ckpt.folder, tp=2, ep=2)
    x, ids, weights = inputs(12, ranks[0].spec)
    parts = [moe(x, rank, ids, weights) for rank in ranks]
    whole = by_hand(ckpt, ranks[0].spec, x, ids, weights)
    assert close(sum(parts), whole)
    for left_out in range(4):
        assert not close(sum(p for i, p in enumerate(parts) if i != left_out), whole, relative=1e-2)


def test_w2_bias_is_counted_once(tmp_path):
    """With x = 0 and b1 = b3 = 0 away, what is left must not grow with the number of ranks."""
    made = make(tmp_path / "ckpt", "gpt_oss")
    one, three = pack_ranks(tmp_path / "ckpt"), pack_ranks(tmp_path / "ckpt", tp=3)
    _, ids, weights = inputs(4, one[0].spec)
    x = torch.zeros(4, one[0].spec.hidden)
    assert max(abs(b).max() for key, b in made.bias.items() if key[2] == "w2") > 1
    assert close(moe(x, three, ids, weights), moe(x, one, ids, weights))
    assert all(rank.canonical("w2", "bias").any() == (rank.rank.tp_rank == 0) for rank in three)


def test_a_guessed_activation_is_said_once(tmp_path):
    """Without a config nobody knows what the layer computes; packing notes it, and so does running it."""
    made = make(tmp_path / "ckpt", "deepseek")
    (made.folder / "config.json").unlink()
    layer = pack_ranks(made.folder)[0]
    call = inputs(2, layer.spec)
    said = r"ckpt had no config.json .* activation \(silu.*\) and the routing weight"
    with pytest.warns(RuntimeWarning, match=said):
        moe(call[0], layer, *call[1:])
    moe(call[0], layer, *call[1:])  # a warning here is an error


def test_renaming_experts_changes_nothing(ckpt, tmp_path):
    """The same matrices under other ids, with ids renamed alike, give the same tokens."""
    ranks = pack_ranks(ckpt.folder, INTERLEAVED, tp=2)
    x, ids, weights = inputs(6, ranks[0].spec)
    order = [2, 0, 3, 1]
    placed = pack_ranks(ckpt.folder, INTERLEAVED, tp=2, placement=[order])
    assert placed[0].experts == tuple(order)
    assert (placed[0].tensors["w2", "weight"] != ranks[0].tensors["w2", "weight"]).any()
    assert close(moe(x, placed, ids, weights), moe(x, ranks, ids, weights))


def test_order_of_slots_and_tokens_does_not_matter(ckpt):
    (layer,) = pack_ranks(ckpt.folder)
    x, ids, weights = inputs(6, layer.spec)
    result = moe(x, layer, ids, weights)
    assert close(moe(x, layer, ids.flip(1), weights.flip(1)), result)
    assert close(moe(x.flip(0), layer, ids.flip(0), weights.flip(0)).flip(0), result)
    assert close(torch.cat([moe(x[i : i + 1], layer, ids[i : i + 1], weights[i : i + 1]) for i in range(6)]), result)


def test_swapping_two_experts_changes_the_tokens_that_use_them(ckpt):
    (layer,) = pack_ranks(ckpt.folder)
    x, ids, weights = inputs(8, layer.spec)
    swapped = torch.tensor([1, 0, 2, 3])[ids]
    used = (ids < 2).any(1)
    before, after = moe(x, layer, ids, weights), moe(x, layer, swapped, weights)
    assert used.any()
    assert not used.all()
    assert torch.equal(before[~used], after[~used])
    assert ((before[used] - after[used]).abs().amax(1) > 0).all()


@pytest.mark.parametrize("tp", [1, 2])
def test_replicas_are_counted_once(ckpt, tp):
    owners = [[0, 1, 3], [2, 3, 0], [3]]
    ranks = pack_ranks(ckpt.folder, tp=tp, ep=3, placement=owners)
    x, ids, weights = inputs(9, ranks[0].spec)
    assert close(moe(x, ranks, ids, weights), by_hand(ckpt, ranks[0].spec, x, ids, weights))
    served = torch.stack([served_ids(rank, ids) == 3 for rank in ranks if rank.rank.tp_rank == 0])
    held = torch.tensor([3 in row for row in owners])
    assert held.all()
    assert torch.equal(served.sum(0), (ids == 3).long())
    assert (served.sum((1, 2)) > 0).all()  # the load is shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_dtypes(tmp_path, dtype, id_dtype):
    make(tmp_path / "ckpt", "deepseek")
    ranks = pack_ranks(tmp_path / "ckpt", tp=2)
    x, ids, weights = inputs(3, ranks[0].spec)
    x = (x / 1024).to(dtype)
    found = moe(x, ranks, ids.to(id_dtype), weights.to(dtype))
    assert found.dtype == dtype
    exact = moe(x.float(), ranks, ids, weights.to(dtype).float())
    assert torch.equal(found, exact.to(dtype))  # rounded once, after the sum over ranks


def test_no_tokens(ckpt):
    ranks = pack_ranks(ckpt.folder, tp=2, ep=2)
    x, ids, weights = inputs(1, ranks[0].spec)
    for packed in (ranks, ranks[0]):
        assert moe(x[:0].bfloat16(), packed, ids[:0], weights[:0]).shape == (0, 64)
    assert moe(x, ranks, ids[:, :0], weights[:, :0]).count_nonzero() == 0


def test_padded_tokens_are_skipped(ckpt):
    (layer,) = pack_ranks(ckpt.folder)
    x, ids, weights = inputs(3, layer.spec)
    ids[1] = -1
    found = moe(x, layer, ids, weights)
    assert found[1].count_nonzero() == 0
    assert close(found, by_hand(ckpt, layer.spec, x, ids, weights))


def refusal(code, *arguments, **options) -> KernelError:
    with pytest.raises(KernelError) as caught:
        moe(*arguments, **options)
    assert caught.value.code == code
    return caught.value


class TestRefusals:
    @pytest.fixture
    def layer(self, tmp_path):
        make(tmp_path / "ckpt", "deepseek")
        return pack_ranks(tmp_path / "ckpt")[0]

    def test_dtypes(self, layer):
        x, ids, weights = inputs(2, layer.spec)
        error = refusal("kernel.dtype", x.double(), layer, ids, weights)
        assert (error.tensor, error.found) == ("x", torch.float64)
        assert refusal("kernel.dtype", x, layer, ids.float(), weights).tensor == "topk_ids"
        assert refusal("kernel.dtype", x, layer, ids, ids).tensor == "topk_weights"

    def test_shapes(self, layer):
        x, ids, weights = inputs(2, layer.spec)
        error = refusal("kernel.shape", torch.zeros(2, layer.shape.hidden), layer, ids, weights)
        assert str(error) == (
            "[kernel.shape] x does not fit the layer\n  tensor: x\n  layer: layers.0\n  found: (2, 256)\n"
            "  needed: [M, 64]\n  next: give the model's own H: padding is inside"
        )
        assert "flatten" in refusal("kernel.shape", x[None], layer, ids, weights).next_step
        assert refusal("kernel.shape", x, layer, ids[:1], weights).tensor == "topk_ids"
        assert refusal("kernel.shape", x, layer, ids, weights[:, :1]).tensor == "topk_weights"
        assert refusal("kernel.shape", x, layer, ids[0], weights).tensor == "topk_ids"

    @pytest.mark.parametrize("bad", [4, -2, 2**40])
    def test_expert_ids(self, layer, bad):
        x, ids, weights = inputs(3, layer.spec)
        ids[2, 1] = bad
        error = refusal("kernel.expert_id", x, layer, ids, weights)
        assert (error.tensor, error.expert, error.layer) == ("topk_ids[2, 1]", bad, "layers.0")
        assert error.needed == "0..3, or -1 to skip"

    def test_device(self, layer):
        x, ids, weights = inputs(2, layer.spec)
        prepared = PreparedLayer(layer)
        error = refusal("kernel.device", x.to("meta"), prepared, ids, weights)
        assert (error.tensor, error.next_step) == ("x", "move it: x.to('cpu')")

    def test_ranks(self, layer, tmp_path):
        x, ids, weights = inputs(2, layer.spec)
        refusal("kernel.ranks", x, [], ids, weights)
        halves, thirds = (pack_ranks(tmp_path / "ckpt", tp=tp) for tp in (2, 3))
        error = refusal("kernel.ranks", x, [halves[0], halves[0]], ids, weights)
        assert (error.found, error.needed) == ([0, 0], [0, 1])
        refusal("kernel.ranks", x, thirds[:2], ids, weights)
        mixed = refusal("kernel.ranks", x, [halves[0], pack_ranks(tmp_path / "ckpt", RAW, tp=2)[1]], ids, weights)
        assert mixed.what == "the ranks were not packed by one plan"
        assert torch.equal(moe(x, halves[::-1], ids, weights), moe(x, halves, ids, weights))

    def test_unknown_implementation(self, layer):
        x, ids, weights = inputs(2, layer.spec)
        error = refusal("kernel.implementation", x, layer, ids, weights, implementation="cuda9")
        assert error.found == "cuda9"
        assert "reference" in str(error.needed)


@pytest.fixture
def plugged(monkeypatch):
    """An implementation as another file would bring it, gone after the test."""
    implementations()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))

    class OnlyRaw(Implementation):
        name = "only_raw"
        summary = "a test's own"
        priority = -1

        def refuses(self, layer, device):
            found = layer.plan.recipe.backend
            return None if found == "reference" else f"found {found}, needed reference"

        def prepare(self, layer, device, *, keep=False):
            def run(x, ids, weights):
                assert x.shape[0], "a kernel is not launched for no tokens"
                return torch.full((x.shape[0], layer.spec.hidden), 7.0)

            return run

    return OnlyRaw


def test_a_plugged_in_implementation_is_preferred_where_it_fits(tmp_path, plugged):
    make(tmp_path / "ckpt", "deepseek")
    (raw,), (tiled,) = pack_ranks(tmp_path / "ckpt", RAW), pack_ranks(tmp_path / "ckpt", SEPARATED)
    assert implementations()[0].name == "only_raw"
    assert implementations()[-1].name == "reference"
    x, ids, weights = inputs(2, raw.spec)
    assert (moe(x, raw, ids, weights) == 7).all()
    assert moe(x[:0], raw, ids[:0], weights[:0]).shape == (0, 64)
    assert (moe(x, raw, ids, weights, implementation="reference") != 7).all()
    assert PreparedLayer(tiled).implementation != "only_raw"
    error = refusal("kernel.implementation", x, tiled, ids, weights, implementation="only_raw")
    assert error.found == "only_raw: found aiter, needed reference"


def test_implementations_are_found_without_importing_moe():
    """The registry finds files by itself, and finding them needs no toolchain."""
    code = "from shardproof.kernels.implementation import implementations as i; print(*[x.name for x in i()])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found[-1] == "reference"
