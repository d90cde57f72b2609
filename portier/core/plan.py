"""What should be, what is, and the ordered steps from one to the other.

`desired` ties the configuration to the links that are there: which upstream is active, which interfaces
are ports and why the others are not, which prefixes ``upstream`` stands for, which routes, policy rules
and sysctls go with that.  `actual` is the same kind of value, of what runs and what the kernel holds of
Portier's own making; `diff` makes steps of the difference.  Stopping is the diff to an empty state.

Everything here is a function of its arguments: the time is one of them, and what must be known of
earlier rounds is in a `Memory` that goes in and comes out.  Nothing here touches anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from portier.core import ipv4, scope
from portier.core.links import Links, is_global, speaks_from, speaks_from4
from portier.core.model import (
    Answer,
    Bound,
    Config,
    Group,
    HostRoute,
    KernelRoute,
    Link,
    Live,
    Mode,
    Network,
    Notice,
    PolicyRule,
    Port,
    ProxyEntry,
    Recorded,
    Role,
    Rule,
    Snapshot,
    State,
    network_order,
)
from portier.core.rules import matches
from portier.core.scope import MAIN, Tables
from portier.core.steps import (
    DropProxy,
    DropRoute,
    DropRule,
    DropTableRoute,
    PutProxy,
    PutRoute,
    PutRule,
    PutTableRoute,
    SetSysctl,
    StartWorker,
    Step,
    StopWorker,
    UpdateWorker,
)
from portier.core.sysctls import FORWARDING, PROXY_NDP, Settings, is_overwritten, value_of

PROTOCOL: Final = 135  # of all that Portier makes: the type of a solicitation
TAKE_BACK: Final = 10.0  # seconds for which an earlier upstream candidate must be usable to be taken back

# Behind the local table (0), so that the host's own addresses are reached, and behind the l3mdev rule
# (1000), so that a VRF's are; before the main table (32766), where the kernel would forward.
RULE_PRIORITY: Final = 1135

_LEAST_MTU: Final = 1280  # RFC 8200 section 5

_LOST: Final = 64  # prefixes that are remembered when an upstream has lost them
_LINK_LOCAL: Final = "fe80::/10"


# -- what is known of earlier rounds ---------------------------------------------------------------


_NOTHING: Final = Recorded()
_UNHEARD: Final[Mapping[str, frozenset[IPv6Network]]] = {}


class _Facts(NamedTuple):
    """What a group's rules say as a whole."""

    live: frozenset[int]  # the versions (6, 4) of which some rule stands for the upstream's prefixes
    unasked: bool  # some rule answers without asking the host, as a port without link-layer address needs
    always: tuple[Rule, ...]
    versions: frozenset[int]  # that rules are of
    kernel: tuple[Rule, ...]  # that leave the answer to the kernel, each for a single address
    asks4: bool  # hosts are asked for by ARP

    @property
    def ipv4(self) -> bool:
        return 4 in self.versions


class _GroupMemory(NamedTuple):
    group: Group
    facts: _Facts
    active: str | None
    usable: Mapping[str, tuple[int, float]]  # candidate -> (interface index, usable since)
    prefixes: tuple[Network, ...]  # on-link upstream at the last round
    lost: Mapping[Network, float]  # those before them -> when they were lost
    bound: Bound
    warnings: tuple[Notice, ...]  # that depend on nothing but ``bound``
    tables: Tables | None  # with `scope: group`


class _Out(NamedTuple):
    """What the kernel routes out of one interface."""

    prefixes: tuple[Network, ...] = ()
    on_link: tuple[Network, ...] = ()


class _Routes(NamedTuple):
    """The kernel's routes by interface, with the routes they were made of."""

    made_of: tuple[KernelRoute, ...] = ()
    by_link: Mapping[int, _Out] = {}
    next_hops: frozenset[tuple[bytes, int]] = frozenset()


class _Binding(NamedTuple):
    """All groups tied to their ports, with what that was made of."""

    config: Config | None
    snapshot: Snapshot
    heard: Mapping[str, frozenset[IPv6Network]]
    links: Links
    reports: tuple[GroupReport, ...]
    versions: Mapping[str, frozenset[int]]  # of IP that a group has rules for
    claims: Mapping[int, str]
    bounds: Sequence[Bound]
    rules: frozenset[PolicyRule]
    table_routes: frozenset[KernelRoute]
    proxies: frozenset[ProxyEntry]
    routes: frozenset[HostRoute]  # to the addresses that the kernel answers for


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a round must know of the rounds before it.  ``deadline`` is when the passing of time alone
    changes what is desired (same clock as ``now``), infinite when it does not."""

    deadline: float = math.inf
    groups: Mapping[str, _GroupMemory] = field(default_factory=dict)
    routes: _Routes = field(default_factory=_Routes)
    last: _Binding | None = None


# -- the report --------------------------------------------------------------------------------------


class PortReport(NamedTuple):
    """An interface that the group names or matches.  ``state`` is active, standby (a usable candidate
    that is not needed), waiting (for the world to change), refused or conflict; ``reason`` says why
    it is not active.  ``source`` and ``source4`` are the addresses (packed) that it speaks from."""

    name: str
    role: Role
    state: str
    reason: str = ""
    ifindex: int = 0
    mac: bytes | None = None
    source: bytes | None = None
    source4: bytes | None = None


class LivePrefix(NamedTuple):
    """One prefix that ``upstream`` stands for; ``grace_left`` in seconds once the upstream has lost it."""

    prefix: Network
    grace_left: float | None


class GroupReport(NamedTuple):
    """How a group stands.  ``problems`` degrade the daemon, ``warnings`` do not.  ``tables`` are its own
    ones, with `scope: group`."""

    group: Group
    active: str | None
    ports: tuple[PortReport, ...]
    live: tuple[LivePrefix, ...]
    ipv4: bool
    problems: tuple[Notice, ...]
    warnings: tuple[Notice, ...]
    tables: Tables | None = None


class Report(NamedTuple):
    """How everything stands.

    ``missing`` are commands for the sysctls that ``sysctls: check`` leaves to the user.  ``left`` are
    sentences about sysctls that somebody else changed since.  ``links`` are all that groups name or
    match.  ``forget`` and ``renamed`` tell what to do to the record, for sysctls that need no
    restoring any more, or whose interface has another name now.  ``unread`` are sysctls whose values are
    needed and were not among `Recorded.values`.  ``entries`` is how many proxy entries should be, and
    ``foreign`` are sentences about those of others.
    """

    groups: tuple[GroupReport, ...] = ()
    missing: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    links: frozenset[int] = frozenset()
    forget: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    unread: frozenset[str] = frozenset()
    entries: int = 0
    foreign: tuple[Notice, ...] = ()


@lru_cache(maxsize=65536)
def _network(address: bytes, length: int) -> Network:
    if len(address) == 4:
        return IPv4Network((address, length), strict=False)
    return IPv6Network((address, length), strict=False)


def _index_routes(routes: tuple[KernelRoute, ...]) -> _Routes:
    prefixes: dict[int, set[tuple[bytes, int]]] = {}
    on_link: dict[int, set[tuple[bytes, int]]] = {}
    next_hops = set()
    for destination, length, ifindex, gateway, _table, _metric, _protocol in routes:
        if gateway is not None and is_global(gateway):
            next_hops.add((gateway, ifindex))
        if not length or not is_global(destination):
            continue
        if gateway is None:
            if length == 8 * len(destination):
                continue
            on_link.setdefault(ifindex, set()).add((destination, length))
        prefixes.setdefault(ifindex, set()).add((destination, length))
    by_link = {
        ifindex: _Out(_networks(found), _networks(on_link.get(ifindex, ())))
        for ifindex, found in prefixes.items()
    }
    return _Routes(routes, by_link, frozenset(next_hops))


def _networks(found: Iterable[tuple[bytes, int]]) -> tuple[Network, ...]:
    return tuple(_network(*prefix) for prefix in sorted(found, key=lambda p: (len(p[0]), *p)))


def keep(config: Config, memory: Memory) -> Config:
    """The same configuration, made of the very groups that `memory` knows where they are equal: comparing
    10,000 rules once, when they were loaded, spares comparing them in every round."""
    groups = tuple(
        known.group if (known := memory.groups.get(group.name)) and known.group == group else group
        for group in config.groups
    )
    return replace(config, groups=groups)


# -- desired -----------------------------------------------------------------------------------------------


def desired(
    config: Config | None,
    snapshot: Snapshot,
    memory: Memory,
    *,
    learned: frozenset[HostRoute] = frozenset(),
    heard: Mapping[str, frozenset[IPv6Network]] = _UNHEARD,
    recorded: Recorded = _NOTHING,
    now: float,
) -> tuple[State, Report, Memory]:
    """What should be.  ``config`` None means nothing: what stopping and cleaning up come down to.

    ``learned`` are the host routes that workers want, ``heard`` the on-link prefixes by group that they heard
    of in Router Advertisements.  ``now`` is in seconds of any clock that only goes
    forward.  Values that did not change since ``memory`` are the same objects.
    """
    if not _same(memory, config, snapshot, heard):
        memory = _bind(config, snapshot, memory, heard, now)
    binding = memory.last
    assert binding is not None  # noqa: S101  (it is the same as something, or was made just now)
    sysctls = Settings(snapshot, binding.links, recorded)
    sysctls.decide(config, binding)
    state = State(
        workers={bound.group.name: bound for bound in binding.bounds},
        host_routes=_wanted_routes(learned | binding.routes, binding.bounds, snapshot, recorded),
        rules=binding.rules,
        sysctls=sysctls.want,
        table_routes=binding.table_routes,
        proxies=_wanted_entries(binding.proxies, snapshot, recorded),
    )
    report = Report(
        groups=binding.reports,
        missing=tuple(sysctls.missing),
        left=tuple(sysctls.left),
        links=frozenset(binding.claims),
        forget=tuple(sysctls.forget),
        renamed=tuple(sysctls.renamed),
        unread=frozenset(sysctls.unread),
        entries=len(binding.proxies),
        foreign=tuple(_foreign_entries(binding, snapshot, recorded)),
    )
    return state, report, memory


def _same(
    memory: Memory,
    config: Config | None,
    snapshot: Snapshot,
    heard: Mapping[str, frozenset[IPv6Network]],
) -> bool:
    """Whether groups are bound as in the last round: what they depend on are the very same objects, and
    time changes nothing about it."""
    return (
        memory.last is not None
        and memory.deadline == math.inf
        and memory.last.config is config
        and memory.last.heard == heard
        and memory.last.snapshot.links is snapshot.links
        and memory.last.snapshot.addresses is snapshot.addresses
        and memory.last.snapshot.routes is snapshot.routes
        and memory.last.snapshot.local_rule == snapshot.local_rule
        and memory.last.snapshot.lookups == snapshot.lookups
        and memory.last.snapshot.rp_filter == snapshot.rp_filter
        and memory.last.snapshot.proxy_arp == snapshot.proxy_arp
    )


def _bind(
    config: Config | None,
    snapshot: Snapshot,
    memory: Memory,
    heard: Mapping[str, frozenset[IPv6Network]],
    now: float,
) -> Memory:
    """Tie all groups to the links there are."""
    links = Links(snapshot)
    routes = memory.routes
    if routes.made_of is not snapshot.routes and routes.made_of != snapshot.routes:
        made = _index_routes(snapshot.routes)
        routes = made._replace(next_hops=routes.next_hops) if made.next_hops == routes.next_hops else made

    claims: dict[int, str] = {}
    reports = []
    groups = {}
    deadline = math.inf
    before = {name: kept.tables for name, kept in memory.groups.items() if kept.tables}
    priority = _priority(snapshot)
    tables = scope.allot(config.groups if config else (), before, snapshot)
    for group in config.groups if config else ():
        known = memory.groups.get(group.name)
        own = tables.get(group.name)
        said = heard.get(group.name, frozenset())
        binder = _Binder(group, known, now, links=links, routes=routes, heard=said, claims=claims, tables=own)
        of_group, kept = binder.result()
        groups[group.name] = kept
        versions = kept.facts.versions
        more = [
            *scope.warnings(kept.bound, own, versions, snapshot, priority),
            *ipv4.warnings(kept.bound, versions, links.by_index, snapshot),
        ]
        reports.append(of_group._replace(warnings=(*of_group.warnings, *more), tables=own))
        deadline = min(deadline, binder.deadline)

    bounds = [kept.bound for kept in groups.values() if kept.bound.ports]
    answers = [answer for kept in groups.values() if kept.facts.kernel for answer in _kernel_answers(kept)]
    rules = {rule for bound in bounds for rule in _rules_of(bound, priority)}
    table_routes: set[KernelRoute] = set()
    if tables:
        by_link = scope.by_link(snapshot.routes)
        for kept in groups.values():
            if kept.tables:
                versions = kept.facts.versions
                rules.update(scope.rules_of(kept.bound, kept.tables, versions, priority))
                table_routes.update(scope.routes_of(kept.bound, kept.tables, versions, by_link))
    rules.update(rule for answer in answers for rule in _let_through(answer, priority))
    last = _Binding(
        config=config,
        snapshot=snapshot,
        heard=heard,
        links=links,
        reports=tuple(reports),
        versions={name: kept.facts.versions for name, kept in groups.items()},
        claims=claims,
        bounds=bounds,
        rules=frozenset(rules),
        table_routes=frozenset(table_routes),
        proxies=frozenset(
            ProxyEntry(answer.address, port.ifindex, PROTOCOL) for answer in answers for port in answer.asked
        ),
        routes=frozenset(answer.route for answer in answers if answer.route is not None),
    )
    return Memory(deadline=deadline, groups=groups, routes=routes, last=last)


def _wanted_routes(
    learned: frozenset[HostRoute], bounds: Iterable[Bound], snapshot: Snapshot, recorded: Recorded
) -> frozenset[HostRoute]:
    """What was learned on a port that there still is, but for what the kernel has from somebody else."""
    places = {
        (port.ifindex, port.table, routes.metric, routes.protocol)
        for bound in bounds
        if (routes := bound.group.routes) is not None
        for port in bound.ports
    }
    foreign = snapshot.host_routes - recorded.routes
    return frozenset(route for route in learned - foreign if route[1:] in places)


class _KernelAnswer(NamedTuple):
    """An address that the kernel answers for: where it is asked for, and the route to it."""

    address: bytes
    asked: tuple[Port, ...]
    route: HostRoute | None
    table: int


def _homes(rule: Rule, ports: Iterable[Port]) -> list[Port]:
    """The downstream ports on which a rule's hosts may live."""
    return [
        port
        for port in ports
        if port.role is Role.DOWNSTREAM and (not rule.downstream or matches(port.name, rule.downstream))
    ]


def _kernel_answers(kept: _GroupMemory) -> Iterable[_KernelAnswer]:
    """What the kernel is to answer for in a group.

    An address is asked for on the upstream and on the downstreams on which it cannot live; without
    ``downstream`` that may be any of them.  The kernel must have a route to it, IPv4's out of another
    interface before it answers at all: where the address can live on one port alone, it is made here.
    """
    bound, group = kept.bound, kept.group
    for rule in kept.facts.kernel:
        if isinstance(rule.prefix, Live):
            continue
        address = rule.prefix.network_address.packed
        homes = _homes(rule, bound.ports)
        others = (port for port in bound.ports if port.mac is not None and port not in homes)
        asked = tuple(port for port in others if port.role is Role.UPSTREAM or not group.isolate)
        to, home = group.routes, homes[0] if len(homes) == 1 else None
        route = None
        if to is not None and home is not None:
            route = HostRoute(address, home.ifindex, home.table, to.metric, to.protocol)
        yield _KernelAnswer(address, asked, route, route.table if route is not None else MAIN)


def _let_through(answer: _KernelAnswer, priority: int) -> Iterable[PolicyRule]:
    """The rules that bring the kernel the unicast probes for what it answers for: it takes them for traffic
    to forward until it finds the proxy entry.  They come before those of `_quiet`, which would lose them."""
    if len(answer.address) == 16:
        target = f"{IPv6Address(answer.address)}/128"
        for port in answer.asked:
            yield PolicyRule(priority - 1, port.name, _LINK_LOCAL, target, PROTOCOL, answer.table)


def _entry_key(entry: ProxyEntry) -> tuple[bytes, int]:
    return entry.address, entry.ifindex


def _wanted_entries(
    entries: frozenset[ProxyEntry], snapshot: Snapshot, recorded: Recorded
) -> frozenset[ProxyEntry]:
    """The entries that should be, but for those that somebody else made."""
    if not entries:
        return entries
    foreign = set(map(_entry_key, snapshot.proxies - recorded.proxies))
    return frozenset(entry for entry in entries if _entry_key(entry) not in foreign)


def _foreign_entries(binding: _Binding, snapshot: Snapshot, recorded: Recorded) -> Iterable[Notice]:
    """What to tell of proxy entries of other makers, where Portier has to do with them."""
    if not binding.proxies:
        return
    wanted = set(map(_entry_key, binding.proxies))
    arming = PROXY_NDP in recorded.sysctls
    for entry in sorted(snapshot.proxies - recorded.proxies):
        link = binding.links.by_index.get(entry.ifindex)
        text = f"proxy {ip_address(entry.address)} dev {link.name if link else f'#{entry.ifindex}'}"
        if _entry_key(entry) in wanted:
            yield Notice("proxy-entries", f"{text} is somebody else's: left alone")
        elif arming and len(entry.address) == 16:
            yield Notice(
                "proxy-entries",
                f"{text} is somebody else's, and in force too since net.ipv6.conf.all.proxy_ndp is on",
            )


def _priority(snapshot: Snapshot) -> int:
    """That of the first of Portier's rules; people with VRFs move the local table's down."""
    return max(RULE_PRIORITY, snapshot.local_rule + 1)


def _rules_of(bound: Bound, priority: int) -> Iterable[PolicyRule]:
    for port in bound.ports:
        if bound.group.mode is Mode.RELAY:
            yield _keep_out(priority, port.name)
        elif port.source is not None:
            yield from _quiet(priority, port.name)


@lru_cache(maxsize=65536)
def _keep_out(priority: int, name: str) -> PolicyRule:
    """The rule that keeps the kernel from forwarding what Portier relays, and from answering it by ICMP.  It
    has a priority of its own: at one priority the kernel takes a rule without prefixes and one with for
    the same, when it adds and when it removes."""
    return PolicyRule(priority + 1, name, "", "", PROTOCOL)


@lru_cache(maxsize=65536)
def _quiet(priority: int, name: str) -> tuple[PolicyRule, ...]:
    """The rules that keep the kernel from answering what Portier relays on a port."""
    return (
        PolicyRule(priority, name, _LINK_LOCAL, "", PROTOCOL),
        PolicyRule(priority, name, "", _LINK_LOCAL, PROTOCOL),
    )


def _facts(group: Group) -> _Facts:
    rules = group.rules
    return _Facts(
        live=frozenset(rule.version for rule in rules if isinstance(rule.prefix, Live)),
        unasked=any(rule.allow and rule.answer in {Answer.ALWAYS, Answer.ROUTED} for rule in rules),
        always=tuple(rule for rule in rules if rule.allow and rule.answer is Answer.ALWAYS),
        versions=frozenset(rule.version for rule in rules),
        kernel=tuple(rule for rule in rules if rule.allow and rule.answer is Answer.KERNEL)
        if group.mode is Mode.ROUTE
        else (),
        asks4=any(
            rule.allow and rule.answer in {Answer.RESOLVE, Answer.ALWAYS} and rule.version == 4
            for rule in rules
        ),
    )


def _overlap(rule: Rule, on_link: Network) -> bool:
    """Whether a rule is for addresses of a prefix that is on-link upstream."""
    prefix = rule.prefix
    return rule.version == on_link.version and (isinstance(prefix, Live) or prefix.overlaps(on_link))


# Relaying takes no address; asking for hosts and saying Packet Too Big do.
_SPEECHLESS: Final = "relays, but has no usable address to speak from"


class _Binder:
    """Ties one group to the links there are."""

    def __init__(
        self,
        group: Group,
        known: _GroupMemory | None,
        now: float,
        *,
        links: Links,
        routes: _Routes,
        heard: frozenset[IPv6Network],
        claims: dict[int, str],
        tables: Tables | None,
    ) -> None:
        # A reload that leaves a group as it was makes an equal group, but another object.
        if known is not None and (known.group is group or known.group == group):
            self.group, self.facts = known.group, known.facts
        else:
            self.group, self.facts = group, _facts(group)
        self.known = known
        self.links = links
        self.routes = routes
        self.heard = heard
        self.claims = claims
        self.tables = tables
        self.now = now
        self.deadline = math.inf
        self.ports: list[Port] = []
        self.reports: list[PortReport] = []
        self.usable: dict[str, tuple[int, float]] = {}

    def result(self) -> tuple[GroupReport, _GroupMemory]:
        """The report, and what to remember; ``deadline`` is when the passing of time changes either."""
        active = self._upstream()
        upstream = self.ports[0] if self.ports else None
        self._downstream()
        prefixes = self._live(upstream) if upstream and self.facts.live else ()
        lost = self._lost(prefixes)
        bound = self._bound(prefixes, lost)
        if self.known is not None and bound is self.known.bound:
            warnings = self.known.warnings
        else:
            warnings = self._warnings(bound, upstream)
        problems = tuple(self._problems(active, bound))
        grace = self.group.timers.prefix_grace
        live = tuple(
            LivePrefix(network, lost[network] + grace - self.now if network in lost else None)
            for network in bound.live
        )
        report = GroupReport(
            self.group, active, tuple(self.reports), live, self.facts.ipv4, problems, warnings
        )
        kept = _GroupMemory(
            self.group, self.facts, active, self.usable, prefixes, lost, bound, warnings, self.tables
        )
        return report, kept

    # The upstream.

    def _upstream(self) -> str | None:
        """Pick the active upstream; its port is the group's first.  Without a usable one, a candidate
        that lacks nothing but an address is a port too: it relays DAD, its own among it."""
        candidates = [self._candidate(name) for name in self.group.upstream]
        usable = [c for c in candidates if c.state == "standby"]
        for candidate in usable:
            before = self.known.usable.get(candidate.name) if self.known else None
            same = before is not None and before[0] == candidate.ifindex
            self.usable[candidate.name] = before if before and same else (candidate.ifindex, self.now)
        chosen = self._choose(usable)
        bare = next((c for c in candidates if c.reason == "no usable address"), None) if not chosen else None
        port = chosen or bare
        if port:
            self._add(self.links.by_index[port.ifindex], Role.UPSTREAM)
        for candidate in candidates:
            if candidate is chosen:
                self.reports.append(candidate._replace(state="active"))
            elif candidate.state == "standby" and chosen:
                self.reports.append(candidate._replace(reason=f"{chosen.name} is active"))
            else:
                self.reports.append(candidate)
        return chosen.name if chosen else None

    def _choose(self, usable: Sequence[PortReport]) -> PortReport | None:
        was = self.known.active if self.known else None
        current = next((c for c in usable if c.name == was), None)
        if current is None:
            return usable[0] if usable else None
        for candidate in usable:
            if candidate is current:
                break
            due = self.usable[candidate.name][1] + TAKE_BACK
            if due <= self.now:
                return candidate
            self.deadline = min(self.deadline, due)
        return current

    def _candidate(self, name: str) -> PortReport:
        """An upstream candidate, ``standby`` if it is usable."""
        report = self._look(name, Role.UPSTREAM)
        link = self.links.by_index.get(report.ifindex)
        if link is None or report.state in {"refused", "conflict"}:
            return report
        if link.mac is None:
            return report._replace(state="refused", reason="no link-layer address")
        return report._replace(state="standby") if report.state == "active" else report

    # The downstreams.

    def _downstream(self) -> None:
        own = set(self.group.upstream)
        for name, named in self.links.expand(self.group.downstream).items():
            if name in own:
                continue
            if not named and self.links.master(self.links.by_name[name]):
                continue
            report = self._look(name, Role.DOWNSTREAM)
            link = self.links.by_index.get(report.ifindex)
            if link and report.state == "active" and link.mac is None and not self.facts.unasked:
                reason = "no link-layer address: only answer routed or always can serve it"
                report = report._replace(state="refused", reason=reason)
            elif link and (report.state == "active" or report.reason == "no usable address"):
                self._add(link, Role.DOWNSTREAM)
            self.reports.append(report)

    # Both.

    def _look(self, name: str, role: Role) -> PortReport:
        """Claim an interface and say what keeps it from being a port, if anything."""
        link = self.links.by_name.get(name)
        if link is None:
            return PortReport(name, role, "waiting", "no such interface")
        report = PortReport(name, role, "active", "", link.ifindex, link.mac)
        if link.loopback:
            return report._replace(state="refused", reason="the loopback is never a port")
        if master := self.links.master(link):
            return report._replace(state="refused", reason=f"enslaved to {master}")
        owner = self.claims.setdefault(link.ifindex, self.group.name)
        if owner != self.group.name:
            return report._replace(state="conflict", reason=f"group {owner} has it")
        if unfit := self._unfit(link):
            return report._replace(state="refused", reason=unfit)
        if not link.up:
            return report._replace(state="waiting", reason="down")
        if not link.carrier:
            return report._replace(state="waiting", reason="no carrier")
        usable = self.links.usable(link)
        source, source4 = speaks_from(usable), speaks_from4(usable) if self.facts.ipv4 else None
        if source4 is None and role is Role.DOWNSTREAM and self.facts.ipv4:
            # Without an IPv4 address of its own it speaks from the upstream's.
            source4 = next((port.source4 for port in self.ports if port.role is Role.UPSTREAM), None)
        if source is None and self.group.mode is Mode.RELAY:
            return report._replace(reason=_SPEECHLESS)
        if source is None and source4 is None:
            return report._replace(state="waiting", reason="no usable address")
        return report._replace(source=source, source4=source4)

    def _unfit(self, link: Link) -> str:
        """What keeps a link from being relayed to, whatever happens in the world; "" if nothing does."""
        if self.group.mode is not Mode.RELAY:
            return ""
        if link.mac is None:
            return "no link-layer address: mode relay has none to write into what it relays"
        if link.mtu < _LEAST_MTU:
            return f"its MTU of {link.mtu} is below {_LEAST_MTU}, the least that IPv6 takes"
        return ""

    def _add(self, link: Link, role: Role) -> None:
        usable = self.links.usable(link)
        own = sorted(a.address for a in usable if is_global(a.address))
        out = self.routes.by_link.get(link.ifindex, _Out())
        self.ports.append(
            Port(
                link.ifindex,
                link.name,
                role,
                link.mac,
                link.mtu,
                speaks_from(usable),
                tuple(own),
                *out,
                speaks_from4(usable),
                scope.table_of(self.group, self.tables, link, self.links.by_index.get(link.master)),
            )
        )

    def _live(self, upstream: Port) -> tuple[Network, ...]:
        """The on-link prefixes that rules stand for: by the kernel's routes, and by the word of routers."""
        prefixes = upstream.on_link
        if new := self.heard.difference(prefixes):
            prefixes = tuple(sorted({*prefixes, *new}, key=network_order))
        if len(self.facts.live) == 2:
            return prefixes
        return tuple(network for network in prefixes if network.version in self.facts.live)

    def _lost(self, prefixes: tuple[Network, ...]) -> Mapping[Network, float]:
        """The prefixes that the upstream lost within the grace time, and when."""
        if self.known is None or not self.facts.live:
            return {}
        if not self.known.lost and self.known.prefixes == prefixes:
            return self.known.lost
        grace = self.group.timers.prefix_grace
        lost = dict.fromkeys(self.known.prefixes, self.now) | dict(self.known.lost)
        lost = {
            network: at
            for network, at in lost.items()
            if network not in prefixes and network.version in self.facts.live and at + grace > self.now
        }
        if len(lost) > _LOST:  # routers, and who pretends to be one, may change their mind all the time
            lost = dict(sorted(lost.items(), key=lambda item: item[1])[-_LOST:])
        self.deadline = min(self.deadline, min(lost.values(), default=math.inf) + grace)
        return lost

    def _bound(self, prefixes: tuple[Network, ...], lost: Mapping[Network, float]) -> Bound:
        ports = tuple(self.ports)
        live = tuple(sorted({*prefixes, *lost}, key=network_order)) if lost else prefixes
        old = self.known.bound if self.known else None
        if (
            old is not None
            and old.group is self.group
            and old.next_hops == self.routes.next_hops
            and old.live == live
            and old.ports == ports
        ):
            return old
        return Bound(group=self.group, ports=ports, live=live, next_hops=self.routes.next_hops)

    def _warnings(self, bound: Bound, upstream: Port | None) -> tuple[Notice, ...]:
        warnings = []
        if self.group.mode is Mode.RELAY and len(bound.ports) == 1:
            only = bound.ports[0].name
            warnings.append(
                Notice("ports", f"{only} is the only port: nothing is relayed until there is another")
            )
        for version in sorted(self.facts.live - {network.version for network in bound.live}, reverse=True):
            word = Live.UPSTREAM if version == 6 else Live.UPSTREAM_IPV4
            why = f"{upstream.name} has no on-link prefix" if upstream else "there is no active upstream"
            warnings.append(Notice("upstream-prefix", f"`{word}` stands for no prefix: {why}"))
        for rule in self.facts.kernel:
            homes = _homes(rule, bound.ports)
            if self.group.routes is None or len(homes) > 1:
                many = " and ".join(port.name for port in homes)
                why = f"it may be on {many}" if len(homes) > 1 else "`routes: false`"
                text = f"`answer: kernel` for {rule.prefix} needs a route of yours: {why}"
                warnings.append(Notice("kernel-answers", text))
        if upstream:
            warnings += [
                Notice(
                    "always-overlap",
                    f"`always` for {rule.prefix} overlaps {prefix}, which is on-link on {upstream.name}: "
                    "addresses of hosts that live there are answered too until they are known",
                )
                for rule in self.facts.always
                for prefix in upstream.on_link
                if _overlap(rule, prefix)
            ]
            shared = [
                prefix
                for prefix in upstream.on_link
                if self.group.routes is None
                and any(
                    rule.allow and rule.answer is not Answer.ROUTED and _overlap(rule, prefix)
                    for rule in self.group.rules
                )
            ]
            if shared:
                warnings.append(
                    Notice(
                        "routes-off",
                        f"`routes: false`, and {shared[0]} is on-link on {upstream.name}: the kernel sends "
                        "there what is for hosts behind, unless routes of yours say otherwise",
                    )
                )
        return tuple(warnings)

    def _problems(self, active: str | None, bound: Bound) -> Iterator[Notice]:
        name = self.group.name
        if self.group.upstream and not active:
            yield Notice("upstream", self._no_upstream(), group=name)
        elif self.facts.asks4 and bound.ports and not any(port.source4 for port in bound.ports):
            port = bound.ports[0].name
            yield Notice(
                "ipv4-address",
                f"no IPv4 address to ask from, so no host is found by ARP: give {port} one",
                group=name,
            )
        for report in self.reports:
            # Of upstream candidates another one may do.
            if report.state == "refused" and report.name in self.group.downstream:
                yield Notice("ports", f"{report.name} is refused: {report.reason}", group=name)

    def _no_upstream(self) -> str:
        states = ", ".join(f"{r.name}: {r.reason}" for r in self.reports if r.role is Role.UPSTREAM)
        return f"no usable upstream ({states})"


# -- actual and diff ---------------------------------------------------------------------------------------


def actual(snapshot: Snapshot, running: Mapping[str, Bound], recorded: Recorded, want: State) -> State:
    """What is, of what could matter to ``want``: the workers that run, the routes and rules that are
    Portier's (by protocol number and record both, or there already just as wanted), the sysctls it names."""
    links = {link.name: link for link in snapshot.links}
    values = {
        path: value
        for path in want.sysctls
        if (value := value_of(path, snapshot, links, recorded)) is not None
    }
    return State(
        workers=running,
        host_routes=snapshot.host_routes & recorded.routes,
        rules=snapshot.rules & (recorded.rules | want.rules),
        sysctls=values,
        table_routes=snapshot.table_routes & (recorded.table_routes | want.table_routes),
        proxies=snapshot.proxies & recorded.proxies,
    )


def diff(want: State, have: State, names: Mapping[int, str] | None = None) -> tuple[Step, ...]:
    """The steps from ``have`` to ``want``, in the order in which nothing is ever worse off in between.

    RA acceptance comes before forwarding, which would drop the routes learned from RAs; rules come before
    the workers whose relayed frames they keep the kernel from answering, and behind the routes of the tables
    that they lead to.  An interface has one owner at
    any time, so workers stop or shrink before others get their ports.  Routes are added before any is
    removed, for a host that moved has both, and before the proxy entries that need them.  What is put back
    comes last, in reverse: forwarding, then RA acceptance.  ``names`` are interface names by index, for
    what is of ports that are gone.
    """
    added, removed = want.host_routes - have.host_routes, have.host_routes - want.host_routes
    devices = dict(names or {})
    if added or removed or want.table_routes != have.table_routes or want.proxies != have.proxies:
        bounds = [*have.workers.values(), *want.workers.values()]
        devices.update((port.ifindex, port.name) for bound in bounds for port in bound.ports)

    def device(of: HostRoute | KernelRoute | ProxyEntry) -> str:
        return devices.get(of.ifindex, f"#{of.ifindex}")

    setting, restoring = _sysctl_steps(want.sysctls, have.sysctls)
    steps: list[Step] = list(setting)
    steps += [
        PutTableRoute(route, device(route)) for route in _in_order(want.table_routes - have.table_routes)
    ]
    steps += [PutRule(rule) for rule in sorted(want.rules - have.rules)]
    steps += _worker_steps(want.workers, have.workers)
    steps += [DropProxy(entry, device(entry)) for entry in sorted(have.proxies - want.proxies)]
    steps += [PutRoute(route, device(route)) for route in sorted(added)]
    steps += [PutProxy(entry, device(entry)) for entry in sorted(want.proxies - have.proxies)]
    steps += [DropRoute(route, device(route)) for route in sorted(removed)]
    steps += [DropRule(rule) for rule in sorted(have.rules - want.rules)]
    steps += [
        DropTableRoute(route, device(route)) for route in _in_order(have.table_routes - want.table_routes)
    ]
    steps += restoring
    return tuple(steps)


def _in_order(routes: Iterable[KernelRoute]) -> list[KernelRoute]:
    """On-link before gateway, where they are alike otherwise."""
    return sorted(routes, key=lambda route: (route.table, *route[:3], route.gateway or b"", route.metric))


_SETTING: Final = {
    ("accept_ra", "2"): 0,
    ("force_forwarding", "1"): 1,
    ("forwarding", "1"): 2,
    ("proxy_delay", "0"): 3,
    ("proxy_ndp", "1"): 4,
}


def _sysctl_steps(
    want: Mapping[str, str], have: Mapping[str, str]
) -> tuple[list[SetSysctl], list[SetSysctl]]:
    """What to set first, and what to put back last."""
    setting, restoring = [], []
    switch = want.get(FORWARDING)
    switched = switch is not None and FORWARDING in have and have[FORWARDING] != switch
    for path, value in want.items():
        key = path.rpartition("/")[2]
        now = have.get(path)
        if switched and switch is not None and is_overwritten(path):
            now = switch  # for the switch overwrites it
        if now is None or now == value:
            continue
        step = SetSysctl(path, now, value)
        if (key, value) in _SETTING and not (switched and switch == "0" and is_overwritten(path)):
            setting.append((_SETTING[key, value], path, step))
        else:
            order = {"forwarding": 1, "force_forwarding": 2}.get(key, 3)
            restoring.append((0 if path == FORWARDING else order, path, step))
    return _ranked(setting), _ranked(restoring)


def _ranked(entries: list[tuple[int, str, SetSysctl]]) -> list[SetSysctl]:
    return [step for *_, step in sorted(entries, key=lambda entry: entry[:2])]


def _worker_steps(want: Mapping[str, Bound], have: Mapping[str, Bound]) -> list[Step]:
    # Another mode is another engine on other sockets, so that worker makes way for a new one.
    ending = [
        name for name, bound in have.items() if name not in want or want[name].group.mode != bound.group.mode
    ]
    steps: list[Step] = [StopWorker(name) for name in ending]
    have = {name: bound for name, bound in have.items() if name not in ending}
    # By identity: a worker that lost a port by itself shows what it is left with, and must be told again
    # even if that is just what is wanted now.
    changed = {name: have[name] for name, bound in want.items() if have.get(name, bound) is not bound}
    fresh = [bound for name, bound in want.items() if name not in have]
    if not changed:
        return steps + [StartWorker(bound) for bound in fresh]

    holders = {port.ifindex: name for name, bound in changed.items() for port in bound.ports}
    todo = dict(changed)
    while todo:
        # Whoever gains nothing that another still holds goes first.
        free = [
            name for name in todo if all(holders.get(port.ifindex, name) == name for port in want[name].ports)
        ]
        for name in free:
            steps.append(UpdateWorker(want[name], todo.pop(name)))
            holders = {index: owner for index, owner in holders.items() if owner != name}
        if not free:
            # They swap ports: one lets go of what it loses before anybody takes anything.
            name, old = next(iter(todo.items()))
            kept = {port.ifindex for port in want[name].ports}
            less = _without(old, kept)
            steps.append(UpdateWorker(less, old))
            todo[name] = less
            holders = {i: owner for i, owner in holders.items() if owner != name or i in kept}
    return steps + [StartWorker(bound) for bound in fresh]


def _without(bound: Bound, kept: set[int]) -> Bound:
    ports = tuple(port for port in bound.ports if port.ifindex in kept)
    return Bound(group=bound.group, ports=ports, live=bound.live, next_hops=bound.next_hops)
