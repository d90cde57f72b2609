"""Proxies in mode relay beside each other, between the same two segments, on real kernels.

The segments are bridges, each with a host of its own; the proxies sit beside each other between them.  What
counts is that all but one give way, that no packet multiplies, and that traffic goes on.  Each round has a
lab of its own, so that many run at a time; most of the hundred are slow.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.netns.lab import Capture, Host, Lab, Portier, holds_for, wait_for
from tests.netns.test_relay import need, relay

ADDRESSES = {"a": "2001:db8:7::a", "b": "2001:db8:7::b"}
FEW, MANY = 2, 100
ROUNDS = [pytest.param(number, marks=[pytest.mark.slow] * (number >= FEW)) for number in range(MANY)]
# In a second all hosts, kernels and daemons here say less than this, their own words and not what they relay:
# radvd an advertisement every 3 s, everybody a few solicitations and MLD reports, mostly at the start, and
# the pings of the test, which come one after the other.
SAID = 40

Record = Callable[[str, object], None]


class Parallel:
    """Hosts ``a`` and ``b``, each on its segment, and the proxies between them, whose upstream is ``a``'s."""

    def __init__(self, lab: Lab, proxies: int = 2, *, router: bool = False) -> None:
        self.lab = lab
        self.up, self.down = lab.host("up"), lab.host("down")
        self.a, self.b = lab.host("a", forwarding=router), lab.host("b")
        for switch, host in ((self.up, self.a), (self.down, self.b)):
            lab.bridge(switch, "br0")
            self.plug(switch, host, "eth0")
            host.add("eth0", f"{ADDRESSES[host.name]}/64")
        self.proxies = [lab.host(f"p{number}") for number in range(1, proxies + 1)]
        for proxy in self.proxies:
            self.plug(self.up, proxy, "eth0")
            self.plug(self.down, proxy, "tap1")
        if router:
            self.advertise()
        self.daemons: list[Portier] = []
        self.captures: list[Capture] = []
        self.began = 0.0

    def plug(self, switch: Host, host: Host, link: str) -> None:
        """Connect a host to a switch."""
        self.lab.link(host, link, switch, f"to-{host.name}")
        self.lab.plug(switch, "br0", f"to-{host.name}")

    def advertise(self) -> None:
        """Make ``a`` a router that advertises itself."""
        need("radvd")
        conf = self.lab.directory / "radvd.conf"
        conf.write_text(
            "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;"
            " prefix 2001:db8:7::/64 {}; };\n"
        )
        self.a.popen(["radvd", "-n", "-m", "none", "-C", str(conf), "-p", str(conf.with_suffix(".pid"))])

    def start(self, extra: str = "", *, offset: float = 0.0) -> None:
        """Start the daemons, each so many seconds after the one before, and count the frames from then on."""
        self.captures = [self.a.capture("eth0"), self.b.capture("eth0")]
        self.began = time.monotonic()
        for number, proxy in enumerate(self.proxies):
            time.sleep(max(0.0, self.began + number * offset - time.monotonic()))
            daemon = self.lab.portier(relay(extra), on=proxy, name=f"portier-{proxy.name}", wait=False)
            self.daemons.append(daemon)
        for daemon in self.daemons:
            daemon.wait_ready(60)  # many start at a time

    @staticmethod
    def parts(daemon: Portier) -> dict[str, str]:
        """The part that each port of a proxy takes."""
        return {port["name"]: (port["relay"] or {}).get("service", "") for port in daemon.group()["ports"]}

    def working(self) -> int:
        """How many proxies forward, which takes two ports."""
        return [list(self.parts(daemon).values()) for daemon in self.daemons].count(["forwarding"] * 2)

    def wait_working(self, number: int, *speakers: Host) -> None:
        """Wait until so many proxies forward, while hosts send multicast pings."""

        def found() -> bool:
            self.say(*speakers)
            return self.working() == number

        wait_for(found, 30, f"{number} of {len(self.proxies)} forward", interval=0.2)

    @staticmethod
    def say(*speakers: Host) -> None:
        """Have hosts send a multicast ping each."""
        for speaker in speakers:
            speaker.ping("ff02::1%eth0", timeout=1)

    def seen(self) -> list[bytes]:
        """The frames on both segments."""
        return [frame.raw for capture in self.captures for frame in capture.frames()]

    def copies(self) -> Counter[bytes]:
        """How often each multicast ping was seen, both segments together."""
        return Counter(raw[14:] for raw in self.seen() if raw[38] == 0xFF and raw[54] == 128)

    def assert_no_storm(self) -> None:
        """A proxy sends no packet twice, so that none is seen more often than once by its sender and once by
        each proxy; and all together are no more than what is said in that time, so many times."""
        most = 1 + len(self.proxies)
        assert max(self.copies().values(), default=0) <= most, "a packet multiplied"
        assert len(self.seen()) < most * SAID * (time.monotonic() - self.began), "a storm"

    def assert_survives(self, record: Record) -> None:
        """Just now one proxy was left: the hosts reach each other, and packets are on each segment once."""
        cut = time.monotonic()
        wait_for(lambda: self.a.ping(ADDRESSES["b"], timeout=1), 20, "traffic goes on")
        wait_for(lambda: self.b.ping(ADDRESSES["a"], timeout=1), 5, "and back")
        resumed = time.monotonic()
        before = self.copies()
        self.say(self.a, self.b)
        crossed = [2, 2]  # of either's ping, one on each segment
        wait_for(lambda: list((self.copies() - before).values()) == crossed, 2, "both pings cross")
        holds_for(lambda: list((self.copies() - before).values()) == crossed, 0.5, "and cross once")
        assert self.working() == 1
        self.assert_no_storm()
        record("cut", cut - self.began)
        record("resumed", resumed - cut)
        record("frames", len(self.seen()))


def offset(number: int) -> float:
    """Seconds between the starts of a round's proxies: none in every other, else up to one."""
    return random.Random(number).random() * (number % 2)


@pytest.mark.parametrize("number", ROUNDS)
def test_nd_008_without_a_router_the_loop_is_cut(lab: Lab, number: int, record_property: Record) -> None:
    """All forward after 12 s; then packets come back, whoever says them, and one proxy gives way."""
    parallel = Parallel(lab)
    speakers = ([parallel.a], [parallel.b], [parallel.a, parallel.b])[number % 3]
    parallel.start(offset=offset(number))
    parallel.wait_working(2)
    parallel.wait_working(1, *speakers)
    parallel.assert_survives(record_property)


@pytest.mark.parametrize("number", ROUNDS)
def test_nd_063_with_a_router_only_one_ever_forwards(lab: Lab, number: int, record_property: Record) -> None:
    """Whoever hears the other's advertisement first is held down, for good."""
    parallel = Parallel(lab, router=True)
    parallel.start(offset=offset(number))
    parallel.wait_working(1)

    def parts() -> list[str]:
        return sorted(parallel.parts(daemon)["tap1"] for daemon in parallel.daemons)

    wait_for(lambda: parts() == ["forwarding", "hold-down"], 10, "the other is held down")
    parallel.assert_survives(record_property)


@pytest.mark.parametrize("router", [False, True], ids=["without a router", "with one"])
def test_nd_008_of_three_one_goes_on(lab: Lab, record_property: Record, *, router: bool) -> None:
    """The others give way in turn."""
    parallel = Parallel(lab, 3, router=router)
    parallel.start()
    parallel.wait_working(1 if router else 3)
    parallel.wait_working(1, parallel.a, parallel.b)
    parallel.assert_survives(record_property)


@pytest.mark.parametrize("policy", ["nested", "drop", "off"])
@pytest.mark.parametrize("router", [False, True], ids=["without a router", "with one"])
def test_nd_008_no_policy_lets_packets_multiply(lab: Lab, policy: str, *, router: bool) -> None:
    """`nested` cuts the loop as `strict` does; with the others both forward for good, and what is said
    arrives twice and no more often."""
    parallel = Parallel(lab, router=router)
    parallel.start(f"loop_protection: {policy}")
    left = 1 if policy == "nested" else 2
    parallel.wait_working(left if router else 2)
    parallel.wait_working(left, parallel.a, parallel.b)
    for _ in range(8):
        time.sleep(1)
        parallel.say(parallel.a, parallel.b)
        assert parallel.a.ping(ADDRESSES["b"], timeout=5)
    assert parallel.working() == left
    parallel.assert_no_storm()
