"""LayerSearch: which layer of a model a dump belongs to, by the pieces of a few experts of each."""

from __future__ import annotations

from collections.abc import Mapping

from shardproof.diagnose.foreign import Foreign
from shardproof.diagnose.pieces import PieceIndex, index_layer
from shardproof.diagnose.recognise import Known, read_weight
from shardproof.experts import Field, Stack
from shardproof.formats import ExpertModel

_EXPERTS_SEARCHED = 24
_ENOUGH = 0.9


class LayerSearch:
    """Indexes of layers, the last one kept."""

    def __init__(self, model: ExpertModel) -> None:
        self.model = model
        self._last: tuple[str, PieceIndex] | None = None

    def index(self, key: str) -> PieceIndex:
        """The index of one layer over all its experts."""
        if self._last is None or self._last[0] != key:
            self._last = (key, index_layer(self.model, key))
        return self._last[1]

    def find(
        self,
        weights: Mapping[Stack, Foreign],
        needed: Mapping[tuple[Stack, Field], str | None],
        *,
        skip: str | None,
    ) -> str | None:
        """The layer whose pieces the dump holds; None where no layer does."""
        best: tuple[float, str] | None = None
        for key, layer in self.model.layers.items():
            if key == skip:
                continue
            count = layer.spec.experts
            step = max(1, count // _EXPERTS_SEARCHED)
            index = index_layer(self.model, key, experts=list(range(0, count, step)))
            for stack, tensor in weights.items():
                if not tensor.data.any():
                    continue
                reading = read_weight(tensor, stack, layer.spec, index, Known(needed=needed.get((stack, "weight"))))
                if reading is not None and (best is None or reading.share > best[0]):
                    best = (reading.share, key)
            if best is not None and best[0] >= _ENOUGH:
                break
        return None if best is None else best[1]
