"""`scope: group`: a routing table of a group's own, and the policy rules that lead to it.

The table has what the kernel routes by the group's ports: the on-link prefixes and the routers of its
upstream, RAs included, and what is routed to its downstreams; and the host routes that the engine makes.
The rules send what comes in by a port to that table, and end what it does not know with `unreachable`.  So a
packet reaches the group's own hosts, its own upstream's link and routers, and the host itself, whose
addresses are in table local, which comes first; and nothing else, whatever else the host routes.

With `isolate` there is a second table, with the upstream's part alone, for what comes from the downstreams.

What the host itself sends follows its main table as ever.  Only for the group's hosts it needs the group's
table: a rule for `iif lo`, which is what the host sends, looks there for host routes and nothing shorter
(`suppress_prefixlength`).  What other interfaces bring, which are none of the group's ports, finds no hosts
of the group, as its answers would not find the way back either.

Everything here is a function of its arguments, for both families alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from portier.core.model import (
    PLAIN_MAKERS,
    Bound,
    Group,
    KernelRoute,
    Link,
    Notice,
    PolicyRule,
    Role,
    Scope,
    Snapshot,
)

MAIN: Final = 254
# Tables are numbered by the group's name, so that neither the order of groups nor a restart changes them; in
# a range that nobody else is likely to use, two for each group.
_FIRST: Final = 1_350_000_000
_PAIRS: Final = 40_000_000

# Behind the rules that keep the kernel quiet: lookup, the end of it, and the host's own way to the hosts.
_LOOKUP, _END, _OWN = 1, 2, 3
_MAIN_RULE: Final = 32766


class Tables(NamedTuple):
    """The tables of a group.  ``uplink`` has the upstream's part alone, and is 0 where it is not needed."""

    own: int
    uplink: int = 0


# -- the tables ------------------------------------------------------------------------------------------


def allot(groups: Iterable[Group], before: Mapping[str, Tables], snapshot: Snapshot) -> Mapping[str, Tables]:
    """The tables of the groups that have their own.  Those of ``before`` stay; a number that somebody else
    uses is passed over, as far as routes, rules and VRFs show it."""
    alone = {group.name: group for group in groups if group.scope is Scope.GROUP}
    if not alone:
        return {}
    named = {group.routes.table for group in groups if group.routes is not None}
    taken = {route.table for route in snapshot.routes} | {table for _, table in snapshot.lookups}
    taken |= {link.table for link in snapshot.links} | named
    pairs = {name: tables.uplink or tables.own for name, tables in before.items() if name in alone}
    found = {}
    # By name: two that fall on one number get theirs in the same order, wherever they stand in the file.
    for name, group in sorted(alone.items()):
        pair = pairs.get(name, 0) & ~1
        if not pair >= _FIRST:
            pair = _FIRST + 2 * (zlib.crc32(name.encode()) % _PAIRS)
            while pair in taken or pair + 1 in taken or pair in pairs.values():
                pair = _FIRST + (pair + 2 - _FIRST) % (2 * _PAIRS)
        pairs[name] = pair
        wanted = group.routes.table if group.routes else MAIN
        found[name] = Tables(pair if wanted == MAIN else wanted, pair + 1 if group.isolate else 0)
    return found


def table_of(group: Group, tables: Tables | None, link: Link, master: Link | None) -> int:
    """The table in which the routes of hosts on a link are.  A VRF's ports are left to its table, which the
    kernel looks into first, unless the configuration names another."""
    wanted = group.routes.table if group.routes else MAIN
    if link.master and master is not None and master.kind == "vrf" and (tables or wanted == MAIN):
        return master.table
    return tables.own if tables else wanted


# -- the routes ------------------------------------------------------------------------------------------


def by_link(routes: Iterable[KernelRoute]) -> Mapping[int, Sequence[KernelRoute]]:
    """Routes by the interface they leave by."""
    found: dict[int, list[KernelRoute]] = {}
    for route in routes:
        found.setdefault(route.ifindex, []).append(route)
    return found


def routes_of(
    bound: Bound,
    tables: Tables,
    versions: Collection[int],
    routes: Mapping[int, Sequence[KernelRoute]],
) -> Iterator[KernelRoute]:
    """The routes of a group's tables, but for those to its hosts; ``versions`` are those of IP that its rules
    name."""
    if bound.group.routes is None:
        return
    protocol = bound.group.routes.protocol
    chosen: dict[tuple[bytes, int, int], KernelRoute] = {}
    for port in bound.ports:
        if port.table != tables.own:
            continue
        upstream = port.role is Role.UPSTREAM
        for route in _by_port(routes.get(port.ifindex, ()), versions, default=upstream):
            # One destination and metric has one place in a table, but for several routers on one link.
            place = (route.destination, route.prefix_length, route.metric)
            first = chosen.setdefault(place, route)
            if first is not route and not (
                first.gateway and route.gateway and first.ifindex == route.ifindex
            ):
                continue
            yield route._replace(table=tables.own, protocol=protocol)
            if tables.uplink and upstream:
                yield route._replace(table=tables.uplink, protocol=protocol)


def _by_port(
    routes: Sequence[KernelRoute], versions: Collection[int], *, default: bool
) -> Iterator[KernelRoute]:
    """What the kernel routes by one port, with the default route or without.

    For each destination the main table's routes count, and those of the lowest other table only where that
    has none: what else there is serves some special purpose.  A routing daemon's routes by a gateway, which
    are summed up, stand for the default route where there is no other.  A route to a single address on the
    link is a way to a router, and gateways count as on-link here.
    """
    best: dict[tuple[bytes, int], tuple[bool, bool, int]] = {}
    ranked = []
    for route in sorted(routes, key=lambda route: (route.metric, route.gateway or b"")):
        bits = 8 * len(route.destination)
        alone = route.gateway is None and route.prefix_length == bits
        if (4 if bits == 32 else 6) not in versions or alone or not (route.prefix_length or default):
            continue
        summed = route.protocol not in PLAIN_MAKERS and not route.prefix_length
        rank = (summed, route.table != MAIN, route.table)
        destination = (route.destination, route.prefix_length)
        best[destination] = min(rank, best.get(destination, rank))
        ranked.append((destination, rank, route))
    for destination, rank, route in ranked:
        if rank == best[destination]:
            yield route


# -- the rules -------------------------------------------------------------------------------------------


def rules_of(bound: Bound, tables: Tables, versions: Collection[int], priority: int) -> Iterator[PolicyRule]:
    """The rules that lead to a group's tables; ``priority`` is that of the rules that keep the kernel quiet,
    which come first."""
    protocol = bound.group.routes.protocol if bound.group.routes else 0
    ports = [port for port in bound.ports if port.table == tables.own]
    for version in versions if ports else ():
        for port in ports:
            own = tables.own if port.role is Role.UPSTREAM or not tables.uplink else tables.uplink
            lookup = PolicyRule(priority + _LOOKUP, port.name, "", "", protocol, own, version)
            yield lookup
            yield lookup._replace(priority=priority + _END, table=0, unreachable=True)
        longest = 31 if version == 4 else 127
        yield PolicyRule(priority + _OWN, "lo", "", "", protocol, tables.own, version, longest)


# -- what looks wrong ------------------------------------------------------------------------------------


def warnings(
    bound: Bound, tables: Tables | None, versions: Collection[int], snapshot: Snapshot, priority: int
) -> Iterator[Notice]:
    """What keeps tables from having their effect."""
    if tables and (inside := [port.name for port in bound.ports if port.table != tables.own]):
        yield Notice(
            "group-tables",
            f"`scope: group` leaves what is inside a VRF to the VRF's own table: {', '.join(inside)}",
        )
    if tables and priority + _OWN >= _MAIN_RULE:
        yield Notice(
            "group-tables",
            f"the rule for the local table is at priority {snapshot.local_rule}, so that those of "
            "`scope: group` come behind the main table's and have no effect: move it to below "
            f"{_MAIN_RULE - _OWN - 1}",
        )
    if bound.group.routes is None:
        return
    led = {link.table for link in snapshot.links} | {MAIN, tables.own if tables else MAIN}
    for table in sorted({port.table for port in bound.ports if port.role is Role.DOWNSTREAM} - led):
        for version in sorted(versions, reverse=True):
            if (version, table) not in snapshot.lookups:
                yield Notice(
                    "routing-table",
                    f"no policy rule and no VRF leads to table {table}, so host routes there have no effect",
                    f"ip -{version} rule add lookup {table}",
                )
