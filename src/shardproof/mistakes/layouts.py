"""Mistakes of the byte order: shuffled twice, not at all, or for another kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardproof.experts import Field, Stack
from shardproof.layouts import find
from shardproof.mistakes.mistake import Mistake, register
from shardproof.mxfp4 import Bytes

if TYPE_CHECKING:
    from shardproof.plan import Plan

_KWIDTH = {"aiter.n32k4": "aiter.n32k8", "aiter.n32k4_rowgugu": "aiter.n32k8_rowgugu"}
_TILE_COLUMNS = 8
_SHUFFLED: dict[Field, str] = {"weight": "aiter.w16", "scale": "aiter.e8"}


def _raw(_plan: Plan, _stack: Stack, name: Field) -> str:
    return f"raw.{name}"


def _shuffled(plan: Plan, stack: Stack, name: Field) -> str:
    needed = plan.recipe.layouts[stack, name]
    return _SHUFFLED.get(name, needed) if needed.startswith("raw.") else needed


def _other_kwidth(plan: Plan, stack: Stack, name: Field) -> str:
    needed = plan.recipe.layouts[stack, name]
    return _KWIDTH.get(needed.partition("@")[0], needed)


def _pack_twice(canonical: Bytes, identity: str) -> Bytes:
    layout, parameters = find(identity)
    once = layout.place(_three(canonical.shape), parameters).pack(canonical)
    if once.size != canonical.size:
        return once
    return layout.place(_three(canonical.shape), parameters).pack(once.reshape(canonical.shape))


def _unpack_twice(kernel: Bytes, shape: tuple[int, int, int], identity: str) -> Bytes:
    layout, parameters = find(identity)
    placed = layout.place(shape, parameters)
    once = placed.unpack(kernel)
    return placed.unpack(once.reshape(-1)) if once.size == kernel.size else once


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    experts, rows, columns = shape
    return experts, rows, columns


def _scale_moe_tiles(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that AITER's shuffle_scale_moe works on: 8 columns, and as many matrices as that makes."""
    experts, rows, columns = shape
    if columns % _TILE_COLUMNS == 0 or columns < _TILE_COLUMNS or rows % 32 or experts * columns % _TILE_COLUMNS:
        raise ValueError("the writer is right for this shape, or refuses it")
    whole = columns // _TILE_COLUMNS * _TILE_COLUMNS
    if experts * columns % whole:
        raise ValueError("the writer refuses this shape")
    return experts * columns // whole, rows, whole


def _scale_moe(canonical: Bytes, identity: str) -> Bytes:
    if not identity.startswith(("aiter.e8", "triton_kernels.cdna4")):
        raise ValueError("another writer's layout")
    shape = _scale_moe_tiles(_three(canonical.shape))
    tiles = canonical.reshape(shape[0], shape[1] // 32, 2, 16, shape[2] // 8, 2, 4)
    return np.ascontiguousarray(tiles.transpose(0, 1, 4, 6, 3, 5, 2)).reshape(-1)


def _scale_moe_back(kernel: Bytes, shape: tuple[int, int, int], identity: str) -> Bytes:
    if not identity.startswith(("aiter.e8", "triton_kernels.cdna4")) or kernel.size != np.prod(shape):
        raise ValueError("another writer's layout or size")
    experts, rows, columns = _scale_moe_tiles(shape)
    tiles = kernel.reshape(experts, rows // 32, columns // 8, 4, 16, 2, 2)
    return np.ascontiguousarray(tiles.transpose(0, 1, 6, 4, 2, 5, 3)).reshape(shape)


MARK_LOST = register(
    Mistake(
        name="not_shuffled",
        sentence="the bytes are raw, in checkpoint order, where the kernel reads {layout}",
        explanation=(
            "The conversion for the kernel did not run, or its mark (the attribute is_shuffled) was lost on the way "
            "and the bytes were taken back to raw order."
        ),
        issues=("vLLM #42061", "AITER #2194", "ATOM #1932", "vLLM #34192"),
        repair="lay the tensors out for the kernel; keep the layout's name with the bytes",
        layout=_raw,
    )
)
SHUFFLED_FOR_RAW = register(
    Mistake(
        name="shuffled_for_raw",
        sentence="the bytes are shuffled ({found_layout}) where the kernel reads checkpoint order",
        explanation="A kernel without preshuffle was chosen for shuffled bytes, often because is_shuffled was lost.",
        issues=("SGLang #26884", "vLLM #42061", "ATOM #632"),
        repair="choose the preshuffle kernel, or unshuffle the bytes",
        layout=_shuffled,
    )
)
DOUBLY_SHUFFLED = register(
    Mistake(
        name="doubly_shuffled",
        sentence="the bytes were laid out twice: {layout} on top of itself",
        explanation="Weights were loaded or converted a second time (a reload, a second process_weights) in place.",
        issues=("SGLang #28963", "vLLM #42821", "vLLM #48312"),
        repair="convert once; reload from canonical bytes",
        write=_pack_twice,
        read=_unpack_twice,
    )
)
OTHER_KWIDTH = register(
    Mistake(
        name="scale_kwidth",
        sentence="scales are in stripes of 8 blocks ({found_layout}) where the kernels read stripes of 4",
        explanation="AITER's writer for gfx1250 has 8 as its default while its kernels read 4.",
        issues=("AITER #4826", "AITER #4836", "ATOM #2046"),
        repair="pass scale_kwidth=4, or lay out as aiter.n32k4",
        fields=("scale",),
        layout=_other_kwidth,
    )
)
SCALE_MOE = register(
    Mistake(
        name="shuffle_scale_moe",
        sentence="scales went through shuffle_scale_moe although K/32 is no multiple of 8: the permutation is wrong",
        explanation=(
            "The writer views the scales as whole tiles of 8 columns without padding. Where the number of bytes "
            "happens to fit, it returns another permutation instead of an error."
        ),
        issues=("AITER #3476", "AITER #5094"),
        repair="pad the columns to 8 with 127 before shuffling, or use e8m0_shuffle",
        fields=("scale",),
        write=_scale_moe,
        read=_scale_moe_back,
    )
)
