"""The engine for mode `relay`: its ports are one link (RFC 4389).

Neighbor Discovery messages are rewritten and relayed, and never answered from the cache; everything else
IPv6 is relayed with only its link-layer header changed.  `RelayEngine.receive` decides on a frame, and
`RelayEngine.forward` sends on in place what belongs to a known flow.

Its state: the neighbor cache of every port, the destinations being looked for with the packets that wait for
them (`_Pending`), the flows, and a short memory of the multicast packets relayed.  All of it is bounded.
Whether a port takes part is `portier.core.loops`' to say.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv6Network
from struct import Struct
from typing import Final, NamedTuple

from portier.core import ndp, rewrite
from portier.core.engine import (
    Bucket,
    Explanation,
    KnownHost,
    NeighborInfo,
    Rates,
    RouterInfo,
    Say,
    Standing,
    gives_way,
    link_local,
    mac_text,
    text,
)
from portier.core.histogram import FOUND_BOUNDS, Histogram, Tally
from portier.core.hostroutes import HostRoutes
from portier.core.loops import Echoes, Gate, Guard, Memory
from portier.core.model import Bound, Event, EventKind, Group, HostRoute, LoopProtection, Network, Port, Role
from portier.core.ndp import Message
from portier.core.neighbors import RouteState, Shares
from portier.core.notes import Noted
from portier.core.outcome import AddRoute, Effect, MoveRoute, Outcome, RouteResult, Verdict
from portier.core.rules import Prefixes, RuleTable
from portier.core.timers import Timed, Timers

# RFC 4861 section 10: DELAY_FIRST_PROBE_TIME.
_DELAY: Final = 5.0
# RFC 4861 section 7.2.2 wants a small queue for each destination, and the newest packets in it.
_QUEUED_PER_TARGET: Final = 3
_QUEUED_OCTETS: Final = 4 << 20
# Packet Too Big messages a second: by sender (the example of RFC 4443 section 2.4), and by port.
_ERRORS_PER_SOURCE: Final = 10
_ERRORS_PER_PORT: Final = 100
_LEAST_MTU: Final = 1280
_FLOWS_PER_PORT: Final = 32768
# Routers and prefixes that Router Advertisements may tell of.
_ROUTERS: Final = 16
_PREFIXES: Final = 64
# So that a tick over many hosts never keeps frames waiting.
_TICK_BATCH: Final = 128

_ETHERTYPE: Final = b"\x86\xdd"
_LOOPBACK: Final = bytes(15) + b"\1"
_NO_MAC: Final = bytes(6)
_UDP: Final = 17
_ICMPV6: Final = 58
_ERROR_TYPES: Final = 128  # ICMPv6 types below are errors (RFC 4443 section 2.1)
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})
_NO_PROTOCOL: Final = -1
_OWN: Final = "the proxy's own address"

# virtio-net header as PACKET_VNET_HDR gives it, in the host's own byte order: flags, segmentation, header
# length, segment size, where the checksum starts.
_OFFLOAD: Final = Struct("=BBHHH")
_PLAIN_START: Final = Struct("=H").pack(54)  # where the checksum of a packet without extension headers starts
_UNFINISHED: Final = 1
_TCP_SEGMENTS: Final = frozenset({1, 4})
# First octet of the Ethernet destination, next header, both addresses, and the ICMPv6 type if it is one.
_FLOW: Final = Struct("=10xB19xBx32sB")
# What `forward` leaves to `receive`: headers behind which anything may stand; and with ICMPv6, the messages
# of Neighbor Discovery.
_LOOK: Final = bytes(
    2 if n == _ICMPV6 else int(n in _EXTENSIONS or n in (_FRAGMENT, _AUTHENTICATION)) for n in range(256)
)
_DISCOVERY: Final = bytes(int(n in ndp.LEAST) for n in range(256))


class State(enum.IntEnum):
    """A neighbor's reachability (RFC 4861 section 7.3.2), from the least to the most preferred of RFC 4389
    section 4.1.  Who is INCOMPLETE has no entry: it is being looked for."""

    STALE = 1
    DELAY = 2
    PROBE = 3
    REACHABLE = 4


class _Entry(Timed):
    """A neighbor on one port.  ``spoken`` says that it was learned by Neighbor Discovery, not only from its
    traffic; ``confirmed`` that it was reachable once; ``heard`` is when it last said anything."""

    __slots__ = (
        "address",
        "confirmed",
        "contested",
        "heard",
        "ifindex",
        "mac",
        "probes",
        "router",
        "spoken",
        "state",
    )

    def __init__(self, address: bytes, ifindex: int, mac: bytes, now: float) -> None:
        super().__init__()
        self.address = address
        self.ifindex = ifindex
        self.mac = mac
        self.heard = now
        self.state = State.STALE
        self.probes = 0
        self.confirmed = False
        self.contested = False
        self.spoken = False
        self.router = False


class _Host:
    """An address: its entries by port, the best of them, and the flows to it."""

    __slots__ = ("address", "best", "entries", "flows", "mac", "route", "route_state")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.entries: dict[int, _Entry] = {}
        self.best: _Entry | None = None
        self.mac = b""
        self.flows: list[tuple[int, bytes]] = []
        self.route: HostRoute | None = None
        self.route_state = RouteState.NONE


class _Waiting(NamedTuple):
    """A packet that waits for its destination to be found, with the port it came in by."""

    ifindex: int
    frame: bytes
    message: Message | None


class _Pending(Timed):
    """A destination that is being looked for: INCOMPLETE, in the words of RFC 4861.

    ``origin`` is the port on whose behalf, ``since`` when, ``asked`` the ports on which Portier itself
    solicits, ``packets`` what waits.
    """

    __slots__ = ("asked", "origin", "packets", "since", "target", "tries")

    def __init__(self, target: bytes, origin: int, now: float) -> None:
        super().__init__()
        self.target = target
        self.since = now
        self.origin = origin
        self.asked: set[int] = set()
        self.packets: list[_Waiting] = []
        self.tries = 1


class Flow(NamedTuple):
    """How the packets from one address to another, which came in by one port, are sent on.  ``limit`` is the
    length up to which a frame fits, its virtio-net header included; ``counts`` are those of the port."""

    ifindex: int
    header: bytes
    limit: int
    counts: list[int]


class _Router(NamedTuple):
    """A default router of the link: where it is, until when, and what it said last."""

    ifindex: int
    mac: bytes
    until: float
    said: rewrite.Advertised


class _Attached:
    """A port and what the engine keeps with it."""

    __slots__ = ("bucket", "counts", "errors", "flows", "gate", "ifindex", "limit", "mac", "name", "port")

    def __init__(self, port: Port, gate: Gate, rate: float, now: float) -> None:
        self.port = port
        self.gate = gate
        self.ifindex = port.ifindex
        self.name = port.name
        self.mac = port.mac or b""
        self.limit = port.mtu + ndp.IPV6
        self.bucket = Bucket(rate, now)
        self.errors = Bucket(_ERRORS_PER_PORT, now)
        self.counts = [0] * len(Verdict)
        self.flows: dict[bytes, Flow] = {}


def packet_end(frame: bytes) -> int:
    """Where the packet in a frame ends: octets may follow that are none of its own.  A payload length of 0 is
    that of a jumbogram (RFC 2675), which ends with the frame."""
    payload = int.from_bytes(frame[ndp.IPV6 + 4 : ndp.IPV6 + 6], "big")
    return ndp.ICMPV6 + payload if payload else len(frame)


def upper(frame: bytes) -> tuple[int, int]:
    """The protocol behind all extension headers, and where it begins.  For a fragment that is not the first
    that is the fragment header; the protocol is -1 where the headers do not end."""
    following, at, end = frame[ndp.IPV6 + 6], ndp.ICMPV6, packet_end(frame)
    while True:
        if following in _EXTENSIONS:
            size = 8
        elif following == _AUTHENTICATION:
            size = 4
        elif following == _FRAGMENT:
            if at + 8 > end:
                return _NO_PROTOCOL, at
            if int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8:
                return _FRAGMENT, at
            size = 0
        else:
            return following, at
        if at + 8 > end:
            return _NO_PROTOCOL, at
        following, at = frame[at], at + 8 + size * frame[at + 1]


def wire_length(frame: bytes | bytearray, length: int) -> int:
    """The length of the longest frame into which one of `length` octets is cut up before it is on the wire,
    counted as `length` is.  The header length that the kernel notes may be more than the headers, so they
    are looked at where the checksum says where they are."""
    flags, segmentation, header, size, start = _OFFLOAD.unpack_from(frame)
    if not segmentation:
        return length
    transport = ndp.VNET_HEADER + start
    if not flags & _UNFINISHED or transport + 13 > length:
        return int(ndp.VNET_HEADER + header + size)
    octets = (frame[transport + 12] >> 4) * 4 if segmentation & 0x7F in _TCP_SEGMENTS else 8
    return int(transport + octets + size)


def _message_name(frame: bytes, message: Message) -> int:
    """What tells a message from others, whichever port it was relayed by."""
    return hash(rewrite.relayed(frame, message, _NO_MAC)[ndp.IPV6 :])


def _packet_name(frame: bytes) -> int:
    """The same for other packets; without the checksum of UDP, which may be for a card to finish yet."""
    if frame[ndp.IPV6 + 6] == _UDP:
        return hash(frame[ndp.IPV6 : ndp.ICMPV6 + 6] + frame[ndp.ICMPV6 + 8 :])
    return hash(frame[ndp.IPV6 :])


def _names(ports: Iterable[_Attached]) -> str:
    return ", ".join(this.name for this in ports)


class RelayEngine:
    """The decisions of one group in mode `relay`.

    `random` gives numbers from 0 to 1, for delays.  `heard` is what hold-downs follow from; it outlives the
    engine, as they must.  Not for more than one thread, but for the methods that
    say they copy.
    """

    def __init__(self, random: Callable[[], float], heard: Memory) -> None:
        self._bound: Bound | None = None
        self._ports: dict[int, _Attached] = {}
        self._macs: frozenset[bytes] = frozenset()
        self._own: dict[bytes, set[int]] = {}
        self._next_hops: dict[bytes, set[int]] = {}
        self._behind = Prefixes()
        self._on_link = Prefixes()
        self._uplink: tuple[int, bytes | None] | None = None
        self._routers: dict[bytes, _Router] = {}
        self._prefixes: dict[IPv6Network, float] = {}
        self._hosts: dict[bytes, _Host] = {}
        self._shares: Shares[_Entry] = Shares()
        self._entries: dict[tuple[int, bytes], _Entry] = {}
        self._pending: dict[bytes, _Pending] = {}
        self._queued = 0
        self._nobody: dict[bytes, float] = {}
        self._flows: dict[int, dict[bytes, Flow]] = {}
        self._echoes = Echoes()
        self._rates = Rates()
        self._errors = Rates()
        self._routes = HostRoutes()
        self._timers: Timers[_Entry | _Pending] = Timers(
            lambda: (self._entries.values(), self._pending.values())
        )
        self._sends: list[tuple[int, bytes]] = []
        self._events: list[Event] = []
        self._found_after = Histogram(FOUND_BOUNDS)
        self._failed = 0
        self._guard = Guard(random, self._send, self._say, self._tell, self._gates_changed, heard)

    # -- configuration -----------------------------------------------------------------------------

    def configure(self, bound: Bound, _rules: RuleTable, now: float) -> Outcome:
        """Take over the ports of `bound`.  Neighbors whose port stays are kept.  Rules say nothing here: all
        hosts of a link are on it."""
        before = self._bound
        group = bound.group
        self._bound = bound
        fresh = before is None or before.group.limits != group.limits
        self._guard.configure(group, bound.ports, now)
        attached: dict[int, _Attached] = {}
        for port in bound.ports:
            old = self._ports.get(port.ifindex)
            this = _Attached(port, self._guard.gates[port.ifindex], group.limits.resolutions, now)
            if old is not None:
                this.counts = old.counts
                if not fresh:
                    this.bucket = old.bucket
            attached[port.ifindex] = this
        self._ports = attached
        self._flows = {index: this.flows for index, this in attached.items()}
        self._macs = frozenset(port.mac for port in bound.ports if port.mac is not None)
        uplink = next((this for this in bound.ports if this.role is Role.UPSTREAM), None)
        if before is None or (uplink and (uplink.ifindex, uplink.mac)) != self._uplink:
            # What routers of another link said does not hold here.
            self._uplink = uplink and (uplink.ifindex, uplink.mac)
            self._routers, self._prefixes = {}, {}
        self._own = {}
        for port in bound.ports:
            for address in port.addresses:
                self._own.setdefault(address, set()).add(port.ifindex)
        self._next_hops = {}
        for gateway, ifindex in bound.next_hops:
            self._next_hops.setdefault(gateway, set()).add(ifindex)
        behind: list[tuple[Network, int]] = [
            (prefix, port.ifindex) for port in bound.ports for prefix in port.prefixes
        ]
        self._behind = Prefixes(behind)
        self._compile_prefixes(now)
        if fresh:
            self._routes.limit(group.limits.route_changes, now)
            self._rates.clear()
        self._recheck(now)
        return self._outcome(Verdict.HEARD)

    def _recheck(self, now: float) -> None:
        """Drop what no longer fits the ports and limits."""
        for entry in list(self._entries.values()):
            port = self._ports.get(entry.ifindex)
            if port is None or self._is_own(port, entry.address):
                self._drop(entry, now)
        while (excess := self._shares.excess(self._group.limits)) is not None:
            self._drop(excess, now)
        for pending in list(self._pending.values()):
            pending.asked &= self._ports.keys()
            if pending.origin not in self._ports or pending.target in self._own:
                self._give_up(pending, Verdict.NOWHERE)
        for host in list(self._hosts.values()):
            self._cut_flows(host)
            self._refresh(host, now)

    def _compile_prefixes(self, now: float) -> None:
        """What is on-link: what the kernel says, and what Router Advertisements do."""
        bound = self._group_bound
        self._prefixes = {prefix: until for prefix, until in self._prefixes.items() if now < until}
        known: set[Network] = {prefix for port in bound.ports for prefix in port.on_link}
        self._on_link = Prefixes((prefix, 1) for prefix in (*known, *bound.live, *self._prefixes))

    def _gates_changed(self) -> None:
        """A port starts or ceases to take part: other ports may be the better way to its hosts."""
        for host in self._hosts.values():
            self._cut_flows(host)
            self._refresh(host, -math.inf)

    # -- known flows -------------------------------------------------------------------------------

    def forward(self, ifindex: int, buffer: bytearray, length: int, _now: float) -> int:
        """Send on, in place, the first `length` octets of `buffer`, which came in on `ifindex`, if they
        belong to a known flow: the port they leave by, 0 where `receive` must look at them."""
        flows = self._flows.get(ifindex)
        if not flows or length < ndp.ICMPV6:
            return 0
        group, following, key, kind = _FLOW.unpack_from(buffer)
        flow = flows.get(key)
        if flow is None or group & 1:
            return 0
        if (look := _LOOK[following]) and (look == 1 or _DISCOVERY[kind]):
            return 0
        out, header, limit, counts = flow
        if length > limit and (buffer[6:8] != _PLAIN_START or wire_length(buffer, length) > limit):
            return 0
        buffer[10:24] = header
        counts[2] += 1  # Verdict.RELAYED: an enum costs more than the rest of the line
        return out

    def _cut_flows(self, host: _Host) -> None:
        for ifindex, key in host.flows:
            self._flows.get(ifindex, {}).pop(key, None)
        host.flows.clear()

    def _add_flow(self, port: _Attached, host: _Host, frame: bytes, flow: Flow) -> None:
        key = frame[32:64]
        # Those that are there stay until they are idle: a flood of others costs them nothing.
        if key not in port.flows and len(port.flows) < _FLOWS_PER_PORT:
            host.flows.append((port.ifindex, key))
            port.flows[key] = flow

    # -- frames --------------------------------------------------------------------------------------

    def receive(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        """Decide on a frame that came in on `ifindex`, or that the host's own stack sent there, at the
        monotonic time `now`."""
        port = self._ports.get(ifindex)
        if port is None:
            return Outcome(Verdict.NOWHERE)
        verdict = self._look(port, frame, now)
        if verdict is not Verdict.QUEUED:  # that is counted when it is known what became of it
            port.counts[verdict] += 1
        return self._outcome(verdict)

    def rehearse(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        """The same for a frame that nobody sent: what is done about it is real, but it is not counted."""
        port = self._ports.get(ifindex)
        if port is None:
            return Outcome(Verdict.NOWHERE)
        kept, port.counts = port.counts, [0] * len(Verdict)
        try:
            return self.receive(ifindex, frame, now)
        finally:
            port.counts = kept

    def _look(self, port: _Attached, frame: bytes, now: float) -> Verdict:
        if not frame:
            return Verdict.OFFLOAD
        if len(frame) == ndp.IPV6:
            # The socket's filter cuts frames from outside that bear our own address down to the header.
            return Verdict.OWN_FRAME
        if len(frame) < ndp.ICMPV6:
            return Verdict.TRUNCATED
        if frame[22:24] != _ETHERTYPE or frame[24] >> 4 != 6:
            return Verdict.NOT_IPV6
        if len(frame) < ndp.ICMPV6 + int.from_bytes(frame[28:30], "big"):
            return Verdict.TRUNCATED
        if frame[16:22] == port.mac:
            return self._own_stack(port, frame, now)
        source, destination = frame[32:48], frame[48:64]
        if frame[16] & 1 or source[0] == 0xFF or source == _LOOPBACK:
            return Verdict.BAD_SOURCE
        group = destination[0] == 0xFF
        if (destination[1] & 0x0E == 0) if group else (destination in (ndp.UNSPECIFIED, _LOOPBACK)):
            return Verdict.BAD_DESTINATION  # of a scope that ends at the node (RFC 4291 section 2.7)
        if frame[10] & 1 and not group:
            return Verdict.BAD_DESTINATION  # to all by Ethernet, to one by IPv6: no router takes that up
        if frame[16:22] in self._macs:
            if group and port.gate.open:
                self._guard.came_back(port.gate, None, source, frame[16:22], now, own=True)
            return Verdict.OWN_FRAME
        protocol, at = upper(frame)
        if protocol == _NO_PROTOCOL:
            return Verdict.TRUNCATED
        flags, segmentation, _, _, start = _OFFLOAD.unpack_from(frame)
        if segmentation and flags & _UNFINISHED and at != ndp.VNET_HEADER + start:
            return Verdict.OFFLOAD  # what is to be cut up lies in a tunnel, of which its header cannot tell
        if protocol == _ICMPV6:
            if at >= packet_end(frame):
                return Verdict.TRUNCATED
            if frame[at] in ndp.LEAST:
                message = ndp.parse(frame)
                if isinstance(message, Verdict):
                    return message
                return self._discovery(port, frame, message, now)
        return self._data(port, frame, now)

    def _own_stack(self, port: _Attached, frame: bytes, now: float) -> Verdict:
        """What the host's own stack sends on a port: by multicast it is for the other ports too (RFC 4389
        section 4.2), but for its search for a neighbor, which Portier makes its own."""
        if frame[48] != 0xFF or not port.gate.open:
            return Verdict.NOT_HANDLED
        message = ndp.parse(frame)
        if not isinstance(message, Message):
            if message is Verdict.NOT_ND and frame[49] & 0x0E:
                return self._flood(port, frame, None, _packet_name(frame), now)
            return Verdict.NOT_HANDLED
        if message.type == ndp.ROUTER_ADVERTISEMENT:
            return Verdict.NOT_HANDLED
        name = _message_name(frame, message)
        if message.type != ndp.SOLICITATION or message.source == ndp.UNSPECIFIED:
            return self._flood(port, frame, message, name, now)
        self._remember(port.ifindex, name, frame, self._others(port.ifindex), now)
        target = message.target
        if link_local(target) or target in self._own:
            return Verdict.NOT_HANDLED
        host = self._hosts.get(target)
        if host is None or host.best is None:
            return self._search(port, target, message.ether_source, now)
        if host.best.ifindex == port.ifindex:
            return Verdict.SAME_PORT
        self._refresh(host, now)
        return Verdict.HEARD if self._routes.in_place(host, now, again=True) else Verdict.ROUTE_LIMIT

    # -- Neighbor Discovery --------------------------------------------------------------------------

    def _discovery(self, port: _Attached, frame: bytes, message: Message, now: float) -> Verdict:
        """A valid message from outside."""
        if message.type == ndp.ROUTER_ADVERTISEMENT:
            return self._router_advertisement(port, frame, message, now)
        if message.link_layer in self._macs and message.type != ndp.REDIRECT:
            return Verdict.OWN_FRAME
        if self._is_own(port, message.source):
            return self._refuse_claim(port, message.source, message.ether_source)
        own = self._is_own(port, message.destination)
        if not port.gate.open and not own:
            return self._closed(port)
        group = message.destination[0] == 0xFF
        name = _message_name(frame, message)
        # A unicast one goes round, too, where each of two proxies believes its host behind the other.  But
        # two hosts with one address give the same answer, and both are heard (RFC 4389 section 4.1.3.2).
        once = group or message.type != ndp.ADVERTISEMENT
        if once and (verdict := self._repeated(port, name, frame, now)) is not None:
            return verdict
        if group and (limit := self._over_limit(port, message.ether_source, now)) is not None:
            return limit
        for address in (message.source, message.target if message.type == ndp.ADVERTISEMENT else b""):
            if self._is_routers(port, address):
                return self._refuse_claim(port, address, message.ether_source, "a router's, on the upstream")
        if message.type == ndp.ADVERTISEMENT:
            if self._is_own(port, message.target):
                return self._refuse_claim(port, message.target, message.ether_source)
            self._advertised(port, message, now)
        else:
            self._heard_from(port, message.source, message, now)
        if message.type == ndp.SOLICITATION and self._is_own(port, message.target):
            return self._own_solicited(port, message)
        if own:
            return Verdict.HEARD
        if group:
            if message.type == ndp.SOLICITATION:
                if message.source == ndp.UNSPECIFIED:
                    self._suspect(port, message, now)
                self._note_search(port, message.target, now)
            return self._flood(port, frame, message, name, now)
        self._remember(port.ifindex, name, frame, self._others(port.ifindex), now)
        return self._unicast(port, frame, message, now)

    def _own_solicited(self, port: _Attached, message: Message) -> Verdict:
        """A solicitation for an address of the host itself: the kernel answers where it lives, and Portier,
        for it, elsewhere."""
        target = message.target
        homes = self._own.get(target)
        if homes is None or port.ifindex in homes:
            return Verdict.OWN_ADDRESS
        if message.source == ndp.UNSPECIFIED:
            to_mac, destination, flags = ndp.ALL_NODES_MAC, ndp.ALL_NODES, ndp.O_FLAG
            verdict = Verdict.DEFENDED
        else:
            to_mac = message.link_layer or message.ether_source
            destination, flags = message.source, ndp.S_FLAG | ndp.O_FLAG
            verdict = Verdict.ANSWERED
        frame = ndp.advertisement(to_mac, port.mac, target, destination, target, flags, port.mac)
        self._send(port.ifindex, frame)
        return verdict

    def _advertised(self, port: _Attached, message: Message, now: float) -> None:
        """An advertisement, as if it were for the proxy itself (RFC 4861 section 7.2.5)."""
        target, mac = message.target, message.link_layer
        solicited = bool(message.flags & ndp.S_FLAG)
        override = bool(message.flags & ndp.O_FLAG)
        entry = self._entry(port, target)
        if entry is None:
            mac = mac or (message.ether_source if message.source == target else b"")
            if not mac or (entry := self._learn(port, target, mac, message.ether_source, now)) is None:
                return
        elif mac and mac != entry.mac and not override:
            if entry.state is State.REACHABLE:
                self._set(entry, State.STALE, now)
            return
        changed = bool(mac) and mac != entry.mac
        if changed:
            self._change(entry, mac, now)
        entry.heard = now
        entry.router = bool(message.flags & ndp.R_FLAG)
        self._speak(port, entry, now)
        if solicited:
            self._confirm(port, entry, now)
        elif changed:
            self._set(entry, State.STALE, now)
        self._compare(entry, now)
        self._found(target, now)

    def _confirm(self, port: _Attached, entry: _Entry, now: float) -> None:
        for other in self._hosts[entry.address].entries.values() if entry.contested else ():
            if other is not entry and other.mac != entry.mac:
                where = self._ports[other.ifindex].name
                what = (
                    f"is on {port.name} with {mac_text(entry.mac)}, and on {where} with {mac_text(other.mac)}"
                )
                self._event(EventKind.CONFLICT, port, entry.address, what)
        entry.contested = False
        self._shares.confirm(entry)
        self._set(entry, State.REACHABLE, now)

    def _router_advertisement(self, port: _Attached, frame: bytes, message: Message, now: float) -> Verdict:
        verdict = self._guard.admit(port.gate, frame, message, now)
        if verdict is not None:
            return verdict
        group = message.destination[0] == 0xFF
        name = _message_name(frame, message)
        if group and (verdict := self._repeated(port, name, frame, now)) is not None:
            return verdict
        entry = self._heard_from(port, message.source, message, now)
        if entry is not None:
            entry.router = True
        self._advised(port, message, rewrite.advertised(frame), now)
        if not group:
            if self._is_own(port, message.destination):
                return Verdict.HEARD
            return self._unicast(port, frame, message, now)
        self._remember(port.ifindex, name, frame, self._others(port.ifindex), now)
        self._guard.relay(port.gate, frame, message, now)
        return Verdict.RELAYED

    def _advised(self, port: _Attached, message: Message, said: rewrite.Advertised, now: float) -> None:
        """Take note of what a router says: that it is one, and what is on the link."""
        router = message.source
        self._routers = {known: told for known, told in self._routers.items() if now < told.until}
        first = not self._routers
        if not said.lifetime:
            self._routers.pop(router, None)
        elif router in self._routers or len(self._routers) < _ROUTERS:
            mac = message.link_layer or message.ether_source
            self._routers[router] = _Router(port.ifindex, mac, now + said.lifetime, said)
        before = self._prefixes.keys()
        self._prefixes = {prefix: until for prefix, until in self._prefixes.items() if now < until}
        for prefix in said.prefixes:
            if prefix.on_link and not prefix.valid:
                self._prefixes.pop(prefix.network, None)
            elif prefix.on_link and (prefix.network in self._prefixes or len(self._prefixes) < _PREFIXES):
                self._prefixes[prefix.network] = now + prefix.valid
        if self._prefixes.keys() != before:
            self._compile_prefixes(now)
        if first and self._routers:
            # Until now everything was on the link.
            for entry in list(self._entries.values()):
                if not self._near(entry.address, now):
                    self._drop(entry, now)

    def _suspect(self, port: _Attached, message: Message, now: float) -> None:
        """A DAD probe for an address, from the link-layer address that it is known with on another port: its
        host seems to be here now, so it is asked there.  Nothing is learned from a message without source."""
        host = self._hosts.get(message.target)
        for entry in host.entries.values() if host else ():
            elsewhere = entry.ifindex != port.ifindex and entry.mac == message.ether_source
            if elsewhere and entry.state is not State.PROBE:
                self._set(entry, State.PROBE, now)

    def _note_search(self, port: _Attached, target: bytes, now: float) -> None:
        """Somebody looks for an unknown neighbor: it is INCOMPLETE (RFC 4389 section 5), so that packets for
        it wait for the same answer."""
        if target in self._hosts or target in self._pending or not self._make_room(port):
            return
        pending = self._pending[target] = _Pending(target, port.ifindex, now)
        self._timers.schedule(pending, now + self._group.timers.retransmit)

    # -- data ----------------------------------------------------------------------------------------

    def _data(self, port: _Attached, frame: bytes, now: float) -> Verdict:
        source, destination, mac = frame[32:48], frame[48:64], frame[16:22]
        if self._is_own(port, source):
            return self._refuse_claim(port, source, mac)
        if self._is_own(port, destination):
            return Verdict.OWN_ADDRESS
        if not port.gate.open:
            return self._closed(port)
        group = destination[0] == 0xFF
        name = _packet_name(frame) if group else 0
        if group and (verdict := self._repeated(port, name, frame, now)) is not None:
            return verdict
        if source != ndp.UNSPECIFIED and self._near(source, now):
            self._heard_from(port, source, None, now, mac)
        if group:
            return self._flood(port, frame, None, name, now)
        return self._unicast(port, frame, None, now)

    def _repeated(self, port: _Attached, name: int, frame: bytes, now: float) -> Verdict | None:
        """Whether a packet is one that was relayed, and comes back."""
        source, mac = frame[32:48], frame[16:22]
        # What may be of our own kernel, and said before we listened, is new to us and to the other proxy.
        once = source == ndp.UNSPECIFIED or any(this.port.source == source for this in self._ports.values())
        echo = self._echoes.heard(name, port.ifindex, mac, now, self._group.timers.retransmit, once=once)
        if echo is None:
            return None
        # What bears no address may be another host's that says the same; and so may what comes late.
        if source != ndp.UNSPECIFIED and port.ifindex in echo.ports and echo.prompt(now):
            origin = self._ports.get(echo.ifindex)
            gate = origin.gate if origin else None
            own = echo.mac in self._macs
            if self._guard.came_back(port.gate, gate, source, mac, now, own=own):
                self._try_loop(source, now)
        return Verdict.LOOP

    def _try_loop(self, target: bytes, now: float) -> None:
        """Say something that can have come from nobody else: if it comes back on a downstream port, it is
        certain who brings it.  All proxies say it on the upstream, so that they compare the link-layer
        addresses of the same segment."""
        for port in sorted(self._ports.values(), key=lambda this: not this.gate.upstream)[:1]:
            if port.gate.open and port.port.source is not None:
                self._say(port.ifindex, ndp.solicitation(port.mac, port.port.source, target), now)

    def _remember(self, ifindex: int, name: int, frame: bytes, ports: frozenset[int], now: float) -> None:
        memory = self._group.timers.retransmit
        self._echoes.relayed(name, ifindex, frame[16:22], ports, now, memory)

    def _others(self, ifindex: int) -> frozenset[int]:
        return frozenset(self._guard.gates) - {ifindex}

    def _say(self, ifindex: int, frame: bytes, now: float) -> None:
        """Send a message of Portier's own.  Another proxy may bring it back by another port, and
        would take it for new each time that it were relayed from there."""
        message = ndp.parse(frame)
        if isinstance(message, Message):
            self._remember(ifindex, _message_name(frame, message), frame, self._others(ifindex), now)
        self._send(ifindex, frame)

    def _flood(
        self, port: _Attached, frame: bytes, message: Message | None, name: int, now: float
    ) -> Verdict:
        """Relay a multicast packet to all other ports."""
        length = wire_length(frame, len(frame))
        ports = [this for this in self._ports.values() if this is not port and this.gate.open]
        taking = [this for this in ports if length <= this.limit]
        if len(taking) < len(ports):
            least = min(this.port.mtu for this in ports if this not in taking)
            self._say_too_big(port, frame, least, now)
        if not taking:
            return Verdict.TOO_BIG if ports else Verdict.NOWHERE
        self._remember(port.ifindex, name, frame, frozenset(this.ifindex for this in taking), now)
        for this in taking:
            if message is not None:
                self._send(this.ifindex, rewrite.relayed(frame, message, this.mac))
            else:
                self._send(this.ifindex, frame[:16] + this.mac + frame[22:])
        return Verdict.RELAYED

    def _unicast(self, port: _Attached, frame: bytes, message: Message | None, now: float) -> Verdict:
        """Relay a packet to the port of its destination, or have it wait until that is known."""
        target = frame[48:64]
        if message is None:
            target = self._next_hop(port, target, now)
        host = self._hosts.get(target)
        if host is None or host.best is None:
            return self._enqueue(port, target, _Waiting(port.ifindex, frame, message), now)
        return self._deliver(port, host.best, frame, message, now)

    def _deliver(
        self, port: _Attached, entry: _Entry, frame: bytes, message: Message | None, now: float
    ) -> Verdict:
        """Relay a packet to a known neighbor."""
        out = self._ports[entry.ifindex]
        if out is port:
            return Verdict.SAME_PORT
        # A port that waits relays Router Advertisements, once it may speak of the router at all.
        speaks = message is not None and message.type == ndp.ROUTER_ADVERTISEMENT and out.gate.sent
        if not out.gate.open and not speaks:
            return self._closed(out)
        if wire_length(frame, len(frame)) > out.limit:
            self._say_too_big(port, frame, out.port.mtu, now)
            return Verdict.TOO_BIG
        if entry.state is State.STALE:
            self._set(entry, State.DELAY, now)
        if message is None:
            header = entry.mac + out.mac + _ETHERTYPE
            self._send(out.ifindex, frame[: ndp.ETHERNET] + header + frame[ndp.IPV6 :])
            if _LOOK[frame[30]] != 1:
                flow = Flow(out.ifindex, header, out.limit, port.counts)
                self._add_flow(port, self._hosts[entry.address], frame, flow)
        elif message.type == ndp.REDIRECT:
            link_layer = self._link_layer_for(out, message.target)
            self._send(out.ifindex, rewrite.relayed_redirect(frame, out.mac, entry.mac, link_layer))
        else:
            self._send(out.ifindex, rewrite.relayed(frame, message, out.mac, entry.mac))
        return Verdict.RELAYED

    def _link_layer_for(self, out: _Attached, target: bytes) -> bytes:
        """What a redirected host on a port is told of its new next hop (RFC 4389 section 4.1.3.4)."""
        host = self._hosts.get(target)
        if host is None:
            return b""
        near = host.entries.get(out.ifindex)
        return out.mac if near is None else near.mac

    def _next_hop(self, port: _Attached, destination: bytes, now: float) -> bytes:
        """The neighbor to which packets for an address go: itself, or a router where it is off-link."""
        if destination in self._hosts or self._near(destination, now):
            return destination
        found: tuple[State | int, bytes] = (-1, destination)
        for router, told in self._routers.items():
            host = self._hosts.get(router)
            best = host.best if host else None
            if now < told.until and (best is None or best.ifindex != port.ifindex):
                found = max(found, (best.state if best else 0, router))
        return found[1]

    def _near(self, address: bytes, now: float) -> bool:
        """Whether an address is on the link; without a router all are."""
        if link_local(address) or self._on_link.get(address):
            return True
        return not any(now < told.until for told in self._routers.values())

    def _say_too_big(self, port: _Attached, frame: bytes, mtu: int, now: float) -> None:
        """Tell the sender of a packet that it does not fit, if it may be told (RFC 4443 section 2.4)."""
        source = frame[32:48]
        protocol, at = upper(frame)
        if source == ndp.UNSPECIFIED or not port.mac or frame[16:22] == port.mac:
            return
        if protocol == _ICMPV6 and (frame[at] < _ERROR_TYPES or frame[at] == ndp.REDIRECT):
            return
        speaker = self._speaker(port, source)
        if speaker is None or not self._errors.take(port.ifindex, source, _ERRORS_PER_SOURCE, now):
            return
        if not port.errors.take(now):
            return
        packet = frame[ndp.IPV6 :]
        if frame[1]:  # one of the packets it would have become
            payload = min(wire_length(frame, len(frame)) - ndp.ICMPV6, 0xFFFF)
            packet = packet[:4] + payload.to_bytes(2, "big") + packet[6:]
        mtu = max(mtu, _LEAST_MTU)
        self._send(port.ifindex, ndp.too_big(frame[16:22], port.mac, speaker, source, mtu, packet))

    def _speaker(self, port: _Attached, destination: bytes) -> bytes | None:
        """The proxy's own address for a message to `destination`: a router would not forward a link-local
        one."""
        if not link_local(destination):
            for address in (*port.port.addresses, *self._own):
                return address
        return port.port.source

    # -- resolution ----------------------------------------------------------------------------------

    def _enqueue(self, port: _Attached, target: bytes, packet: _Waiting, now: float) -> Verdict:
        """Keep a packet until its destination is found, and look for that (RFC 4389 section 4.1)."""
        verdict = self._search(port, target, packet.frame[16:22], now)
        if verdict is not Verdict.RESOLVING:
            return verdict
        pending = self._pending[target]
        if len(pending.packets) >= _QUEUED_PER_TARGET:
            oldest = pending.packets.pop(0)
            self._queued -= len(oldest.frame)
            self._count(oldest.ifindex, Verdict.QUEUE_FULL)
        if self._queued + len(packet.frame) > _QUEUED_OCTETS:
            return Verdict.QUEUE_FULL
        pending.packets.append(packet)
        self._queued += len(packet.frame)
        return Verdict.QUEUED

    def _search(self, port: _Attached | None, target: bytes, mac: bytes, now: float) -> Verdict:
        """Solicit a neighbor on all ports but that on which it is looked for."""
        ports = [
            this
            for this in self._ports.values()
            if this is not port and this.gate.open and this.port.source is not None and this.mac
        ]
        pending = self._pending.get(target)
        if pending is not None and pending.asked:
            self._solicit(pending, [this for this in ports if this.ifindex not in pending.asked], now)
            return Verdict.RESOLVING
        if not ports:
            return Verdict.NOWHERE
        if now < self._nobody.get(target, -math.inf):
            return Verdict.NOBODY
        origin = port or ports[0]
        if (limit := self._over_limit(origin, mac, now)) is not None:
            return limit
        if pending is None:
            if not self._make_room(origin):
                return Verdict.PENDING_FULL
            pending = self._pending[target] = _Pending(target, origin.ifindex, now)
        pending.tries = 1
        self._solicit(pending, ports, now)
        self._timers.schedule(pending, now + self._group.timers.retransmit)
        return Verdict.RESOLVING

    def _solicit(self, pending: _Pending, ports: Iterable[_Attached], now: float) -> None:
        for this in ports:
            pending.asked.add(this.ifindex)
            if this.port.source is not None:
                self._say(this.ifindex, ndp.solicitation(this.mac, this.port.source, pending.target), now)

    def _make_room(self, port: _Attached) -> bool:
        """See to it that one more target of `port` can be looked for.  The port that waits for most gives way
        to the others."""
        if len(self._pending) < self._group.limits.pending:
            return True
        largest = gives_way((pending.origin for pending in self._pending.values()), port.ifindex)
        if not largest:
            return False
        victim = next(pending for pending in self._pending.values() if pending.origin == largest)
        self._give_up(victim, Verdict.PENDING_FULL)
        return True

    def _give_up(self, pending: _Pending, verdict: Verdict) -> None:
        """Look for somebody no longer; what waits for him ends in `verdict`."""
        del self._pending[pending.target]
        pending.due = math.inf
        for packet in pending.packets:
            self._queued -= len(packet.frame)
            self._count(packet.ifindex, verdict)

    def _found(self, target: bytes, now: float) -> None:
        """Deliver what waits for a neighbor that answered."""
        pending = self._pending.pop(target, None)
        self._nobody.pop(target, None)
        if pending is None:
            return
        pending.due = math.inf
        self._found_after.observe(now - pending.since)
        host = self._hosts[target]
        for ifindex, frame, message in pending.packets:
            self._queued -= len(frame)
            port = self._ports.get(ifindex)
            if port is not None and host.best is not None:
                if port.gate.open:
                    verdict = self._deliver(port, host.best, frame, message, now)
                else:
                    verdict = self._closed(port)
                port.counts[verdict] += 1

    def _count(self, ifindex: int, verdict: Verdict) -> None:
        port = self._ports.get(ifindex)
        if port is not None:
            port.counts[verdict] += 1

    # -- the neighbor caches -------------------------------------------------------------------------

    def _entry(self, port: _Attached, address: bytes) -> _Entry | None:
        return self._entries.get((port.ifindex, address))

    def _heard_from(
        self, port: _Attached, address: bytes, message: Message | None, now: float, mac: bytes = b""
    ) -> _Entry | None:
        """A packet's source (RFC 4389 section 4.1): learned if it is new; changed only by a message that says
        its link-layer address (RFC 4861 sections 6.2.6, 6.3.4 and 7.2.3)."""
        if address == ndp.UNSPECIFIED:
            return None
        said = b""
        if message is not None:
            mac = message.ether_source
            said = b"" if message.type == ndp.REDIRECT else message.link_layer
        entry = self._entry(port, address)
        if entry is None:
            entry = self._learn(port, address, said or mac, mac, now)
            if entry is None:
                return None
            self._found(address, now)
        elif said and said != entry.mac:
            self._change(entry, said, now)
            self._set(entry, State.STALE, now)
        entry.heard = now
        if message is not None:
            self._speak(port, entry, now)
            self._compare(entry, now)
            self._found(address, now)
        elif self._hosts[address].best is not entry and self._over_limit(port, mac, now) is None:
            self._doubt(entry, now)
        return entry

    def _learn(
        self, port: _Attached, address: bytes, mac: bytes, ether_source: bytes, now: float
    ) -> _Entry | None:
        """Enter a new neighbor of a port, STALE.  One that is not on the link is none, unless somebody else
        looks for it: else a host would draw what others send to the world by claiming its addresses."""
        pending = self._pending.get(address)
        wanted = pending is not None and (port.ifindex != pending.origin or port.ifindex in pending.asked)
        if not wanted and not self._near(address, now):
            return None
        if pending is None and self._over_limit(port, ether_source, now) is not None:
            return None
        for evicted in self._shares.make_room(port.ifindex, mac, self._group.limits):
            home = self._ports[evicted.ifindex]
            self._event(
                EventKind.LIMIT,
                home,
                evicted.address,
                f"on {home.name} is forgotten to make room for {text(address)}: the table or a share of it "
                f"is full",
            )
            self._drop(evicted, now)
        host = self._hosts.get(address)
        if host is None:
            host = self._hosts[address] = _Host(address)
        entry = _Entry(address, port.ifindex, mac, now)
        host.entries[port.ifindex] = self._entries[port.ifindex, address] = entry
        self._shares.enter(entry)
        self._timers.schedule(entry, now + self._group.timers.forget)
        self._refresh(host, now)
        return entry

    def _speak(self, port: _Attached, entry: _Entry, now: float) -> None:
        if not entry.spoken:
            entry.spoken = True
            self._reroute(self._hosts[entry.address], now)
            if len(self._hosts[entry.address].entries) == 1:
                what = f"is on {port.name} with {mac_text(entry.mac)}"
                self._event(EventKind.LEARNED, port, entry.address, what)

    def _change(self, entry: _Entry, mac: bytes, now: float) -> None:
        """A neighbor has another link-layer address now."""
        port = self._ports[entry.ifindex]
        what = f"has another device on {port.name}: {mac_text(entry.mac)} is {mac_text(mac)} now"
        self._event(EventKind.MOVED, port, entry.address, what)
        self._shares.place(entry, entry.ifindex, mac)
        self._refresh(self._hosts[entry.address], now)

    def _set(self, entry: _Entry, state: State, now: float) -> None:
        """Enter a state (RFC 4861 section 7.3.3)."""
        timers = self._group.timers
        entry.state = state
        entry.probes = 0
        if state is State.REACHABLE:
            self._timers.schedule(entry, now + timers.reachable)
        elif state is State.DELAY:
            self._timers.schedule(entry, now + _DELAY)
        elif state is State.STALE:
            self._timers.schedule(entry, max(now, entry.heard + timers.forget))
        else:
            self._probe(entry, now)
        self._refresh(self._hosts[entry.address], now)

    def _probe(self, entry: _Entry, now: float) -> None:
        port = self._ports[entry.ifindex]
        if port.port.source is None or not port.mac:
            # There is no address to ask from: what is known stays.
            entry.state = State.STALE
            self._timers.schedule(entry, now + self._group.timers.forget)
            return
        entry.probes += 1
        probe = ndp.solicitation(port.mac, port.port.source, entry.address, entry.mac)
        self._say(entry.ifindex, probe, now)
        self._timers.schedule(entry, now + self._group.timers.retransmit)

    def _compare(self, entry: _Entry, now: float) -> None:
        """An address was heard on a port.  Where it was known on another, it has moved if it has the same
        link-layer address; else the other is asked whether it is still there."""
        host = self._hosts[entry.address]
        for other in host.entries.values():
            idle = other.state is State.STALE and host.best is not other
            if other is not entry and other.mac == entry.mac and not idle:
                self._supersede(host, other, entry, now)
        self._doubt(entry, now)

    def _doubt(self, entry: _Entry, now: float) -> None:
        """An address was heard on another port than where it is known to be: ask there."""
        best = self._hosts[entry.address].best
        if best is not None and best is not entry:
            best.contested = True
            if self._may_be_gone(best, now):
                self._set(best, State.PROBE, now)

    def _may_be_gone(self, entry: _Entry, now: float) -> bool:
        """Whether to ask for a neighbor.  One just heard is there: without this two hosts with one address
        would be asked in turn, each because the other answered, as fast as they can."""
        return entry.state is not State.PROBE and now >= entry.heard + self._group.timers.retransmit

    def _supersede(self, host: _Host, other: _Entry, entry: _Entry, now: float) -> None:
        if host.best is other:
            host.best = entry
            self._cut_flows(host)
            old, new = self._ports[other.ifindex], self._ports[entry.ifindex]
            self._event(EventKind.MOVED, new, host.address, f"moved from {old.name} to {new.name}")
        self._set(other, State.STALE, now)

    def _refresh(self, host: _Host, now: float) -> None:
        """Find the best entry of an address anew, and see to what hangs on it."""
        before = host.best
        ports = self._ports
        host.best = max(
            host.entries.values(),
            key=lambda entry: (
                (port := ports.get(entry.ifindex)) is not None and port.gate.open,
                entry.state,
                entry is before,
                entry.heard,
            ),
            default=None,
        )
        best = host.best
        if best is None:
            self._cut_flows(host)
            del self._hosts[host.address]
        elif best is not before or best.mac != host.mac or best.state is State.STALE:
            self._cut_flows(host)
            host.mac = best.mac
            if before is not None and before is not best and {before.ifindex, best.ifindex} <= ports.keys():
                old, new = ports[before.ifindex], ports[best.ifindex]
                self._event(EventKind.MOVED, new, host.address, f"moved from {old.name} to {new.name}")
        if now > -math.inf:
            self._reroute(host, now)

    def _drop(self, entry: _Entry, now: float) -> None:
        host = self._hosts[entry.address]
        del host.entries[entry.ifindex]
        del self._entries[entry.ifindex, entry.address]
        self._shares.leave(entry)
        entry.due = math.inf
        self._refresh(host, now)

    # -- routes ----------------------------------------------------------------------------------------

    def _reroute(self, host: _Host, now: float) -> None:
        """The kernel's own traffic for a host goes where it lives, by a host route where the kernel would
        have it leave by another port."""
        best, routes = host.best, self._group.routes
        new = None
        if (
            best is not None
            and routes is not None
            and best.spoken
            and self._on_link.get(host.address)
            and self._behind.get(host.address) != best.ifindex
            and best.ifindex in self._next_hops.get(host.address, (best.ifindex,))
        ):
            new = HostRoute(host.address, best.ifindex, routes.table, routes.metric, routes.protocol)
        self._routes.want(host, new, now, 0.5)

    def settle(self, effect: AddRoute | MoveRoute, result: RouteResult) -> Outcome:
        """How a route effect ended.  After `RouteResult.FAILED` the host's own next solicitation tries
        again."""
        host = self._hosts.get(effect.route.address)
        if host is None or host.route != effect.route:
            return Outcome(Verdict.HEARD)
        if self._routes.settle(host, effect.route, result):
            why = "is somebody else's" if result is RouteResult.FOREIGN else "is refused by the kernel"
            home = self._ports[effect.route.ifindex]
            self._event(EventKind.ROUTE, home, host.address, f"dev {home.name}: its host route {why}")
        return self._outcome(Verdict.HEARD)

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Outcome:
        """Do what is due at the monotonic time `now`: routes, retransmissions, probes, port states."""
        if self._routes.effects:
            # Alone: a route that is refused must not hold back what is relayed.
            effects: tuple[Effect, ...] = tuple(self._routes.effects)
            self._routes.effects = []
            return Outcome(Verdict.HEARD, effects)
        if now >= self._guard.deadline:
            self._guard.tick(now)
        for item in (due := self._timers.due(now, _TICK_BATCH)):
            if isinstance(item, _Pending):
                self._pending_due(item, now)
            elif self._entries.get((item.ifindex, item.address)) is item:
                self._entry_due(item, now)
        due.close()
        return self._outcome(Verdict.HEARD)

    @property
    def deadline(self) -> float:
        """The monotonic time at which `tick` is next due, infinity when nothing is."""
        if self._routes.effects:
            return -math.inf
        return min(self._timers.deadline, self._guard.deadline)

    def _entry_due(self, entry: _Entry, now: float) -> None:
        timers = self._group.timers
        if entry.state is State.REACHABLE:
            self._set(entry, State.STALE, now)
        elif entry.state is State.DELAY:
            self._set(entry, State.PROBE, now)
        elif entry.state is State.STALE:
            if now >= entry.heard + timers.forget:
                self._set(entry, State.PROBE, now)
            else:
                self._timers.schedule(entry, entry.heard + timers.forget)
        elif entry.probes < timers.retries:
            self._probe(entry, now)
        else:
            home = self._ports[entry.ifindex]
            what = f"on {home.name} does not answer any more"
            self._event(EventKind.LOST, home, entry.address, what)
            self._drop(entry, now)

    def _pending_due(self, pending: _Pending, now: float) -> None:
        if self._pending.get(pending.target) is not pending:
            return
        timers = self._group.timers
        if pending.tries < timers.retries:
            pending.tries += 1
            self._timers.schedule(pending, now + timers.retransmit)
            self._solicit(pending, [self._ports[index] for index in pending.asked], now)
            return
        self._give_up(pending, Verdict.NOBODY)
        if pending.asked:
            self._note_absence(pending.target, now)

    def _note_absence(self, target: bytes, now: float) -> None:
        self._failed += 1
        while self._nobody:
            oldest = next(iter(self._nobody))
            if self._nobody[oldest] > now:
                break
            del self._nobody[oldest]
        self._nobody.pop(target, None)
        self._nobody[target] = now + self._group.timers.negative

    def lift(self, ifindex: int, now: float) -> Outcome:
        """End the hold-down of a port."""
        lifted = self._guard.lift(ifindex, now)
        return self._outcome(Verdict.HEARD if lifted else Verdict.NOT_HANDLED)

    def ask(self, target: bytes, now: float) -> Outcome:
        """Look for `target` on all ports, for one who wants to know (`explain`)."""
        if target not in self._hosts and target not in self._own and len(target) == len(ndp.UNSPECIFIED):
            self._search(None, target, b"", now)
        return self._outcome(Verdict.HEARD)

    def recall(self, _hosts: Iterable[KnownHost], _now: float, /) -> Outcome:
        """Do without: what is relayed needs nobody to be known."""
        return Outcome(Verdict.NOT_HANDLED)

    # -- bookkeeping -----------------------------------------------------------------------------------

    @property
    def _group_bound(self) -> Bound:
        assert self._bound is not None  # noqa: S101 - configure comes first
        return self._bound

    @property
    def _group(self) -> Group:
        return self._group_bound.group

    def _is_own(self, port: _Attached, address: bytes) -> bool:
        """Whether an address is the host's own: a global one wherever it lives, a link-local one on its
        port."""
        return address in self._own or address == port.port.source

    def _is_routers(self, port: _Attached, address: bytes) -> bool:
        """Whether an address is that of a router which cannot be on a port: where loops are guarded against
        routers are on the upstream alone, and who speaks for one elsewhere would draw the traffic of all."""
        off = self._group.loop_protection is LoopProtection.OFF
        return address in self._routers and not port.gate.upstream and not off

    def _closed(self, port: _Attached) -> Verdict:
        return Verdict.HOLD_DOWN if port.gate.held_down else Verdict.WAITING

    def _over_limit(self, port: _Attached, source: bytes, now: float) -> Verdict | None:
        """The verdict when a frame from link-layer address `source` exceeds what it or the port may cost."""
        rate = self._group.limits.per_source
        return self._rates.exceeded(port.ifindex, source, rate, port.bucket, now)

    def _refuse_claim(self, port: _Attached, address: bytes, mac: bytes, what: str = _OWN) -> Verdict:
        what = f"is {what}; {mac_text(mac)} on {port.name} claims it and is refused"
        self._event(EventKind.CLAIM, port, address, what)
        return Verdict.CLAIM

    def _send(self, ifindex: int, frame: bytes) -> None:
        self._sends.append((ifindex, frame))

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    def _event(self, kind: EventKind, port: _Attached, address: bytes, what: str) -> None:
        who = text(address)
        self._tell(
            Event(kind=kind, text=f"{who} {what}", group=self._group.name, port=port.name, address=who)
        )

    def _outcome(self, verdict: Verdict) -> Outcome:
        outcome = Outcome(verdict, (), tuple(self._sends), tuple(self._events))
        if self._sends:
            self._sends = []
        if self._events:
            self._events = []
        return outcome

    # -- for other threads: these copy -------------------------------------------------------------------

    def counters(self) -> dict[str, dict[str, int]]:
        """How many frames ended in which verdict, by port."""
        return {
            this.name: {verdict.label: this.counts[verdict] for verdict in Verdict if this.counts[verdict]}
            for this in list(self._ports.values())
        }

    def neighbors(self, now: float) -> list[NeighborInfo]:
        """The known neighbors, on each port where they are."""
        ports, hosts = self._ports, self._hosts
        infos = []
        for entry in list(self._entries.values()):
            port, host = ports.get(entry.ifindex), hosts.get(entry.address)
            if port is not None and host is not None:
                route = host.route_state if host.best is entry else RouteState.NONE
                state, age = entry.state.name.lower(), max(0.0, now - entry.heard)
                infos.append(NeighborInfo(entry.address, port.name, entry.mac, state, age, route.value))
        return infos

    def tally(self, _now: float) -> Tally:
        """What there is to count: nobody is answered for, and nothing announced."""
        return Tally(
            states=Counter(entry.state.name.lower() for entry in list(self._entries.values())),
            late={},
            found=self._found_after,
            failed=self._failed,
            routes=self._routes.count(),
            announcements=0,
        )

    def standings(self, now: float) -> list[Standing]:
        """Which part each port takes."""
        return self._guard.standings(now)

    def noted(self, _now: float) -> Noted:
        """Note nothing: the hosts answer for themselves."""
        return Noted()

    def routers(self, now: float) -> list[RouterInfo]:
        """The routers of the link, with the on-link prefixes that they told last."""
        ports = self._ports
        return [
            RouterInfo(
                address,
                ports[told.ifindex].name,
                told.mac,
                told.until - now,
                told.said.managed,
                told.said.other,
                frozenset(
                    prefix.network for prefix in told.said.prefixes if prefix.network in self._prefixes
                ),
                told.said.name_servers,
            )
            for address, told in list(self._routers.items())
            if now < told.until and told.ifindex in ports
        ]

    def wanted_routes(self) -> frozenset[HostRoute]:
        """The host routes that should be in the kernel."""
        return self._routes.wanted()

    def table_size(self) -> int:
        """How many neighbors are known."""
        return len(self._entries)

    def pending_size(self) -> int:
        """How many destinations are being looked for."""
        return len(self._pending)

    def explain(self, address: bytes, ifindex: int | None, now: float) -> Explanation:
        """What would become of a solicitation and of a packet for `address` that come in on port `ifindex`,
        or on the upstream."""
        ports = self._ports
        port = ports.get(ifindex) if ifindex is not None else None
        if ifindex is None:
            ups = [this for this in ports.values() if this.port.role is Role.UPSTREAM]
            port = next(iter(ups or ports.values()), None)
        if port is None:
            return Explanation(Verdict.NOWHERE, ("the group has no such port in use",))
        steps = [f"a solicitation for {text(address)} arrives on {port.name}"]
        verdict = self._judge(port, address, now, lambda words, *v: steps.append(words.format(*v)))
        steps.append(f"verdict: {verdict.label}")
        return Explanation(verdict, tuple(steps))

    def _judge(self, port: _Attached, address: bytes, now: float, say: Say) -> Verdict:
        """What becomes of a solicitation for `address`; `say` is told each step in words."""
        if len(address) == 4:
            say("mode relay relays IPv6 alone")
            return Verdict.NOT_IPV6
        if address[0] == 0xFF:
            say("nobody asks for a multicast address; packets for it are relayed to all other ports")
            return Verdict.BAD_TARGET
        if self._is_own(port, address):
            homes = self._own.get(address)
            if homes is None or port.ifindex in homes:
                say("an address of this host on {}: the kernel answers", port.name)
                return Verdict.OWN_ADDRESS
            say("an address of this host on another port: answered")
            return Verdict.ANSWERED
        if not port.gate.open:
            say("{} does not take part: {}", port.name, port.gate.why)
            return self._closed(port)
        others = [this for this in self._ports.values() if this is not port]
        taking = [this for this in others if this.gate.open]
        for this in others:
            if not this.gate.open:
                say("{} does not take part: {}", this.name, this.gate.why)
        if not taking:
            say("there is no other port to relay it to")
            return Verdict.NOWHERE
        say("relayed to {}; its owner answers for itself, and the answer is relayed", _names(taking))
        host = self._hosts.get(address)
        entries = dict(host.entries) if host else {}
        for entry in entries.values():
            home = self._ports[entry.ifindex]
            say(
                "known on {} with link-layer address {}, {}",
                home.name,
                mac_text(entry.mac),
                entry.state.name.lower(),
            )
        self._judge_data(port, address, now, say)
        if not entries:
            say("nobody is known to have it")
            return Verdict.RESOLVING
        places = [self._ports[ifindex] for ifindex in entries if ifindex != port.ifindex]
        if not places:
            return Verdict.SAME_PORT
        return Verdict.RELAYED if any(place.gate.open for place in places) else self._closed(places[0])

    def _judge_data(self, port: _Attached, address: bytes, now: float, say: Say) -> None:
        target = self._next_hop(port, address, now)
        if target != address:
            say("packets for it go to the router {}, for it is not on the link", text(target))
        host = self._hosts.get(target)
        best = host.best if host else None
        if best is None:
            say("packets for it wait while {} is solicited on the other ports", text(target))
        elif best.ifindex == port.ifindex:
            say("packets for it that arrive on {} are dropped: it is there itself", port.name)
        elif not (out := self._ports[best.ifindex]).gate.open:
            say("packets for it are dropped: {} does not take part", out.name)
        else:
            say("packets for it leave by {}", out.name)
