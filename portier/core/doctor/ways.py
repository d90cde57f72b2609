"""Checks of the kernel's routes: that what comes for the hosts behind goes there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, NamedTuple

from portier.core.doctor.facts import Barrier, Facts, Host, Setup, known, running
from portier.core.doctor.finding import Check, Finding, problem, warning
from portier.core.model import Answer, Bound, KernelRoute, Live, Mode, Network, Role, Rule
from portier.core.neighbors import RouteState

_SHOWN: Final = 3


class _Way(NamedTuple):
    """A route of the kernel by an interface."""

    network: Network
    ifindex: int
    gateway: bytes | None


def _ways(routes: Iterable[KernelRoute], table: int) -> list[_Way]:
    """The routes of a table, without the default routes."""
    found = []
    for route in routes:
        if route.prefix_length and route.table == table:
            network = ip_network((route.destination, route.prefix_length), strict=False)
            found.append(_Way(network, route.ifindex, route.gateway))
    return found


def _within(inner: Network, outer: Network) -> bool:
    """Whether all of ``inner`` is in ``outer``."""
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _overlap(one: Network, other: Network) -> bool:
    """Whether two prefixes have an address in common."""
    return _within(one, other) or _within(other, one)


def _routed(setup: Setup) -> Iterator[Bound]:
    """The groups whose hosts the kernel routes to."""
    return (bound for bound in setup.bounds.values() if bound.group.mode is Mode.ROUTE)


def _allowed(bound: Bound) -> Iterator[tuple[Rule, Network]]:
    """The prefixes that rules allow, each with its rule."""
    for rule in bound.group.rules:
        if not rule.allow:
            continue
        if isinstance(rule.prefix, Live):
            version = 4 if rule.prefix is Live.UPSTREAM_IPV4 else 6
            yield from ((rule, network) for network in bound.live if network.version == version)
        else:
            yield rule, rule.prefix


def _host_route(facts: Facts) -> Iterator[Finding]:
    """Hosts that are known behind, and that the kernel looks for elsewhere."""
    running(facts)
    by_place: dict[tuple[str, str, str], list[Host]] = {}
    for host in known(facts.hosts):
        if host.way != host.port:
            by_place.setdefault((host.group, host.port, host.way), []).append(host)
        elif host.state in {RouteState.FOREIGN.value, RouteState.FAILED.value}:
            by_place.setdefault((host.group, host.port, host.state), []).append(host)
    for (group, port, way), hosts in by_place.items():
        named = _few([host.address for host in hosts])
        first = hosts[0].address
        version = "-6 " if ":" in first else ""
        if way == RouteState.FOREIGN.value:
            yield warning(
                f"group {group}",
                f"somebody else's route leads to {named}, so it does not follow the host when it moves",
                f"it leaves by {port} now, and is not Portier's",
                f"ip {version}route del {first}",
            )
            continue
        seen, remedy = hosts[0].asked, f"ip {version}route show table all match {first}"
        best = hosts[0].best
        if best is not None and best.prefix_length == 8 * len(best.destination):
            place = f"dev {way} metric {best.metric} table {_table(best.table)}"
            seen = f"{first} {place} proto {best.protocol} beats Portier's route by its metric"
            remedy = (
                f"ip {version}route del {first} {place}"
                "  # and give the routes of what made it a metric above that of `routes`"
            )
        yield problem(
            f"group {group}",
            f"packets for {named} go "
            + (f"out of {way}" if way else "nowhere, for want of a route or by one that ends in nothing")
            + f", and not to {port}, where hosts with these addresses are",
            seen,
            remedy,
        )


def _few(items: Sequence[object]) -> str:
    """The first of many, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more


def _dead_end(facts: Facts) -> Iterator[Finding]:
    """Blackhole, unreachable and prohibit routes in the way.  A learned host's own route is longer than
    theirs; what is routed without one, or with one just as long, falls into them."""
    snapshot, barriers = known(facts.snapshot), known(facts.barriers)
    for bound in _routed(known(facts.setup)):
        behind = {port.ifindex for port in bound.ports if port.role is Role.DOWNSTREAM}
        tables = {port.table for port in bound.ports}
        for rule, network in _allowed(bound):
            by_route = rule.answer in {Answer.ROUTED, Answer.ALWAYS} or bound.group.routes is None
            for barrier in barriers:
                if barrier.table not in tables or not barrier.network.prefixlen:
                    continue
                ways = _ways(snapshot.routes, barrier.table)
                whole = barrier.network.prefixlen == barrier.network.max_prefixlen
                if whole and _within(barrier.network, network):
                    yield _ends(bound, barrier, f"{barrier.network.network_address}")
                elif (
                    by_route
                    and _within(network, barrier.network)
                    and not any(
                        way.ifindex in behind
                        and _overlap(way.network, network)
                        and way.network.prefixlen > barrier.network.prefixlen
                        for way in ways
                    )
                ):
                    yield _ends(bound, barrier, str(network))


def _ends(bound: Bound, barrier: Barrier, what: str) -> Finding:
    version = "-6 " if barrier.network.version == 6 else ""
    return problem(
        f"group {bound.group.name}",
        f"what comes for {what} ends in a route of type {barrier.kind}",
        f"{barrier.kind} {barrier.network} in table {_table(barrier.table)}",
        f"ip {version}route del {barrier.kind} {barrier.network} table {_table(barrier.table)}",
    )


def _table(table: int) -> str:
    return "main" if table == 254 else str(table)


def _routed_nowhere(facts: Facts) -> Iterator[Finding]:
    """`answer: routed` answers by the kernel's routes alone."""
    snapshot = known(facts.snapshot)
    for bound in _routed(known(facts.setup)):
        behind = {port.ifindex: port.name for port in bound.ports if port.role is Role.DOWNSTREAM}
        for rule, network in _allowed(bound):
            if rule.answer is not Answer.ROUTED or not behind:
                continue
            tables = {port.table for port in bound.ports}
            ways = [way for table in tables for way in _ways(snapshot.routes, table)]
            if not any(way.ifindex in behind and _overlap(way.network, network) for way in ways):
                version = "-6 " if network.version == 6 else ""
                yield warning(
                    f"group {bound.group.name}",
                    f"{network} is answered for by the kernel's routes (`answer: routed`), and none of them "
                    "leaves by a port behind, so nothing in it is answered for",
                    f"ip {version}route show root {network}",
                    f"ip {version}route add {network} dev {next(iter(behind.values()))}",
                )


def _always_hole(facts: Facts) -> Iterator[Finding]:
    """`answer: always` for what the kernel would send back where it came from."""
    snapshot = known(facts.snapshot)
    for bound in _routed(known(facts.setup)):
        upstream = next((port for port in bound.ports if port.role is Role.UPSTREAM), None)
        behind = {port.ifindex: port.name for port in bound.ports if port.role is Role.DOWNSTREAM}
        for rule, network in _allowed(bound):
            if rule.answer is not Answer.ALWAYS or upstream is None or not behind:
                continue
            if any(_overlap(prefix, network) for prefix in upstream.on_link):
                continue  # that is said by itself
            ways = _ways(snapshot.routes, upstream.table)
            if any(way.ifindex in behind and _within(network, way.network) for way in ways):
                continue
            version = "-6 " if network.version == 6 else ""
            yield warning(
                f"group {bound.group.name}",
                f"every address of {network} is answered for, and what comes for one that nobody has goes "
                f"back where it came from",
                f"no route for {network} leaves by a port behind",
                f"ip {version}route add {network} dev {next(iter(behind.values()))}",
            )


def _elsewhere(facts: Facts) -> Iterator[Finding]:
    """Parts of what a group allows that the kernel routes by interfaces which are no ports."""
    snapshot, setup = known(facts.snapshot), known(facts.setup)
    names: Mapping[int, str] = {link.ifindex: link.name for link in snapshot.links}
    ports = {port.ifindex for of in setup.reports for port in of.ports if port.ifindex}
    for bound in _routed(setup):
        if bound.group.upstream and not any(port.role is Role.UPSTREAM for port in bound.ports):
            continue  # what leads elsewhere may lead to the upstream that is meant
        denied = [
            rule.prefix
            for rule in bound.group.rules
            if not rule.allow and isinstance(rule.prefix, IPv4Network | IPv6Network)
        ]
        ways = [way for way in _ways(snapshot.routes, 254) if way.ifindex not in ports]
        elsewhere: dict[int, dict[Network, None]] = {}
        for _, network in _allowed(bound):
            for way in ways:
                there = elsewhere.setdefault(way.ifindex, {})
                if _within(way.network, network) and not any(
                    _within(way.network, prefix) for prefix in denied
                ):
                    there[way.network] = None
        for ifindex, there in elsewhere.items():
            if not there:
                continue
            networks = list(there)
            name = names.get(ifindex, f"#{ifindex}")
            yield warning(
                f"group {bound.group.name}",
                f"{_few(networks)} {'is' if len(networks) == 1 else 'are'} allowed, but the kernel routes "
                f"that by {name}, which is no port of the group: hosts there are not asked for",
                f"ip route: {networks[0]} dev {name}",
                f"add {name} to `downstream` of the group, or `deny: {networks[0]}` to its prefixes",
            )


CHECKS: Final = (
    Check("host-route", "what is for known hosts behind is routed to them", _host_route),
    Check("dead-end", "no blackhole or unreachable route is in the way", _dead_end),
    Check("routed-nowhere", "what is answered for by routes has some", _routed_nowhere),
    Check("always-hole", "what is always answered for is routed behind", _always_hole),
    Check("routed-elsewhere", "what is allowed is not routed by other interfaces", _elsewhere),
)
