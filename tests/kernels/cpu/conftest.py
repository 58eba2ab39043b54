"""The kernels must be built (`pip install` or `python setup.py build_ext --inplace`): nothing is skipped if not."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from shardproof.kernels.cpu import usable_isas


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", usable_isas())
    if "precision" in metafunc.fixturenames:
        metafunc.parametrize("precision", ["int8", "int16", "float32"])


@pytest.fixture
def rng(request):
    """A generator of the test's own: the same numbers every time."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
