"""Mode relay under whatever comes in whatever order: frames, reloads, time; what is kept fits together."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from portier.core import ndp
from portier.core.model import Limits, LoopProtection, Port, Role
from tests.core.relaybook import LAN, VNET, D, E, RelayBook, U, advertised, datagram, ip, mac, port

SMALL = Limits(
    neighbors=12, per_port=6, per_host=3, pending=4, resolutions=50, per_source=10, route_changes=5
)
ADDRESSES = [
    *(f"::{n:x}" for n in range(1, 9)),
    *(f"fe80::{n}" for n in range(1, 5)),
    "fe80::1:1",
    "2001:db8:f::1",
]


class Storm:
    """A group, and all that may happen to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.play = RelayBook(
            loop_protection=self.pick(list(LoopProtection)),
            limits=self.pick([Limits(), SMALL]),
            random=self.random.random(),
        )

    def pick(self, what: list[Any]) -> Any:
        return self.random.choice(what)

    def step(self) -> None:
        """One of them."""
        play = self.play
        what = self.random.random()
        if what < 0.85:
            ifindex, frame = self.frame()
            buffer = bytearray(frame.ljust(2000, b"\0"))
            if len(frame) < 64 or not play.engine.forward(ifindex, buffer, len(frame), play.now):
                play.receive(ifindex, frame)
        elif what < 0.95:
            self.pass_time(self.pick([0.01, 0.3, 1, 3, 5, 30, 700, 3600]))
        elif what < 0.98:
            play.configure(
                ports=self.ports(),
                group=replace(
                    play.group,
                    loop_protection=self.pick(list(LoopProtection)),
                    upstream=self.pick([("up0",), ()]),
                ),
            )
        else:
            play.engine.lift(self.pick([U, D, E]), play.now)
            play.engine.ask(ip(self.pick(ADDRESSES)), play.now)
            play.engine.explain(ip(self.pick(ADDRESSES)), self.pick([None, U, D, E]), play.now)

    def pass_time(self, seconds: float) -> None:
        play = self.play
        end, ticks = play.now + seconds, 0
        while play.engine.deadline <= end:
            play.now = max(play.now, play.engine.deadline)
            play._carry_out(play.engine.tick(play.now))
            ticks += 1
            assert ticks < 20_000, "a busy loop"
        play.now = end

    def ports(self) -> tuple[Port, ...]:
        """Some of the ports, as they are or a little changed."""
        found = []
        for index in self.random.sample([U, D, E], self.random.randint(1, 3)):
            made = port(index, **({"prefixes": (LAN,), "on_link": (LAN,)} if index == U else {}))
            changed = [
                {},
                {},
                {"mac": mac(0xE0 + index)},
                {"source": None},
                {"role": Role.DOWNSTREAM},
                {"addresses": (ip("::5"),)},
            ]
            found.append(made._replace(**self.pick(changed)))
        return tuple(found)

    def frame(self) -> tuple[int, bytes]:
        """A frame of some host on some port; one in ten is damaged."""
        ifindex, host = self.pick([U, D, E]), self.random.randint(1, 8)
        to = next((this.mac for this in self.play.ports if this.ifindex == ifindex), None) or mac(0xFF)
        one, other, said = (ip(self.pick(ADDRESSES)) for _ in range(3))
        flags, unicast = self.pick([0, 0x20, 0x40, 0x60, 0xE0]), self.random.random() < 0.5
        match self.random.randrange(7):
            case 0:
                frame = ndp.dad_probe(mac(host), one, b"")
            case 1:
                frame = ndp.solicitation(mac(host), one, other, to if unicast else b"")
            case 2 if unicast:
                frame = ndp.advertisement(to, mac(host), one, other, said, flags, mac(host))
            case 2:
                frame = ndp.advertisement(
                    ndp.ALL_NODES_MAC, mac(host), one, ndp.ALL_NODES, one, flags & ~0x40, mac(host)
                )
            case 3:
                frame = advertised(host, flags=self.pick([0, 0, 4]), lifetime=self.pick([0, 30, 1800]))
            case 4:
                frame = ndp.router_solicitation(mac(host), one if unicast else None)
            case _:
                target = self.pick([*ADDRESSES, "ff02::fb"])
                octets = datagram(self.pick(ADDRESSES), target, self.pick([1, 1300, 1600]))
                there = b"\x33\x33\0\0\0\xfb" if target == "ff02::fb" else to
                frame = VNET + there + mac(host) + b"\x86\xdd" + octets
        if self.random.random() < 0.1:
            damaged = bytearray(frame)
            damaged[self.random.randrange(10, len(frame))] = self.random.randrange(256)
            frame = bytes(damaged[: self.random.randint(1, len(frame))])
        return ifindex, frame

    def check(self) -> None:
        """What is kept fits together, and is bounded."""
        engine = self.play.engine
        entries = 0
        for address, host in engine._hosts.items():
            assert host.best is not None
            assert host.best in host.entries.values()
            for index, entry in host.entries.items():
                entries += 1
                assert engine._entries[index, address] is entry
                assert entry.due < math.inf
            for index, key in host.flows:
                flow = engine._flows[index][key]
                assert (flow.ifindex, flow.header[:6]) == (host.best.ifindex, host.best.mac)
                assert flow.ifindex != index
                assert engine._ports[index].gate.open
                assert engine._ports[flow.ifindex].gate.open
        assert entries == len(engine._entries) == len(engine._shares) <= engine._group.limits.neighbors
        flows = sum(len(flows) for flows in engine._flows.values())
        assert flows == sum(len(host.flows) for host in engine._hosts.values())
        waiting = [packet for pending in engine._pending.values() for packet in pending.packets]
        assert engine._queued == sum(len(packet.frame) for packet in waiting)
        assert all(pending.due < math.inf for pending in engine._pending.values())
        assert all(engine._hosts[route.address].route == route for route in engine.wanted_routes())
        assert len(self.play.sent) < 60


@pytest.mark.parametrize("seed", range(12))
def test_no_sequence_breaks_an_invariant(seed: int) -> None:
    """Every entry is in its host and has its time, every flow leads where its host is and through open ports
    alone, no octet that waits is forgotten, no tick is for nothing."""
    storm = Storm(seed)
    for _ in range(300):
        storm.step()
        storm.check()
