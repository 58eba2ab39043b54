"""Kernel: a backend that is declared by conditions and variants, without code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from shardproof.backends.backend import Backend, Check, GateMode, Recipe, Request
from shardproof.backends.conditions import Condition
from shardproof.backends.packages import version_of
from shardproof.experts import FIELDS, STACKS, Field, Stack

_WEIGHTY = ("platform", "activation", "bias", "gate mode", "activation dtype")
"""Conditions that tell variants apart first, when none fits and the nearest one is reported."""

ACTIVATION_APART = (
    "the activation is a kernel of its own: for swiglu_oai take the one for separated rows (vLLM: "
    "SWIGLUOAI_UNINTERLEAVE; its gpt-oss loader leaves rows alternating)"
)
"""For kernels that multiply only, with rows of w13 as [gate; up]."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way in which a kernel reads its weights.

    name                what the vendor calls this kernel
    layouts             "w13.weight" -> layout id; a field that is absent is not taken
    conditions          what this variant needs beyond what its backend needs
    align_hidden        each rank's H is rounded up to this multiple
    align_intermediate  each rank's I is rounded up to this multiple
    activation_dtype    bfloat16; fp8 (e4m3, scales of the caller's kind); mxfp8 (e4m3, E8M0 a block of 32); mxfp4
    rows                order of w13's rows, in words
    source              where this is from, if not the backend's source
    """

    name: str
    layouts: Mapping[str, str]
    conditions: tuple[Condition, ...] = ()
    align_hidden: int = 32
    align_intermediate: int = 32
    bias_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_dtype: str = "bfloat16"
    gate_mode: GateMode | None = None
    rows: str = "gate, then up"
    notes: tuple[str, ...] = field(default=())
    source: str = ""


class Kernel(Backend):
    """A backend as data. Subclasses set the class variables and nothing else.

    Variants are ordered by preference: the first whose conditions hold is taken.
    """

    package: ClassVar[str | None] = None
    conditions: ClassVar[tuple[Condition, ...]] = ()
    variants: ClassVar[tuple[Variant, ...]] = ()

    def checks(self, request: Request) -> list[Check]:
        """The backend's conditions, then those of the chosen variant, or of the one that lacks least."""
        return [*(c.check(request) for c in self.conditions), *self._closest(request)[1]]

    def recipe(self, request: Request) -> Recipe:
        """Sizes and byte orders of the chosen variant."""
        variant = self._closest(request)[0]
        version = version_of(self.package, request.platform)[0] if self.package else None
        return Recipe(
            backend=self.name,
            layouts=_by_field(variant.layouts, bias=request.spec.bias),
            align_hidden=variant.align_hidden,
            align_intermediate=variant.align_intermediate,
            bias_dtype=variant.bias_dtype,
            activation_dtype=variant.activation_dtype,
            gate_mode=variant.gate_mode,
            version=version or None,
            notes=(f"kernel: {variant.name}", *variant.notes),
        )

    def _closest(self, request: Request) -> tuple[Variant, list[Check]]:
        tried = [(variant, _checks(variant, request)) for variant in self.variants]
        fitting = [pair for pair in tried if all(check.ok for check in pair[1])]
        # of two equally near variants the later one asks for less, so its remedy is the smaller step
        return fitting[0] if fitting else min(reversed(tried), key=lambda pair: _distance(pair[1]))


def _checks(variant: Variant, request: Request) -> list[Check]:
    checks = [condition.check(request) for condition in variant.conditions]
    for name, asked, has in (
        ("gate mode", request.gate_mode, variant.gate_mode or "one order only"),
        ("activation dtype", request.activation_dtype, variant.activation_dtype),
    ):
        remedy = f"leave the {name} to the backend, or use another backend"
        checks.append(Check(name, asked in {None, has}, asked or "not asked", has, remedy))
    return checks


def _distance(checks: list[Check]) -> tuple[int, ...]:
    failed = [check.condition for check in checks if not check.ok]
    return (*(failed.count(name) for name in _WEIGHTY), len(failed))


def _by_field(layouts: Mapping[str, str], *, bias: bool) -> dict[tuple[Stack, Field], str]:
    named = {(stack, name): layouts.get(f"{stack}.{name}") for stack in STACKS for name in FIELDS}
    return {key: identity for key, identity in named.items() if identity is not None and (bias or key[1] != "bias")}


def same_for_both(**identities: str) -> dict[str, str]:
    """Layouts of `weight`, `scale` and `bias` that hold for w13 and w2 alike."""
    return {f"{stack}.{name}": identity for stack in STACKS for name, identity in identities.items()}


def with_w13(layouts: Mapping[str, str], **identities: str) -> dict[str, str]:
    """`layouts` with other ones for the fields of w13 that are named."""
    return {**layouts, **{f"w13.{name}": identity for name, identity in identities.items()}}
