"""Fixtures of the tests on installed and booted Debian systems.

They take the longest, and are left out unless asked for: ``pytest -m booted tests/booted -n 0``.  With
``PORTIER_ROOTS`` a directory, installed releases are kept there and used again.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.booted.machine import Layers, Releases, Root, execute, require
from tests.netns.conftest import keeper, lab, pytest_runtest_makereport, shared_lab
from tests.netns.lab import ROOT, UnavailableError

__all__ = ["keeper", "lab", "pytest_runtest_makereport", "shared_lab"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.booted)


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Releases]:
    """Debian releases, installed once a session; the tests are skipped where none can be booted."""
    try:
        require()
    except UnavailableError as error:
        pytest.skip(f"no machines here: {error}")
    kept = os.environ.get("PORTIER_ROOTS")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("roots")
    releases = Releases(directory)
    with ThreadPoolExecutor() as pool:
        # What will be needed later is installed beside what is needed now; who needs it waits for it.
        for name in ("bookworm", "trixie"):
            if any(name in item.nodeid for item in request.session.items):
                pool.submit(releases.furnished, name)
        yield releases
    if not kept:
        shutil.rmtree(directory)  # rather than with the third session from now: it is a gigabyte


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portier's Debian package, made from this tree."""
    command = [str(ROOT / "packaging" / "deb" / "build"), str(tmp_path_factory.mktemp("package"))]
    return Path(execute(command, check=True, timeout=300).stdout.strip())


@pytest.fixture(scope="session")
def installed(
    releases: Releases, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Layers]:
    """Gives a release with Portier installed, each made once a session."""

    @functools.cache
    def give(release: str) -> Layers:
        below = releases.furnished(release)
        upper = tmp_path_factory.mktemp(release)
        with Root(below, upper=upper) as root:
            root.install(package)
        return (upper, *below)

    return give


def _release(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "bookworm"))


@pytest.fixture
def clean_root(releases: Releases, request: pytest.FixtureRequest) -> Iterator[Root]:
    """A clean Debian 12 without Python; ``indirect`` parameters name another release."""
    with Root(releases.clean(_release(request))) as root:
        yield root


@pytest.fixture
def portier_root(installed: Callable[[str], Layers], request: pytest.FixtureRequest) -> Iterator[Root]:
    """The same with Portier installed, and no configuration yet."""
    with Root(installed(_release(request))) as root:
        yield root


@pytest.fixture
def root(releases: Releases, request: pytest.FixtureRequest) -> Iterator[Root]:
    """A Debian 12 with what Portier depends on; ``indirect`` parameters name another release."""
    with Root(releases.furnished(_release(request))) as root:
        yield root
