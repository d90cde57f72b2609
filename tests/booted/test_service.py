"""The systemd unit, in a booted Debian: what it promises, with its sandbox on."""

from __future__ import annotations

import functools
import ipaddress
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.booted.machine import Machine, Root
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, UPSTREAM, Scene, config, guest, vps

UNIT = "portier.service"
CONFIG = "/etc/portier.yaml"
BROKEN = "version: 1\ngroups: {lan: {upstream: eth0, downstreams: tap1}}\n"
EVERY_RELEASE = pytest.mark.parametrize("portier_root", ["bookworm", "trixie"], indirect=True)


@dataclass
class Service:
    """The unit on the proxy of the usual scene."""

    scene: Scene
    machine: Machine
    before: dict[str, str]

    def state(self) -> dict[str, str]:
        """How systemd sees the unit."""
        wanted = ("ActiveState", "SubState", "Result", "NRestarts", "ExecMainStatus", "StatusText", "MainPID")
        return self.machine.show(UNIT, *wanted)

    def systemctl(self, *args: str, check: bool = True) -> int:
        """Run systemctl; its exit code."""
        return self.machine.run(["systemctl", *args], check=check).returncode

    def generation(self) -> int:
        """The number of configurations taken so far."""
        shown = json.loads(self.machine.run(["portier", "status", "--json"], check=False).stdout)
        return int(shown["config"]["generation"])

    def run_by_hand(self) -> subprocess.Popen[str]:
        """`portier run` as root, ready."""
        command = self.machine.command(["portier", "run"])
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True)
        self.scene.lab.processes.append(process)  # which ends it if the test fails
        asked = ["portier", "status"]
        wait_for(lambda: self.machine.run(asked, check=False).returncode == 0, 30, "the daemon is up")
        return process

    def wait_saved(self, address: str) -> None:
        """Wait until a host is kept for the next start."""
        packed = ipaddress.IPv6Address(address).packed.hex()
        directory = self.machine.path / "run/portier"

        def saved() -> bool:
            return any(packed in file.read_text() for file in directory.glob("hosts.*"))

        wait_for(saved, 20, f"{address} is saved")

    def wait_restarted(self, times: int) -> None:
        """Wait until the unit is up again, after so many restarts by systemd."""

        def up() -> bool:
            state = self.state()
            return state["NRestarts"] == str(times) and state["ActiveState"] == "active"

        wait_for(up, 60, f"{UNIT} is restarted", interval=0.2)

    def assert_nothing_left(self) -> None:
        """Nothing of Portier is left in the kernel."""
        host = self.scene.p
        assert host.sysctls() == self.before
        assert host.routes("proto 135") == []
        assert [rule for rule in host.rules() if rule.get("protocol") == "135"] == []

    def assert_proxied(self) -> None:
        """The upstream reaches a host behind, and it the upstream."""
        # More than once: packets that a neighbor entry brings before the host is known again are lost.
        for host, address in ((self.scene.u, guest(1)), (self.scene.guests[2], UPSTREAM)):
            wait_for(functools.partial(host.ping, address, timeout=1), 20, f"{host.name} reaches {address}")


Boot = Callable[[str | None], Service]


@pytest.fixture
def boot(portier_root: Root, lab: Lab) -> Iterator[Boot]:
    """Boot the proxy of the usual scene with this configuration, or without any."""
    booted: list[Service] = []

    def start(text: str | None) -> Service:
        scene = vps(lab)
        before = scene.p.sysctls()
        if text is not None:
            (portier_root.path / "etc/portier.yaml").write_text(text)
        booted.append(Service(scene, portier_root.boot(scene.p), before))
        return booted[-1]

    yield start
    for service in booted:
        journal = service.machine.journal(UNIT)
        print(journal)  # which pytest shows of a failed test
        assert "Traceback" not in journal


@EVERY_RELEASE
def test_unit_proxies_in_its_sandbox(boot: Boot) -> None:
    """Started at boot, ready when the configuration is applied, with two capabilities and no more; a clean
    stop leaves nothing."""
    service = boot(config())
    state = service.state()
    assert (state["ActiveState"], state["SubState"]) == ("active", "running")
    assert service.scene.p.sysctls() != service.before
    service.assert_proxied()
    wait_for(lambda: service.state()["StatusText"] == "1 groups, 3 ports active", 20, "the status line")

    process = service.machine.path / "proc" / state["MainPID"] / "status"
    fields = dict(line.split(":\t", 1) for line in process.read_text().splitlines())
    user = service.machine.run(["id", "-u", "portier"]).stdout.strip()
    assert fields["Uid"].split() == [user] * 4
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {1 << 12 | 1 << 13}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")

    assert service.machine.run(["portier", "status"]).returncode == 0
    assert f"{guest(1)}" in service.machine.run(["portier", "neighbors"]).stdout

    service.systemctl("stop", UNIT)
    assert service.state()["Result"] == "success"
    service.assert_nothing_left()


@EVERY_RELEASE
def test_reload_waits_for_the_outcome(boot: Boot) -> None:
    """A good configuration is in force when `systemctl reload` returns; a refused one fails it, and what runs
    stays."""
    service = boot(config(f"[{NET}100/120]", head="watch: false"))
    assert not service.scene.u.ping(guest(1), timeout=1).received
    service.machine.write(CONFIG, config(head="watch: false"))
    service.systemctl("reload", UNIT)
    service.assert_proxied()

    pid = service.state()["MainPID"]
    service.machine.write(CONFIG, BROKEN)
    assert service.systemctl("reload", UNIT, check=False) != 0
    state = service.state()
    assert (state["ActiveState"], state["SubState"], state["MainPID"]) == ("active", "running", pid)
    assert f"{CONFIG}:2:" in service.machine.journal(UNIT, "--priority=err")
    service.assert_proxied()

    before = service.generation()
    service.machine.write(CONFIG, config(f"[{NET}/64, 2001:db8:8::/64]", head="watch: false"))
    service.systemctl("kill", "--kill-whom=main", "--signal=HUP", UNIT)  # systemd hears of this reload too
    wait_for(lambda: service.generation() > before, 20, "the configuration is taken")
    wait_for(lambda: service.state()["SubState"] == "running", 20, "the reload has ended")


def test_refused_configuration_is_not_tried_again(boot: Boot) -> None:
    """The exit code says that no restart helps; without any configuration the unit does not start at all."""
    service = boot(BROKEN)
    state = service.state()
    assert (state["ActiveState"], state["Result"]) == ("failed", "exit-code")
    assert (state["ExecMainStatus"], state["NRestarts"]) == ("78", "0")
    assert f"{CONFIG}:2:" in service.machine.journal(UNIT, "--priority=err")
    service.assert_nothing_left()

    (service.machine.path / CONFIG.lstrip("/")).unlink()
    service.systemctl("reset-failed", UNIT)
    service.systemctl("start", UNIT)
    assert service.state()["ActiveState"] == "inactive"

    service.machine.write(CONFIG, config())
    (service.machine.path / CONFIG.lstrip("/")).chmod(0o600)
    assert service.systemctl("start", UNIT, check=False) != 0
    assert "cannot be read by user portier" in service.machine.journal(UNIT)
    remedy = f"chgrp portier {CONFIG} && chmod g+rX {CONFIG}"  # root, who can read it, is told all the same
    assert remedy in " ".join(service.machine.run(["portier", "check"]).stdout.split())
    shown = json.loads(service.machine.run(["portier", "doctor", "--json"], check=False).stdout)
    assert remedy in [finding["remedy"] for finding in shown["findings"]]
    service.machine.run(["sh", "-c", remedy])
    service.systemctl("start", UNIT)
    service.assert_proxied()


def test_killed_daemon_is_restarted_and_its_changes_undone(boot: Boot) -> None:
    """After a kill -9 systemd starts it again; the next one adopts what was on record, and a clean stop
    restores it all."""
    service = boot(config())
    service.assert_proxied()
    service.wait_saved(guest(1))
    changed = service.scene.p.sysctls()
    routes = service.scene.p.host_routes()
    assert changed != service.before
    assert guest(1) in routes
    pid = service.state()["MainPID"]
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL", UNIT)
    service.wait_restarted(1)
    assert service.state()["MainPID"] != pid
    assert service.scene.p.sysctls() == changed
    assert guest(1) in service.scene.p.host_routes()
    service.assert_proxied()
    service.systemctl("stop", UNIT)
    service.assert_nothing_left()


def test_root_examines_the_service_and_cleans_up_after_a_kill(boot: Boot) -> None:
    """Root sees, and acts on, what the service's user put on record."""
    service = boot(config())
    service.assert_proxied()
    examined = service.machine.run(["portier", "doctor"], check=False)
    assert "checks passed" in examined.stdout, examined.stderr
    assert "/run/portier" not in examined.stdout  # nothing there that could not be read
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL", UNIT)
    service.systemctl("stop", UNIT)  # before it is started again
    assert service.scene.p.host_routes()
    assert service.machine.run(["portier", "plan"], check=False).returncode == 2
    assert guest(1) in service.machine.run(["portier", "cleanup"]).stdout
    service.assert_nothing_left()
    service.systemctl("start", UNIT)
    service.assert_proxied()


def test_daemon_by_hand_and_unit_follow_each_other(boot: Boot) -> None:
    """What root started and killed is adopted by the unit; after it, root takes its user's part."""
    service = boot(None)
    service.machine.write(CONFIG, config())
    by_hand = service.run_by_hand()
    service.assert_proxied()
    service.machine.run(["pkill", "--signal=KILL", "--full", "portier run"])
    by_hand.wait(20)
    service.systemctl("start", UNIT)
    service.assert_proxied()
    service.systemctl("stop", UNIT)
    service.assert_nothing_left()

    by_hand = service.run_by_hand()
    assert service.machine.run(["stat", "--format=%U", "/run/portier/control.sock"]).stdout == "portier\n"
    service.assert_proxied()
    service.machine.run(["pkill", "--signal=TERM", "--full", "portier run"])
    assert by_hand.wait(20) == 0
    service.assert_nothing_left()


def test_hanging_daemon_is_ended_by_the_watchdog(boot: Boot) -> None:
    """A daemon that is stopped with SIGSTOP says nothing any more, and is replaced."""
    service = boot(None)
    drop_in = service.machine.path / "etc/systemd/system/portier.service.d/soon.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=5\n")
    service.systemctl("daemon-reload")
    service.machine.write(CONFIG, config())
    service.systemctl("start", UNIT)
    service.systemctl("kill", "--kill-whom=main", "--signal=STOP", UNIT)
    service.wait_restarted(1)
    assert "Watchdog timeout" in service.machine.journal(UNIT)
    service.assert_proxied()
    service.systemctl("stop", UNIT)
    service.assert_nothing_left()


def test_journal_has_fields(boot: Boot) -> None:
    """What an event is about can be asked for by field."""
    service = boot(config(name="guests"))
    service.assert_proxied()

    def found() -> list[dict[str, str]]:
        fields = ["PORTIER_KIND=learned", f"PORTIER_ADDRESS={guest(1)}"]
        shown = service.machine.run(["journalctl", "--output=json", "--unit", UNIT, *fields]).stdout
        return [json.loads(line) for line in shown.splitlines()]

    entry = wait_for(found, 20, "the entry in the journal")[0]
    assert (entry["PORTIER_GROUP"], entry["PORTIER_PORT"]) == ("guests", "tap1")
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"], entry["_TRANSPORT"]) == ("6", "portier", "journal")
    assert entry["MESSAGE"].startswith("learned: ")
    assert not entry["MESSAGE"].endswith("\n")


def test_control_group(boot: Boot) -> None:
    """Members of the group portier may ask the daemon, or of another that the file names; nobody else."""
    service = boot(config(head="watch: false"))
    run = service.machine.run
    run(["useradd", "--groups", "portier", "member"])
    run(["useradd", "stranger"])

    def ask(user: str) -> int:
        return run(
            ["setpriv", f"--reuid={user}", "--init-groups", "portier", "status"], check=False
        ).returncode

    assert (ask("member"), ask("stranger")) == (0, 77)
    run(["groupadd", "operators"])
    run(["usermod", "--append", "--groups", "operators", "stranger"])
    run(["usermod", "--append", "--groups", "operators", "portier"])
    service.machine.write(CONFIG, config(head="control: {group: operators}"))
    service.systemctl("restart", UNIT)
    assert (ask("member"), ask("stranger")) == (77, 0)


@EVERY_RELEASE
def test_unit_is_sound_and_little_exposed(portier_root: Root) -> None:
    """To the letter of the release's own systemd."""
    verified = portier_root.run(["systemd-analyze", "verify", "--man=no", UNIT])
    assert verified.stdout + verified.stderr == ""
    portier_root.run(["systemd-analyze", "security", "--offline=yes", "--threshold=20", UNIT])
