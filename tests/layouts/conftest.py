"""Lists at the end of a run what each layout was held against, and by how many comparisons that passed."""

from __future__ import annotations

from collections import Counter

import pytest

_HELD: dict[str, Counter[str]] = {}


@pytest.fixture
def held():
    """Note that a comparison of a layout (its id) with one kind of evidence has passed."""

    def note(layout, evidence):
        _HELD.setdefault(layout, Counter())[evidence] += 1

    return note


def pytest_terminal_summary(terminalreporter):
    if not _HELD:
        return
    terminalreporter.section("layouts: what each was held against (comparisons that passed)")
    for layout, evidence in sorted(_HELD.items()):
        text = ", ".join(f"{name} {count}" for name, count in sorted(evidence.items()))
        terminalreporter.write_line(f"{layout:52} {text}")
