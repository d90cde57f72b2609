"""What holds for all tests: skipping may be failing, and tests that measure are alone.

A machine without namespaces, a C compiler or nft may skip what it cannot do.  Where everything has to be
shown, a skip must not look like success; `.ci/run` sets ``PORTIER_REQUIRE=1`` for that.

In a parallel run (``pytest -n 4``) a test marked ``alone`` has the machine to itself: it promises times or
shares of a CPU, which would say nothing otherwise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Skips that say something of the machine that no package mends: an old ip(8), a checkout closed to nobody.
EXCUSED = ("this ip(8) does not show it", "they are closed to others", "this machine refuses even to refuse")


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, so that --strict-markers accepts them.  No example has to be quick: machines are
    loaded."""
    settings.register_profile("portier", deadline=None)
    settings.load_profile("portier")
    config.addinivalue_line("markers", "alone: no other test runs at the same time")
    config.addinivalue_line("markers", "slow: left out unless asked for by -m slow")
    config.addinivalue_line("markers", "booted: on a Debian of its own; left out without -m booted")


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock of `fcntl.flock`, which ends with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """In a worker of a parallel run, let a test begin when it may be there with those that run."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    place = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]  # of all workers
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with contextlib.ExitStack() as stack:
        with locked(place / "door", fcntl.LOCK_EX):  # those who come later wait behind who waits to be alone
            stack.enter_context(locked(place / "room", how))
        return (yield)


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
