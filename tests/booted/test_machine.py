"""The machines that the other tests stand on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.booted.machine import Root
from tests.netns.lab import Lab
from tests.netns.scenes import UPSTREAM, vps

RELEASES = pytest.mark.parametrize("root", ["bookworm", "trixie"], indirect=True)


def leftovers() -> tuple[list[str], list[str]]:
    """What could outlive a machine: mounts, and control groups."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if "overlay" in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob(f"portier-test-{os.getpid()}-*")]
    return mounts, groups


@RELEASES
def test_machine_boots_into_the_lab_and_leaves_nothing(root: Root, lab: Lab) -> None:
    before = leftovers()
    own = subprocess.run(["ip", "link"], check=True, capture_output=True).stdout
    scene = vps(lab)
    (root.path / "etc/motd").write_text("hello")
    machine = root.boot(scene.p)
    assert machine.run(["systemctl", "is-system-running"]).stdout == "running\n"
    assert machine.run(["cat", "/etc/motd"]).stdout == "hello"
    assert machine.run(["ip", "-br", "link", "show", "tap1"]).stdout.startswith("tap1")
    assert machine.run(["ping", "-c1", UPSTREAM])
    machine.write("/etc/motd", "still here")
    machine.poweroff()
    machine.start()
    assert machine.read("/etc/motd") == "still here"
    machine.kill()
    assert leftovers() == before
    assert subprocess.run(["ip", "link"], check=True, capture_output=True).stdout == own
    assert not Path("/run/systemd/machines").exists() or not list(Path("/run/systemd/machines").iterdir())


@pytest.mark.parametrize("clean_root", ["bookworm", "trixie"], indirect=True)
def test_clean_root_installs_dependencies_without_a_network(clean_root: Root) -> None:
    assert clean_root.run(["python3", "--version"], check=False).returncode != 0
    install = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", "python3-pyroute2"]
    clean_root.run(install)
    assert "pyroute2" in clean_root.run(["python3", "-c", "import pyroute2; print(pyroute2)"]).stdout
    assert clean_root.run(["ip", "-br", "link"]).stdout.split()[0] == "lo"


@RELEASES
def test_package_runs(root: Root, package: Path) -> None:
    root.install(package)
    assert root.run(["portier", "--version"]).stdout.startswith("portier ")
