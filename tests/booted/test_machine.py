"""The machines that the other tests stand on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.booted.machine import GROUPS, Releases, Root, cgroup
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import UPSTREAM, vps

RELEASES = pytest.mark.parametrize("root", ["bookworm", "trixie"], indirect=True)


def leftovers(process: int, thread: int) -> tuple[list[str], list[str]]:
    """What could outlive a machine: mounts, and control groups; those of one thread, for others may be busy
    beside it."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if " /mnt/root " in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob(f"{GROUPS}{process}-{thread}-*")]
    return mounts, groups


@RELEASES
def test_machine_boots_into_the_lab_and_leaves_nothing(root: Root, lab: Lab) -> None:
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
    assert leftovers(os.getpid(), threading.get_native_id()) == ([], [])
    assert subprocess.run(["ip", "link"], check=True, capture_output=True).stdout == own
    assert not Path("/run/systemd/machines").exists() or not list(Path("/run/systemd/machines").iterdir())


KILLED = """
import sys
from pathlib import Path
from tests.booted.machine import Releases, Root
from tests.netns.lab import Keeper, Lab
from tests.netns.scenes import vps

lab = Lab(Keeper.start(), Path(sys.argv[1]))
with Root(Releases(Path(sys.argv[2])).furnished("bookworm")) as root:
    machine = root.boot(vps(lab).p)
    print(machine.leader, machine._process.pid, root._holder.pid, flush=True)
    sys.stdin.read()
"""


def test_nothing_outlives_a_run_that_is_killed(releases: Releases, tmp_path: Path) -> None:
    """Its machines end with it, and the next run removes what is left of their control groups."""
    releases.furnished("bookworm")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(releases.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        processes = [Path("/proc", process) for process in run.stdout.readline().split()]
        assert len(processes) == 3
        run.kill()
    wait_for(lambda: not any(process.exists() for process in processes), 20, "its processes are gone")

    def swept() -> bool:
        with cgroup():
            return leftovers(run.pid, run.pid) == ([], [])

    assert leftovers(run.pid, run.pid)[1]
    wait_for(swept, 20, "its control groups are gone")


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
