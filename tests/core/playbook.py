"""A group on the bench: frames go in by name, what comes out is decoded, effects are carried out.

Ports: `U` upstream (1), `D` and `E` downstream (2, 3).  The kernel is a pair of dictionaries.

Scenes are told in IPv6 and played in `family` 6 or 4: addresses and prefixes are translated on their way to
the engine, and ARP packets shown as the Neighbor Discovery messages that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import Ether

from portier.core import arp, ndp
from portier.core.model import Bound, EventKind, Group, HostRoute, Live, Port, Role, Rule
from portier.core.outcome import (
    AddRoute,
    DrawAll,
    Join,
    Leave,
    MoveRoute,
    Outcome,
    RemoveRoute,
    RouteResult,
    Verdict,
)
from portier.core.route import RouteEngine
from portier.core.rules import RuleTable

U, D, E = 1, 2, 3
NAMES = {U: "up0", D: "down0", E: "down1"}
LAN = IPv6Network("2001:db8:7::/64")
RULES = (Rule(prefix=LAN),)


class Stage:
    """In which family scenes are played."""

    family = 6


def ip(text: str) -> bytes:
    """A packed address; short forms like `::5` stand in the LAN."""
    if text.startswith("::") and text != "::":
        text = "2001:db8:7" + text
    return translated(IPv6Address(text)).packed


def translated(address: IPv6Address) -> IPv6Address | IPv4Address:
    """The address that stands for another on this stage: the LAN is 10.0.0.0/8, other prefixes are parts of
    172.16.0.0/12, link-local stays link-local."""
    if Stage.family == 6:
        return address
    low = address.packed[13:]
    if address.is_link_local:
        return IPv4Address(b"\xa9\xfe" + low[1:])
    if address in LAN:
        return IPv4Address(b"\x0a" + low)
    return IPv4Address(bytes((172, 16, address.packed[5], low[2])))


def net(network: IPv6Network) -> IPv6Network | IPv4Network:
    """The prefix that stands for another on this stage."""
    if Stage.family == 6:
        return network
    if network == LAN:
        return IPv4Network("10.0.0.0/8")
    if network.is_link_local:
        return IPv4Network("169.254.0.0/16")
    address = translated(network.network_address)
    return IPv4Network((address.packed, 32 - (128 - network.prefixlen)))


def staged(rule: Rule) -> Rule:
    """A rule with its prefixes translated."""
    prefix, askers = rule.prefix, rule.askers
    if isinstance(prefix, IPv6Network):
        prefix = net(prefix)
    elif prefix is Live.UPSTREAM and Stage.family == 4:
        prefix = Live.UPSTREAM_IPV4
    return replace(
        rule,
        prefix=prefix,
        askers=tuple(net(asker) if isinstance(asker, IPv6Network) else asker for asker in askers),
    )


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
    for key in ("prefixes", "on_link"):
        if key in changes:
            changes[key] = tuple(net(network) for network in changes[key])
    if Stage.family == 4:
        made = made._replace(source4=IPv4Address(f"10.255.0.{ifindex}").packed)
        if "source" in changes and changes["source"] is None:
            changes["source4"] = None
    return made._replace(**changes)


@dataclass
class Kernel:
    """What the engine may ask: routes (``gateways`` those to single hosts behind a gateway, asked for
    ``lookups`` times) and neighbors by address, and the host routes it was given."""

    routes: dict[bytes, int] = field(default_factory=dict)
    gateways: dict[bytes, int] = field(default_factory=dict)
    lookups: int = 0
    neighbors: dict[bytes, int] = field(default_factory=dict)
    host_routes: list[HostRoute] = field(default_factory=list)
    result: RouteResult = RouteResult.ADDED

    def route(self, address: bytes, table: int) -> int:
        assert table == 254
        return self.routes.get(address, 0)

    def host_route(self, address: bytes, table: int) -> int:
        assert table == 254
        self.lookups += 1
        return self.gateways.get(address, 0)

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        found = self.neighbors.get(address, 0)
        return found if found in ports else 0


@dataclass(frozen=True)
class Sent:
    """A frame that went out, decoded."""

    port: int
    message: ndp.Message
    frame: bytes = b""

    @property
    def kind(self) -> str:
        if self.message.type in {ndp.ROUTER_SOLICITATION, ndp.ROUTER_ADVERTISEMENT}:
            return "RS" if self.message.type == ndp.ROUTER_SOLICITATION else "RA"
        if self.message.type == ndp.ADVERTISEMENT:
            return "NEWS" if self.message.destination == ndp.ALL_ROUTERS else "NA"
        if self.message.source == ndp.UNSPECIFIED:
            return "DAD"
        return "NS" if self.message.destination[0] == 0xFF else "PROBE"

    def __repr__(self) -> str:
        target = self.message.target
        return f"{self.kind} {ip_address(target) if target else ''} on {NAMES[self.port]}"


def shown(frame: bytes) -> ndp.Message:
    """A frame that went out, as the Neighbor Discovery message that it is or stands for: an announcement
    as an advertisement to all routers, a defence as one to all nodes."""
    if frame[22:24] != arp.ETHERTYPE:
        message = ndp.parse(frame)
        assert isinstance(message, ndp.Message), message
        return message
    packet = arp.parse(frame)
    assert isinstance(packet, arp.Message), packet
    ends = packet.ether_destination, packet.ether_source
    if packet.operation == arp.REQUEST and packet.sender != packet.target:
        probe = packet.sender == arp.UNSPECIFIED
        everybody = bool(packet.ether_destination[0] & 1)
        return ndp.Message(
            ndp.SOLICITATION,
            *ends,
            ndp.UNSPECIFIED if probe else packet.sender,
            ndp.ALL_NODES if everybody else packet.target,
            0,
            packet.target,
            b"" if probe else packet.sender_mac,
            b"",
        )
    destination, flags = packet.target, ndp.S_FLAG
    if packet.operation == arp.REQUEST:
        destination, flags = ndp.ALL_ROUTERS, 0
    elif packet.target == arp.UNSPECIFIED:
        destination, flags = ndp.ALL_NODES, 0
    return ndp.Message(
        ndp.ADVERTISEMENT, *ends, packet.sender, destination, flags, packet.sender, packet.sender_mac, b""
    )


class Playbook:
    """An engine with the ports U, D and E and whatever `group` says."""

    def __init__(self, *, ports: tuple[Port, ...] = (), **group: Any) -> None:
        self.kernel = Kernel()
        self.engine = RouteEngine(self.kernel)
        self.now = 1000.0
        self.events: list[tuple[EventKind, str]] = []
        self.sent: list[Sent] = []
        rules = tuple(staged(rule) for rule in group.pop("rules", RULES))
        self.group = Group(name="guests", rules=rules, **group)
        self.joined: list[tuple[int, bytes]] = []
        self.drawn: set[int] = set()
        self.ports = ports or (port(U), port(D), port(E))
        live = any(isinstance(rule.prefix, Live) for rule in self.group.rules)
        self.live = (net(LAN),) if live else ()
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
        if Stage.family == 4:
            return self.receive(
                ifindex, arp.request(mac(host), ip(source), ip(target), to_mac or arp.BROADCAST_MAC)
            )
        frame = ndp.solicitation(mac(host), ip(source), ip(target), to_mac)
        if not option:
            frame = strip_option(frame)
        return self.receive(ifindex, frame)

    def na(self, ifindex: int, target: str, host: int, *, flags: str = "SO", says: int = 0) -> Verdict:
        """Host `host` advertises `target`: to the port's own address if S is among the flags; the option
        names the link-layer address of host `says`, if that is another."""
        if Stage.family == 4:
            us, link_layer = self.mac_of(ifindex), mac(says or host)
            frame = arp.request(mac(host), ip(target), ip(target), link_layer=link_layer)
            if "S" in flags:
                frame = arp.reply(
                    us, mac(host), link_layer, ip(target), self._port(ifindex).source4 or bytes(4)
                )
            return self.receive(ifindex, frame)
        bits = sum({"R": ndp.R_FLAG, "S": ndp.S_FLAG, "O": ndp.O_FLAG}[flag] for flag in flags)
        source = self._port(ifindex).source or ip("fe80::99")
        destination = source if "S" in flags else ndp.ALL_NODES
        frame = ndp.advertisement(
            self.mac_of(ifindex), mac(host), ip(target), destination, ip(target), bits, mac(says or host)
        )
        return self.receive(ifindex, frame)

    def confirms(self, ifindex: int, target: str, host: int) -> Verdict:
        """Host `host` answers a unicast solicitation of ours as Linux does: with neither O nor its
        link-layer address."""
        source = self._port(ifindex).source
        if Stage.family == 4 or source is None:
            return self.na(ifindex, target, host)
        message = (
            Ether(src=mac(host).hex(":"), dst=self.mac_of(ifindex).hex(":"))
            / IPv6(src=str(ip_address(ip(target))), dst=str(ip_address(source)), hlim=255)
            / ICMPv6ND_NA(tgt=str(ip_address(ip(target))), R=0, S=1, O=0)
        )
        return self.receive(ifindex, ndp.NO_OFFLOAD + bytes(message))

    def host_asks(self, ifindex: int, target: str, *, heard_on: int = 0) -> Verdict:
        """The stack of the proxy's own host solicits on a port."""
        us = self._port(ifindex)
        assert us.mac is not None
        assert us.source is not None
        if Stage.family == 4:
            frame = arp.request(us.mac, us.source4 or us.source[12:], ip(target))
        else:
            frame = ndp.solicitation(us.mac, us.source, ip(target))
        return self.receive(heard_on or ifindex, frame)

    def dad(self, ifindex: int, target: str, host: int, nonce: bytes = b"") -> Verdict:
        """Host `host` probes for a duplicate of `target`."""
        if Stage.family == 4:
            return self.receive(ifindex, arp.probe(mac(host), ip(target)))
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

    def told(self, ifindex: int | None = None) -> list[Sent]:
        """The announcements just sent by which neighbors correct what they know."""
        sent = self.of("NEWS" if Stage.family == 4 else "NA", ifindex)
        return [sent for sent in sent if not sent.message.flags & ndp.S_FLAG]

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
            elif isinstance(effect, RemoveRoute):
                if effect.route in self.kernel.host_routes:
                    self.kernel.host_routes.remove(effect.route)
            elif isinstance(effect, Join):
                assert effect not in self.joined
                self.joined.append((effect.ifindex, effect.group))
            elif isinstance(effect, Leave):
                self.joined.remove((effect.ifindex, effect.group))
            elif isinstance(effect, DrawAll):
                assert effect.wanted != (effect.ifindex in self.drawn)
                (self.drawn.add if effect.wanted else self.drawn.discard)(effect.ifindex)
        for ifindex, frame in () if failed else outcome.sends:
            self.sent.append(Sent(ifindex, shown(frame), frame))
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
