"""Scales of a dump: bytes whatever dtype they came in, and the layout in which most of them are right.

Scale bytes repeat, so they are no labels; they are placed by their weights' mapping and then compared.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shardproof.diagnose.foreign import Foreign
from shardproof.experts import Field, Stack
from shardproof.layouts import catalogue
from shardproof.mistakes import Scene, Views
from shardproof.pack.unpack import unpack

_MOST = 0.5  # of the content's bytes are right


def scale_bytes(tensor: Foreign) -> tuple[Foreign, str | None]:
    """A scale tensor as bytes, and the name of the mistake where bytes were turned into numbers (120 -> 120.0).

    Numbers that are powers of two are the scales' values, which some kernels take: they become bytes again.
    """
    numbers = tensor.numbers
    if numbers is None:
        return tensor, None
    flat = numbers.reshape(-1)
    finite = np.isfinite(flat)
    with np.errstate(all="ignore"):
        mantissa, exponent = np.frexp(np.where(finite & (flat > 0), flat, 1.0))
    powers = bool((mantissa == 0.5).all() and (finite & (flat > 0)).all())
    if powers and not (flat == np.round(flat)).all():
        return replace(tensor, data=(exponent + 126).astype(np.uint8), dtype="U8"), None
    if ((flat == np.round(flat)) & (flat >= 0) & (flat <= 255)).all():
        return replace(tensor, data=flat.astype(np.uint8), dtype="U8"), "scales_as_numbers"
    return tensor, None


def scale_layout(
    scene: Scene,
    slot: tuple[Stack, Field],
    tensor: Foreign,
    *,
    name: Field = "scale",
    only: str | None = None,
) -> tuple[str, float]:
    """The catalogue's layout under which most bytes of a scale (or bias) tensor agree, and their share.

    Compared are the first and the last expert: under wrong sizes the first one may stand where it should.
    `only` names the one layout to look at.
    """
    stack = slot[0]
    plan = scene.plan
    shape = plan.canonical_shape(scene.key, scene.rank, *slot)
    views = Views(tensor.data, shape, unpack)
    weight = plan.recipe.layouts.get((stack, "weight"), "raw.")
    vendor = weight.partition(".")[0]
    known = [x for x in catalogue() if x.field == name and stack in x.stacks]
    best = (-1.0, False, f"raw.{name}@1")
    ends = (0, shape[0] - 1)
    needed = np.stack([scene.matrix(local, *slot) for local in ends])
    content = np.stack([scene.content(local, *slot) for local in ends])

    def agreement(identity: str) -> np.ndarray | None:
        found = [views.expert(local, identity) for local in ends]
        return None if found[0] is None or found[1] is None else np.stack([f for f in found if f is not None]) == needed

    if only is not None:
        same = agreement(only)
        return only, 0.0 if same is None else float(same.mean())
    for layout in sorted(known, key=lambda x: not x.name.startswith("raw.")):
        same = agreement(layout.identity())
        if same is None:
            continue
        # where most content is wrong in every order, chance must not choose one: then the vendor of the weights' order
        certain = not content.any() or same[content].mean() >= _MOST
        score = (round(float(same.mean()), 4) if certain else 0.0, layout.name.startswith(vendor))
        if score > best[:2]:
            best = (*score, layout.identity())
    return best[2], max(best[0], 0.0)
