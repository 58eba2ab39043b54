"""Lists at the end of a run what each layout was held against, and by how many comparisons that passed.

Comparisons travel as properties of test reports, so that they are counted in a run over several processes too.
"""

from __future__ import annotations

from collections import Counter

import pytest

_NAME = "layout held against"


@pytest.fixture
def held(record_property):
    """Note that a comparison of a layout (its id) with one kind of evidence has passed."""

    def note(layout, evidence):
        record_property(_NAME, [layout, evidence])

    return note


def pytest_terminal_summary(terminalreporter):
    counted: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == _NAME:
                layout, evidence = value
                counted.setdefault(layout, Counter())[evidence] += 1
    if not counted:
        return
    terminalreporter.section("layouts: what each was held against (comparisons that passed)")
    for layout, evidence in sorted(counted.items()):
        text = ", ".join(f"{name} {count}" for name, count in sorted(evidence.items()))
        terminalreporter.write_line(f"{layout:52} {text}")
