"""What a checkpoint holds once a format has read its names: every expert's matrices as strided byte ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardproof.checkpoint import Checkpoint, TensorInfo
from shardproof.errors import FormatError
from shardproof.experts import ExpertSpec, Field, Projection
from shardproof.formats.family import Family
from shardproof.mxfp4 import BLOCK, BLOCK_BYTES, Bytes

Ints = npt.NDArray[np.int64]
Interval = tuple[int, int]
BIAS_BYTES = {"BF16": 2, "F32": 4, "F16": 2}


@dataclass(frozen=True)
class Source:
    """One field of one projection for all experts of a layer, as [rows, row_bytes] byte matrices.

    Expert e's row r starts at byte `start[e] + r * row_stride` of file `file[e]`; `name(e)` is its tensor's name.
    `dtype` is the safetensors dtype of the elements.
    """

    file: Ints
    start: Ints
    rows: int
    row_bytes: int
    row_stride: int
    dtype: str
    name: Callable[[int], str]

    def matrix(self, checkpoint: Checkpoint, expert: int) -> Bytes:
        """The matrix of one expert: a read-only uint8 view [rows, row_bytes] of the mapped file."""
        memory = checkpoint.memory(int(self.file[expert]))
        begin = int(self.start[expert])
        end = begin + (self.rows - 1) * self.row_stride + self.row_bytes
        return np.lib.stride_tricks.as_strided(
            memory[begin:end], (self.rows, self.row_bytes), (self.row_stride, 1), writeable=False
        )


@dataclass(frozen=True)
class Window:
    """Rows and byte columns [first, stop) of one projection's matrices, and where those of several experts go.

    `out` is uint8 [experts, rows, columns], C-contiguous.
    """

    rows: Interval
    columns: Interval
    out: Bytes


@dataclass(frozen=True)
class LayerExperts:
    """One MoE layer: its spec and, for each (projection, field), where the bytes are."""

    key: str
    spec: ExpertSpec
    sources: dict[tuple[Projection, Field], Source] = field(repr=False)

    def fill(
        self, checkpoint: Checkpoint, name: Field, windows: Mapping[Projection, Window], experts: Sequence[int],
        threads: int | None = None,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Bring parts of the matrices of some experts into memory, by `threads` threads where that helps."""
        for projection, window in windows.items():
            for local, expert in enumerate(experts):
                matrix = self.sources[projection, name].matrix(checkpoint, expert)
                window.out[local] = matrix[slice(*window.rows), slice(*window.columns)]

    def logical_shape(self, projection: Projection, name: Field) -> tuple[int, int]:
        """(rows, row bytes) that the spec asks of a matrix; a bias is a column of numbers."""
        spec = self.spec
        rows, columns = (spec.hidden, spec.intermediate) if projection == "w2" else (spec.intermediate, spec.hidden)
        if name == "bias":
            return rows, BIAS_BYTES[self.sources[projection, name].dtype]
        return rows, columns // BLOCK * (BLOCK_BYTES if name == "weight" else 1)


def layer_spec(
    key: str, tensor: TensorInfo, family: Family, experts: int, hidden: int, intermediate: int, *, bias: bool
) -> ExpertSpec:
    """The spec of a layer whose sizes were read from `tensor`. Raises FormatError `format.block` that names it."""
    try:
        return ExpertSpec(
            family.name, experts, hidden, intermediate, min(family.top_k, experts), family.activation, bias=bias,
            weight_before_w2=family.weight_before_w2,
        )  # fmt: skip
    except FormatError as reason:
        raise FormatError(
            reason.code,
            reason.what,
            layer=key,
            tensor=tensor.name,
            found=reason.found,
            needed=reason.needed,
            next_step=reason.next_step,
        ) from None


def check_sizes(key: str, family: Family, hidden: tuple[int, str], intermediate: tuple[int, str]) -> None:
    """Raise FormatError `format.size` where a size, given with the tensor that has it, is not the config's."""
    wanted = (("hidden", family.hidden, *hidden), ("intermediate", family.intermediate, *intermediate))
    for what, configured, found, tensor in wanted:
        if configured is not None and found and found != configured:
            raise FormatError(
                "format.size", f"config and tensors do not agree on the {what} size", layer=key, tensor=tensor,
                found=found, needed=f"{configured} (config)",
                next_step="config.json and tensors belong to different models: download both again, of one revision",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """One observation that speaks for or against a format."""

    speaks_for: bool
    where: str
    what: str

    def __str__(self) -> str:
        return f"{'+' if self.speaks_for else '-'} {self.where}: {self.what}"


@dataclass(frozen=True)
class ExpertModel:
    """A checkpoint's routed experts in one known format; `layers` is in model order."""

    checkpoint: Checkpoint
    format: str
    family: str
    layers: dict[str, LayerExperts]
    evidence: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} MoE layers"
        return f"ExpertModel({self.family}, format {self.format}, {layers}, {str(self.checkpoint.root)!r})"

    @property
    def tensor_count(self) -> int:
        """Expert tensors of the checkpoint that the layers use."""
        return sum(
            len({source.name(e) for source in layer.sources.values() for e in range(layer.spec.experts)})
            for layer in self.layers.values()
        )

    @property
    def expert_bytes(self) -> int:
        """Checkpoint bytes of all experts' matrices."""
        return sum(
            layer.spec.experts * source.rows * source.row_bytes
            for layer in self.layers.values()
            for source in layer.sources.values()
        )

    def layer(self, key: str) -> LayerExperts:
        """One layer. Raises FormatError `format.layer` with the keys there are."""
        if key not in self.layers:
            needed = layer_span(list(self.layers))
            raise FormatError(
                "format.layer",
                "the model has no such MoE layer",
                layer=key,
                needed=needed,
                next_step="choose one of those",
            )
        return self.layers[key]


def layer_span(keys: Sequence[str], most: int = 6) -> str:
    """Layers as text: up to `most` by name, more as `layers.0 ... layers.60 (61 layers)`."""
    return ", ".join(keys) if len(keys) <= most else f"{keys[0]} ... {keys[-1]} ({len(keys)} layers)"


def check_model(model: object) -> ExpertModel:
    """The model itself. Raises FormatError `format.model` for what nobody has opened yet, a path above all."""
    if isinstance(model, ExpertModel):
        return model
    raise FormatError(
        "format.model", "this is not an opened model", found=f"{type(model).__name__} {str(model)[:120]!r}",
        needed="an ExpertModel", next_step="open the checkpoint first: shardproof.open_model(PATH)",
    )  # fmt: skip
