"""Data from one link to another: Portier in mode relay beside kernel forwarding, a Linux bridge and a cable.

Two hosts with real kernels, `left` and `right`, and between them, on the same two cables, each of the
contenders in turn.  `traffic.c` moves TCP and UDP between the two, and both its ends share the first core
with all that the kernel does for a packet on its way; what Portier does has the last core to itself.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.bench.contenders import Running, check_stop
from tests.bench.load import compiled
from tests.netns.lab import Lab, wait_for

SIZES: Final = (64, 512, 1400)  # octets of UDP data
LEFT: Final = "2001:db8:7::a"
RIGHT: Final = "2001:db8:7::b"
_PORT: Final = "5001"
_PATIENCE: Final = 30.0


class Road:
    """Two hosts, and the host between them with the interfaces `west` and `east`."""

    def __init__(self, lab: Lab, core: int) -> None:
        self.lab = lab
        self.core = core
        self.left, self.right, self.middle = lab.host("left"), lab.host("right"), lab.host("middle")

    def lay(self) -> None:
        """The two cables.  Both hosts believe that they share a link."""
        self.lab.link(self.left, "eth0", self.middle, "west")
        self.lab.link(self.right, "eth0", self.middle, "east")
        self.address()

    def address(self) -> None:
        """An address for each host."""
        self.left.add("eth0", f"{LEFT}/64")
        self.right.add("eth0", f"{RIGHT}/64")

    # -- traffic

    def tcp(self, seconds: float) -> dict[str, float]:
        """One connection as fast as it goes: Gbit/s of data, and segments sent again."""
        sink = self._serve("sink")
        sent = self._send("stream", seconds)
        sink.kill()
        return {
            "gbits": sent["octets"] * 8 / sent["seconds"] / 1e9,
            "retransmitted": sent["retransmitted"],
        }

    def udp(self, size: int, seconds: float) -> dict[str, float]:
        """More packets than anything could pass on: how many a second arrive, and how many were sent."""
        counter = self._serve("count", str(seconds + 0.5))
        sent = self._send("flood", seconds, str(size))
        output, _ = counter.communicate(timeout=_PATIENCE)
        arrived = json.loads(output.splitlines()[-1])
        assert arrived["octets"] == arrived["packets"] * size, "packets arrived with another length"
        return {
            "rate": arrived["packets"] / arrived["seconds"] if arrived["packets"] else 0.0,
            "sent": sent["packets"] / sent["seconds"],
        }

    def echo(self, seconds: float) -> dict[str, float]:
        """One packet of 64 octets on the way at any time: microseconds there and back."""
        server = self._serve("echo")
        result = self._send("bounce", seconds, "64")
        server.kill()
        return result

    def _serve(self, *args: str) -> subprocess.Popen[str]:
        what, *rest = args
        process = self.right.popen(self._command(what, _PORT, *rest), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def _send(self, what: str, seconds: float, *args: str) -> dict[str, float]:
        command = self._command(what, RIGHT, _PORT, *args, str(seconds))
        done = self.left.run(command, timeout=seconds + _PATIENCE)
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def _command(self, *args: str) -> list[str]:
        return ["taskset", "-c", str(self.core), str(compiled("traffic")), *args]


def cable(road: Road) -> None:
    """Nothing in between."""
    road.lab.link(road.left, "eth0", road.right, "eth0")
    road.address()


def bridge(road: Road) -> None:
    """A Linux bridge."""
    road.lay()
    road.lab.bridge(road.middle, "br0")
    for port in ("west", "east"):
        road.lab.plug(road.middle, "br0", port)


def forwarding(road: Road) -> None:
    """The kernel routes, as it does in mode route."""
    road.lay()
    road.middle.sysctl("net/ipv6/conf/all/forwarding", 1)
    road.middle.ip(f"route add {LEFT}/128 dev west", f"route add {RIGHT}/128 dev east")
    road.left.ip(f"-6 route add {RIGHT}/128 via {road.middle.link_local('west')} dev eth0")
    road.right.ip(f"-6 route add {LEFT}/128 via {road.middle.link_local('east')} dev eth0")


def relay(road: Road) -> Running:
    """Portier in mode relay.  Nobody advertises a router here, so it need not wait for one."""
    road.lay()
    config = "groups: {bench: {mode: relay, upstream: west, downstream: [east], loop_protection: 'off'}}"
    daemon = road.lab.portier(f"version: 1\n{config}\n", on=road.middle)
    daemon.wait_ports("west", "east")
    return Running(daemon.pid, lambda: check_stop(daemon), daemon)


@dataclass(frozen=True, slots=True)
class Way:
    """One way from link to link."""

    name: str
    build: Callable[[Road], Running | None]


WAYS: Final = (
    Way("cable", cable),
    Way("bridge", bridge),
    Way("forwarding", forwarding),
    Way("portier", relay),
)


def measure(way: Way, lab: Lab, core: int, seconds: float, rounds: int) -> dict[str, float]:
    """The medians of some rounds on one way: Gbit/s of TCP, packets a second of UDP by size, microseconds of
    an echo, and the share of a core that Portier took for the TCP."""
    road = Road(lab, core)
    running = way.build(road)
    wait_for(lambda: road.left.ping(RIGHT, timeout=1), _PATIENCE, f"{way.name}: a way to the other side")
    results = []
    for _ in range(rounds):
        before = running.cpu() if running else 0.0
        result = road.tcp(seconds)
        result["busy"] = ((running.cpu() if running else 0.0) - before) / seconds
        for size in SIZES:
            udp = road.udp(size, seconds)
            result |= {f"udp_{size}": udp["rate"], f"sent_{size}": udp["sent"]}
        results.append(result | road.echo(seconds))
    if running:
        running.stop()
    return {what: statistics.median(result[what] for result in results) for what in results[0]}
