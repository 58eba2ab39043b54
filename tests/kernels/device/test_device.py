"""Packing onto a device: the same bytes through index arrays and through tiles, on the CPU and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.device.padded import padded, placed_on
from tests.pack.recipes import POISON, RECIPES, model, packed
from tests.pack.test_parity import SHAPES

from shardproof.errors import LayoutError, PackError
from shardproof.kernels.device.gather import gather_of
from shardproof.kernels.device.permute import DeviceTiles, device_permuter
from shardproof.kernels.device.upload import pack_layer_on_device
from shardproof.layouts import find
from shardproof.layouts.registry import everything
from shardproof.plan import make_plan

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("identity", [layout.identity() for layout in everything()])
def test_every_layout_as_a_gather(identity, device):
    """Index arrays against `Placed.pack`, over the shapes that the layout can hold."""
    layout, parameters = find(identity)
    rng = np.random.default_rng(1)
    held = 0
    for shape in SHAPES:
        try:
            placed = layout.place(shape, parameters)
        except LayoutError:
            continue
        made = gather_of(placed)
        assert made is not None
        source = rng.integers(0, (layout.highest if layout.add else 255) + 1, shape, dtype=np.uint8)
        changed = (source + np.uint8(layout.add)).astype(np.uint8)
        out = torch.full((placed.nbytes,), placed.pad_value, dtype=torch.uint8, device=device)
        made.on(device).run(torch.from_numpy(padded(placed, changed)).to(device), out)
        np.testing.assert_array_equal(out.cpu().numpy(), placed.pack(source), err_msg=f"{identity} {shape}")
        held += 1
    assert held


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("identity", [layout.identity() for layout in everything()])
def test_every_layout_in_tiles_on_a_gpu(identity):
    """The kernel of every layout and shape, whole destinations and such that begin at an odd place."""
    layout, parameters = find(identity)
    rng = np.random.default_rng(1)
    for number, (shape, placed) in enumerate(placed_on(layout, parameters)):
        permuter = device_permuter(placed, "cuda")
        assert isinstance(permuter, DeviceTiles)
        source = rng.integers(0, (layout.highest if layout.add else 255) + 1, shape, dtype=np.uint8)
        staged = torch.from_numpy(padded(placed, (source + np.uint8(layout.add)).astype(np.uint8))).cuda()
        at = (0, 0, 0, 4, 1)[number % 5]
        out = torch.full((placed.nbytes + 48,), 0x77, dtype=torch.uint8, device="cuda")
        permuter.run(staged, out[at : at + placed.nbytes])
        found = out.cpu().numpy()
        np.testing.assert_array_equal(found[at : at + placed.nbytes], placed.pack(source), err_msg=f"{shape} {at}")
        assert (found[:at] == 0x77).all()
        assert (found[at + placed.nbytes :] == 0x77).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("scratch", [1, 64 << 10, 1 << 30])
def test_a_layer_on_a_device(tmp_path, device, name, kind, tp, ep, scratch):
    """Whole layers: one expert at a time and all at once give the bytes and digests of the ordinary path."""
    made = model(tmp_path, kind, experts=5, hidden=160, intermediate=224)
    plan = make_plan(made, RECIPES[name], tp=tp, ep=ep)
    digests, wanted = packed(made, plan, "layers.0")
    for rank, digest, right in zip(plan.ranks, digests, wanted, strict=True):
        out = {
            slot: torch.full((tensor.nbytes,), POISON[slot[1]], dtype=torch.uint8, device=device)
            for slot, tensor in right.items()
        }
        assert pack_layer_on_device(made, plan, "layers.0", rank, out, scratch=scratch) == digest
        for slot, tensor in right.items():
            np.testing.assert_array_equal(out[slot].cpu().numpy(), tensor, err_msg=f"{rank} {slot}")


def test_a_wrong_tensor_is_refused(tmp_path):
    """Size and dtype."""
    made = model(tmp_path)
    plan = make_plan(made, RECIPES["raw"])
    rank = plan.ranks[0]
    sizes = {slot: plan.placed("layers.0", rank, *slot).nbytes for slot in plan.fields("layers.0")}
    good = {slot: torch.empty(size, dtype=torch.uint8) for slot, size in sizes.items()}
    for bad in (good["w2", "scale"][:-1], good["w2", "scale"].view(torch.int8)):
        with pytest.raises(PackError) as caught:
            pack_layer_on_device(made, plan, "layers.0", rank, {**good, ("w2", "scale"): bad})
        assert caught.value.code == "pack.buffer"
