"""`shardproof inspect CKPT`: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

from typing import Any

import typer

from shardproof.checkpoint import Checkpoint, total_bytes
from shardproof.cli import show
from shardproof.cli.options import CheckpointPath, FormatName, Json
from shardproof.errors import EXIT_FINDING, ShardproofError
from shardproof.formats import ExpertModel, layer_span, read_experts
from shardproof.repack import PackedFolder, is_packed, open_packed


def inspect(checkpoint: CheckpointPath, format_name: FormatName = None, as_json: Json = False) -> None:
    """Read headers only: format with evidence, layers, sizes, and everything that is wrong with the files."""
    problems: list[ShardproofError] = []
    model: ExpertModel | None = None
    if is_packed(checkpoint):
        model = open_packed(checkpoint)
        opened = model.checkpoint
    else:
        opened = Checkpoint.open(checkpoint, strict=False)
        problems += opened.problems
        try:
            model = read_experts(opened, format=format_name)
        except ShardproofError as problem:
            problems.append(problem)
    data = _data(opened, model, problems)
    show.emit(as_json, "inspect", data, lambda: _render(opened, model, problems))
    if problems:
        raise typer.Exit(EXIT_FINDING)


def _data(opened: Checkpoint, model: ExpertModel | None, problems: list[ShardproofError]) -> dict[str, Any]:
    return {
        "root": str(opened.root), "files": len(opened.paths), "tensors": len(opened.tensors),
        "bytes": _bytes(opened), "identity": opened.identity,
        "format": model.format if model else None, "family": model.family if model else None,
        "evidence": [str(e) for e in model.evidence] if model else [],
        "expert_bytes": model.expert_bytes if model else None,
        "layers": {key: layer.spec.to_dict() for key, layer in model.layers.items()} if model else {},
        "notes": list(model.notes) if model else [],
        "problems": [p.to_dict() for p in problems],
    }  # fmt: skip


def _bytes(opened: Checkpoint) -> int:
    """Bytes of the tensors; of the files where they are packed ranks, which have no tensors of a checkpoint."""
    return total_bytes(opened.tensors.values()) or sum(size for size, _ in opened.stamps.values())


def _render(opened: Checkpoint, model: ExpertModel | None, problems: list[ShardproofError]) -> None:
    files = f"{len(opened.paths)}, {show.size(_bytes(opened))}"
    tensors = f", {len(opened.tensors)} tensors" if opened.tensors else ""
    packed = [("packed", opened.folder)] if isinstance(opened, PackedFolder) else []
    show.facts([*packed, ("checkpoint", opened.root), ("files", files + tensors)])
    if model is not None:
        show.facts([("format", model.format), ("family", model.family), *(("evidence", e) for e in model.evidence)])
        show.facts([("experts", f"{show.size(model.expert_bytes)} in {model.tensor_count} tensors")])
        show.table(
            "MoE layers",
            ("layers", "experts", "top-k", "hidden", "intermediate", "blocks", "activation", "bias"),
            [_spec_row(model, keys) for keys in _by_spec(model)],
            numbers=(1, 2, 3, 4, 5),
        )
        for note in model.notes:
            show.line(f"note: {note}", style="yellow")
    show.first_of_each_kind(problems, lambda problem: problem.code)
    show.line(
        show.counted(len(problems), "problem") if problems else "complete: every expert, projection and scale is there"
    )


def _by_spec(model: ExpertModel) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for key, layer in model.layers.items():
        groups.setdefault(layer.spec, []).append(key)
    return list(groups.values())


def _spec_row(model: ExpertModel, keys: list[str]) -> tuple[Any, ...]:
    spec = model.layers[keys[0]].spec
    return (
        layer_span(keys, 1), spec.experts, spec.top_k, spec.hidden, spec.intermediate, spec.blocks, spec.activation,
        "yes" if spec.bias else "no",
    )  # fmt: skip
