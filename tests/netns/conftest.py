"""Fixtures of the namespace tests: one keeper a session, one lab a test, and the usual topology."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import Keeper, Lab, UnavailableError

REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    """Remember how the phases of a test went, for the fixtures' teardown."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    item.stash.setdefault(REPORTS, {})[report.when] = report
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """The process that holds the namespaces; the tests are skipped where there can be none."""
    try:
        keeper = Keeper.start()
    except UnavailableError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield keeper
    keeper.close()


@pytest.fixture
def lab(keeper: Keeper, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An empty lab; at its end every daemon must stop cleanly and have logged no traceback."""
    lab = Lab(keeper, tmp_path)
    yield lab
    report = request.node.stash.get(REPORTS, {}).get("call")
    failed = report is None or report.failed
    if failed:
        for daemon in lab.portiers:
            print(f"--- log of the daemon on {daemon.host.name}:\n{daemon.tail(200)}")
    problems = lab.close()
    if not failed and problems:
        for daemon in lab.portiers:
            print(f"--- log of the daemon on {daemon.host.name}:\n{daemon.tail(200)}")
        pytest.fail("; ".join(problems))


@pytest.fixture(scope="module")
def shared_lab(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests of a module that do not disturb each other."""
    lab = Lab(keeper, tmp_path_factory.mktemp("shared"))
    yield lab
    problems = lab.close()
    if problems:
        pytest.fail("; ".join(problems))
