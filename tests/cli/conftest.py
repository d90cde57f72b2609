"""The command line as a user has it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
