"""The shape that DESIGN fixes, checked on the code itself."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_layers() -> None:
    """What lies above imports what lies below and never the reverse, and core touches nothing."""
    beside = Path(sys.executable).with_name("lint-imports")
    tool = str(beside) if beside.exists() else shutil.which("lint-imports")
    assert tool, "import-linter is not installed: it is in the dev dependencies"
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def imported_with(module: str) -> set[str]:
    """All modules that importing ``module`` brings in."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_the_daemon_is_lean() -> None:
    """The daemon's process holds neither scapy (40 MB) nor the parsers, whose work is done elsewhere."""
    assert not imported_with("portier.daemon") & {"scapy", "yaml", "jsonschema"}


def test_status_starts_fast() -> None:
    """What asks the daemon loads no netlink, no parser and no engine of its own."""
    heavy = {"pyroute2", "yaml", "jsonschema", "watchdog", "portier.daemon", "portier.core.route"}
    for command in ("status", "top", "neighbors", "explain", "reload"):
        assert not imported_with(f"portier.cli.{command}") & heavy
