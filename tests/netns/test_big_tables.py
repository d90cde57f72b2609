"""A box with a full table: 200,000 routes of others, a hundred of which change every second."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from tests.netns.lab import Host, Lab, wait_for
from tests.netns.scenes import UPSTREAM, Scene, config, guest, vps

ROUTES = 200_000
pytestmark = pytest.mark.alone


def prefix(number: int) -> str:
    """The destination of one of the foreign routes."""
    return f"2a00:{number >> 8:x}:{number & 0xFF:x}::/48"


def fill(host: Host, count: int) -> None:
    """Give the host so many routes of a routing daemon, all by the upstream."""
    lines = (f"route add {prefix(number)} via {UPSTREAM} dev eth0 proto bgp" for number in range(count))
    host.run(["ip", "-6", "-batch", "-"], stdin="\n".join(lines) + "\n", timeout=120)


class Churn(threading.Thread):
    """Changes a hundred routes a second until stopped."""

    def __init__(self, host: Host, route: str) -> None:
        super().__init__(daemon=True)
        self._route = route
        self._stopping = threading.Event()
        self._ip = host.popen(["ip", "-6", "-batch", "-"], stdin=subprocess.PIPE, bufsize=1)
        self.changes = 0

    def run(self) -> None:
        """Delete and add by turns, in pairs, fifty pairs a second."""
        assert self._ip.stdin is not None
        number = 0
        begin = time.monotonic()
        while not self._stopping.wait(max(0.0, begin + self.changes / 100 - time.monotonic())):
            route = self._route.format(prefix=prefix(number % ROUTES), number=number % 0xFFFF)
            self._ip.stdin.write(f"route replace {route}\nroute del {route}\n")
            self._ip.stdin.flush()
            self.changes += 2
            number += 1

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self.join(5)
        assert self._ip.stdin is not None
        self._ip.stdin.close()
        assert self._ip.wait(10) == 0, "the churn itself failed"


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene on a box with many routes."""
    scene = vps(lab)
    fill(scene.p, ROUTES)
    return scene


@pytest.mark.parametrize(
    "route",
    [
        f"{{prefix}} via {UPSTREAM} dev eth0 proto bgp",
        "2001:db8:66::{number:x} dev tap1 proto bgp",
        "2001:db8:66::{number:x} dev tap1 proto static",
    ],
    ids=["by a gateway", "hosts of a daemon", "static hosts"],
)
def test_rounds_and_cpu_under_churn(scene: Scene, route: str) -> None:
    """The routes of others are not read: a round stays far below the seconds that this would take (it takes
    less than 0.1 s on a quiet machine), the daemon below 5 % of a CPU, and the work is done."""
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    churn = Churn(scene.p, route)
    churn.start()
    wait_for(lambda: churn.changes > 100, 5, "churning")
    before, begin, rounds = portier.cpu_seconds(), time.monotonic(), portier.status()["reconcile"]["rounds"]
    time.sleep(10)
    share = (portier.cpu_seconds() - before) / (time.monotonic() - begin)
    made = portier.status()["reconcile"]["rounds"] - rounds
    took = []
    for number in range(5):
        seen = portier.status()["reconcile"]["rounds"]
        scene.p.add("tap1", f"2001:db8:50::{number + 1:x}/64")
        wait_for(lambda seen=seen: portier.status()["reconcile"]["rounds"] > seen, 5, "a round")  # type: ignore[misc]
        took.append(portier.status()["reconcile"]["last_ms"])
    assert scene.u.ping(guest(2))
    churn.stop()
    print(f"CPU {share:.1%}, {made} rounds in 10 s of churn, rounds of {took} ms")
    assert share < 0.05, f"{share:.1%} of a CPU, {made} rounds in 10 s"
    assert sorted(took)[len(took) // 2] < 500, took
    begin = time.monotonic()
    assert portier.stop() == 0
    assert time.monotonic() - begin < 5, "stopping does not suffer from the routes of others"
    assert not scene.p.host_routes()
