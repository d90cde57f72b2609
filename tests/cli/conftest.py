"""The command line as a user has it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import keeper  # noqa: F401  (the fixture)
from tests.netns.lab import Keeper, Lab

ROOT = Path(__file__).parent.parent.parent
Portier = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def portier(tmp_path: Path) -> Portier:
    """Runs ``portier`` with arguments, in a runtime dir of its own unless they name one.  Whatever it does,
    no traceback may be seen and no more than one line said on stderr, unless ``lines`` allows more."""

    def run(
        *arguments: str, lines: int = 1, env: dict[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "portier", "--runtime-dir", str(tmp_path / "run"), *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) <= lines, done.stderr
        return done

    return run


@pytest.fixture
def lab(keeper: Keeper, tmp_path: Path) -> Iterator[Lab]:  # noqa: F811  (so fixtures are asked for)
    """An empty lab, in which every daemon must end well."""
    made = Lab(keeper, tmp_path)
    yield made
    assert not made.close()
