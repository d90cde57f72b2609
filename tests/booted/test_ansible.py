"""The Ansible role: a real ansible-playbook runs its example against a booted Debian.

Ansible reaches the machine by its ssh connection, whose ssh is a script that enters the machine's
namespaces: it does what it does over a network, and no sshd is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.booted.machine import Machine, Releases, Root
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import UPSTREAM, Scene, guest, vps

ROLES = Path(__file__).parents[2] / "packaging" / "ansible"
MAIN = "/etc/portier.yaml"
LAN = {"upstream": "eth0", "downstream": ["tap1", "!lo"], "router_advertisements": False}
CONFIG = {"version": 1, "metrics": {"listen": None}, "groups": {"lan": LAN}}
PAIR = {"groups": {"pair": {"downstream": "tap2", "prefixes": ["2001:db8:9::/64", "2001:db8:7::12"]}}}


@dataclass
class Run:
    """How ansible-playbook ended, and what it said."""

    code: int
    said: str
    ok: int
    changed: int
    failed: int


class Ansible:
    """Runs the example playbook for one machine; ``deb`` is where the package is had from."""

    def __init__(self, machine: Machine, directory: Path, deb: str) -> None:
        self._directory = directory
        self._deb = deb
        ssh = directory / "ssh"
        enter = shlex.join(machine.command(["sh", "-c"]))
        ssh.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {enter} "$last"\n')
        ssh.chmod(0o755)
        (directory / "inventory").write_text(
            f"[hypervisors]\nmachine ansible_ssh_executable={ssh} ansible_ssh_args='' "
            "ansible_ssh_transfer_method=piped ansible_become=false "
            "ansible_python_interpreter=/usr/bin/python3\n"
        )

    def __call__(self, *options: str, **variables: Any) -> Run:
        values = {"config": CONFIG, "dropins": {}, "dropins_absent": [], "deb": self._deb} | variables
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("--inventory", str(self._directory / "inventory")),
            *("--extra-vars", json.dumps({f"portier_{name}": value for name, value in values.items()})),
            *options,
            "example.yml",
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "LANG": "C.UTF-8"}
        environment |= {"ANSIBLE_PIPELINING": "1", "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, cwd=ROLES, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        said = done.stdout + done.stderr
        recap = re.search(r"machine +: ok=(\d+) +changed=(\d+) +unreachable=0 +failed=(\d+)", said)
        assert recap, said
        return Run(done.returncode, said, *map(int, recap.groups()))


@dataclass
class Configured:
    """A machine in the lab where the role has been at work."""

    ansible: Ansible
    machine: Machine
    scene: Scene

    def status(self) -> dict[str, Any]:
        """What `portier status --json` prints."""
        answer: dict[str, Any] = json.loads(
            self.machine.run(["portier", "status", "--json"], check=False).stdout
        )
        return answer

    def groups(self) -> list[str]:
        return [group["name"] for group in self.status()["groups"]]

    def state(self) -> tuple[str, int, dict[str, str]]:
        """What nobody may change unasked: the process, the generation, and the files with their content."""
        files = [self.machine.path / MAIN.lstrip("/"), *self.machine.path.glob("etc/portier.d/*")]
        return (
            self.machine.show("portier", "MainPID")["MainPID"],
            self.status()["config"]["generation"],
            {file.name: file.read_text() for file in files},
        )


def booted(root: Root, lab: Lab, directory: Path, package: Path, source: str) -> Configured:
    """Boot a machine without Portier, whose package is had as a ``file``, by ``url``, or from an ``apt``
    source."""
    scene = vps(lab)
    machine = root.boot(scene.p)
    deb = str(package)
    if source == "apt":
        offer(package, machine)
        deb = ""
    else:
        os.utime(root.path / "var/lib/apt/lists")  # no network: as if apt-get update had run just now
    if source == "url":
        scene.u.popen(
            [sys.executable, "-m", "http.server", "--directory", str(package.parent), "--bind", "::", "80"]
        )
        wait_for(lambda: scene.u.run(["ss", "-Hltn", "sport", "80"]).stdout, 20, "the package is served")
        deb = f"http://[{UPSTREAM}]/{package.name}"
    return Configured(Ansible(machine, directory, deb), machine, scene)


def offer(package: Path, machine: Machine) -> None:
    """Make a directory with the package the machine's only apt source."""
    control = subprocess.run(
        ["dpkg-deb", "--field", package], check=True, capture_output=True, text=True
    ).stdout
    content = package.read_bytes()
    repository = machine.root.path / "srv/portier"
    repository.mkdir()
    (repository / package.name).write_bytes(content)
    (repository / "Packages").write_text(
        f"{control}Filename: ./{package.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    machine.write("/etc/apt/sources.list", "deb [trusted=yes] file:/srv/portier ./\n")
    machine.run(["apt-get", "-qq", "update"])


@pytest.mark.parametrize(("root", "source"), [("bookworm", "file"), ("trixie", "apt")], indirect=["root"])
def test_first_run_ends_with_a_proxy_and_the_second_changes_nothing(
    root: Root, source: str, lab: Lab, tmp_path: Path, package: Path
) -> None:
    """Check mode before it says so, and changes nothing."""
    here = booted(root, lab, tmp_path, package, source)
    before = sorted(here.machine.path.glob("etc/**/*")), sorted(here.machine.path.glob("tmp/*"))
    trial = here.ansible("--check", "--diff")
    assert (trial.code, trial.changed, trial.failed) == (0, 2, 0), trial.said
    assert "Portier is not installed yet: the configuration has not been checked" in trial.said
    assert "+    upstream: eth0" in trial.said
    assert (sorted(here.machine.path.glob("etc/**/*")), sorted(here.machine.path.glob("tmp/*"))) == before
    assert here.machine.run(["dpkg-query", "--status", "portier"], check=False).returncode == 1

    first = here.ansible()
    assert (first.code, first.changed > 0, first.failed) == (0, True, 0), first.said
    assert here.machine.show("portier", "ActiveState", "UnitFileState") == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
    }
    wait_for(lambda: here.scene.u.ping(guest(1)).received, 20, "the guest is reached through the proxy")

    state = here.state()
    second = here.ansible("--diff")
    assert (second.code, second.changed, second.failed) == (0, 0, 0), second.said
    assert here.state() == state
    assert sorted(here.machine.path.glob("tmp/*.deb")) == []


@pytest.fixture(scope="module")
def configured(
    releases: Releases, shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory, package: Path
) -> Iterator[Configured]:
    """A machine where Portier runs with CONFIG; each test ends with that too."""
    with Root(releases.furnished("bookworm")) as root:
        here = booted(root, shared_lab, tmp_path_factory.mktemp("ansible"), package, "url")
        run = here.ansible()
        assert (run.code, run.failed) == (0, 0), run.said
        wait_for(lambda: here.scene.u.ping(guest(1)).received, 20, "the guest is reached through the proxy")
        yield here


def test_a_changed_configuration_is_checked_and_reloaded(configured: Configured) -> None:
    """As a whole, and in check mode too; what is broken changes nothing, and what moves keeps its traffic."""
    state = pid, generation, _ = configured.state()

    broken = {**PAIR, "groups": {**PAIR["groups"], "lab": {"upstraem": "eth1", "downstream": "tap9"}}}
    for options in (["--check"], []):
        refused = configured.ansible(*options, dropins={"pair": broken})
        assert (refused.code, refused.changed, refused.failed) == (2, 0, 1), refused.said
        assert "/etc/portier.d/pair.yaml:9:5: groups.lab.upstraem: unknown key" in refused.said
        assert configured.state() == state

    always = {**LAN, "prefixes": ["upstream", {"allow": "2001:db8:7::25", "answer": "always"}]}
    config = {**CONFIG, "groups": {"lan": always}}
    trial = configured.ansible("--check", "--diff", config=config, dropins={"pair": PAIR})
    assert (trial.code, trial.changed, trial.failed) == (0, 2, 0), trial.said  # the files, and the reload
    assert "+    downstream: tap2" in trial.said
    warning = "portier check: group lan: `always` for 2001:db8:7::25/128 overlaps 2001:db8:7::/64"
    assert warning in " ".join(trial.said.split())
    assert configured.state() == state

    added = configured.ansible(dropins={"pair": PAIR})
    assert (added.code, added.changed, added.failed) == (0, 2, 0), added.said
    assert configured.groups() == ["lan", "pair"]

    # A group that moves is in both files or in none while the two are written one after the other.
    pings = configured.scene.u.pinging(guest(1))
    moved = configured.ansible(config={"version": 1}, dropins={"lan": {"groups": {"lan": LAN}}, "pair": PAIR})
    replies, longest = pings.stop()
    assert replies
    assert longest < 1.0  # the guest's host route never went
    assert (moved.code, moved.changed, moved.failed) == (0, 2, 0), moved.said
    assert sorted(configured.groups()) == ["lan", "pair"]
    assert configured.state()[:2] == (pid, generation + 2)

    back = configured.ansible(dropins_absent=["lan", "pair", "never-there"])
    assert (back.code, back.changed, back.failed) == (0, 2, 0), back.said
    assert configured.groups() == ["lan"]
    assert configured.state() == (pid, generation + 3, state[2])


def test_a_stopped_daemon_is_started_and_a_file_edited_by_hand_put_right(configured: Configured) -> None:
    """What differs from the variables is a change, whoever made it."""
    _, _, files = configured.state()
    configured.machine.run(["systemctl", "disable", "--now", "portier"])
    configured.machine.write(MAIN, "version: 1\n")
    (configured.machine.path / MAIN.lstrip("/")).chmod(0o600)
    run = configured.ansible()
    assert (run.code, run.failed) == (0, 0), run.said
    assert configured.state()[2] == files
    assert (configured.machine.path / MAIN.lstrip("/")).stat().st_mode & 0o777 == 0o644
    assert configured.machine.show("portier", "ActiveState", "UnitFileState") == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
    }
