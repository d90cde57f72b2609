"""Two proxies in mode relay between the same two segments, on real kernels.

The segments are bridges, each with a host of its own; the proxies sit beside each other between them.  What
counts is that one of them gives way, that no packet multiplies, and that traffic goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.netns.lab import Host, Lab, Portier, wait_for
from tests.netns.test_relay import relay

ADDRESSES = {"a": "2001:db8:7::a", "b": "2001:db8:7::b"}
ROUTER = "2001:db8:7::1"


@dataclass
class Parallel:
    """Hosts ``a`` and ``b``, each on its segment, and two proxies between them."""

    a: Host
    b: Host
    proxies: list[Host]
    daemons: list[Portier]

    def parts(self, number: int) -> dict[str, str]:
        """The part that each port of a proxy takes."""
        ports = self.daemons[number].group()["ports"]
        return {port["name"]: (port["relay"] or {}).get("service", "") for port in ports}

    def working(self) -> list[int]:
        """The proxies of which both ports forward."""
        return [n for n in range(len(self.daemons)) if set(self.parts(n).values()) == {"forwarding"}]


def segment(lab: Lab, name: str) -> Host:
    """A switch."""
    switch = lab.host(name)
    switch.ip("link add br0 type bridge mcast_snooping 0")
    switch.ip("link set br0 up")
    return switch


def plug(lab: Lab, host: Host, link: str, switch: Host, port: str) -> None:
    """Connect a host to a switch."""
    lab.link(host, link, switch, port)
    switch.ip(f"link set {port} master br0")


@pytest.fixture
def parallel(lab: Lab) -> Parallel:
    """Everything but the daemons."""
    up, down = segment(lab, "up"), segment(lab, "down")
    a, b = lab.host("a"), lab.host("b")
    plug(lab, a, "eth0", up, "to-a")
    plug(lab, b, "eth0", down, "to-b")
    a.add("eth0", f"{ADDRESSES['a']}/64")
    b.add("eth0", f"{ADDRESSES['b']}/64")
    proxies = []
    for number in (1, 2):
        proxy = lab.host(f"p{number}")
        plug(lab, proxy, "eth0", up, f"to-p{number}")
        plug(lab, proxy, "tap1", down, f"to-p{number}")
        proxies.append(proxy)
    return Parallel(a, b, proxies, [])


def start(lab: Lab, parallel: Parallel, extra: str = "") -> None:
    """Start both daemons."""
    parallel.daemons = [
        lab.portier(relay(extra), on=proxy, name=f"portier{number}")
        for number, proxy in enumerate(parallel.proxies, start=1)
    ]


def test_nd_008_without_a_router_the_loop_is_cut_and_traffic_goes_on(lab: Lab, parallel: Parallel) -> None:
    """Both forward after 12 s; then packets come back, one gives way, and no packet has multiplied."""
    capture = parallel.b.capture("eth0")
    start(lab, parallel)
    wait_for(lambda: len(parallel.working()) == 2, 25, "both forward")

    def cut() -> bool:
        parallel.a.ping("ff02::1%eth0", timeout=1)
        return len(parallel.working()) == 1

    wait_for(cut, 30, "one gives way")
    frames = capture.frames()
    assert len(frames) < 1000, "a storm"
    wait_for(lambda: parallel.a.ping(ADDRESSES["b"], timeout=1), 20, "traffic goes on")
    wait_for(lambda: parallel.b.ping(ADDRESSES["a"], timeout=1), 5, "and back")


def test_nd_063_with_a_router_only_one_ever_forwards(lab: Lab, parallel: Parallel) -> None:
    """Whoever hears the other's advertisement first is held down without having sent."""
    radvd = lab.directory / "radvd.conf"
    radvd.write_text(
        "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;"
        " prefix 2001:db8:7::/64 {}; };\n"
    )
    parallel.a.sysctl("net/ipv6/conf/all/forwarding", 1)
    parallel.a.popen(["radvd", "-n", "-m", "none", "-C", str(radvd), "-p", str(radvd.with_suffix(".pid"))])
    capture = parallel.b.capture("eth0")
    start(lab, parallel)
    wait_for(lambda: len(parallel.working()) == 1, 25, "one forwards")
    loser = 1 - parallel.working()[0]
    wait_for(lambda: parallel.parts(loser)["tap1"] == "hold-down", 5, "the other is held down")
    wait_for(lambda: parallel.b.ping(ADDRESSES["a"], timeout=1), 20, "traffic goes on")
    frames = capture.frames()
    assert len(frames) < 500, "a storm"
    assert len(parallel.working()) == 1
