"""A group on the bench: frames go in by name, what comes out is decoded, effects are carried out.

Ports: `U` upstream (1), `D` and `E` downstream (2, 3).  The kernel is a pair of dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from portier.core import ndp
from portier.core.model import Bound, EventKind, Group, HostRoute, Live, Port, Role, Rule
from portier.core.outcome import AddRoute, MoveRoute, Outcome, RemoveRoute, RouteResult, Verdict
from portier.core.route import RouteEngine
from portier.core.rules import RuleTable

U, D, E = 1, 2, 3
NAMES = {U: "up0", D: "down0", E: "down1"}
LAN = IPv6Network("2001:db8:7::/64")
RULES = (Rule(prefix=LAN),)


def ip(text: str) -> bytes:
    """A packed address; short forms like `::5` stand in the LAN."""
    if text.startswith("::") and text != "::":
        text = "2001:db8:7" + text
    return IPv6Address(text).packed


def mac(number: int) -> bytes:
    """The link-layer address of host `number`."""
    return bytes((2, 0, 0, 0, 0, number))


def port(ifindex: int, **changes: Any) -> Port:
    """A port as it usually is."""
    made = Port(
        ifindex=ifindex,
        name=NAMES[ifindex],
        role=Role.UPSTREAM if ifindex == U else Role.DOWNSTREAM,
        mac=bytes((2, 0, 0, 0, 0xFF, ifindex)),
        mtu=1500,
        source=IPv6Address(f"fe80::{ifindex}").packed,
    )
    return made._replace(**changes)


@dataclass
class Kernel:
    """What the engine may ask: routes and neighbors by address, and the host routes it was given."""

    routes: dict[bytes, int] = field(default_factory=dict)
    neighbors: dict[bytes, int] = field(default_factory=dict)
    host_routes: list[HostRoute] = field(default_factory=list)
    result: RouteResult = RouteResult.ADDED

    def route(self, address: bytes, table: int) -> int:
        assert table == 254
        return self.routes.get(address, 0)

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        found = self.neighbors.get(address, 0)
        return found if found in ports else 0


@dataclass(frozen=True)
class Sent:
    """A frame that went out, decoded."""

    port: int
    message: ndp.Message

    @property
    def kind(self) -> str:
        if self.message.type == ndp.ADVERTISEMENT:
            return "NA"
        if self.message.source == ndp.UNSPECIFIED:
            return "DAD"
        return "NS" if self.message.destination[0] == 0xFF else "PROBE"

    def __repr__(self) -> str:
        return f"{self.kind} {IPv6Address(self.message.target)} on {NAMES[self.port]}"


class Playbook:
    """An engine with the ports U, D and E and whatever `group` says."""

    def __init__(self, *, ports: tuple[Port, ...] = (), **group: Any) -> None:
        self.kernel = Kernel()
        self.engine = RouteEngine(self.kernel)
        self.now = 1000.0
        self.events: list[tuple[EventKind, str]] = []
        self.sent: list[Sent] = []
        self.group = Group(name="guests", **{"rules": RULES, **group})
        self.ports = ports or (port(U), port(D), port(E))
        self.live = (LAN,) if any(rule.prefix is Live.UPSTREAM for rule in self.group.rules) else ()
        self.next_hops: frozenset[tuple[bytes, int]] = frozenset()
        self.configure()

    def configure(self, **changes: Any) -> None:
        routes, ports = self.group.routes, changes.get("ports", self.ports)
        bound = Bound(
            group=self.group,
            ports=tuple(port._replace(table=routes.table) for port in ports) if routes else ports,
            live=changes.get("live", self.live),
            next_hops=changes.get("next_hops", self.next_hops),
        )
        self._carry_out(self.engine.configure(bound, RuleTable.compile(bound), self.now))

    def receive(self, ifindex: int, frame: bytes) -> Verdict:
        """A frame arrives; `sent` and `events` are what came of this one alone."""
        self.sent, self.events = [], []
        outcome = self.engine.receive(ifindex, frame, self.now)
        self._carry_out(outcome)
        return outcome.verdict

    def ns(
        self, ifindex: int, source: str, target: str, host: int, *, option: bool = True, **how: Any
    ) -> Verdict:
        """Host `host` solicits; `unicast=True` for a probe by unicast."""
        to_mac = self.mac_of(ifindex) if how.get("unicast") else b""
        frame = ndp.solicitation(mac(host), ip(source), ip(target), to_mac)
        if not option:
            frame = strip_option(frame)
        return self.receive(ifindex, frame)

    def na(self, ifindex: int, target: str, host: int, *, flags: str = "SO", says: int = 0) -> Verdict:
        """Host `host` advertises `target`: to the port's own address if S is among the flags; the option
        names the link-layer address of host `says`, if that is another."""
        bits = sum({"R": ndp.R_FLAG, "S": ndp.S_FLAG, "O": ndp.O_FLAG}[flag] for flag in flags)
        source = self._port(ifindex).source or ip("fe80::99")
        destination = source if "S" in flags else ndp.ALL_NODES
        frame = ndp.advertisement(
            self.mac_of(ifindex), mac(host), ip(target), destination, ip(target), bits, mac(says or host)
        )
        return self.receive(ifindex, frame)

    def dad(self, ifindex: int, target: str, host: int, nonce: bytes = b"") -> Verdict:
        """Host `host` probes for a duplicate of `target`."""
        return self.receive(ifindex, ndp.dad_probe(mac(host), ip(target), nonce))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, doing what is due when it is due; `sent` and `events` are all of it."""
        self.sent, self.events = [], []
        end = self.now + seconds
        while self.engine.deadline <= end:
            self.now = max(self.now, self.engine.deadline)
            self._carry_out(self.engine.tick(self.now))
        self.now = end

    def learn(self, ifindex: int, address: str, host: int) -> None:
        """Make a host known and proven: it claims, and answers the probe."""
        self.na(ifindex, address, host, flags="O")
        self.na(ifindex, address, host)
        self.pass_time(1.0)
        self.ns(D if ifindex == U else U, "fe80::aa", address, 0xAA)
        self.na(ifindex, address, host)
        assert self.where(address) == ifindex

    def where(self, address: str) -> int | None:
        """The port on which a host is known."""
        for info in self.engine.neighbors(self.now):
            if info.address == ip(address):
                return next(index for index, name in NAMES.items() if name == info.port)
        return None

    def route(self, address: str) -> int | None:
        """The port by which the kernel has a host route."""
        found = [route.ifindex for route in self.kernel.host_routes if route.address == ip(address)]
        assert len(found) <= 1
        assert {r for r in self.engine.wanted_routes() if r.address == ip(address)} >= set() or found
        return found[0] if found else None

    def of(self, kind: str, ifindex: int | None = None) -> list[Sent]:
        """The frames of one kind just sent."""
        return [sent for sent in self.sent if sent.kind == kind and ifindex in {None, sent.port}]

    def kinds(self) -> set[EventKind]:
        return {kind for kind, _ in self.events}

    def mac_of(self, ifindex: int) -> bytes:
        found = self._port(ifindex).mac
        assert found is not None
        return found

    def _port(self, ifindex: int) -> Port:
        return next(this for this in self.ports if this.ifindex == ifindex)

    def _carry_out(self, outcome: Outcome) -> None:
        failed = False
        for effect in outcome.effects:
            if isinstance(effect, AddRoute | MoveRoute):
                if isinstance(effect, MoveRoute):
                    self.kernel.host_routes.remove(effect.old)
                if self.kernel.result in {RouteResult.ADDED, RouteResult.PRESENT}:
                    assert (
                        effect.route not in self.kernel.host_routes
                        or self.kernel.result is not RouteResult.ADDED
                    )
                    self.kernel.host_routes.append(effect.route)
                failed = failed or self.kernel.result is RouteResult.FAILED
                self._carry_out(self.engine.settle(effect, self.kernel.result))
            elif isinstance(effect, RemoveRoute) and effect.route in self.kernel.host_routes:
                self.kernel.host_routes.remove(effect.route)
        for ifindex, frame in () if failed else outcome.sends:
            message = ndp.parse(frame)
            assert isinstance(message, ndp.Message), message
            self.sent.append(Sent(ifindex, message))
        self.events += [(event.kind, event.text) for event in outcome.events]
        assert self.engine.deadline <= math.inf


def strip_option(frame: bytes) -> bytes:
    """The same solicitation without its option, checksum made right."""
    whole = bytearray(frame[: ndp.OPTIONS])
    whole[ndp.IPV6 + 4 : ndp.IPV6 + 6] = (24).to_bytes(2, "big")
    return fix_checksum(bytes(whole))


def fix_checksum(frame: bytes) -> bytes:
    """The same frame with a right ICMPv6 checksum."""
    whole = bytearray(frame)
    whole[ndp.ICMPV6 + 2 : ndp.ICMPV6 + 4] = b"\0\0"
    body = bytes(whole[ndp.IPV6 + 8 :])
    length = len(whole) - ndp.ICMPV6
    total = int.from_bytes(body + bytes(len(body) % 2), "big") + length + 58
    whole[ndp.ICMPV6 + 2 : ndp.ICMPV6 + 4] = (-total % 0xFFFF).to_bytes(2, "big")
    return bytes(whole)
