"""The same without root: in an unprivileged user namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("test_kernel_contract", "test_kernel", "test_monitor", "test_record", "test_sysctl")


def test_in_a_user_namespace(tmp_path: Path) -> None:
    """All that is done to the kernel works for root of a user namespace, whoever that is outside."""
    enter = ["unshare", "--user", "--map-root-user", "--net"]
    if (tried := subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no user namespace: {tried.stderr.strip()}")
    suites = [f"tests/system/{name}.py" for name in SUITES]
    # A place of its own: two runs that clear away old directories in one place get in each other's way.
    place = f"--basetemp={tmp_path / 'again'}"
    # There, nobody is left to give a file to.
    less = ["--deselect", "tests/system/test_record.py::test_somebody_elses_record_is_not_believed"]
    pytest_again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", place, *less, *suites]
    done = subprocess.run(
        [*enter, *pytest_again], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
