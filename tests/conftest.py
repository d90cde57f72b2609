"""What holds for all tests: with ``PORTIER_REQUIRE=1`` in the environment, skipping is failing.

A machine without namespaces, a C compiler or nft may skip what it cannot do.  Where everything has to be
shown, a skip must not look like success; `.ci/run` sets the variable for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Skips that say something of the machine that no package mends: an old ip(8), a checkout closed to nobody.
EXCUSED = ("this ip(8) does not show it", "they are closed to others", "this machine refuses even to refuse")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Make a failure of a skip, where skipping is not allowed."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and os.environ.get("PORTIER_REQUIRE") == "1" and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not any(excuse in reason for excuse in EXCUSED):
            report.outcome = "failed"
            report.longrepr = f"skipped, but PORTIER_REQUIRE=1 forbids it: {reason}"
    return report  # type: ignore[return-value]
