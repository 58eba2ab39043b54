"""Checkpoints that several tests share, made once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from shardproof.formats import ExpertModel
from shardproof.plan import Plan
from tests.diagnose.cases import SHAPES, Shape, model_of, plan_of

Made = Callable[[str], tuple[ExpertModel, Plan, Shape]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A shape's model and plan by name."""

    @functools.cache
    def get(name: str) -> tuple[ExpertModel, Plan, Shape]:
        shape = next(s for s in SHAPES if s.name == name)
        model = model_of(tmp_path_factory.mktemp(name), shape)
        return model, plan_of(model, shape), shape

    return get
