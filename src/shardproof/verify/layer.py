"""One packed layer, computed again from its checkpoint and compared."""

from __future__ import annotations

from collections.abc import Mapping

from shardproof.digest import Digest
from shardproof.formats import ExpertModel
from shardproof.mistakes import Slot
from shardproof.mxfp4 import Bytes
from shardproof.pack import pack_layer
from shardproof.pack.memory import arena, equal
from shardproof.packed import PackedLayer
from shardproof.verify.causes import Causes, causes_of
from shardproof.verify.describe import describe
from shardproof.verify.proof import Difference


def room_for(layer: PackedLayer, before: dict[Slot, Bytes]) -> dict[Slot, Bytes]:
    """Memory for a layer's tensors: that of the layer before where it has their sizes, for fresh pages are slow."""
    sizes = {slot: layer.placed(*slot).nbytes for slot in layer.tensors}
    return before if {slot: data.nbytes for slot, data in before.items()} == sizes else arena(sizes)


def verify_layer(
    model: ExpertModel, layer: PackedLayer, expected: Mapping[Slot, Bytes], causes: Causes
) -> tuple[list[Difference], Digest]:
    """Compare one packed layer with the checkpoint; returns its differences and the digest of its content.

    `expected`: memory of the size of the layer's tensors, every byte of which is overwritten. `causes`: what the
    differences of other layers came from; those of this one are added.
    """
    digest = pack_layer(model, layer.plan, layer.key, layer.rank, expected)
    bad = {s: layer.tensors[s] != expected[s] for s in expected if not equal(layer.tensors[s], expected[s])}
    if not bad:
        return [], digest
    cause = causes_of(model, layer, bad, causes)
    differences = [
        describe(model, layer, slot, mask, expected[slot], cause.get(slot, ())) for slot, mask in bad.items()
    ]
    return differences, digest
