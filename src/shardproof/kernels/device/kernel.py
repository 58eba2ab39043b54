"""The gather of `kernels/device/gather.py` as one Triton kernel: every layout of the catalogue, one thread a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

    from shardproof.kernels.device.gather import DeviceGather

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]  # noqa: ANN202
    source, out, tile_source, tile_target, offsets, targets, table, tables, total,  # noqa: ANN001
    words: tl.constexpr, parts: tl.constexpr, copy: tl.constexpr, word: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < total
    tile = at // words
    w = (at % words).to(tl.int32)
    begin = tl.load(tile_source + tile, mask=inside, other=0)
    to = tl.load(tile_target + tile, mask=inside, other=0) + tl.load(targets + w, mask=inside, other=0)
    if copy:
        value = tl.load(source + (begin + tl.load(offsets + w, mask=inside, other=0)) // word, mask=inside, other=0)
    else:
        value = tl.zeros((block,), dtype=tl.int32)
        for part in tl.static_range(parts):
            offset = tl.load(offsets + w * parts + part, mask=inside, other=0)
            byte = tl.load(source + begin + offset, mask=inside, other=0).to(tl.int32)
            which = tl.load(table + w * parts + part, mask=inside, other=0)
            value = value | tl.load(tables + which * 256 + byte, mask=inside, other=0)
    tl.store(out + to // word, value, mask=inside)


def launch(gather: DeviceGather, source: torch.Tensor, out: torch.Tensor) -> None:
    """Run a gather on the current stream of `out`'s device."""
    import torch

    words, parts = gather.source.shape
    total = gather.tile_source.numel() * words
    copy = gather.tables is None
    kind = torch.int32 if gather.word == 4 else torch.uint8
    _gather[(triton.cdiv(total, _BLOCK),)](
        source.view(kind) if copy else source, out.view(kind), gather.tile_source, gather.tile_target, gather.source,
        gather.target, gather.table, gather.source if copy else gather.tables, total,
        words=words, parts=parts, copy=copy, word=gather.word, block=_BLOCK,
    )  # fmt: skip
