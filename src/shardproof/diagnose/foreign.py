"""Foreign tensors: what somebody else laid out, read from a file or from memory, and named leniently."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shardproof.checkpoint.header import read_header
from shardproof.errors import CheckpointError, DiagnoseError
from shardproof.experts import Field, Stack
from shardproof.mxfp4 import Bytes

_LAYER = re.compile(r"(?:^|[._/])(layers|mtp|h|blocks)[._/](\d+)(?:[._/]|$)")
_STACK: tuple[tuple[Stack, re.Pattern[str]], ...] = (
    ("w13", re.compile(r"w13|w31|gate_up|gate_and_up|mlp1|fc1")),
    ("w2", re.compile(r"(?<![a-z0-9])w2(?![0-9])|down|mlp2|fc2")),
    ("w13", re.compile(r"(?<![a-z0-9])w1(?![0-9])")),
)
_NOT_BYTES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_TORCH = {
    "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64",
    "torch.uint8": "U8", "torch.int8": "I8", "torch.int32": "I32", "torch.uint32": "U32", "torch.int64": "I64",
}  # fmt: skip

NOT_NUMPY = "not arrays as NumPy writes them, or cut off"
"""Instead of NumPy's own words, which take any other bytes for pickled objects and advise to allow these."""


@dataclass(frozen=True)
class Foreign:
    """One tensor of a dump: flat bytes in memory order, and what its name says (None where it says nothing)."""

    name: str
    data: Bytes
    shape: tuple[int, ...]
    dtype: str
    layer: str | None = None
    stack: Stack | None = None
    field: Field | None = None

    @property
    def numbers(self) -> npt.NDArray[np.float32] | None:
        """The numbers of a floating tensor as float32 in its shape; None for bytes."""
        kind = _NOT_BYTES.get(self.dtype)
        return None if kind is None else self.data.view(kind).astype(np.float32).reshape(self.shape)


def read_dump(source: Any) -> list[Foreign]:
    """Read a dump: a path to safetensors, .npz, .npy or .pt; a mapping of names to tensors; or a module.

    Raises DiagnoseError `diagnose.dump` for what cannot be read and `diagnose.empty` for nothing at all.
    """
    if isinstance(source, (str, Path)):
        tensors = list(_from_path(Path(source)))
    elif isinstance(source, Mapping):
        tensors = [_from_memory(str(name), value) for name, value in source.items() if _is_tensor(value)]
    elif hasattr(source, "named_parameters"):
        pairs = {**dict(source.named_parameters()), **dict(source.named_buffers())}
        tensors = [_from_memory(name, value) for name, value in pairs.items()]
    else:
        raise _unreadable("(in memory)", type(source).__name__, "give one of these")
    if not any(t.data.size for t in tensors):
        raise DiagnoseError(
            "diagnose.empty", "the dump holds no tensor",
            found=f"{len(tensors)} tensors{', all of them empty' if tensors else ''}",
            needed="a layer's w13 and w2, weights and scales", next_step="docs/diagnose.md shows how to dump a layer",
        )  # fmt: skip
    return _unnamed([_named(t) for t in tensors if t.data.size])


def _unreadable(
    where: object, found: object, next_step: str = "dump the layer again; docs/diagnose.md shows how"
) -> DiagnoseError:
    return DiagnoseError(
        "diagnose.dump", "the dump cannot be read", file=where, found=found,
        needed="a safetensors, .npz, .npy or .pt file, a mapping of tensors, or a module",
        next_step=next_step,
    )  # fmt: skip


def _from_path(path: Path) -> Iterator[Foreign]:
    if not path.is_file():
        raise _unreadable(
            path, "a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file",
            "give one of its files, a rank each" if path.is_dir() else "correct the path",
        )  # fmt: skip
    suffix = path.suffix
    if suffix in {".npz", ".npy"}:
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                yield _from_memory(path.stem, loaded)
                return
            with loaded as arrays:
                for name in arrays.files:
                    yield _from_memory(name, arrays[name])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as reason:
            raise _unreadable(path, NOT_NUMPY if isinstance(reason, ValueError) else str(reason)[:120]) from None
    elif suffix in {".pt", ".pth", ".bin"}:
        yield from _from_torch_file(path)
    else:
        try:
            tensors = read_header(path).tensors
        except CheckpointError as reason:
            raise _unreadable(path, f"{reason.what} ({reason.code})") from reason
        memory = np.memmap(path, dtype=np.uint8, mode="r")
        for info in tensors:
            yield Foreign(info.name, memory[info.start : info.stop], tuple(info.shape), info.dtype)


def _from_torch_file(path: Path) -> Iterator[Foreign]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, pickle.UnpicklingError, EOFError, OSError) as reason:
        raise _unreadable(path, str(reason).splitlines()[0][:120]) from None
    pairs = (
        loaded.items() if isinstance(loaded, Mapping) else enumerate(loaded if isinstance(loaded, list) else [loaded])
    )
    for name, value in pairs:
        if _is_tensor(value):
            yield _from_memory(str(name), value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "untyped_storage") and hasattr(value, "stride"))


def _from_memory(name: str, value: Any) -> Foreign:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise _unreadable(name, f"an array of {value.dtype}", "give arrays of numbers or bytes")
        array = np.ascontiguousarray(value)
        kind = {"f": "F", "V": "V", "i": "I", "u": "U"}.get(array.dtype.kind, array.dtype.kind)
        dtype = "BF16" if array.dtype == ml_dtypes.bfloat16 else f"{kind}{8 * array.dtype.itemsize}"
        return Foreign(name, array.reshape(-1).view(np.uint8), value.shape, dtype)
    import torch

    if value.is_meta:
        raise _unreadable(name, "a tensor without memory (device meta)", "load the weights first")
    tensor = value.detach()
    shape = tuple(tensor.shape)
    tensor = _memory_order(tensor).cpu().contiguous()
    data = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return Foreign(name, data.numpy(), shape, _TORCH.get(str(value.dtype), str(value.dtype).removeprefix("torch.")))


def _memory_order(tensor: Any) -> Any:
    """A dense tensor as its storage has it: a transposed view is read by its kernel in memory order."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    expected = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            return tensor
        expected *= tensor.shape[axis]
    return tensor.permute(order)


def _named(tensor: Foreign) -> Foreign:
    name = tensor.name.lower()
    found = _LAYER.search(name)
    layer = None if found is None else f"{'mtp' if found[1] == 'mtp' else 'layers'}.{found[2]}"
    stack = next((stack for stack, pattern in _STACK if pattern.search(name)), None)
    field: Field | None = None
    if stack is not None:
        field = "bias" if "bias" in name else "scale" if "scale" in name else "weight"
    return Foreign(tensor.name, tensor.data, tensor.shape, tensor.dtype, layer, stack, field)


def _unnamed(tensors: list[Foreign]) -> list[Foreign]:
    """Where no name says anything, sizes do: a scale is a sixteenth of its weight, w13 is the larger weight."""
    if any(t.stack for t in tensors) or not 1 <= len(tensors) <= 4:
        return [t for t in tensors if t.stack]
    by_size = sorted(tensors, key=lambda t: -t.data.size)
    roles: Iterable[tuple[Stack, Field]] = (
        ("w13", "weight"),
        ("w2", "weight"),
        ("w13", "scale"),
        ("w2", "scale"),
    )
    return [
        Foreign(t.name, t.data, t.shape, t.dtype, t.layer, stack, field)
        for t, (stack, field) in zip(by_size, roles, strict=False)
    ]
