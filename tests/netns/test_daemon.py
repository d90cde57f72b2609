"""The daemon as a process: how it starts, what keeps it from starting, signals, the service manager."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.lab import Host, Lab, Portier, wait_for
from tests.netns.scenes import NET, config, guest, vps

PATIENCE = 30.0  # seconds; machines that run these tests are busy


def run(host: Host, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    process = host.popen(
        [sys.executable, "-m", "portier", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environ},
    )
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.host("p")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(config())
    return path


def test_bad_config_at_start_is_78_with_every_error(host: Host, tmp_path: Path) -> None:
    """The first load fails: exit 78, each problem with its place on stderr, nothing made."""
    path = tmp_path / "bad.yaml"
    path.write_text(config(extra="anser: always\ntimers: {retries: lots}"))
    done = run(host, "run", "-c", str(path), "--runtime-dir", str(tmp_path / "run"))
    assert done.returncode == 78
    assert done.stderr.count(f"{path}:") == 2
    assert "answer" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_daemon_per_namespace(lab: Lab, host: Host, good: Path, tmp_path: Path) -> None:
    """A second daemon in the namespace is refused, whatever its runtime dir, and so is a cleanup; one in
    another namespace is not."""
    portier = lab.portier(config(), on=host)
    for command in (["run", "-c", str(good)], ["cleanup"]):
        done = run(host, *command, "--runtime-dir", str(tmp_path / "other"))
        assert done.returncode == 1
        assert "runs in this network namespace already" in done.stderr
        assert str(portier.pid) in done.stderr
    lab.portier(config(), on=lab.host("q"), name="second")


def test_runtime_dir_that_cannot_be(host: Host, good: Path, tmp_path: Path) -> None:
    """A runtime dir that cannot be made is one line that names it."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(host, "run", "-c", str(good), "--runtime-dir", str(blocked / "run"))
    assert done.returncode != 0
    assert str(blocked / "run") in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_rights_it_is_77(host: Host, good: Path, tmp_path: Path) -> None:
    """Without capabilities: exit 77, naming those that are missing."""
    if subprocess.run(["sh", "-c", "command -v setpriv"], capture_output=True, check=False).returncode:
        pytest.skip("no setpriv here to drop capabilities with")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    process = host.popen(
        [
            *drop,
            sys.executable,
            "-m",
            "portier",
            "run",
            "-c",
            str(good),
            "--runtime-dir",
            str(tmp_path / "run"),
        ],
        stderr=subprocess.PIPE,
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 77, err
    assert "CAP_NET_ADMIN and CAP_NET_RAW missing" in err


class Manager:
    """A service manager that takes note."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def poll(self) -> list[dict[str, str]]:
        while True:
            try:
                data = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in data.splitlines()))

    def wait(self, key: str, after: int = 0) -> dict[str, str]:
        """The next message, behind the first ``after``, that has this key."""
        found: dict[str, str] = wait_for(
            lambda: next((m for m in self.poll()[after:] if key in m), None), PATIENCE, key
        )
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def test_service_manager_is_kept_informed(
    lab: Lab, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY only after the first round, RELOADING with its time and READY again for SIGHUP, signs of life
    as often as the watchdog wants them, a STATUS for people, STOPPING at the end."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    scene = vps(lab)
    portier = scene.start(config())
    assert "active" in manager.wait("READY")["STATUS"]
    manager.wait("WATCHDOG")
    seen = len(manager.poll())
    portier.signal(signal.SIGHUP)
    assert int(manager.wait("RELOADING", seen)["MONOTONIC_USEC"]) > 0
    manager.wait("READY", seen)
    seen = len(manager.poll())
    scene.p.ip("link set eth0 down")
    wait_for(
        lambda: any("no usable upstream" in m.get("STATUS", "") for m in manager.poll()[seen:]),
        PATIENCE,
        "a STATUS that says what is wrong",
    )
    portier.stop()
    manager.wait("STOPPING", seen)


def log_has(portier: Portier, *words: str) -> Any:
    return wait_for(
        lambda: next(
            (line for line in portier.tail(500).splitlines() if all(w in line for w in words)), None
        ),
        PATIENCE,
        f"a log line with {words}",
    )


def test_signals(lab: Lab) -> None:
    """SIGUSR1 logs the status, SIGHUP applies an edit, SIGINT is a clean stop."""
    scene = vps(lab)
    portier = scene.start(config(head="watch: false"))
    assert scene.u.ping(guest(1))
    portier.signal(signal.SIGUSR1)
    log_has(portier, "group lan", "upstream eth0", "tap1")
    portier.write(config(head="watch: false", extra="isolate: true"))
    wait_for(lambda: portier.status()["config"]["differs"], PATIENCE, "the difference is seen")
    assert portier.generation() == 1
    portier.signal(signal.SIGHUP)
    wait_for(lambda: portier.generation() == 2, PATIENCE, "reloaded")
    assert not portier.status()["config"]["differs"]
    portier.signal(signal.SIGINT)
    wait_for(lambda: not portier.running, PATIENCE, "stopped")
    assert portier.stop() == 0
    assert not scene.p.host_routes()


def test_json_log(lab: Lab) -> None:
    """With `format: json` every line of the log is an object."""
    scene = vps(lab)
    portier = scene.start(config(head="log: {format: json}"))
    assert scene.u.ping(guest(1))
    log_has(portier, '"event": "learned"', '"group": "lan"', guest(1))
    portier.stop()
    for line in portier.log.read_text().splitlines():
        assert {"time", "level", "text"} <= json.loads(line).keys()


def test_status_has_what_the_contract_names(lab: Lab) -> None:
    """The status is version 1 and complete; it turns unhealthy with a reason, and back."""
    scene = vps(lab)
    portier = scene.start(config("[upstream]"))
    assert scene.u.ping(guest(1))
    status = portier.status()
    assert status["version"] == 1
    assert status["healthy"], status["problems"]
    assert status["pid"] == portier.pid
    group = status["groups"][0]
    assert group["upstream"] == {"candidates": ["eth0"], "active": "eth0"}
    assert [live["prefix"] for live in group["live"]] == [f"{NET}/64"]
    assert group["worker"]["state"] == "running"
    assert group["neighbors"] >= 1
    assert group["limits"]["neighbors"] == 4096
    port = next(port for port in group["ports"] if port["name"] == "tap1")
    assert port["role"] == "downstream"
    assert port["index"] == scene.p.index("tap1")
    assert port["mac"] == scene.p.mac("tap1")
    assert port["source"].startswith("fe80::")
    assert any("force_forwarding 0 -> 1" in line or "forwarding 0 -> 1" in line for line in status["sysctls"])
    scene.p.ip("link set eth0 down")
    wait_for(lambda: any("eth0: down" in p for p in portier.status()["problems"]), PATIENCE, "unhealthy")
    assert not portier.status()["healthy"]
    scene.p.ip("link set eth0 up")
    wait_for(lambda: portier.status()["healthy"], PATIENCE, "healthy again")


def test_kill_and_cleanup_and_plan_alone(lab: Lab) -> None:
    """After a kill, `plan` without a daemon shows what a start would do, and `cleanup` leaves nothing."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    portier.kill9()
    planned = portier.cli("plan")
    assert planned.returncode == 2
    assert f"- route {guest(1)}/128 dev tap1" in planned.stdout
    assert "no daemon" in planned.stderr
    assert scene.p.host_routes()
    cleaned = portier.cli("cleanup")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not scene.p.host_routes()
    assert not [rule for rule in scene.p.rules() if str(rule.get("protocol")) == "135"]
    assert "nothing to clean up" in portier.cli("cleanup").stdout


def test_port_that_flaps(lab: Lab) -> None:
    """A port that goes down and up faster than rounds are made is right in the end."""
    scene = vps(lab)
    portier = scene.start(config())
    for _ in range(10):
        scene.p.ip("link set tap1 down", "link set tap1 up")
        time.sleep(0.02)
    wait_for(lambda: portier.status()["healthy"], PATIENCE, "healthy after flaps")
    portier.wait_ports("eth0", *(f"tap{n}" for n in scene.guests), timeout=PATIENCE)
    assert scene.u.ping(guest(1))
