"""`portier watch` beside a real daemon: what it tells, what it writes, and that it costs nobody anything."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

from portier.errors import Refused
from portier.system.control import ControlClient
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, PROXY, Scene, config, guest, solicit, vps

PATIENCE = 10.0


class Watching:
    """A `portier watch` under way, and what it has printed."""

    def __init__(self, scene: Scene, *options: str) -> None:
        where = ["--runtime-dir", str(scene.portier.runtime)]
        self.process = scene.p.popen(
            [sys.executable, "-m", "portier", "watch", *where, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait(self, *words: str) -> str:
        """A line that has all of these words."""
        return str(
            wait_for(
                lambda: next((line for line in self.lines if all(word in line for word in words)), None),
                PATIENCE,
                f"a line with {words}",
            )
        )

    def end(self, number: int = signal.SIGINT) -> int:
        """Interrupt it; returns its exit code."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        """Wait for its end."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        assert "Traceback" not in self.process.stderr.read()
        self.process.stderr.close()
        return code


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene with its daemon, for both families."""
    made = vps(lab)
    made.u.add("eth0", "192.0.2.1/24")
    made.p.add("eth0", "192.0.2.2/24")
    made.start(config(f"[{NET}/64, {{deny: '{NET}dead/128'}}, 192.0.2.128/25]"))
    return made


@pytest.fixture
def watch(scene: Scene) -> Iterator[Any]:
    """Starts `portier watch`, which watches when that returns."""
    started = []

    def start(*options: str) -> Watching:
        before = watchers(scene)
        started.append(Watching(scene, *options))
        wait_for(lambda: watchers(scene) > before, PATIENCE, "the watcher to watch")
        return started[-1]

    yield start
    for watching in started:
        if watching.process.poll() is None:
            watching.end(signal.SIGKILL)


def watchers(scene: Scene) -> int:
    """How many watch: each has an eventfd, as each worker does."""
    count = 0
    for descriptor in Path(f"/proc/{scene.portier.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += "[eventfd]" in str(descriptor.readlink())
    return count


def test_events_are_told_as_they_happen(scene: Scene, watch: Any) -> None:
    """A host that is found is told at once, to people and to programs; Ctrl-C is a good end."""
    people, programs, others = watch(), watch("--json"), watch("--json", "--address", f"{NET}99")
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the first host answers")
    line = people.wait("learned", "lan", "tap1", guest(1))
    assert "\x1b" not in line, "no colours where there is no terminal"
    told = json.loads(programs.wait("learned", guest(1)))
    assert (told["kind"], told["group"], told["port"]) == ("learned", "lan", "tap1")
    assert told["address"] == guest(1)
    assert people.end() == 0
    assert programs.end() == 0
    assert others.end() == 0
    assert not others.lines


def test_solicitations_with_their_verdicts(scene: Scene, watch: Any, tmp_path: Path) -> None:
    """--packets tells each solicitation of both families with its verdict, also one that is invalid; --write
    makes a pcap of them, which others can read."""
    file = tmp_path / "out.pcap"
    watching = watch("--json", "--write", str(file), "--kind", "packet", "--port", "eth0")
    bad = solicit(scene.u, guest(2))
    bad[IPv6].hlim = 64
    who_has = Ether(src=scene.u.mac("eth0"), dst="ff:ff:ff:ff:ff:ff") / ARP(
        hwsrc=scene.u.mac("eth0"), psrc="192.0.2.1", pdst="192.0.2.7"
    )
    sent = [solicit(scene.u, f"{NET}dead"), solicit(scene.u, "2001:db8:dead::1"), bad, who_has]
    for frame in sent:
        scene.u.inject("eth0", frame)
    for target, verdict in (
        (f"{NET}dead", "denied"),
        ("2001:db8:dead::1", "no-rule"),
        (guest(2), "bad-hop-limit"),
        ("192.0.2.7", "no-rule"),
    ):
        told = json.loads(watching.wait(f'"target": "{target}"'))
        assert told["verdict"] == verdict
        assert told["port"] == "eth0"
        assert told["mac"] == scene.u.mac("eth0")
        assert "frame" not in told
    assert watching.end() == 0
    written = {bytes(packet) for packet in rdpcap(str(file))}
    assert {bytes(frame) for frame in sent} <= written
    for packet in rdpcap(str(file)):
        assert ICMPv6ND_NS in packet or packet[ARP].op == 1
        assert abs(float(packet.time) - json.loads(watching.lines[0])["time"]) < PATIENCE


def test_filters_are_checked(scene: Scene, watch: Any) -> None:
    """What no event can meet is refused, in words, with the exit code of wrong usage."""
    del watch
    for option, word in (("--kind=learnt", "learned"), ("--address=2001:db8::/12", "neither")):
        done = scene.portier.cli("watch", option)
        assert done.returncode == 64
        assert word in done.stderr


def test_the_daemon_ends(scene: Scene, watch: Any) -> None:
    """When the daemon stops, `watch` says so and ends with 4, and the daemon waited for nobody."""
    watching = watch()
    assert scene.portier.stop() == 0
    assert watching.finish() == 4


def test_stuck_watchers_cost_nothing(scene: Scene, watch: Any) -> None:
    """Seven watchers that take nothing and a flood of solicitations: the daemon answers as ever, one that
    does not stand still is told, and another hears what it missed when it goes on."""
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the first host answers")
    stopped = watch("--json", "--packets")
    stopped.process.send_signal(signal.SIGSTOP)
    client = ControlClient(scene.portier.runtime)
    stuck = [client.watch("/v1/events", packets="frames") for _ in range(6)]
    frames = [bytes(solicit(scene.u, f"2001:db8:dead::{number:x}")) for number in range(1000)]
    for _ in range(20):
        for frame in frames:
            scene.u.inject("eth0", frame)
    assert scene.u.ping(guest(1), timeout=2)
    assert scene.portier.status()["healthy"]
    moving = watch("--json", "--packets", "--address", PROXY)

    def told() -> bool:
        scene.u.inject("eth0", solicit(scene.u, PROXY))
        return bool(moving.lines)

    wait_for(told, PATIENCE, "the one that moves is told", interval=0.1)
    with pytest.raises(Refused, match="8 are watching already"):
        client.watch("/v1/events")
    stopped.process.send_signal(signal.SIGCONT)
    missed = json.loads(stopped.wait('"kind": "missed"'))
    assert missed["count"] > 0
    assert stopped.end() == 0
    for entries in stuck:
        assert next(entries)["kind"] == "packet", "what there was room for is kept"
        entries.close()
