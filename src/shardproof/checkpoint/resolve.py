"""From what the user wrote - a folder, a file, a Hugging Face name - to files on disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardproof.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?")


@dataclass(frozen=True, slots=True)
class Files:
    """A checkpoint's files: `weight_map` is the index (tensor name -> file name), None where there is none."""

    root: Path
    paths: tuple[Path, ...]
    config: dict[str, Any]
    weight_map: dict[str, str] | None
    unlisted: tuple[str, ...] = ()


def resolve(where: str | Path) -> Files:
    """Find the files of a local folder, a single .safetensors file, or `org/name[@revision]` in the HF cache.

    Nothing is ever downloaded. Raises CheckpointError `checkpoint.not_found`, `.index` or `.config`.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return Files(path.parent, (path,), _json(path.parent / "config.json", "checkpoint.config") or {}, None)
    if not path.is_dir():
        path = _from_hub_cache(str(where))
    config = _json(path / "config.json", "checkpoint.config") or {}
    present = sorted(p.name for p in path.glob("*.safetensors"))
    index = _json(path / INDEX, "checkpoint.index")
    if index is None:
        if not present:
            raise CheckpointError(
                "checkpoint.not_found", "the folder holds no safetensors file", file=path,
                needed=f"*.safetensors or {INDEX}",
            )  # fmt: skip
        return Files(path, tuple(path / name for name in present), config, None)
    weight_map = _weight_map(path / INDEX, index)
    listed = sorted(set(weight_map.values()))
    missing = [name for name in listed if name not in present]
    if missing:
        raise CheckpointError(
            "checkpoint.file_missing", f"the index names {len(missing)} files that are not there",
            file=path / missing[0], found="no such file", needed=f"{len(listed)} files",
            next_step="finish the download",
        )  # fmt: skip
    unlisted = tuple(name for name in present if name not in set(listed))
    return Files(path, tuple(path / name for name in listed), config, weight_map, unlisted)


def _weight_map(path: Path, index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("checkpoint.index", "the index has no weight_map", file=path)
    good: set[Any] = set()
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in good:
            continue
        if isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors"):
            good.add(name)
        else:
            raise CheckpointError(
                "checkpoint.index", "the index leads out of the checkpoint's folder",
                file=path, tensor=tensor, found=name, needed="a .safetensors file name without a path",
            )  # fmt: skip
    return weight_map


def _json(path: Path, code: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise CheckpointError(code, "the file cannot be read as JSON", file=path, found=str(reason)[:120]) from None
    if not isinstance(data, dict):
        raise CheckpointError(code, "the file is not a JSON object", file=path)
    return data


def _from_hub_cache(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            "checkpoint.not_found", "no such file or folder", file=name,
            needed="a folder, a .safetensors file, or org/name[@revision] from the Hugging Face cache",
        )  # fmt: skip
    repo, _, revision = name.partition("@")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            "checkpoint.not_found", "no such folder, and looking into the Hugging Face cache needs huggingface_hub",
            file=name, next_step="pip install 'shardproof[hub]', or give a folder",
        ) from None  # fmt: skip
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        raise CheckpointError(
            "checkpoint.not_found", "not in the Hugging Face cache (nothing is downloaded by shardproof)", file=name,
            next_step=f"hf download {repo}" + (f" --revision {revision}" if revision else ""),
        ) from None  # fmt: skip
