"""A restart is not a cold start: known hosts are asked first, and lose next to nothing."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import time

import pytest

from tests.netns.lab import Host, Lab, Portier, wait_for
from tests.netns.scenes import NET, UPSTREAM, Scene, config, guest, octets, vps

NET4 = "192.0.2."


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene with both families, the guests' default routes of either by the proxy."""
    scene = vps(lab)
    scene.u.add("eth0", f"{NET4}10/24")
    scene.p.add("eth0", f"{NET4}2/24")
    for number, host in scene.guests.items():
        host.add("eth0", f"{NET4}{20 + number}/24")
    return scene


class Pings:
    """Pings between the upstream host and a guest, both ways and in both families, ten a second."""

    def __init__(self, scene: Scene) -> None:
        ways = [
            (scene.u, guest(1)),
            (scene.u, f"{NET4}21"),
            (scene.guests[1], UPSTREAM),
            (scene.guests[1], f"{NET4}10"),
        ]
        self._pings = [
            host.popen(
                ["ping", "-n", "-D", "-O", "-i", "0.1", "-w", "60", address],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for host, address in ways
        ]

    def outages(self) -> list[float]:
        """Stop, and tell the longest time between two answers, of each."""
        longest = []
        for ping in self._pings:
            ping.send_signal(signal.SIGINT)
            output = ping.communicate(timeout=10)[0]
            times = [
                float(found) for found in re.findall(r"^\[([\d.]+)\] \d+ bytes from", output, re.MULTILINE)
            ]
            assert len(times) > 10, output
            longest.append(max(after - before for before, after in itertools.pairwise(times)))
        return longest


def answers(host: Host, address: str) -> bool:
    """Whether one ping is answered within a second, in either family."""
    return host.run(["ping", "-n", "-c", "1", "-W", "1", address], check=False).returncode == 0


def started(scene: Scene) -> Portier:
    """The daemon, with all hosts known and saved."""
    portier = scene.start(config(f"[{NET}/64, {NET4}0/24]"))
    known = [guest(1), guest(2), f"{NET4}21", f"{NET4}22"]
    for address in known:
        wait_for(lambda address=address: answers(scene.u, address), 10, f"{address} reached")  # type: ignore[misc]
    (file,) = wait_for(lambda: list(portier.runtime.glob("hosts.*")), 5, "saved")
    wait_for(lambda: len(file.read_text().splitlines()) > len(known), 5, "all of them saved")
    return portier


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_known_hosts_lose_less_than_a_second(scene: Scene, end: str) -> None:
    """Stop or kill -9, and start at once: nobody waits for more than a second, in no direction, in neither
    family (where a busy machine takes that long to start the process, not much longer than that); and the
    host routes are right."""
    portier = started(scene)
    routes = scene.p.host_routes()
    pings = Pings(scene)
    time.sleep(1.5)
    begin = time.monotonic()
    if end == "SIGTERM":
        assert portier.stop() == 0
    else:
        portier.kill9()
    portier.start()
    took = time.monotonic() - begin
    wait_for(lambda: scene.p.host_routes() == routes, 5, "the same host routes")
    time.sleep(1.5)
    outages = pings.outages()
    print(f"stopped and ready again in {took:.2f} s, longest outages {outages}")
    assert max(outages) < max(1.0, took + 0.3), f"{outages} in a restart of {took} s"


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_known_hosts_are_asked_before_they_are_used(scene: Scene, end: str) -> None:
    """Each is asked by unicast, with no traffic to want it: who answers is known and routed again, who is
    gone is neither, and what a kill -9 left of him goes."""
    portier = started(scene)
    routes = scene.p.host_routes()
    if end == "SIGTERM":
        portier.stop()
    else:
        portier.kill9()
        assert scene.p.host_routes() == routes
    leaver = scene.guests[2]
    leaver.ip(f"addr del {guest(2)}/64 dev eth0", f"addr del {NET4}22/24 dev eth0")
    captures = {number: scene.p.capture(f"tap{number}") for number in scene.guests}
    portier.start()
    wait_for(lambda: {guest(1), f"{NET4}21"} <= portier.neighbors().keys(), 5, "those who are there")
    for number, capture in captures.items():
        probe = capture.wait_solicitation(guest(number), outgoing=True)
        assert probe.raw[:6] == octets(scene.guests[number].mac("eth0")), "by unicast"
    here = {address: port for address, port in routes.items() if port != "tap2"}
    wait_for(lambda: scene.p.host_routes() == here, 20, "no route to him who left")
    assert not {guest(2), f"{NET4}22"} & portier.neighbors().keys()


def test_garbage_in_the_runtime_directory_breaks_no_start(scene: Scene) -> None:
    """A file of known hosts that is none costs what it would have saved."""
    portier = started(scene)
    portier.stop()
    (file,) = portier.runtime.glob("hosts.*")
    file.write_bytes(os.urandom(100_000))
    portier.start()
    wait_for(lambda: answers(scene.u, guest(1)), 10, "reached as after a cold start")
    portier.stop()
    file.unlink()
    file.mkdir()
    portier.start()
    wait_for(lambda: answers(scene.u, guest(1)), 10, "reached again")
    file.rmdir()
    wait_for(lambda: answers(scene.u, f"{NET4}21"), 10, "reached by IPv4")
    wait_for(file.is_file, 30, "saved again")
