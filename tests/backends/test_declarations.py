"""What every backend's declaration must be: reachable, able to refuse, placed in the layout catalogue, worded."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from shardproof.backends import Kernel, Request, conditions, packages
from shardproof.backends.conditions import Activations, Condition
from shardproof.backends.packages import PACKAGES, Needs
from shardproof.backends.registry import catalogue, find
from shardproof.experts import ActivationKind
from shardproof.layouts import find as find_layout
from shardproof.oracle import explain
from tests.backends.homes import CHANGES, GPT_OSS, SPECS, V4_PRO, grid, home

KERNELS = [backend for backend in catalogue() if isinstance(backend, Kernel)]
NAMES = [backend.name for backend in catalogue()]
CONDITIONS = [
    pytest.param(kernel, condition, id=f"{kernel.name}-{type(condition).__name__}-{condition.brief}")
    for kernel in KERNELS
    for condition in dict.fromkeys([*kernel.conditions, *(c for v in kernel.variants for c in v.conditions)])
]


@pytest.fixture
def nothing_installed(monkeypatch):
    """A machine without packages, whose processor has no features."""
    monkeypatch.setattr(packages, "_installed", lambda _: None)
    monkeypatch.setattr(conditions, "cpu_flags", frozenset)


@pytest.mark.parametrize("backend", catalogue(), ids=lambda b: b.name)
def test_a_backend_takes_some_request(backend):
    assert backend.recipe(home(backend.name)).backend == backend.name


def always_holds(condition: Condition) -> bool:
    """Conditions that cannot fail today: the kernel takes every activation that a model can have."""
    return isinstance(condition, Activations) and set(condition.kinds) == set(get_args(ActivationKind))


@pytest.mark.parametrize(("kernel", "condition"), CONDITIONS)
@pytest.mark.usefixtures("nothing_installed")
def test_every_condition_can_fail_and_says_how_to_change_it(kernel: Kernel, condition: Condition):
    outcomes = {name: condition.check(change(home(kernel.name))) for name, change in CHANGES.items()}
    failures = {name: check for name, check in outcomes.items() if not check.ok}
    if always_holds(condition):
        assert not failures
        return
    assert failures, f"nothing makes {condition} fail"
    assert len(failures) < len(outcomes), f"nothing makes {condition} hold"
    for check in failures.values():
        assert check.found
        assert check.needed
        assert check.remedy
        assert check.found != check.needed


@pytest.mark.parametrize(
    ("kernel", "condition"),
    [
        pytest.param(k, c, id=f"{k.name}-{type(c).__name__}")
        for k in KERNELS
        for c in k.conditions
        if not always_holds(c)
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_a_failed_condition_is_the_reason_of_the_refusal(kernel: Kernel, condition: Condition):
    reasons = set()
    for change in CHANGES.values():
        request = change(home(kernel.name))
        failed = [check for check in kernel.checks(request) if not check.ok]
        if failed and failed[0] == condition.check(request):
            reasons.add(failed[0].condition)
    assert reasons, f"{condition} is never the first reason"


def test_every_variant_is_reached():
    seen: dict[str, set[str]] = {backend.name: set() for backend in catalogue()}
    for request in grid():
        for verdict in explain(request):
            if verdict.recipe is not None:
                recipe = verdict.recipe
                seen[verdict.backend].add(f"{recipe.notes[0]} {recipe.activation_dtype} {recipe.align_intermediate}")
    for kernel in KERNELS:
        wanted = {f"kernel: {v.name} {v.activation_dtype} {v.align_intermediate}" for v in kernel.variants}
        assert seen[kernel.name] == wanted, kernel.name


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_every_layout_exists_and_holds_the_stack_and_field(kernel: Kernel):
    for variant in kernel.variants:
        assert {"w13.weight", "w13.scale", "w2.weight", "w2.scale"} <= set(variant.layouts)
        for key, identity in variant.layouts.items():
            stack, field = key.split(".")
            layout, _ = find_layout(identity)
            assert layout.field == field, identity
            assert stack in layout.stacks, identity


@pytest.mark.parametrize("tp", [1, 2, 3, 5, 6, 7, 8, 12, 16])
def test_padded_sizes_fit_every_layout(tp):
    placed = 0
    for spec in SPECS:
        for known in map(home, NAMES):
            request = Request(spec, known.platform, tp, known.ep, activation_dtype=known.activation_dtype)
            if tp > spec.blocks:
                continue
            for verdict in explain(request):
                placed += 0 if verdict.recipe is None else place(request, verdict.recipe)
    assert placed > 300


def place(request, recipe):
    hidden = -(-request.spec.hidden // recipe.align_hidden) * recipe.align_hidden
    intermediate = -(-request.rank_intermediate // recipe.align_intermediate) * recipe.align_intermediate
    item = {"weight": lambda k: k // 2, "scale": lambda k: k // 32, "bias": lambda _: 4}
    for (stack, field), identity in recipe.layouts.items():
        rows, columns = (2 * intermediate, hidden) if stack == "w13" else (hidden, intermediate)
        layout, parameters = find_layout(identity)
        layout.place((2, rows, item[field](columns)), parameters)
    return len(recipe.layouts)


@pytest.mark.parametrize("backend", catalogue(), ids=lambda b: b.name)
def test_a_declaration_is_worded(backend):
    assert re.fullmatch(r"[a-z][a-z0-9_]+", backend.name)
    assert type(backend).__module__ == f"shardproof.backends.{backend.name}"
    assert backend.source
    assert backend.summary
    assert not backend.summary.endswith(".")
    assert len(backend.summary) <= 110


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_a_kernel_names_the_package_that_it_needs(kernel):
    needed = {c.package for c in kernel.conditions if isinstance(c, Needs)}
    assert needed == {kernel.package} - {None}
    assert needed <= set(PACKAGES)


def test_a_recipe_comes_back_from_json():
    recipe = find("aiter").recipe(home("aiter"))
    assert type(recipe).from_dict(recipe.to_dict()) == recipe


def test_biases_are_in_the_recipe_only_where_the_model_has_them():
    with_bias = find("aiter").recipe(Request(GPT_OSS, home("aiter").platform))
    without = find("aiter").recipe(Request(V4_PRO, home("aiter").platform))
    assert with_bias.layouts["w13", "bias"] == "raw.bias"
    assert {field for _, field in without.layouts} == {"weight", "scale"}
