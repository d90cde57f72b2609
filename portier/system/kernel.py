"""The kernel as Portier uses it: one look at what is there, and the few changes it makes.

`Kernel.snapshot` reads links, addresses, routes, policy rules and proxy entries; the other methods change
host routes, policy rules, proxy entries and sysctls, or answer an engine's questions.  What is not on record
as Portier's own is never removed, whatever number it bears.  Nothing here decides what should be.

What the kernel does, seen on 6.18 and relied on here:

- A route with the same destination, table and metric makes an exclusive add fail with EEXIST, on
  whichever device it is.  Without NLM_F_EXCL the new one is put behind it, as a route of its own (only routes
  with a gateway become nexthops of one multipath route), and is used as soon as the first is gone.  In IPv4
  that takes NLM_F_APPEND: else it is put in front, and used at once.
- Deleting by destination, device, table, metric and protocol also takes a route with a gateway; a
  gateway of ``::`` in the request limits that to routes without, in IPv4 a scope of link.
- A route of IPv6 that is put beside one with its destination and metric becomes one of its nexthops where
  both have gateways; it is deleted by its own gateway, and the others stay.
- Adding a proxy entry that is there already replaces its protocol number without a word, whatever the
  flags.  Entries go when their link is set down, and no event tells of them at any time.
- A policy rule is deleted by what the request names: one with Portier's number, priority and interface
  that has further selectors would be taken for Portier's.  So does an exclusive add take some of those.
- Setting a link down flushes its routes; policy rules stay when their interface goes.  So does an interface
  lose all IPv4 routes with the last of its IPv4 addresses.  No event tells of an IPv4 route flushed so.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from time import monotonic, perf_counter
from typing import Final, Generic, NamedTuple, Protocol, Self, TypeVar

from portier.core.model import (
    PLAIN_MAKERS,
    HostRoute,
    KernelRoute,
    Link,
    LinkAddress,
    PolicyRule,
    ProxyEntry,
    Snapshot,
)
from portier.core.outcome import RouteResult
from portier.errors import KernelError
from portier.system import rtnetlink as nl
from portier.system import sysctl
from portier.system.record import Record

T = TypeVar("T")

PROTOCOL: Final = 135  # of the routes and rules that Portier makes, unless the configuration says otherwise
MAIN: Final = 254

_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE: Final = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_INT: Final = struct.Struct("=i")
_RULE: Final = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr: family, dst, src, tos, table, -, -, action, flags
_NEIGHBOR: Final = struct.Struct("=B3xiHBB")  # ndmsg: family, index, state, flags, type
_NEXTHOP: Final = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, index


class _Family(NamedTuple):
    """What differs between the address families in the messages about routes."""

    number: int
    bits: int
    host_route: struct.Struct  # the whole payload of a host route
    scope: int  # of a host route
    no_gateway: bytes  # behind the payload of its removal, so that it takes none with a gateway
    behind: int  # flags that put a route behind another of its destination, table and metric
    lookup: struct.Struct


_IPV4: Final = _Family(
    number=AF_INET,
    bits=32,
    host_route=struct.Struct("=BBBBBBBBI HH4s HHI HHI HHI"),
    scope=253,  # RT_SCOPE_LINK, which a route by a gateway cannot have
    no_gateway=b"",
    behind=nl.NLM_F_CREATE | nl.NLM_F_APPEND,
    lookup=struct.Struct("=BBBBBBBBI HH4s"),
)
_IPV6: Final = _Family(
    number=AF_INET6,
    bits=128,
    host_route=struct.Struct("=BBBBBBBBI HH16s HHI HHI HHI"),
    scope=0,  # RT_SCOPE_UNIVERSE; IPv6 does not look at it
    no_gateway=nl.attribute(nl.RTA_GATEWAY, bytes(16)),
    behind=nl.NLM_F_CREATE,
    lookup=struct.Struct("=BBBBBBBBI HH16s"),
)


def _family(address: bytes) -> _Family:
    return _IPV4 if len(address) == 4 else _IPV6


_ARPHRD_ETHER: Final = 1
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_RUNNING: Final = 0x40  # carrier, and neither dormant nor with a lower layer that is down
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_VRF_TABLE: Final = 1
_IFLA_AF_SPEC: Final = 26
_IFLA_INET_CONF: Final = 1
_IFLA_INET6_CONF: Final = 2
_IFLA_EXT_MASK: Final = 29
_SKIP_STATS: Final = 8
# Places in IFLA_INET6_CONF (DEVCONF_* of linux/ipv6.h, a stable interface).
_FORWARDING: Final = 0
_ACCEPT_RA: Final = 3
_FORCE_FORWARDING: Final = 59  # since 6.17
# And in IFLA_INET_CONF, which leaves out place 0 (IPV4_DEVCONF_* of linux/ip.h).
_FORWARDING4: Final = 0
_PROXY_ARP: Final = 2
_RP_FILTER: Final = 7

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2  # where IFA_ADDRESS is the other end's
_IFA_FLAGS: Final = 8
_OPTIMISTIC: Final = 0x04
_FAILED: Final = 0x08
_DEPRECATED: Final = 0x20
_TENTATIVE: Final = 0x40

_RTNH_F_ONLINK: Final = 4
_RTM_F_CLONED: Final = 0x200
_RTM_F_FIB_MATCH: Final = 0x2000

_FRA_DST: Final = 1
_FRA_SRC: Final = 2
_FRA_IIFNAME: Final = 3
_FRA_PRIORITY: Final = 6
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_PROTOCOL: Final = 21
_PORTIER_ATTRIBUTES: Final = frozenset(
    {_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL}
)
_FR_ACT_TO_TABLE: Final = 1
_FR_ACT_BLACKHOLE: Final = 6
_FR_ACT_UNREACHABLE: Final = 7
_FIB_RULE_INVERT: Final = 2
_LOCAL: Final = 255

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8
_NDA_PROTOCOL: Final = 12
_STALE: Final = 0x04
_VALID_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # REACHABLE STALE DELAY PROBE PERMANENT
_NTF_PROXY: Final = 0x08
_BATCH: Final = 256  # neighbor questions at once; their answers must fit into the receive buffer

_CHEAP: Final = 0.01  # seconds: while reading all routes takes no longer, it is done for every snapshot
_AGE: Final = 60.0  # seconds after which what no event has touched is read again all the same
_PREFIX_LENGTH: Final = nl.LENGTH + 1  # where a message about a route has it
_TABLE_AGE: Final = 1.0  # seconds for which a table other than main is looked up in without reading it
_TABLE_SHARE: Final = 20  # times what reading it took that it is, where that is more: a worker waits for it
_HOPS: Final = 4096  # next hops of routing daemons told apart cheaply

_FORCE_FORWARDING_PATH: Final = Path("/proc/sys/net/ipv6/conf/all/force_forwarding")


class RouteHints(Protocol):
    """Tells what may have changed among the routes (`portier.system.monitor.Monitor` does)."""

    def ignore(self, portid: int) -> None:
        """Route and rule events that this netlink port causes are nobody's news."""

    def heed(self, portid: int) -> None:
        """Take `ignore` back."""

    def count_as_own(self, makers: Collection[int]) -> None:
        """These are the protocol numbers (rtm_protocol) of Portier's routes."""

    def route_versions(self, family: int) -> tuple[int, Mapping[int, int]]:
        """A number that changes when anything may have changed, and one for each maker (rtm_protocol)
        whose routes of this address family have; that of maker 0 when routes of any may have gone."""


class _Routes(NamedTuple):
    """Routes as read: host routes of Portier's and all others, by maker."""

    hosts: dict[int, set[HostRoute]]
    others: dict[int, tuple[KernelRoute, ...]]


class _Entry(NamedTuple):
    """What one route message comes to."""

    host: HostRoute | None
    others: tuple[KernelRoute, ...]


class _Cache(Generic[T]):
    """What messages of one kind meant in the last dump, by their bytes: few of them change between two
    looks, and knowing one again costs 2 us, decoding it ten times that."""

    def __init__(self, decode: Callable[[bytes], T | None]) -> None:
        self._decode = decode
        self._known: dict[bytes, T | None] = {}
        self._result: tuple[T, ...] = ()

    def parse(self, chunks: Iterator[bytes]) -> tuple[T, ...]:
        """The values of a dump; the very same tuple as last time where nothing changed."""
        known, decode = self._known, self._decode
        seen: dict[bytes, T | None] = {}
        length_at = nl.U32.unpack_from
        for chunk in chunks:
            offset, end = 0, len(chunk)
            while offset < end:
                (length,) = length_at(chunk, offset)
                body = chunk[offset + nl.LENGTH : offset + length]
                seen[body] = known[body] if body in known else decode(body)
                offset += (length + 3) & ~3
        self._known = seen
        result = tuple([value for value in seen.values() if value is not None])
        if result != self._result:
            self._result = result
        return self._result


class _RouteReader:
    """Reads the routes of one family, as far as they may have changed."""

    def __init__(self, family: _Family, socket: nl.Socket, monitor: RouteHints | None) -> None:
        self._family = family
        self._socket = socket
        self._monitor = monitor
        self._known_routes: dict[int, dict[bytes, _Entry]] = {}  # by maker, 0 all
        self._read: _Routes | None = None
        self._own: frozenset[int] = frozenset()
        self._cost = 0.0
        self._epoch = -1
        self._versions: dict[int, int] = {}
        self._read_at: dict[int, float] = {}

    def read(self, own: frozenset[int]) -> _Routes:
        """The routes, read as far as they may have changed.

        Reading 200,000 takes 0.2 s, reading those of one maker out of as many 0.03 s.  So where reading
        all is not cheap, Portier's own are read every time, another maker's after an event, and of what
        had no event one maker at a time, in turn.
        """
        epoch, versions = (
            self._monitor.route_versions(self._family.number) if self._monitor is not None else (0, {})
        )
        versions = dict(versions)
        now = monotonic()
        if own != self._own:
            self._known_routes.clear()
        if (
            self._read is None
            or self._monitor is None
            or self._cost < _CHEAP
            or (epoch, own) != (self._epoch, self._own)
        ):
            begin = perf_counter()
            self._read = self._read_routes(own)
            self._cost = perf_counter() - begin
            self._read_at = dict.fromkeys(PLAIN_MAKERS, now)
        else:
            stale = {maker for maker in versions if versions[maker] != self._versions.get(maker)} | own
            if 0 in stale:
                stale = (stale - {0}) | (self._read.others.keys() & PLAIN_MAKERS)
            rest = PLAIN_MAKERS - stale
            oldest = min(rest, key=self._read_at.__getitem__, default=0)
            if oldest and now - self._read_at[oldest] > _AGE:
                stale.add(oldest)
            for maker in stale:
                part = self._read_routes(own, maker)
                self._read.hosts[maker] = part.hosts.get(maker, set())
                self._read.others[maker] = part.others.get(maker, ())
                self._read_at[maker] = now
        self._epoch, self._own, self._versions = epoch, own, versions
        return self._read

    def _read_routes(self, own: frozenset[int], maker: int = 0) -> _Routes:
        """All unicast routes, or those of one maker."""
        payload = _ROUTE.pack(self._family.number, 0, 0, 0, 0, maker, 0, nl.RTN_UNICAST, 0)
        return self._socket.dump(
            nl.RTM_GETROUTE, payload, lambda chunks: self._parse_routes(chunks, own, maker)
        )

    def _parse_routes(self, chunks: Iterator[bytes], own: frozenset[int], only: int) -> _Routes:
        hosts: dict[int, set[HostRoute]] = {}
        # A dictionary for its keys: in order, and each once.
        others: dict[int, dict[KernelRoute, None]] = {}
        known, seen = self._known_routes.get(only, {}), dict[bytes, _Entry]()
        detailed = PLAIN_MAKERS | own
        hops: set[bytes] = set()
        # Behind the destination: header 28, RTA_TABLE 8, RTA_DST 4 and the address.
        behind = 40 + self._family.bits // 8
        length_at = nl.U32.unpack_from
        for chunk in chunks:
            offset, end = 0, len(chunk)
            while offset < end:
                (length,) = length_at(chunk, offset)
                maker = chunk[offset + 21]
                if maker not in detailed:
                    # What follows the destination is the same for all routes by one next hop.  This line
                    # runs 200,000 times.
                    hop = chunk[offset + behind : offset + length]
                    if hop in hops and chunk[offset + 17]:
                        offset += (length + 3) & ~3
                        continue
                else:
                    hop = b""
                body = chunk[offset + nl.LENGTH : offset + length]
                offset += (length + 3) & ~3
                if only not in (0, maker):
                    continue  # a kernel that does not filter
                entry = known.get(body) or _sort(_route(body), ours=maker in own, summed=bool(hop))
                if not hop:
                    seen[body] = entry
                if entry.host is not None:
                    hosts.setdefault(maker, set()).add(entry.host)
                for route in entry.others:
                    others.setdefault(maker, {})[route] = None
                if hop and body[1] and len(hops) < _HOPS and all(route.gateway for route in entry.others):
                    hops.add(hop)
        if not only:
            self._known_routes.clear()
        self._known_routes[only] = seen
        return _Routes(hosts, {maker: tuple(routes) for maker, routes in others.items()})


class Kernel:
    """A handle on the kernel of the network namespace it is made in, for one thread.

    Everything raises `KernelError` when the kernel refuses; its message names what was tried.
    ``monitor`` makes snapshots cheap on a machine with very many routes: without it, all are read each
    time.
    """

    def __init__(self, record: Record, monitor: RouteHints | None = None) -> None:
        self._record = record
        self._monitor = monitor
        self._socket = nl.Socket()
        if monitor is not None:
            monitor.ignore(self._socket.portid)
        self._closed = False
        self._links = _Cache(_link)
        self._addresses = [(family, _Cache(_address)) for family in (AF_INET6, AF_INET)]
        self._flat_addresses: tuple[LinkAddress, ...] = ()
        self._rules: dict[int, _Cache[PolicyRule | _LocalRule | _Lookup]] = {
            family: _Cache(_rule) for family in (AF_INET6, AF_INET)
        }
        self._proxies = [(family, _Cache(_proxy)) for family in (AF_INET6, AF_INET)]
        self._routes = [_RouteReader(family, self._socket, monitor) for family in (_IPV6, _IPV4)]
        self._flat: tuple[KernelRoute, ...] = ()
        self._tables: dict[tuple[int, int, int], tuple[float, _Table]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the handle; once more does nothing."""
        if not self._closed:
            self._closed = True
            if self._monitor is not None:
                self._monitor.heed(self._socket.portid)
            self._socket.close()

    # -- looking

    def snapshot(
        self, protocol: int | Collection[int] = PROTOCOL, ports: Container[int] | None = None
    ) -> Snapshot:
        """What there is now.  ``protocol`` tells which routes and rules count as Portier's (one number,
        or several); ``ports`` limits the routes of others to those that leave by these interfaces.

        Link-local destinations, which every link has, are left out.  The routes by gateway of a routing
        daemon (any maker but redirect, kernel, boot, static, ra, dhcp) are summed up: one default route
        (``::/0``, ``0.0.0.0/0``) for each next hop, for there may be 200,000 of them and their next hops are
        what matters.  With a monitor these next hops are as of the last full reading.
        """
        own = frozenset({protocol} if isinstance(protocol, int) else protocol)
        if self._monitor is not None:
            self._monitor.count_as_own(own)
        # Before the routes, because a link that comes meanwhile does no harm without its routes, and
        # routes of an unknown link are none.
        links = self._socket.dump(nl.RTM_GETLINK, _LINKS, self._links.parse)
        rules = self._read_rules()
        read = [reader.read(own) for reader in self._routes]
        return Snapshot(
            links=links,
            addresses=self._read_addresses(),
            routes=self._of_others(read, links, ports, own),
            host_routes=frozenset().union(*(part.hosts.get(maker, ()) for part in read for maker in own)),
            rules=frozenset(r for r in rules if isinstance(r, PolicyRule) and r.protocol in own),
            local_rule=min((r.priority for r in rules if isinstance(r, _LocalRule)), default=0),
            forwarding=_switch("net/ipv6/conf/all/forwarding"),
            force_forwarding=_FORCE_FORWARDING_PATH.exists()
            and any(link.force_forwarding is not None for link in links),
            forwarding4=_switch("net/ipv4/ip_forward"),
            rp_filter=_switch("net/ipv4/conf/all/rp_filter"),
            proxy_arp=_switch("net/ipv4/conf/all/proxy_arp"),
            table_routes=frozenset(
                route for part in read for maker in own for route in part.others.get(maker, ())
            ),
            lookups=frozenset(
                (r.version, r.table)
                for r in rules
                if isinstance(r, _Lookup) or (isinstance(r, PolicyRule) and r.table and r.protocol not in own)
            ),
            proxies=frozenset(self._read_proxies()),
        )

    def _read_addresses(self) -> tuple[LinkAddress, ...]:
        """The addresses of both families as one tuple, the same as last time if they are."""
        parts = [
            self._socket.dump(nl.RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0), cache.parse)
            for family, cache in self._addresses
        ]
        addresses = (*parts[0], *parts[1])
        if addresses != self._flat_addresses:
            self._flat_addresses = addresses
        return self._flat_addresses

    def _of_others(
        self, read: list[_Routes], links: tuple[Link, ...], ports: Container[int] | None, own: frozenset[int]
    ) -> tuple[KernelRoute, ...]:
        """All routes of others as one tuple, the same as last time if they are."""
        # What was not read anew may be of a link that is gone since; a link that is down has no routes.
        up = {link.ifindex for link in links if link.up}
        routes = tuple(
            [
                route
                for part in read
                for maker in sorted(part.others.keys() - own)
                for route in part.others[maker]
                if route.ifindex in up and (ports is None or route.ifindex in ports)
            ]
        )
        if routes != self._flat:
            self._flat = routes
        return self._flat

    # -- host routes

    def add_route(self, route: HostRoute) -> RouteResult:
        """Add a host route where none with its destination, table and metric is."""
        with self._record.changing_routes:
            known = self._record.has_route(route)
            self._record.note_route(route)
            code = self._socket.call(nl.RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, _payload(route))
            if not code:
                return RouteResult.ADDED
            return self._not_added(route, known=known, code=code)

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        """Add the new route and then remove the old, without a moment with neither.

        Where the old one's place turns out to be held by somebody else's route, the new one is taken back
        and the result is FOREIGN.  When the kernel refuses the new one, the old one stays.
        """
        if old == new:
            return self.add_route(new)
        with self._record.changing_routes:
            known = self._record.has_route(new)
            self._record.note_route(new)
            payload = _payload(new)
            result, behind = RouteResult.ADDED, False
            code = self._socket.call(nl.RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload)
            if code == errno.EEXIST:
                # Most likely by the old one: then this puts the new one behind it.
                code = self._socket.call(nl.RTM_NEWROUTE, _family(new.address).behind, payload)
                behind = not code
            if code:
                result = self._not_added(new, known=known, code=code)
            removed = self._drop_route(old)
            if behind and not removed:
                self._drop_route(new)
                result = RouteResult.FOREIGN
        return result

    def remove_route(self, route: HostRoute) -> None:
        """Remove a host route that is on record, and exactly that; that it is gone already is success."""
        self._drop_route(route)

    def _drop_route(self, route: HostRoute) -> bool:
        """Remove a route of Portier's; tells whether it was there."""
        with self._record.changing_routes:
            if not self._record.has_route(route):
                return False
            code = self._socket.call(nl.RTM_DELROUTE, 0, _payload(route) + _family(route.address).no_gateway)
            if code not in (0, errno.ESRCH, errno.ENODEV):
                raise self._refusal(f"remove route {_text(route)}", code)
            self._record.forget_route(route)
            return not code

    def _not_added(self, route: HostRoute, *, known: bool, code: int) -> RouteResult:
        """Why a route could not be added; the record keeps it only where it is Portier's."""
        if code == errno.EEXIST and known and self._exists(route):
            return RouteResult.PRESENT
        if code == errno.EEXIST or not known:
            self._record.forget_route(route)
        if code == errno.EEXIST:
            return RouteResult.FOREIGN
        raise self._refusal(f"add route {_text(route)}", code)

    def _exists(self, route: HostRoute) -> bool:
        """Whether exactly this route is in the kernel, on-link."""
        family = _family(route.address)
        wanted = KernelRoute(
            route.address, family.bits, route.ifindex, None, route.table, route.metric, route.protocol
        )
        if route.table == MAIN:
            # Cheap, and nearly always conclusive: another route is best only if its metric is lower.
            answer = self._look_up(route.address)
            if isinstance(answer, bytes) and wanted in _route(answer[nl.LENGTH :]):
                return True
        payload = _ROUTE.pack(family.number, 0, 0, 0, 0, route.protocol, 0, nl.RTN_UNICAST, 0)
        payload += nl.attribute(nl.RTA_TABLE, nl.U32.pack(route.table))
        payload += nl.attribute(nl.RTA_OIF, nl.U32.pack(route.ifindex))

        def parse(chunks: Iterator[bytes]) -> bool:
            found = False
            for chunk in chunks:
                if not found and route.address in chunk:
                    found = any(wanted in _route(message[nl.LENGTH :]) for message in nl.messages(chunk))
            return found

        try:
            return self._socket.dump(nl.RTM_GETROUTE, payload, parse)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # no such table, no such interface
                return False
            raise

    # -- policy rules

    def _read_rules(self) -> tuple[PolicyRule | _LocalRule | _Lookup, ...]:
        found: tuple[PolicyRule | _LocalRule | _Lookup, ...] = ()
        for family, cache in self._rules.items():
            found += self._socket.dump(nl.RTM_GETRULE, _RULE.pack(family, *[0] * 8), cache.parse)
        return found

    def add_rule(self, rule: PolicyRule) -> None:
        """Add a policy rule; that it is there already is success."""
        code = self._socket.call(nl.RTM_NEWRULE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, _rule_payload(rule))
        if code == errno.EEXIST and rule not in self._read_rules():
            raise KernelError(f"add rule iif {rule.iif}", "somebody else's rule is in the way", code)
        if code not in (0, errno.EEXIST):
            raise self._refusal(f"add rule iif {rule.iif}", code)

    def remove_rule(self, rule: PolicyRule) -> None:
        """Remove a policy rule that is on record; that it is gone already is success."""
        if not self._record.has_rule(rule):
            return
        code = self._socket.call(nl.RTM_DELRULE, 0, _rule_payload(rule))
        if code not in (0, errno.ENOENT, errno.ESRCH):
            raise self._refusal(f"remove rule iif {rule.iif}", code)

    # -- the other routes of a group's own table

    def add_table_route(self, route: KernelRoute) -> None:
        """Add a route of a group's own table; that it is there already is success.  Routes by several
        gateways stand side by side; any other is never put beside one with its destination and metric."""
        flags = nl.NLM_F_CREATE | (nl.NLM_F_APPEND if route.gateway else nl.NLM_F_EXCL)
        code = self._socket.call(nl.RTM_NEWROUTE, flags, _table_route_payload(route))
        if code not in (0, errno.EEXIST):
            raise self._refusal(f"add route {_table_route_text(route)}", code)

    def remove_table_route(self, route: KernelRoute) -> None:
        """Remove a route of a group's own table that is on record; that it is gone already is success."""
        if not self._record.has_table_route(route):
            return
        payload = _table_route_payload(route)
        if route.gateway is None:
            payload += _family(route.destination).no_gateway
        code = self._socket.call(nl.RTM_DELROUTE, 0, payload)
        if code not in (0, errno.ESRCH, errno.ENODEV):
            raise self._refusal(f"remove route {_table_route_text(route)}", code)

    # -- proxy entries

    def _read_proxies(self) -> Iterator[ProxyEntry]:
        for family, cache in self._proxies:
            payload = _NEIGHBOR.pack(family, 0, 0, _NTF_PROXY, 0)
            yield from self._socket.dump(nl.RTM_GETNEIGH, payload, cache.parse)

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Add a proxy entry that is on record.  One of somebody else's for the same address stays, and is an
        error."""
        found = {known for known in self._read_proxies() if known[:2] == entry[:2]}
        if found - {entry}:
            raise KernelError(
                f"add {_proxy_text(entry)}", "somebody else's entry is in the way", errno.EEXIST
            )
        code = self._socket.call(nl.RTM_NEWNEIGH, nl.NLM_F_CREATE, _proxy_payload(entry))
        if code:
            raise self._refusal(f"add {_proxy_text(entry)}", code)

    def remove_proxy(self, entry: ProxyEntry) -> None:
        """Remove a proxy entry that is on record; that it is gone already is success."""
        if not self._record.has_proxy(entry) or entry not in self._read_proxies():
            return
        code = self._socket.call(nl.RTM_DELNEIGH, 0, _proxy_payload(entry))
        if code not in (0, errno.ENOENT, errno.ENODEV):
            raise self._refusal(f"remove {_proxy_text(entry)}", code)

    # -- sysctls

    def get_sysctl(self, path: str) -> str | None:
        """The value of ``net/ipv6/conf/eth0/forwarding`` and the like, None where there is none; of the
        calling thread's network namespace."""
        return sysctl.read(path)

    def set_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl of the calling thread's network namespace."""
        sysctl.write(path, value)

    # -- an engine's questions

    def route(self, address: bytes, table: int = MAIN) -> int:
        """The interface by which the best unicast route leaves, the default route not counted; 0 where
        there is none.

        For the main table this is what the kernel would do itself, policy rules included (20 us).  It has
        no question for another table, so that is read, at most once a second, and looked up in here; one
        that takes long to read is read less often.
        """
        if table != MAIN:
            return self._table(_family(address), table).look_up(address)
        best = self.best(address)
        return best.ifindex if best and best.prefix_length else 0

    def host_route(self, address: bytes, table: int = MAIN) -> int:
        """The interface by which the best route leaves, where that is a host route to a gateway, else 0:
        how a routing daemon says that the host is another router's.  Asked for as `route` does."""
        if table != MAIN:
            family = _family(address)
            return self._table(family, table, family.bits).look_up_host(address)
        best = self.best(address)
        return best.ifindex if best and best.gateway and best.prefix_length == 8 * len(address) else 0

    def best(self, address: bytes) -> KernelRoute | None:
        """The best unicast route by the main table and the policy rules; of several nexthops the first."""
        answer = self._look_up(address)
        if isinstance(answer, int):
            if answer in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENOENT):
                return None  # no route, or one of type unreachable, prohibit or blackhole
            raise self._refusal(f"look up {ip_address(address)}", answer)
        return next(iter(_route(answer[nl.LENGTH :])), None)

    def neighbor(self, address: bytes, ports: Iterable[int] = ()) -> int:
        """The interface on which the kernel's neighbor table holds an address in a valid state, else 0;
        of several one where it is more than stale, then the first.

        With ``ports`` only those are asked about, at 5 us each; without, the table is dumped.
        """
        states = self._states_on(address, list(ports)) if ports else self._states(address)
        stale = 0
        for ifindex, state in states:
            if state & _VALID_STATES & ~_STALE:
                return ifindex
            if state & _STALE:
                stale = stale or ifindex
        return stale

    def heard_on(self, ifindex: int) -> list[tuple[bytes, bytes]]:
        """The addresses, none of them link-local, that the kernel's neighbor table holds on an interface in a
        valid state, each with its link-layer address."""

        def parse(chunks: Iterator[bytes]) -> list[tuple[bytes, bytes]]:
            found = []
            for message in (message for chunk in chunks for message in nl.messages(chunk)):
                _, index, state, flags, _ = _NEIGHBOR.unpack_from(message, nl.LENGTH)
                if index != ifindex or not state & _VALID_STATES or flags & _NTF_PROXY:
                    continue
                values = nl.attributes(message, nl.LENGTH + _NEIGHBOR.size, len(message))
                address, mac = values.get(_NDA_DST, b""), values.get(_NDA_LLADDR, b"")
                if address and len(mac) == 6 and not _is_link_local(address, 8 * len(address)):
                    found.append((address, mac))
            return found

        where = nl.attribute(_NDA_IFINDEX, nl.U32.pack(ifindex))
        return self._socket.dump(nl.RTM_GETNEIGH, _NEIGHBOR.pack(0, 0, 0, 0, 0) + where, parse)

    def _states_on(self, address: bytes, ports: list[int]) -> list[tuple[int, int]]:
        family, destination = _family(address).number, nl.attribute(_NDA_DST, address)
        found = []
        for start in range(0, len(ports), _BATCH):
            questions = [
                _NEIGHBOR.pack(family, ifindex, 0, 0, 0) + destination
                for ifindex in ports[start : start + _BATCH]
            ]
            for answer in self._socket.ask_all(nl.RTM_GETNEIGH, questions):
                if isinstance(answer, bytes):
                    _, ifindex, state, _, _ = _NEIGHBOR.unpack_from(answer, nl.LENGTH)
                    found.append((ifindex, state))
        return found

    def _states(self, address: bytes) -> list[tuple[int, int]]:
        def parse(chunks: Iterator[bytes]) -> list[tuple[int, int]]:
            found = []
            for chunk in chunks:
                if address not in chunk:
                    continue
                for message in nl.messages(chunk):
                    _, ifindex, state, flags, _ = _NEIGHBOR.unpack_from(message, nl.LENGTH)
                    start = nl.LENGTH + _NEIGHBOR.size
                    if (
                        not flags & _NTF_PROXY
                        and nl.attributes(message, start, len(message)).get(_NDA_DST) == address
                    ):
                        found.append((ifindex, state))
            return found

        return self._socket.dump(nl.RTM_GETNEIGH, _NEIGHBOR.pack(_family(address).number, 0, 0, 0, 0), parse)

    def _look_up(self, address: bytes) -> bytes | int:
        family = _family(address)
        header = (family.number, family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
        return self._socket.ask(
            nl.RTM_GETROUTE, family.lookup.pack(*header, 4 + len(address), nl.RTA_DST, address)
        )

    def _table(self, family: _Family, table: int, shortest: int = 1) -> _Table:
        """The routes of a table whose prefixes are at least so long."""
        begin = monotonic()
        key = (family.number, table, shortest)
        until, known = self._tables.get(key, (0.0, None))
        if known is not None and begin < until:
            return known

        def parse(chunks: Iterator[bytes]) -> _Table:
            return _Table(chunks, shortest)

        payload = _ROUTE.pack(family.number, *[0] * 8) + nl.attribute(nl.RTA_TABLE, nl.U32.pack(table))
        try:
            known = self._socket.dump(nl.RTM_GETROUTE, payload, parse)
        except KernelError as error:
            if error.errno != errno.ENOENT:  # no such table
                raise
            known = parse(iter(()))
        end = monotonic()
        self._tables[key] = (end + _TABLE_AGE * max(1.0, _TABLE_SHARE * (end - begin)), known)
        return known

    def _refusal(self, operation: str, code: int) -> KernelError:
        complaint = f" ({self._socket.complaint})" if self._socket.complaint else ""
        return KernelError(operation, os.strerror(code) + complaint, code)


class _Table:
    """The routes of one table and family whose prefixes are at least so long, for longest-prefix lookup."""

    def __init__(self, chunks: Iterator[bytes], shortest: int) -> None:
        by_length: dict[int, dict[int, int]] = {}
        self._hosts: dict[bytes, int] = {}  # whose best route leads to a gateway
        for chunk in chunks:
            for message in nl.messages(chunk):
                if message[_PREFIX_LENGTH] < shortest:
                    continue
                body = message[nl.LENGTH :]
                length, kind = body[1], body[7]
                gateway = None
                if kind == nl.RTN_UNICAST:
                    routes = _route(body, link_local=True)
                    found, gateway = (routes[0].ifindex, routes[0].gateway) if routes else (0, None)
                else:
                    found = 0  # unreachable, blackhole and the like: nothing longer matches
                destination = nl.attributes(body, _ROUTE.size, len(body)).get(nl.RTA_DST, b"")
                network = int.from_bytes(destination, "big") >> (8 * len(destination) - length)
                # Of the same destination the dump has the lowest metric first.
                by_length.setdefault(length, {}).setdefault(network, found)
                if length == 8 * len(destination):
                    self._hosts.setdefault(destination, found if gateway else 0)
        self._by_length = sorted(by_length.items(), reverse=True)

    def look_up_host(self, address: bytes) -> int:
        """The outgoing interface of a host route to a gateway, 0 if there is none."""
        return self._hosts.get(address, 0)

    def look_up(self, address: bytes) -> int:
        """The outgoing interface, 0 if there is none."""
        number, bits = int.from_bytes(address, "big"), 8 * len(address)
        for length, networks in self._by_length:
            found = networks.get(number >> (bits - length))
            if found is not None:
                return found
        return 0


# -- messages ----------------------------------------------------------------------------------------

_LINKS: Final = _LINK.pack(0, 0, 0, 0, 0) + nl.attribute(_IFLA_EXT_MASK, nl.U32.pack(_SKIP_STATS))


class _LocalRule(NamedTuple):
    """The rule that looks up IPv6's local table, unconditionally."""

    priority: int


class _Lookup(NamedTuple):
    """Another's rule that leads to a table."""

    version: int
    table: int


def _payload(route: HostRoute) -> bytes:
    address, ifindex, table, metric, protocol = route
    family = _family(address)
    short = table if table < 256 else 0
    return family.host_route.pack(
        *(family.number, family.bits, 0, 0, short, protocol, family.scope, nl.RTN_UNICAST, 0),
        *(4 + len(address), nl.RTA_DST, address),
        *(8, nl.RTA_OIF, ifindex),
        *(8, nl.RTA_PRIORITY, metric),
        *(8, nl.RTA_TABLE, table),
    )


def _table_route_payload(route: KernelRoute) -> bytes:
    """The whole payload of a route of a group's own table, and of its removal.  A gateway counts as
    on-link (RTNH_F_ONLINK), for the route to it may come later."""
    family = _family(route.destination)
    flags, scope = (_RTNH_F_ONLINK, 0) if route.gateway else (0, family.scope)
    numbers = (route.table if route.table < 256 else 0, route.protocol, scope, nl.RTN_UNICAST, flags)
    payload = _ROUTE.pack(family.number, route.prefix_length, 0, 0, *numbers)
    if route.prefix_length:
        payload += nl.attribute(nl.RTA_DST, route.destination)
    if route.gateway:
        payload += nl.attribute(nl.RTA_GATEWAY, route.gateway)
    for kind, value in (
        (nl.RTA_OIF, route.ifindex),
        (nl.RTA_PRIORITY, route.metric),
        (nl.RTA_TABLE, route.table),
    ):
        payload += nl.attribute(kind, nl.U32.pack(value))
    return payload


def _rule_payload(rule: PolicyRule) -> bytes:
    source = ip_network(rule.source) if rule.source else None
    destination = ip_network(rule.destination) if rule.destination else None
    lengths = (destination.prefixlen if destination else 0, source.prefixlen if source else 0)
    action = _FR_ACT_UNREACHABLE if rule.unreachable else _FR_ACT_BLACKHOLE
    payload = _RULE.pack(
        *(AF_INET if rule.version == 4 else AF_INET6, *lengths, 0),
        *(rule.table if rule.table < 256 else 0, 0, 0, _FR_ACT_TO_TABLE if rule.table else action, 0),
    )
    if rule.table:
        payload += nl.attribute(_FRA_TABLE, nl.U32.pack(rule.table))
    if rule.suppress >= 0:
        payload += nl.attribute(_FRA_SUPPRESS_PREFIXLEN, _INT.pack(rule.suppress))
    payload += nl.attribute(_FRA_PRIORITY, nl.U32.pack(rule.priority))
    payload += nl.attribute(_FRA_IIFNAME, os.fsencode(rule.iif) + b"\0")
    payload += nl.attribute(_FRA_PROTOCOL, bytes([rule.protocol]))
    if source:
        payload += nl.attribute(_FRA_SRC, source.network_address.packed)
    if destination:
        payload += nl.attribute(_FRA_DST, destination.network_address.packed)
    return payload


def _proxy(body: bytes) -> ProxyEntry | None:
    _, ifindex, _, flags, _ = _NEIGHBOR.unpack_from(body)
    found = nl.attributes(body, _NEIGHBOR.size, len(body))
    if not flags & _NTF_PROXY or _NDA_DST not in found:
        return None
    return ProxyEntry(found[_NDA_DST], ifindex, found.get(_NDA_PROTOCOL, b"\0")[0])


def _proxy_payload(entry: ProxyEntry) -> bytes:
    return (
        _NEIGHBOR.pack(_family(entry.address).number, entry.ifindex, 0, _NTF_PROXY, 0)
        + nl.attribute(_NDA_DST, entry.address)
        + nl.attribute(_NDA_PROTOCOL, bytes([entry.protocol]))
    )


def _proxy_text(entry: ProxyEntry) -> str:
    return f"proxy {ip_address(entry.address)} dev {entry.ifindex}"


def _link(body: bytes) -> Link:
    _, kind, ifindex, flags, _ = _LINK.unpack_from(body)
    found = nl.attributes(body, _LINK.size, len(body))
    mac = found.get(_IFLA_ADDRESS, b"")
    info = found.get(_IFLA_LINKINFO, b"")
    about = nl.attributes(info, 0, len(info))
    kind_of_link = about.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    families = found.get(_IFLA_AF_SPEC, b"")
    inet6 = nl.attributes(families, 0, len(families)).get(AF_INET6, b"")
    conf = nl.attributes(inet6, 0, len(inet6)).get(_IFLA_INET6_CONF, b"")
    inet = nl.attributes(families, 0, len(families)).get(AF_INET, b"")
    conf4 = nl.attributes(inet, 0, len(inet)).get(_IFLA_INET_CONF, b"")

    def setting(place: int, conf: bytes = conf) -> int | None:
        return int(struct.unpack_from("=i", conf, 4 * place)[0]) if len(conf) >= 4 * place + 4 else None

    return Link(
        ifindex=ifindex,
        name=os.fsdecode(found.get(_IFLA_IFNAME, b"").rstrip(b"\0")),
        mac=mac if kind == _ARPHRD_ETHER and len(mac) == 6 else None,
        mtu=nl.U32.unpack(found.get(_IFLA_MTU, bytes(4)))[0],
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_RUNNING),
        master=nl.U32.unpack(found.get(_IFLA_MASTER, bytes(4)))[0],
        kind=kind_of_link,
        loopback=bool(flags & _IFF_LOOPBACK),
        forwarding=setting(_FORWARDING),
        accept_ra=setting(_ACCEPT_RA),
        force_forwarding=setting(_FORCE_FORWARDING),
        forwarding4=setting(_FORWARDING4, conf4),
        table=_vrf_table(about.get(_IFLA_INFO_DATA, b"")) if kind_of_link == "vrf" else 0,
        rp_filter=setting(_RP_FILTER, conf4),
        proxy_arp=setting(_PROXY_ARP, conf4),
    )


def route_message(family: int, kind: int) -> bytes:
    """What a dump of the routes of one type (RTN_*) asks with."""
    return _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, kind, 0)


def _switch(path: str) -> int:
    """A sysctl that is a number; 0 where the kernel does not have it."""
    return int(sysctl.read(path) or 0)


def _vrf_table(data: bytes) -> int:
    return int(nl.U32.unpack(nl.attributes(data, 0, len(data)).get(_IFLA_VRF_TABLE, bytes(4)))[0])


def _address(body: bytes) -> LinkAddress | None:
    _, length, flags, _, ifindex = _ADDRESS.unpack_from(body)
    found = nl.attributes(body, _ADDRESS.size, len(body))
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if address is None:
        return None
    if _IFA_FLAGS in found:
        (flags,) = nl.U32.unpack(found[_IFA_FLAGS])
    return LinkAddress(
        ifindex=ifindex,
        address=address,
        prefix_length=length,
        # An optimistic address may not be advertised with a link-layer address yet (RFC 4429 section 3.3).
        tentative=bool(flags & (_TENTATIVE | _OPTIMISTIC)),
        failed=bool(flags & _FAILED),
        deprecated=bool(flags & _DEPRECATED),
    )


def _route(body: bytes, *, link_local: bool = False) -> tuple[KernelRoute, ...]:
    """A unicast route, once for each nexthop; empty for others, for those of one type of service (IPv4), and
    for link-local destinations unless they are wanted."""
    family, length, _, tos, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    if kind != nl.RTN_UNICAST or flags & _RTM_F_CLONED or tos:
        return ()
    found = nl.attributes(body, _ROUTE.size, len(body))
    destination = found.get(nl.RTA_DST, bytes(4 if family == AF_INET else 16))
    if not link_local and _is_link_local(destination, length):
        return ()
    if nl.RTA_TABLE in found:
        (table,) = nl.U32.unpack(found[nl.RTA_TABLE])
    (metric,) = nl.U32.unpack(found.get(nl.RTA_PRIORITY, bytes(4)))

    def by(ifindex: int, gateway: bytes | None) -> KernelRoute:
        return KernelRoute(destination, length, ifindex, gateway, table, metric, protocol)

    if nl.RTA_MULTIPATH in found:
        return tuple(by(ifindex, gateway) for ifindex, gateway in _nexthops(found[nl.RTA_MULTIPATH]))
    if nl.RTA_OIF not in found:
        return ()
    return (by(nl.U32.unpack(found[nl.RTA_OIF])[0], _gateway(found)),)


def _is_link_local(destination: bytes, length: int) -> bool:
    if len(destination) == 4:
        return length >= 16 and destination[:2] == b"\xa9\xfe"
    return length >= 10 and destination[0] == 0xFE and destination[1] & 0xC0 == 0x80


def _gateway(found: dict[int, bytes]) -> bytes | None:
    """The gateway, which for an IPv4 route may be an IPv6 address (RFC 5549)."""
    if nl.RTA_VIA in found:
        return found[nl.RTA_VIA][2:]  # rtvia: the family before it
    return found.get(nl.RTA_GATEWAY)


def _sort(routes: tuple[KernelRoute, ...], *, ours: bool, summed: bool) -> _Entry:
    """Tell Portier's host routes from all others; where they are ``summed`` up, those by a gateway become
    default routes."""
    route = routes[0] if ours and len(routes) == 1 else None
    if route and route.prefix_length == 8 * len(route.destination) and route.gateway is None:
        return _Entry(
            HostRoute(route.destination, route.ifindex, route.table, route.metric, route.protocol), ()
        )
    if summed:
        routes = tuple(
            route._replace(destination=bytes(len(route.destination)), prefix_length=0)
            if route.gateway
            else route
            for route in routes
        )
    return _Entry(None, routes)


def _nexthops(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, _, ifindex = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        yield ifindex, _gateway(nl.attributes(data, offset + _NEXTHOP.size, offset + length))
        offset += (length + 3) & ~3


def _rule(body: bytes) -> PolicyRule | _LocalRule | _Lookup | None:
    """A rule of the kind that Portier makes, the one of the local table, or another that leads to a table;
    None for all others."""
    family, destination_length, source_length, tos, table, _, _, action, flags = _RULE.unpack_from(body)
    found = nl.attributes(body, _RULE.size, len(body))
    (priority,) = nl.U32.unpack(found.get(_FRA_PRIORITY, bytes(4)))
    if action == _FR_ACT_TO_TABLE and table == _LOCAL:
        selectors = found.keys() - {_FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL, _FRA_SUPPRESS_PREFIXLEN}
        if family != AF_INET6 or selectors or destination_length or source_length:
            return None
        return _LocalRule(priority)
    leads = action == _FR_ACT_TO_TABLE
    version = 4 if family == AF_INET else 6
    if leads and _FRA_TABLE in found:
        (table,) = nl.U32.unpack(found[_FRA_TABLE])
    if (
        action not in {_FR_ACT_BLACKHOLE, _FR_ACT_UNREACHABLE, _FR_ACT_TO_TABLE}
        or tos
        or flags & _FIB_RULE_INVERT
        or _FRA_IIFNAME not in found
        or found.keys() - _PORTIER_ATTRIBUTES
    ):
        return _Lookup(version, table) if leads and table else None
    (suppress,) = _INT.unpack(found.get(_FRA_SUPPRESS_PREFIXLEN, b"\xff" * 4))
    return PolicyRule(
        priority=priority,
        iif=os.fsdecode(found[_FRA_IIFNAME].rstrip(b"\0")),
        source=_network(found.get(_FRA_SRC), source_length),
        destination=_network(found.get(_FRA_DST), destination_length),
        protocol=found.get(_FRA_PROTOCOL, b"\0")[0],
        table=table if leads else 0,
        version=version,
        suppress=suppress,
        unreachable=action == _FR_ACT_UNREACHABLE,
    )


def _network(address: bytes | None, length: int) -> str:
    return f"{ip_address(address)}/{length}" if address is not None else ""


def _table_route_text(route: KernelRoute) -> str:
    via = f" via {ip_address(route.gateway)}" if route.gateway else ""
    destination = f"{ip_address(route.destination)}/{route.prefix_length}"
    return f"{destination}{via} dev {route.ifindex} table {route.table} metric {route.metric}"


def _text(route: HostRoute) -> str:
    prefix = f"{ip_address(route.address)}/{8 * len(route.address)}"
    return f"{prefix} dev {route.ifindex} table {route.table} metric {route.metric}"
