"""Router Advertisements where packets are routed: the routers upstream, shown to the hosts downstream.

Solicitations go up, in the proxy's own name: link-local addresses of one link mean nothing on another, and
the router would believe what a guest says of its neighbors'.  Advertisements come down rewritten
(`rewrite.readvertised`), with the router's own address as their source: the proxy answers for that address on
the downstreams, so that what hosts send to their router arrives here and is routed.  What was heard last is
told to hosts that ask, and taken back when the upstream goes away.

Frames in, `Outcome` out, as the engine does that this is a part of.
"""

from __future__ import annotations

import itertools
import math
from ipaddress import IPv6Network
from typing import Final

from portier.core import ndp, rewrite
from portier.core.engine import RouterInfo, mac_text, text
from portier.core.family import Heard, Kind
from portier.core.model import Bound, Event, EventKind, Port, Role, RouterAdvertisements
from portier.core.outcome import Effect, Outcome, Reconsider, Verdict

_ROUTERS: Final = 16  # whose advertisements are remembered
_PREFIXES: Final = 64  # that are on-link by their word
# RFC 4861 section 10: solicitations at start, and the least time between advertisements to all.
_SOLICITATIONS: Final = 3
_SOLICITATION_INTERVAL: Final = 4.0
_ADVERTISEMENT_INTERVAL: Final = 3.0
_FAREWELLS: Final = 3
# Hosts that ask at the same time are one question to the router.
_SAME_QUESTION: Final = 1.0


class _Router:
    """A router, by its last advertisement.  ``told`` is when that went to all downstreams, ``expires`` when
    nothing of it holds any more."""

    __slots__ = ("at", "expires", "farewells", "frame", "message", "port", "said", "told")

    def __init__(self, port: Port, frame: bytes, message: Heard, now: float) -> None:
        self.port = port
        self.frame = frame
        self.message = message
        self.said = rewrite.advertised(frame)
        self.at = now
        self.told = now
        self.expires = now + max(self.said.lifetime, *(prefix.valid for prefix in self.said.prefixes), 0)
        self.farewells = _FAREWELLS

    def prefixes(self) -> set[IPv6Network]:
        """All prefixes that it named."""
        return {prefix.network for prefix in self.said.prefixes}

    def on_link(self, now: float) -> frozenset[IPv6Network]:
        """The prefixes that are on-link by its word."""
        age = now - self.at
        return frozenset(
            prefix.network for prefix in self.said.prefixes if prefix.on_link and prefix.valid > age
        )

    def next_expiry(self, now: float) -> float:
        """When something of what it said ceases to hold."""
        ends = [self.expires, *(self.at + prefix.valid for prefix in self.said.prefixes)]
        return min((end for end in ends if end > now), default=now)


class Routers:
    """The routers upstream of one group.  ``deadline`` is when `tick` is due."""

    def __init__(self) -> None:
        self.deadline = math.inf
        self._group = ""
        self._uplink: Port | None = None
        self._downstreams: dict[int, Port] = {}
        self._known: dict[bytes, _Router] = {}
        self._leaving: dict[bytes, _Router] = {}
        self._on_link: frozenset[IPv6Network] = frozenset()
        self._solicitations = 0
        self._solicit_at = math.inf
        self._asked_at = -math.inf
        self._sends: list[tuple[int, bytes]] = []
        self._events: list[Event] = []

    def configure(self, bound: Bound, now: float) -> Outcome:
        """Take over the ports of a group.  Where another upstream, or none, takes the place of the one
        before, what its routers said is taken back (RFC 7084 section 4.3, RFC 9096)."""
        self._group = bound.group.name
        relays = bound.group.router_advertisements is RouterAdvertisements.RELAY
        uplink = None
        downstreams = {}
        for port in bound.ports:
            if port.mac is None:
                continue
            if port.role is Role.DOWNSTREAM:
                downstreams[port.ifindex] = port
            elif relays:
                uplink = port
        fresh = [port for index, port in downstreams.items() if index not in self._downstreams]
        before, self._uplink, self._downstreams = self._uplink, uplink, downstreams
        if (before.ifindex if before else 0) != (uplink.ifindex if uplink else 0):
            for address, router in self._known.items():
                self._leaving[address] = router
                self._say_farewell(router, now)
                self._tell(router.port, address, f"is gone with {router.port.name}: hosts are told")
            self._known.clear()
            self._solicitations = _SOLICITATIONS if uplink else 0
            self._solicit_at = now if uplink else math.inf
            self._asked_at = -math.inf
        for port in fresh:
            for router in self._known.values():
                self._advertise(router, port, ndp.ALL_NODES_MAC, ndp.ALL_NODES, now)
        return self.tick(now)

    def receive(self, port: Port, message: Heard, frame: bytes, now: float) -> Outcome:
        """Decide on a Router Solicitation or a Router Advertisement."""
        upstream = self._uplink is not None and port.ifindex == self._uplink.ifindex
        if message.kind is Kind.ROUTER_SOLICITATION:
            verdict = Verdict.NOT_HANDLED if upstream else self._solicitation(port, message, now)
        elif upstream:
            verdict = self._advertisement(port, message, frame, now)
        else:
            verdict = Verdict.ROGUE_ROUTER
            self._tell(
                port,
                message.source,
                f"on {port.name} with {mac_text(message.ether_source)} sends Router Advertisements, but "
                f"{port.name} is a downstream: they are not relayed",
            )
        return self._outcome(verdict, now)

    def tick(self, now: float) -> Outcome:
        """Do what is due: solicit, say farewell again, forget what does not hold any more."""
        if now >= self._solicit_at:
            self._solicitations -= 1
            self._solicit_at = now + _SOLICITATION_INTERVAL if self._solicitations else math.inf
            self._solicit(now)
        for address, router in list(self._leaving.items()):
            if now >= router.told + _ADVERTISEMENT_INTERVAL:
                self._say_farewell(router, now)
            if not router.farewells:
                del self._leaving[address]
        for address, router in list(self._known.items()):
            if now >= router.expires:
                del self._known[address]
                self._tell(router.port, address, f"on {router.port.name} is no router any more")
        return self._outcome(Verdict.HEARD, now)

    def answers_for(self, ifindex: int, address: bytes) -> bool:
        """Whether `address` is that of a router which is answered for on a port.  One that is the port's
        own too is the kernel's to answer, and leads to the same place."""
        port = self._downstreams.get(ifindex)
        return address in self._known and port is not None and port.source != address

    def infos(self, now: float) -> list[RouterInfo]:
        """The routers heard.  For any thread."""
        return [
            RouterInfo(
                router.message.source,
                router.port.name,
                router.message.link_layer or router.message.ether_source,
                max(0.0, router.at + router.said.lifetime - now),
                router.said.managed,
                router.said.other,
                router.on_link(now) & self._on_link,
                router.said.name_servers,
            )
            for router in list(self._known.values())
        ]

    # -- inside ----------------------------------------------------------------------------------------

    def _solicitation(self, port: Port, message: Heard, now: float) -> Verdict:
        """A host asks for routers: it is told what is known, and the routers are asked."""
        if self._uplink is None:
            return Verdict.NOWHERE
        # One that has no address yet is told by multicast, in a frame for it alone (RFC 6085).
        nowhere = message.source == ndp.UNSPECIFIED
        destination = ndp.ALL_NODES if nowhere else message.source
        for router in self._known.values():
            self._advertise(router, port, message.link_layer or message.ether_source, destination, now)
        if now >= self._asked_at + _SAME_QUESTION:
            self._solicit(now)
        return Verdict.ANSWERED if self._known else Verdict.RELAYED

    def _solicit(self, now: float) -> None:
        uplink = self._uplink
        if uplink is not None and uplink.mac is not None:
            self._asked_at = now
            self._sends.append((uplink.ifindex, ndp.router_solicitation(uplink.mac, uplink.source)))

    def _advertisement(self, port: Port, message: Heard, frame: bytes, now: float) -> Verdict:
        """A router speaks: all downstreams hear of it.  An answer to the proxy alone is one for all who
        asked it, but not so often that it becomes a storm (RFC 4861 section 6.2.6)."""
        self._solicitations, self._solicit_at = 0, math.inf
        source = message.source
        router = _Router(port, frame, message, now)
        before = self._known.pop(source, None)
        self._leaving = {
            address: gone
            for address, gone in self._leaving.items()
            if address != source and not gone.prefixes() & router.prefixes()
        }
        if before is None:
            self._tell(port, source, f"on {port.name} is a router: its advertisements are relayed")
            if len(self._known) >= _ROUTERS:
                del self._known[next(iter(self._known))]
        self._known[source] = router  # so that the one longest silent comes first
        if (
            before is not None
            and not message.everybody
            and now < before.told + _ADVERTISEMENT_INTERVAL
            and before.said == router.said
        ):
            router.told = before.told
            return Verdict.HEARD
        for downstream in self._downstreams.values():
            self._advertise(router, downstream, ndp.ALL_NODES_MAC, ndp.ALL_NODES, now)
        return Verdict.RELAYED

    def _say_farewell(self, router: _Router, now: float) -> None:
        router.told = now
        router.farewells -= 1
        for port in self._downstreams.values():
            self._advertise(router, port, ndp.ALL_NODES_MAC, ndp.ALL_NODES, now, farewell=True)

    def _advertise(
        self,
        router: _Router,
        port: Port,
        to_mac: bytes,
        destination: bytes,
        now: float,
        *,
        farewell: bool = False,
    ) -> None:
        """Tell hosts on a downstream what a router said.  What does not fit is not cut in pieces: Router
        Advertisements in fragments are not to be believed (RFC 6980)."""
        assert port.mac is not None  # noqa: S101 - configure leaves out those without
        leg = rewrite.Leg(port.mac, port.mtu, to_mac, destination)
        frame = rewrite.readvertised(router.frame, leg, int(now - router.at), farewell=farewell)
        if len(frame) - ndp.IPV6 > port.mtu:
            self._tell(port, router.message.source, f"sends advertisements that are too big for {port.name}")
        else:
            self._sends.append((port.ifindex, frame))

    def _tell(self, port: Port, address: bytes, what: str) -> None:
        who = text(address)
        self._events.append(
            Event(
                kind=EventKind.ROUTER,
                text=f"{who} {what}",
                group=self._group,
                port=port.name,
                address=who,
            )
        )

    def _outcome(self, verdict: Verdict, now: float) -> Outcome:
        """What was decided, and what it does to the on-link prefixes and to the deadline."""
        effects: tuple[Effect, ...] = ()
        on_link = frozenset[IPv6Network]().union(*(router.on_link(now) for router in self._known.values()))
        if len(on_link) > _PREFIXES:  # those that are known already stay
            ordered = sorted(on_link, key=lambda prefix: prefix not in self._on_link)
            on_link = frozenset(itertools.islice(ordered, _PREFIXES))
        if on_link != self._on_link:
            self._on_link = on_link
            effects = (Reconsider("router"),)
        self.deadline = min(
            self._solicit_at,
            *(router.told + _ADVERTISEMENT_INTERVAL for router in self._leaving.values()),
            *(router.next_expiry(now) for router in self._known.values()),
            math.inf,
        )
        outcome = Outcome(verdict, effects, tuple(self._sends), tuple(self._events))
        self._sends, self._events = [], []
        return outcome
