"""The nouns that every part of Portier shares.

Three families: what the user asked for (`Config` and below), what the kernel shows (`Snapshot` and
below), and what should run or does run (`State`, `Bound`, `Port`).  All are immutable values, so that
"did anything change" is a comparison and a value may cross threads freely.

Addresses inside the engines are packed bytes (16 for IPv6, 4 for IPv4), because that is how they lie
in a frame; in the configuration they are `ipaddress` networks, because people write those.
Durations are seconds as floats, link-layer addresses six bytes, interfaces kernel indexes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple, Self

Network = IPv4Network | IPv6Network


def network_order(network: Network) -> tuple[int, int, int]:
    """What networks of both families are sorted by."""
    return network.version, int(network.network_address), network.prefixlen


# -- what the user asked for ---------------------------------------------------------------------


class Mode(enum.StrEnum):
    """How a group joins its links: the kernel routes between them, or they are one link (RFC 4389)."""

    ROUTE = "route"
    RELAY = "relay"


class Answer(enum.StrEnum):
    """What happens on a solicitation for an allowed target (mode route)."""

    RESOLVE = "resolve"
    ALWAYS = "always"
    ROUTED = "routed"
    KERNEL = "kernel"


class Live(enum.StrEnum):
    """Stands where a prefix does: the on-link prefixes of the active upstream, followed live."""

    UPSTREAM = "upstream"
    UPSTREAM_IPV4 = "upstream-ipv4"


class Switch(enum.StrEnum):
    """A flag of an advertisement: decided by the RFCs, or forced."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Source(enum.StrEnum):
    """The IPv6 source address of an advertisement."""

    LINK_LOCAL = "link-local"
    TARGET = "target"


class RouterAdvertisements(enum.StrEnum):
    """Whether Router Advertisements are relayed in mode route."""

    OFF = "off"
    RELAY = "relay"


class Announce(enum.StrEnum):
    """How the other ports are told of a host learned or moved."""

    OFF = "false"
    ON = "true"
    SOLICIT = "solicit"


class Multicast(enum.StrEnum):
    """How solicitations are drawn through switches that snoop MLD."""

    GROUPS = "groups"
    ROUTER = "router"


class Scope(enum.StrEnum):
    """What a group's hosts reach by routing (mode route): whatever the host routes, or their own group and
    upstream only, by a routing table of the group's own."""

    HOST = "host"
    GROUP = "group"


class LoopProtection(enum.StrEnum):
    """What a Router Advertisement that should not be there does to a port (mode relay)."""

    STRICT = "strict"
    NESTED = "nested"
    DROP = "drop"
    OFF = "off"


class Sysctls(enum.StrEnum):
    """Whether Portier writes the sysctls it needs, or only reports those that are missing."""

    MANAGE = "manage"
    CHECK = "check"


class HostPattern(NamedTuple):
    """A value and mask on the whole address: it matches when ``address & mask == value & mask``."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of ``prefixes``.  ``downstream`` holds names, globs and ``!`` exclusions; empty means
    every port.  ``askers`` empty means everybody; a DAD probe, which has no source, is never held
    against it."""

    prefix: Network | Live
    allow: bool = True
    answer: Answer = Answer.RESOLVE
    host: HostPattern | None = None
    downstream: tuple[str, ...] = ()
    askers: tuple[Network, ...] = ()

    @property
    def version(self) -> int:
        """Of IP, 4 or 6."""
        if isinstance(self.prefix, Live):
            return 4 if self.prefix is Live.UPSTREAM_IPV4 else 6
        return self.prefix.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Where host routes for learned hosts go."""

    table: int = 254
    metric: int = 4389
    protocol: int = 135


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What the advertisements that Portier makes look like."""

    router: Switch = Switch.AUTO
    override: Switch = Switch.AUTO
    source: Source = Source.LINK_LOCAL
    link_layer: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on state (entries) and on rates (a second: per port, per source, per group)."""

    neighbors: int = 4096
    per_port: int = 1024
    per_host: int = 64
    pending: int = 256
    resolutions: int = 1000
    per_source: int = 50
    route_changes: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """Durations in seconds, and one count.  Defaults are those of RFC 4861 section 10, section 5.3.3
    of it for ``forget``, and RFC 4389 section 4.1.3.3 for ``hold_down``."""

    reachable: float = 30.0
    retransmit: float = 1.0
    retries: int = 3
    negative: float = 3.0
    forget: float = 600.0
    prefix_grace: float = 600.0
    hold_down: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Links that are proxied to each other.  ``upstream`` lists candidates in order; ``downstream``
    names, globs and ``!`` exclusions.  ``routes`` None: no host routes."""

    name: str
    upstream: tuple[str, ...] = ()
    downstream: tuple[str, ...] = ()
    mode: Mode = Mode.ROUTE
    rules: tuple[Rule, ...] = (Rule(prefix=Live.UPSTREAM),)
    router_advertisements: RouterAdvertisements = RouterAdvertisements.OFF
    routes: Routes | None = Routes()
    announce: Announce = Announce.ON
    multicast: Multicast = Multicast.GROUPS
    isolate: bool = False
    scope: Scope = Scope.HOST
    loop_protection: LoopProtection = LoopProtection.STRICT
    advertisement: Advertisement = Advertisement()
    limits: Limits = Limits()
    timers: Timers = Timers()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration, checked."""

    groups: tuple[Group, ...] = ()
    watch: bool = True
    sysctls: Sysctls = Sysctls.MANAGE
    control_group: str = "portier"
    log_level: str = "info"
    log_format: str = "text"
    metrics_listen: str | None = None


# -- what the kernel shows -----------------------------------------------------------------------


class Link(NamedTuple):
    """One interface.  ``master`` is 0 or the index of the bridge, bond, team or VRF it is enslaved to;
    ``kind`` the rtnetlink kind ("veth", "bridge", "vrf", "" for hardware); ``mac`` None where the link
    has no six-byte link-layer address (tun, wg, ppp); ``table`` the routing table of a VRF, 0 for all
    others.  The sysctls are those of
    ``net.ipv6.conf.<name>``; None where the kernel does not have it or IPv6 is off on the link.
    ``forwarding4``, ``rp_filter`` and ``proxy_arp`` are those of ``net.ipv4.conf.<name>``."""

    ifindex: int
    name: str
    mac: bytes | None
    mtu: int
    up: bool
    carrier: bool
    master: int
    kind: str
    loopback: bool
    forwarding: int | None
    accept_ra: int | None
    force_forwarding: int | None
    forwarding4: int | None = None
    table: int = 0
    rp_filter: int | None = None
    proxy_arp: int | None = None


class LinkAddress(NamedTuple):
    """One address of an interface, of either family."""

    ifindex: int
    address: bytes
    prefix_length: int
    tentative: bool
    failed: bool
    deprecated: bool


# Makers (rtm_protocol) all of whose routes are shown: redirect, kernel, boot, static, ra, dhcp.  All others
# are taken for routing daemons, whose routes by a gateway may be a whole internet: they are summed up, as one
# default route for each next hop.
PLAIN_MAKERS: Final = frozenset({1, 2, 3, 4, 9, 16})


class KernelRoute(NamedTuple):
    """One unicast route of any protocol.  ``gateway`` None means on-link; ``ifindex`` is the outgoing
    interface (one of them, for a multipath route)."""

    destination: bytes
    prefix_length: int
    ifindex: int
    gateway: bytes | None
    table: int
    metric: int
    protocol: int


class HostRoute(NamedTuple):
    """A route to one learned host, as Portier makes them: ``/128`` or ``/32``, on-link."""

    address: bytes
    ifindex: int
    table: int
    metric: int
    protocol: int


class PolicyRule(NamedTuple):
    """A policy rule as Portier makes them: ``iif <name> from|to <prefix>``, and then ``blackhole`` or, where
    ``table`` is not 0, ``lookup <table>``; with ``suppress`` (-1 for none) routes of that prefix length or a
    shorter one do not count there (``suppress_prefixlength``).  With ``unreachable`` it ends in that.
    ``source`` and ``destination`` are networks as text, or ""; ``version`` is 6 or 4."""

    priority: int
    iif: str
    source: str
    destination: str
    protocol: int
    table: int = 0
    version: int = 6
    suppress: int = -1
    unreachable: bool = False


class ProxyEntry(NamedTuple):
    """A proxy neighbor entry: the kernel answers for ``address`` on ``ifindex``.  ``protocol`` says whose it
    is (NDA_PROTOCOL)."""

    address: bytes
    ifindex: int
    protocol: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the kernel shows of what concerns Portier, at one moment.  ``routes`` are unicast routes of
    other makers that leave by some link (not the host's own /128 entries in table local);
    ``host_routes`` and ``rules`` those that bear Portier's protocol number, whoever made them;
    ``local_rule`` is the priority of the rule that looks up table local, which Portier's must follow.
    ``table_routes`` are the other routes that bear Portier's number, those of ``scope: group``; ``proxies``
    the proxy entries of every maker.  ``lookups`` are the tables that rules of others lead to, each with its
    IP version."""

    links: tuple[Link, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()
    routes: tuple[KernelRoute, ...] = ()
    host_routes: frozenset[HostRoute] = frozenset()
    rules: frozenset[PolicyRule] = frozenset()
    local_rule: int = 0
    forwarding: int = 0  # net.ipv6.conf.all.forwarding
    force_forwarding: bool = False  # the kernel has net.ipv6.conf.*.force_forwarding (6.17)
    forwarding4: int = 0  # net.ipv4.ip_forward
    rp_filter: int = 0  # net.ipv4.conf.all.rp_filter
    proxy_arp: int = 0  # net.ipv4.conf.all.proxy_arp
    table_routes: frozenset[KernelRoute] = frozenset()
    proxies: frozenset[ProxyEntry] = frozenset()
    lookups: frozenset[tuple[int, int]] = frozenset()


# -- what should run, and what does ----------------------------------------------------------------


class Role(enum.StrEnum):
    """A port's place in its group."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


class Port(NamedTuple):
    """An interface in use by a group, tied to what it was when the kernel was looked at: any change of
    name, index, MAC or addresses makes a different value.

    ``source`` is the packed address it speaks from: the non-tentative link-local one, else another
    non-tentative one, else None (then it only relays DAD); ``source4`` its IPv4 address, None where it has
    none.  ``addresses`` are the host's own global
    addresses on it, ``prefixes`` the destinations the kernel routes out of it (the default route and
    Portier's own routes not among them), ``on_link`` those of them that need no gateway.  ``table`` is the
    routing table in which its hosts' routes are, and by which what comes from it is routed."""

    ifindex: int
    name: str
    role: Role
    mac: bytes | None
    mtu: int
    source: bytes | None
    addresses: tuple[bytes, ...] = ()
    prefixes: tuple[Network, ...] = ()
    on_link: tuple[Network, ...] = ()
    source4: bytes | None = None
    table: int = 254


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A group tied to the ports it has now: all that a worker needs to know.  ``live`` are the prefixes
    that ``upstream`` stands for at the moment, those within their grace time among them;
    ``next_hops`` the global gateways of the kernel's routes, each with the interface its route leaves by."""

    group: Group
    ports: tuple[Port, ...] = ()
    live: tuple[Network, ...] = ()
    next_hops: frozenset[tuple[bytes, int]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What should be, or what is: the two have one type, so the difference is set arithmetic.
    ``sysctls`` maps paths below /proc/sys like ``net/ipv6/conf/eth0.7/accept_ra`` to values (slashes,
    because a dot may belong to the name of an interface)."""

    workers: Mapping[str, Bound] = field(default_factory=dict)
    host_routes: frozenset[HostRoute] = frozenset()
    rules: frozenset[PolicyRule] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    table_routes: frozenset[KernelRoute] = frozenset()
    proxies: frozenset[ProxyEntry] = frozenset()


# -- what happens ------------------------------------------------------------------------------------


class Notice(str):
    """A sentence about something that is wrong.  ``check`` is the check of `portier doctor` that says so,
    ``group`` the group it is about where it begins with that, ``finding`` the sentence without it and without
    the command that may stand at its end, and ``remedy`` that command, or ""."""

    __slots__ = ("check", "finding", "group", "remedy")

    check: str
    group: str
    finding: str
    remedy: str

    def __new__(cls, check: str, finding: str, remedy: str = "", *, group: str = "") -> Self:
        """Make the sentence of its parts."""
        whole = f"group {group}: {finding}" if group else finding
        notice = super().__new__(cls, f"{whole}: {remedy}" if remedy else whole)
        notice.check, notice.group, notice.finding, notice.remedy = check, group, finding, remedy
        return notice


class EventKind(enum.StrEnum):
    """What an event is about; the word that stands in the log and in the event stream."""

    LEARNED = "learned"
    MOVED = "moved"
    CONFLICT = "conflict"
    CLAIM = "claim"
    LOST = "lost"
    LOOP = "loop"
    ROUTER = "router"
    LIMIT = "limit"
    ROUTE = "route"
    LINK = "link"
    CONFIG = "config"
    WORKER = "worker"
    SYSCTL = "sysctl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth telling an operator.  ``text`` is the whole sentence; the other fields are for
    filters and programs."""

    kind: EventKind
    text: str
    group: str = ""
    port: str = ""
    address: str = ""


class Recorded(NamedTuple):
    """What the runtime dir says that Portier made or changed.  ``sysctls`` map a path to the value found
    and the value set, ``owners`` to the index of the interface it is of (0 or missing: none's, or as named);
    ``forwarding_default`` is what net.ipv6.conf.default.forwarding is now, for only
    the record knows whether that matters; ``values`` are what the sysctls are now that no snapshot shows."""

    routes: frozenset[HostRoute] = frozenset()
    rules: frozenset[PolicyRule] = frozenset()
    table_routes: frozenset[KernelRoute] = frozenset()
    sysctls: Mapping[str, tuple[str, str]] = {}
    owners: Mapping[str, int] = {}
    forwarding_default: str | None = None
    proxies: frozenset[ProxyEntry] = frozenset()
    values: Mapping[str, str] = {}
