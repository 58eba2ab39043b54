"""The hypothesis profile of the suite, and the list of what each layout was held against.

Examples are few and reproducible, without deadlines. Comparisons of layouts travel as properties of test reports, so
that they are counted in a run over several processes too.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HELD = "layout held against"


@pytest.fixture
def held(record_property):
    """Note that a comparison of a layout (its id) with one kind of evidence has passed."""

    def note(layout, evidence):
        record_property(_HELD, [layout, evidence])

    return note


def pytest_terminal_summary(terminalreporter):
    counted: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == _HELD:
                layout, evidence = value
                counted.setdefault(layout, Counter())[evidence] += 1
    if not counted:
        return
    terminalreporter.section("layouts: what each was held against (comparisons that passed)")
    for layout, evidence in sorted(counted.items()):
        text = ", ".join(f"{name} {count}" for name, count in sorted(evidence.items()))
        terminalreporter.write_line(f"{layout:52} {text}")
