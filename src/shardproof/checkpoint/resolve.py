"""From what the user wrote - a folder, a file, a Hugging Face name - to files on disk."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardproof.errors import CheckpointError

INDEX = "model.safetensors.index.json"
MOST_FILES = 10_000
_OTHER_FORMATS = {".gguf", ".bin", ".pt", ".pth"}
_ORIGINAL = "give the checkpoint as safetensors: files of this kind are not read"
_NUMBERED = re.compile(r"(?P<head>.*-)(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.ASCII)
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?")


@dataclass(frozen=True, slots=True)
class Files:
    """A checkpoint's files: `weight_map` is the index (tensor name -> file name), None where there is none.

    `unlisted` are safetensors files that the index does not name; `missing` says which files ought to be there;
    `siblings` names the other files of a model of which one file was asked for.
    """

    root: Path
    paths: tuple[Path, ...]
    config: dict[str, Any]
    weight_map: dict[str, str] | None
    unlisted: tuple[str, ...] = ()
    missing: tuple[CheckpointError, ...] = ()
    siblings: tuple[str, ...] = ()


def resolve(where: str | Path) -> Files:
    """Find the files of a local folder, a single .safetensors file, or `org/name[@revision]` in the HF cache.

    Nothing is ever downloaded. Raises CheckpointError `checkpoint.not_found`, `.not_a_file`, `.file_type`, `.index` or
    `.config`;
    files that are missing are left to the caller (`Files.missing`).
    """
    path, kind = _look(where)
    if kind == "file":
        return _one_file(path)
    if kind == "nothing":
        path = _from_hub_cache(str(where))
    config = _json(path / "config.json", "checkpoint.config") or {}
    present = sorted(p.name for p in path.glob("*.safetensors"))
    index = _json(path / INDEX, "checkpoint.index")
    if index is None and not present:
        other = sorted(p.name for p in path.iterdir() if p.suffix in _OTHER_FORMATS)
        raise CheckpointError(
            "checkpoint.not_found", "the folder holds no safetensors file", file=path,
            found=", ".join(other[:3]) or None, needed=f"*.safetensors or {INDEX}",
            next_step=_ORIGINAL if other else "give the folder with the weights, or finish the download",
        )  # fmt: skip
    weight_map = None if index is None else _weight_map(path / INDEX, index)
    listed = _numbered(present) if weight_map is None else sorted(set(weight_map.values()))
    missing = _missing(path, listed, present, "the index names" if weight_map else "the files' own numbers ask for")
    unlisted = tuple(name for name in present if name not in set(listed))
    paths = tuple(path / name for name in listed if name in present)
    return Files(path, paths, config, weight_map, unlisted, missing)


def _look(where: str | Path) -> tuple[Path, str]:
    """What stands at a path: a file, a folder, or nothing (then it may be a name in the cache)."""
    found = "neither a file nor a folder" if str(where) else "an empty name"
    try:
        path = Path(where).expanduser()
        if str(where) and (path.is_file() or path.is_dir()):
            return path, "file" if path.is_file() else "folder"
        if not path.exists():
            return path, "nothing"
    except (OSError, ValueError, RuntimeError) as reason:
        found = str(reason)[:120]
    raise CheckpointError(
        "checkpoint.not_a_file", "this cannot be opened as a checkpoint", file=ascii(str(where))[:200], found=found,
        needed="a folder, a .safetensors file, or org/name[@revision] from the Hugging Face cache",
        next_step="correct the path",
    )  # fmt: skip


def _one_file(path: Path) -> Files:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            "checkpoint.file_type", "this file is no checkpoint", file=path, found=f"a file named {path.name}",
            needed="a folder, or a .safetensors file",
            next_step=_ORIGINAL if path.suffix in _OTHER_FORMATS
            else f"give the folder that holds the weights, perhaps {path.absolute().parent}",
        )  # fmt: skip
    names = _numbered([path.name])
    with contextlib.suppress(CheckpointError):  # of a damaged index nothing is needed here
        index = _json(path.parent / INDEX, "checkpoint.index")
        listed = set() if index is None else set(_weight_map(path.parent / INDEX, index).values())
        names = sorted(listed) if path.name in listed else names
    siblings = tuple(name for name in names if name != path.name)
    config = _json(path.parent / "config.json", "checkpoint.config") or {}
    return Files(path.parent, (path,), config, None, siblings=siblings)


def _numbered(present: list[str]) -> list[str]:
    """The files that should be there: names like model-00002-of-00005 ask for their siblings."""
    wanted = dict.fromkeys(present)
    for name in present:
        match = _NUMBERED.fullmatch(name)
        if match and int(match["count"]) <= MOST_FILES:
            width = len(match["number"])
            count = range(1, int(match["count"]) + 1)
            wanted.update(dict.fromkeys(f"{match['head']}{i:0{width}d}-of-{match['count']}.safetensors" for i in count))
    return sorted(wanted)


def _missing(folder: Path, listed: list[str], present: list[str], who: str) -> tuple[CheckpointError, ...]:
    absent = sorted(set(listed).difference(present))
    count = "a file that is" if len(absent) == 1 else f"{len(absent)} files that are"
    return tuple(
        CheckpointError(
            "checkpoint.file_missing", f"{who} {count} not there", file=folder / name,
            found="no such file", needed=f"{len(listed)} files", next_step="finish the download",
        )
        for name in absent
    )  # fmt: skip


def _weight_map(path: Path, index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "checkpoint.index", "the index has no weight_map", file=path, next_step="download the index again"
        )
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
                next_step="download the index again",
            )  # fmt: skip
    return weight_map


def _json(path: Path, code: str) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as reason:
        raise CheckpointError(
            code,
            "the file cannot be read as JSON",
            file=path,
            found=str(reason)[:120],
            next_step="correct its permissions, or download it again",
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(code, "the file is not a JSON object", file=path, next_step="download it again")
    return data


def _from_hub_cache(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            "checkpoint.not_found", "no such file or folder", file=name,
            needed="a folder, a .safetensors file, or org/name[@revision] from the Hugging Face cache",
            next_step=f"correct the path; it was looked for in {Path.cwd()}",
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
    except RuntimeError as reason:  # a container's user of whom the system knows a number only
        raise CheckpointError(
            "checkpoint.not_found", "the Hugging Face cache cannot be looked for", file=name, found=str(reason)[:120],
            next_step="set HF_HOME to its folder, or give the folder of the checkpoint",
        ) from None  # fmt: skip
