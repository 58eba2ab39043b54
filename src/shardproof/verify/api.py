"""The verb: every rank of a packed folder against its checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from shardproof.arguments import check_function, path_of
from shardproof.digest import Digest
from shardproof.errors import PackedError, VerifyError
from shardproof.formats import ExpertModel, check_model
from shardproof.mistakes import Slot
from shardproof.mxfp4 import Bytes
from shardproof.packed import MANIFEST, PackedExperts, differing, load, rank_file, read_manifest, read_plan
from shardproof.plan import Plan
from shardproof.repack import PackedFolder
from shardproof.verify.causes import Causes
from shardproof.verify.layer import room_for, verify_layer
from shardproof.verify.proof import Difference, Proof

Report = Callable[[int, str, int, int], None]
"""Called after each layer with (rank, layer, bytes done, bytes in all)."""


def verify(folder: str | Path, model: ExpertModel, *, report: Report | None = None) -> Proof:
    """Prove all ranks of a packed folder against their checkpoint.

    Raises PackedError for a folder that cannot be read, VerifyError `verify.checkpoint` for another checkpoint and
    `verify.itself` for the folder itself, FormatError `format.model` for a path instead of a model, ArgumentError.
    """
    check_model(model)
    folder = path_of("folder", folder)
    check_function("report", report)
    manifest = read_manifest(folder)
    plan = read_plan(manifest, folder / MANIFEST)
    _same_checkpoint(folder, plan, model)
    statements = plan.prove()
    differences: list[Difference] = []
    held = [r.index for r in plan.ranks if rank_file(r) in manifest["ranks"]]
    if not held:
        raise PackedError(
            "packed.incomplete", "the folder holds no rank, so there is nothing to prove", file=folder,
            found=f"0 of {len(plan.ranks)} ranks", needed="at least one rank", next_step="pack again",
        )  # fmt: skip
    total, done, digest = sum(plan.rank_bytes(plan.ranks[i]) for i in held), 0, Digest()
    room: dict[Slot, Bytes] = {}
    causes = Causes()
    for index in held:
        packed = load(folder, index)
        found = Digest()
        for layer in packed:
            room = room_for(layer, room)
            wrong, part = verify_layer(model, layer, room, causes)
            differences += wrong
            found += part
            done += sum(t.nbytes for t in layer.tensors.values())
            if report:
                report(index, layer.key, done, total)
        digest += found
        if packed.digest is not None and packed.digest != found:
            differences.append(_digest_difference(packed, found))
    missing = tuple(r.index for r in plan.ranks if r.index not in held)
    whole = None if missing else str(digest)
    return Proof(tuple(differences), tuple(held), done, whole, tuple(statements), missing)


def _same_checkpoint(folder: Path, plan: Plan, model: ExpertModel) -> None:
    """Refuse another model, and a packed folder as its own proof."""
    if isinstance(model.checkpoint, PackedFolder) and model.checkpoint.folder.resolve() == folder.resolve():
        raise VerifyError(
            "verify.itself", "a packed folder compared with itself proves nothing", file=folder,
            needed="the checkpoint it was packed from, or another packing of it",
            next_step=shlex.join(["shardproof", "verify", str(folder), "--against", plan.source]),
        )  # fmt: skip
    for key, index in plan.layers.items():
        spec = plan.shapes[index].spec
        held = model.layers[key].spec if key in model.layers else None
        if held == spec:
            continue
        pairs = list(differing(held.to_dict(), spec.to_dict())) if held else [("layer", "no such layer", key)]
        raise VerifyError(
            "verify.checkpoint", "the packed experts come from another model", layer=key,
            found=", ".join(f"{name} {value}" for name, value, _ in pairs),
            needed=", ".join(f"{name} {value}" for name, _, value in pairs),
            next_step=f"give the checkpoint they were packed from ({plan.source})",
        )  # fmt: skip


def _digest_difference(packed: PackedExperts, found: Digest) -> Difference:
    text = f"recorded {packed.digest}, the checkpoint gives {found}"
    return Difference(packed.rank.index, "(digest)", 0, 0, (text,), None, "the checkpoint's data changed since packing")
