"""Names of expert tensors: `<layer path>.experts.<id>.<projection>.<suffix>`, each read in constant time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from shardproof.checkpoint import TensorInfo
from shardproof.errors import FormatError
from shardproof.experts import Field, Projection

PROJECTION_NAMES: dict[str, Projection] = {
    "w1": "w1", "w3": "w3", "w2": "w2", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2",
}  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(layers|mtp)\.(\d+)\.(?:\w+\.)*?experts$", re.ASCII)
_ROUTERS = (".gate.weight", ".router.weight")

Slot = tuple[Projection, Field]


@dataclass
class NamedLayer:
    """Tensors of one layer while names are read: (projection, field) -> expert id -> tensor."""

    path: str
    tensors: dict[Slot, dict[int, TensorInfo]] = field(default_factory=dict)

    @property
    def first(self) -> TensorInfo:
        """Some tensor of the layer."""
        return next(tensor for by_id in self.tensors.values() for tensor in by_id.values())


def split(name: str) -> tuple[str, str, Projection, str] | None:
    """(layer path, expert id as text, projection, suffix) of an expert tensor's name; None for another tensor."""
    parts = name.rsplit(".", 3)
    if len(parts) != 4 or not parts[0].endswith("experts") or parts[2] not in PROJECTION_NAMES:
        return None
    return parts[0], parts[1], PROJECTION_NAMES[parts[2]], parts[3]


def collect(
    tensors: Mapping[str, TensorInfo], dialect: str, suffixes: Mapping[str, Field], ignored: AbstractSet[str]
) -> dict[str, NamedLayer]:
    """All expert tensors by layer, in layer order.

    Raises FormatError `format.extra` for expert tensors that the dialect does not know, `format.duplicate`, and
    `format.missing_layer` for a router without experts.
    """
    layers: dict[str, NamedLayer] = {}
    by_path: dict[str, NamedLayer | None] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        head, found, tail = name.partition("experts.")
        if not found:
            continue
        path = head + "experts"
        if path not in by_path:
            match = _LAYER.search(path)
            by_path[path] = layers.setdefault(f"{match[1]}.{int(match[2])}", NamedLayer(path)) if match else None
        layer = by_path[path]
        parts = tail.split(".")
        if layer is None:  # shared_experts, or experts where no layer is expected
            strange += [name] if path.endswith(".experts") and split(name) and parts[-1] in suffixes else []
        elif len(parts) == 3 and parts[1] in PROJECTION_NAMES and parts[2] in suffixes and _is_id(parts[0]):
            _take(layer, (PROJECTION_NAMES[parts[1]], suffixes[parts[2]]), int(parts[0]), tensor)
        elif parts[-1] not in ignored:
            strange.append(name)
    if strange:
        raise FormatError(
            "format.extra", f"{len(strange)} expert tensors are unknown to format {dialect}",
            tensor=strange[0], found=", ".join(n.partition("experts.")[2] for n in strange[:4]),
            needed=f"layers.<L>. ... experts.<id>.<{'|'.join(PROJECTION_NAMES)}>.<{'|'.join(suffixes)}>",
            next_step="remove the tensors, or add their names to the format",
        )  # fmt: skip
    held = {key: layer for key, layer in layers.items() if layer.tensors}
    check_routers(tensors, held.keys())
    return dict(sorted(held.items(), key=lambda item: _layer_order(item[0])))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10 and (text[0] != "0" or text == "0")


def _take(layer: NamedLayer, slot: Slot, expert: int, tensor: TensorInfo) -> None:
    other = layer.tensors.setdefault(slot, {}).setdefault(expert, tensor)
    if other is not tensor:
        raise FormatError(
            "format.duplicate", "two tensors claim to be the same matrix of one expert",
            tensor=tensor.name, layer=layer.path, expert=expert, found=other.name, needed="one name",
            next_step="remove one of the two",
        )  # fmt: skip


def check_routers(names: Iterable[str], held: AbstractSet[str]) -> None:
    """A layer with a router and no expert lost its experts: raises FormatError `format.missing_layer`."""
    for name in names:
        match = _LAYER.search(name.rsplit(".", 2)[0] + ".experts") if name.endswith(_ROUTERS) else None
        key = f"{match[1]}.{int(match[2])}" if match else None
        if key is not None and key not in held:
            raise FormatError(
                "format.missing_layer", "a layer has a router and no experts", layer=key, tensor=name,
                found="no expert tensor", needed="the experts that the router chooses from",
                next_step="finish the download; the layer would be loaded as zeros",
            )  # fmt: skip


def _layer_order(key: str) -> tuple[str, int]:
    kind, _, number = key.rpartition(".")
    return kind, int(number)
