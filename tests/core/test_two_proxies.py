"""Two proxies beside each other, between the same two links: who hears whom, and when it ends."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from portier.core import arp, ndp
from portier.core.model import Bound, Group, Port, Role, Rule
from portier.core.outcome import AddRoute, MoveRoute, Outcome, RouteResult
from portier.core.route import RouteEngine
from portier.core.rules import RuleTable
from tests.core.playbook import LAN, Kernel, Stage, ip, mac, net, shown, staged

UP, DOWN = "up", "down"
LINKS = (UP, DOWN)


@pytest.fixture(autouse=True, params=[6, 4], ids="ipv{}".format)
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family in which the scene is played."""
    Stage.family = request.param
    yield request.param
    Stage.family = 6


def engine(number: int) -> RouteEngine:
    """A proxy between the links, whose prefix is on-link on the upper one."""
    on_link = (net(LAN),)
    ports = tuple(
        Port(
            ifindex=index,
            name=link,
            role=Role.UPSTREAM if link == UP else Role.DOWNSTREAM,
            mac=bytes((2, 0, 0, 0, 0xF0 + number, index)),
            mtu=1500,
            source=IPv6Address(f"fe80::{number}:{index}").packed,
            prefixes=on_link if link == UP else (),
            on_link=on_link if link == UP else (),
            source4=IPv4Address(f"10.255.{number}.{index}").packed,
        )
        for index, link in enumerate(LINKS, 1)
    )
    bound = Bound(group=Group(name="g", rules=(staged(Rule(prefix=LAN)),)), ports=ports)
    made = RouteEngine(Kernel())
    made.configure(bound, RuleTable.compile(bound), 0.0)
    return made


class Wires:
    """The two links, with proxies and hosts that answer for themselves on them."""

    def __init__(self, **hosts: str) -> None:
        self.now = 0.0
        self.proxies = [engine(1), engine(2)]
        self.hosts = {int(name[1:]): link for name, link in hosts.items()}
        self.frames = 0
        self._serial = itertools.count()
        self._todo: list[tuple[float, int, Callable[[], None]]] = []

    def say(self, host: int, frame: bytes) -> None:
        """A host sends a frame on its link."""
        self._send(self.hosts[host], frame, host)

    def ask(self, host: int, target: int) -> None:
        """A host asks for another."""
        ask = arp.request if Stage.family == 4 else ndp.solicitation
        self.say(host, ask(mac(host), ip(f"::{host}"), ip(f"::{target}")))

    def announce(self, host: int) -> None:
        """A host tells everybody of itself."""
        self.say(host, _word(host, ip(f"::{host}")))

    def pass_time(self, seconds: float) -> int:
        """Let time pass; gives the number of frames that were sent meanwhile."""
        before, end = self.frames, self.now + seconds
        while True:
            due = min((self._todo[0][0] if self._todo else end), *(e.deadline for e in self.proxies))
            if due >= end:
                break
            self.now = max(self.now, due)
            if self._todo and self._todo[0][0] <= self.now:
                heapq.heappop(self._todo)[2]()
                continue
            for number, proxy in enumerate(self.proxies):
                if proxy.deadline <= self.now:
                    self._carry_out(number, proxy.tick(self.now))
            assert self.frames < 5000, "a storm"
        self.now = end
        return self.frames - before

    def places(self, host: int) -> list[tuple[str, bytes]]:
        """Where the proxies know a host to be."""
        infos = [info for proxy in self.proxies for info in proxy.neighbors(self.now)]
        return [(info.port, info.mac) for info in infos if info.address == ip(f"::{host}")]

    def _send(self, link: str, frame: bytes, sender: object) -> None:
        self.frames += 1
        index = LINKS.index(link) + 1
        to = frame[10:16]
        for number, proxy in enumerate(self.proxies):
            if sender is not proxy and (to[0] & 1 or to == proxy._ports[index].mac):
                self._later(
                    lambda number=number, proxy=proxy: self._carry_out(  # type: ignore[misc]
                        number, proxy.receive(index, frame, self.now)
                    )
                )
        for host, place in self.hosts.items():
            if place == link and host != sender and (to[0] & 1 or to == mac(host)):
                self._later(lambda host=host: self._hears(host, frame))  # type: ignore[misc]

    def _later(self, what: Callable[[], None]) -> None:
        heapq.heappush(self._todo, (self.now + 0.0001, next(self._serial), what))

    def _hears(self, host: int, frame: bytes) -> None:
        message = shown(frame)
        address = ip(f"::{host}")
        if message.type == ndp.SOLICITATION and message.target == address != message.source:
            self.say(host, _word(host, address, message.source, message.ether_source))

    def _carry_out(self, number: int, outcome: Outcome) -> None:
        proxy = self.proxies[number]
        for effect in outcome.effects:
            if isinstance(effect, AddRoute | MoveRoute):
                self._carry_out(number, proxy.settle(effect, RouteResult.ADDED))
        for index, frame in outcome.sends:
            self._send(LINKS[index - 1], frame, proxy)


def _word(host: int, address: bytes, asker: bytes = b"", to_mac: bytes = ndp.ALL_NODES_MAC) -> bytes:
    """What a host says of itself: to one who asked, or to all."""
    if Stage.family == 4:
        if not asker:
            return arp.request(mac(host), address, address)
        return arp.reply(to_mac, mac(host), mac(host), address, asker)
    flags = ndp.O_FLAG | (ndp.S_FLAG if asker else 0)
    return ndp.advertisement(to_mac, mac(host), address, asker or ndp.ALL_NODES, address, flags, mac(host))


def test_a_host_that_both_answer_for_stays_where_it_is() -> None:
    """Each hears the other answer for the host on the upper link, where its prefix is on-link, and announce
    it: that is a proxy's word and not an owner's."""
    wires = Wires(h1=UP, h5=DOWN)
    for _ in range(3):
        wires.ask(1, 5)
        wires.pass_time(40)
    assert wires.places(5) == [(DOWN, mac(5))] * 2
    assert wires.pass_time(500) < 60, "it has become quiet"


def test_announcements_of_hosts_do_not_set_one_against_the_other() -> None:
    """Each tells the other link of what it has learned."""
    wires = Wires(h1=UP, h5=DOWN)
    for _ in range(2):
        wires.announce(1)
        wires.announce(5)
        assert wires.pass_time(60) < 100
    assert wires.places(5) == [(DOWN, mac(5))] * 2
    assert wires.places(1) == [(UP, mac(1))] * 2


def test_a_host_that_changes_sides_is_followed_by_both() -> None:
    """There and back."""
    wires = Wires(h1=UP, h5=DOWN)
    wires.ask(1, 5)
    wires.pass_time(20)
    for link in (UP, DOWN):
        wires.hosts[5] = link
        wires.announce(5)
        wires.pass_time(20)
        assert wires.places(5) == [(link, mac(5))] * 2
    assert wires.pass_time(500) < 60


def test_nobody_is_asked_for_in_a_circle() -> None:
    """What one asks on behalf of an asker, the other is asked for."""
    wires = Wires(h1=UP)
    wires.ask(1, 77)
    assert wires.pass_time(60) < 100
    assert wires.pass_time(500) < 60
