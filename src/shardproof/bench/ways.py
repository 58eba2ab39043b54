"""Ways: every implementation that can run a subject here, prepared, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardproof.backends import Platform, Recipe, Request, describe, detect
from shardproof.backends.packages import check_names
from shardproof.bench.subject import Subject
from shardproof.errors import KernelError, ShardproofError
from shardproof.oracle import select

if TYPE_CHECKING:
    from shardproof.kernels.implementation import Implementation
    from shardproof.moe import PreparedLayer
    from shardproof.packed import PackedLayer

PORTABLE = "cuda:sm80"
"""Where the oracle gives shardproof_gpu's portable layouts, which the Triton kernels read on any GPU."""


@dataclass(frozen=True)
class Way:
    """One implementation: ready to run, or refused with a reason."""

    name: str
    summary: str
    own: bool
    activation_dtype: str
    prepared: PreparedLayer | None = None
    reason: str = ""


def check_device(device: str) -> None:
    """Raise KernelError `kernel.device` where torch cannot use the device."""
    import torch

    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise KernelError(
            "kernel.device",
            "no such device",
            found=device,
            needed="cpu, cuda or cuda:N",
            next_step="write one of these",
        )
    if device != "cpu" and not torch.cuda.is_available():
        raise KernelError(
            "kernel.device", "there is no GPU here that torch can use", found=f"torch {torch.__version__}",
            needed=f"a GPU for --device {device}",
            next_step="take --device cpu, or run this on a machine with a GPU and a torch that was built for it",
        )  # fmt: skip


def ways(
    subject: Subject, device: str = "cpu", names: Sequence[str] | None = None, packages: Sequence[str] = ()
) -> list[Way]:
    """Every implementation with a backend of its own (or those named), best first; `reference` only by name.

    Weights of all ways are held at once, so that they can be timed in turn. `packages` (`name=version`) are those that
    can be imported without being installed.
    Raises KernelError `kernel.device` or `kernel.implementation`, BackendError `backend.platform` or `backend.package`.
    """
    from shardproof.kernels.implementation import implementations

    check_device(device)
    known = {i.name: i for i in implementations() if i.backend or i.name == "reference"}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise KernelError(
            "kernel.implementation",
            "no such implementation",
            found=unknown[0],
            needed=", ".join(known),
            next_step="choose one of those",
        )
    packed: dict[str, PackedLayer] = {}
    asked = names or [name for name in known if name != "reference"]
    where = describe("cpu", packages) if device == "cpu" else detect(packages)
    check_names(where)
    return [_way(subject, device, where, known[name], packed) for name in asked]


def _way(subject: Subject, device: str, where: Platform, way: Implementation, packed: dict[str, PackedLayer]) -> Way:
    import torch

    from shardproof.moe import PreparedLayer

    own = way.backend.startswith("shardproof_")
    blank = Way(way.name, way.summary, own, way.activation_dtype)
    try:
        recipe = _recipe(subject, way, where)
        key = str(sorted(recipe.layouts.items()))
        layer = packed.get(key) or packed.setdefault(key, subject.layer(recipe, device))
        if reason := way.refuses(layer, torch.device(device)):
            return replace(blank, reason=reason)
        return replace(blank, prepared=PreparedLayer(layer, implementation=way.name, device=device))
    except ShardproofError as refused:
        found = f": found {refused.found}, needed {refused.needed}" if refused.found is not None else ""
        return replace(blank, reason=f"{refused.what}{found}")


def _recipe(subject: Subject, way: Implementation, where: Platform) -> Recipe:
    if way.name.startswith("shardproof_triton"):
        where = describe(PORTABLE)
    request = Request(subject.spec, where, subject.tp, subject.ep)
    return select(request, way.backend or "reference").recipe
