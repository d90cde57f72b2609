"""Stand-ins that hold state: a kernel, a record, workers, a clock.

They behave as the real ones do in what the reconciler relies on, and `tests/system` runs one suite against
both.  Each has a hook to make it fail, and a log of what was done to it, in order.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import replace
from ipaddress import IPv6Network, ip_address, ip_interface, ip_network

from portier.core.model import (
    Bound,
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

_CONF = "net/ipv6/conf"
_CONF4 = "net/ipv4/conf"
PROXY_NDP = f"{_CONF}/all/proxy_ndp"


class FakeClock:
    """A monotonic clock that goes forward when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time now."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class FakeRecord:
    """The record of what Portier made, in memory."""

    def __init__(self) -> None:
        self._routes: set[HostRoute] = set()
        self._table_routes: set[KernelRoute] = set()
        self._rules: set[PolicyRule] = set()
        self._proxies: set[ProxyEntry] = set()
        self._sysctls: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, int] = {}

    def note_route(self, route: HostRoute) -> None:
        """Record a route that is about to be added."""
        self._routes.add(route)

    def forget_route(self, route: HostRoute) -> None:
        """Strike a route that is gone."""
        self._routes.discard(route)

    def routes(self) -> frozenset[HostRoute]:
        """The routes on record."""
        return frozenset(self._routes)

    def note_table_route(self, route: KernelRoute) -> None:
        """Record a route of a group's own table that is about to be added."""
        self._table_routes.add(route)

    def forget_table_route(self, route: KernelRoute) -> None:
        """Strike a route of a group's own table that is gone."""
        self._table_routes.discard(route)

    def table_routes(self) -> frozenset[KernelRoute]:
        """The routes of groups' own tables on record."""
        return frozenset(self._table_routes)

    def note_rule(self, rule: PolicyRule) -> None:
        """Record a policy rule that is about to be added."""
        self._rules.add(rule)

    def forget_rule(self, rule: PolicyRule) -> None:
        """Strike a policy rule that is gone."""
        self._rules.discard(rule)

    def rules(self) -> frozenset[PolicyRule]:
        """The policy rules on record."""
        return frozenset(self._rules)

    def note_proxy(self, entry: ProxyEntry) -> None:
        """Record a proxy entry that is about to be added."""
        self._proxies.add(entry)

    def forget_proxy(self, entry: ProxyEntry) -> None:
        """Strike a proxy entry that is gone."""
        self._proxies.discard(entry)

    def proxies(self) -> frozenset[ProxyEntry]:
        """The proxy entries on record."""
        return frozenset(self._proxies)

    def note_sysctl(self, path: str, old: str, new: str, ifindex: int = 0) -> None:
        """Record a sysctl that is about to be written, and the interface it is of."""
        self._sysctls[path] = (old, new)
        self._owners[path] = ifindex

    def forget_sysctl(self, path: str) -> None:
        """Strike a sysctl that is as it was."""
        self._sysctls.pop(path, None)
        self._owners.pop(path, None)

    def sysctls(self) -> dict[str, tuple[str, str]]:
        """The sysctls on record: what was found and what was set."""
        return dict(self._sysctls)

    def owners(self) -> dict[str, int]:
        """The interfaces whose sysctls they are."""
        return dict(self._owners)

    def empty(self) -> bool:
        """Whether nothing is on record."""
        return not (self._routes or self._table_routes or self._rules or self._proxies or self._sysctls)


class FakeKernel:
    """A kernel's links, addresses, routes, policy rules and sysctls.

    As in Linux: what is on a link goes with it; ``all/forwarding``, of either family, overwrites every
    interface's own value and the default; a route is added only where none with its destination, table and
    metric is; an interface loses its IPv4 routes with its last IPv4 address.
    """

    def __init__(self, record: FakeRecord | None = None, *, force_forwarding: bool = True) -> None:
        self.record = record or FakeRecord()
        self.force_forwarding = force_forwarding
        self.links: dict[int, Link] = {}
        self.addresses: list[LinkAddress] = []
        self.routes: list[KernelRoute] = []  # of other makers, but for host routes
        self.host_routes: list[HostRoute] = []  # whoever made them
        self.table_routes: set[KernelRoute] = set()  # of Portier's number, but for host routes
        self.lookups: set[tuple[int, int]] = set()  # tables that rules of others lead to
        self.rules: set[PolicyRule] = set()
        self.proxies: set[ProxyEntry] = set()  # whoever made them
        self.settings: dict[str, str] = {PROXY_NDP: "0"}  # sysctls that no snapshot shows
        self.local_rule = 0
        self.forwarding = 0
        self.forwarding_default = 0
        self.forwarding4 = 0
        self.forwarding4_default = 0
        self.rp_filter = self.proxy_arp = 0  # IPv4's, of all interfaces
        self.done: list[str] = []  # what was asked of it and succeeded
        self.refuse: Callable[[str], int] = lambda _operation: 0  # gives an errno to fail an operation with
        self.snapshots = 0
        self._next = 1

    # -- the world: what administrators and drivers do

    def add_link(
        self,
        name: str,
        *,
        kind: str = "veth",
        up: bool = True,
        carrier: bool = True,
        master: str = "",
        mac: bytes | None = b"",
        mtu: int = 1500,
        address: bool = True,
        accept_ra: int = 1,
    ) -> int:
        """Make a link; its MAC follows from its index unless one is given, or None for a link without.
        ``address`` gives it a link-local address that is past duplicate address detection."""
        self._next += 1
        index = self._next
        self.links[index] = Link(
            ifindex=index,
            name=name,
            mac=mac if mac is None or mac else b"\x02\0\0\0\0" + bytes([index % 256]),
            mtu=mtu,
            up=up,
            carrier=carrier,
            master=self.index(master) if master else 0,
            kind=kind,
            loopback=kind == "loopback",
            forwarding=self.forwarding_default,
            accept_ra=accept_ra,
            force_forwarding=0 if self.force_forwarding else None,
            forwarding4=self.forwarding4_default,
            rp_filter=0,
            proxy_arp=0,
        )
        self.settings |= {f"net/{family}/neigh/{name}/proxy_delay": "80" for family in ("ipv4", "ipv6")}
        if address:
            self.add_address(name, f"fe80::{index:x}/64")
        return index

    def index(self, name: str) -> int:
        """The index of a link, by name."""
        return next(link.ifindex for link in self.links.values() if link.name == name)

    def change_link(self, name: str, /, **changes: object) -> None:
        """Change fields of a link, its name among them."""
        index = self.index(name)
        self.links[index] = self.links[index]._replace(**changes)  # type: ignore[arg-type]
        if changes.get("up") is False:
            self._flush(index)

    def remove_link(self, name: str) -> None:
        """Delete a link, and with it its addresses and routes; policy rules stay."""
        index = self.index(name)
        del self.links[index]
        self._flush(index)
        self.addresses = [a for a in self.addresses if a.ifindex != index]

    def _flush(self, index: int) -> None:
        self.proxies = {entry for entry in self.proxies if entry.ifindex != index}
        self.routes = [r for r in self.routes if r.ifindex != index]
        self.host_routes = [r for r in self.host_routes if r.ifindex != index]
        self.table_routes = {r for r in self.table_routes if r.ifindex != index}

    def add_address(self, name: str, text: str, *, tentative: bool = False) -> None:
        """Give a link an address like ``2001:db8::1/64`` or ``192.0.2.1/24``, and the route that comes with
        it."""
        index = self.index(name)
        address = ip_interface(text)
        network = address.network
        self.addresses.append(LinkAddress(index, address.packed, network.prefixlen, tentative, False, False))
        if network.prefixlen != network.max_prefixlen and not network.is_link_local:  # those are not shown
            self.add_foreign_route(str(network), name, protocol=2, metric=256 if network.version == 6 else 0)

    def settle_addresses(self) -> None:
        """End duplicate address detection, with success."""
        self.addresses = [a._replace(tentative=False) for a in self.addresses]

    def remove_address(self, name: str, text: str) -> None:
        """Take an address away, and the route that came with it."""
        index = self.index(name)
        address = ip_interface(text)
        self.addresses = [a for a in self.addresses if (a.ifindex, a.address) != (index, address.packed)]
        network = address.network.network_address.packed
        self.routes = [
            r for r in self.routes if (r.ifindex, r.destination, r.protocol) != (index, network, 2)
        ]
        if address.version == 4 and not any(
            a.ifindex == index and len(a.address) == 4 for a in self.addresses
        ):
            self.routes = [r for r in self.routes if r.ifindex != index or len(r.destination) != 4]
            self.host_routes = [r for r in self.host_routes if r.ifindex != index or len(r.address) != 4]

    def add_foreign_route(
        self, network: str, name: str, *, via: str | None = None, protocol: int = 4, metric: int = 1024
    ) -> None:
        """Make a route as others make them."""
        parsed = ip_network(network)
        gateway = ip_address(via).packed if via else None
        route = KernelRoute(
            parsed.network_address.packed, parsed.prefixlen, self.index(name), gateway, 254, metric, protocol
        )
        self.routes = [*self.routes, route]

    # -- what Portier asks of it

    def snapshot(
        self, protocol: int | Collection[int] = 135, ports: Container[int] | None = None
    ) -> Snapshot:
        """What the kernel shows.  Without ``ports`` the routes of all links are shown."""
        self.snapshots += 1
        own = {protocol} if isinstance(protocol, int) else set(protocol)
        return Snapshot(
            links=tuple(self.links.values()),
            addresses=tuple(self.addresses),
            routes=tuple(r for r in self.routes if ports is None or r.ifindex in ports),
            host_routes=frozenset(r for r in self.host_routes if r.protocol in own),
            rules=frozenset(r for r in self.rules if r.protocol in own),
            local_rule=self.local_rule,
            forwarding=self.forwarding,
            force_forwarding=self.force_forwarding,
            forwarding4=self.forwarding4,
            rp_filter=self.rp_filter,
            proxy_arp=self.proxy_arp,
            table_routes=frozenset(r for r in self.table_routes if r.protocol in own),
            lookups=frozenset(self.lookups),
            proxies=frozenset(self.proxies),
        )

    def add_route(self, route: HostRoute) -> RouteResult:
        """Add a host route, exclusively."""
        self._attempt(f"add route {ip_address(route.address)}")
        if route.ifindex not in self.links:
            raise KernelError(f"add route {ip_address(route.address)}", "No such device", errno.ENODEV)
        for present in self.host_routes:
            if (present.address, present.table, present.metric) == (route.address, route.table, route.metric):
                ours = present == route and route in self.record.routes()
                return RouteResult.PRESENT if ours else RouteResult.FOREIGN
        self.record.note_route(route)
        self.host_routes.append(route)
        return RouteResult.ADDED

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        """Add a host route in the place of another of Portier's."""
        if old != new and old in self.record.routes():
            self.remove_route(old)
        return self.add_route(new)

    def remove_route(self, route: HostRoute) -> None:
        """Remove a host route that is on record; that it is gone is success."""
        self._attempt(f"remove route {ip_address(route.address)}")
        if route in self.record.routes():
            self.host_routes = [present for present in self.host_routes if present != route]
            self.record.forget_route(route)

    def add_table_route(self, route: KernelRoute) -> None:
        """Add a route of a group's own table; that it is there is success."""
        operation = f"add route {ip_address(route.destination)}/{route.prefix_length} table {route.table}"
        self._attempt(operation)
        if route.ifindex not in self.links:
            raise KernelError(operation, "No such device", errno.ENODEV)
        self.table_routes.add(route)

    def remove_table_route(self, route: KernelRoute) -> None:
        """Remove a route of a group's own table that is on record; that it is gone is success."""
        self._attempt(
            f"remove route {ip_address(route.destination)}/{route.prefix_length} table {route.table}"
        )
        if route in self.record.table_routes():
            self.table_routes.discard(route)

    def add_rule(self, rule: PolicyRule) -> None:
        """Add a policy rule; one that is there already is success."""
        self._attempt(f"add rule {rule.iif}")
        self.rules.add(rule)

    def remove_rule(self, rule: PolicyRule) -> None:
        """Remove a policy rule that is on record; that it is gone is success."""
        self._attempt(f"remove rule {rule.iif}")
        if rule in self.record.rules():
            self.rules.discard(rule)

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Add a proxy entry; one of somebody else's for the address is in the way."""
        operation = f"add proxy {ip_address(entry.address)}"
        self._attempt(operation)
        if entry.ifindex not in self.links:
            raise KernelError(operation, "No such device", errno.ENODEV)
        if any(known[:2] == entry[:2] and known != entry for known in self.proxies):
            raise KernelError(operation, "somebody else's entry is in the way", errno.EEXIST)
        self.proxies.add(entry)

    def remove_proxy(self, entry: ProxyEntry) -> None:
        """Remove a proxy entry that is on record; that it is gone is success."""
        self._attempt(f"remove proxy {ip_address(entry.address)}")
        if entry in self.record.proxies():
            self.proxies.discard(entry)

    def get_sysctl(self, path: str) -> str | None:
        """The value of a sysctl, None where there is no such thing."""
        if path in self.settings:
            return self.settings[path]
        if path in self._switches():
            return str(getattr(self, self._switches()[path]))
        tree, name, key = path.rsplit("/", 2)
        link = next((link for link in self.links.values() if link.name == name), None)
        value = getattr(link, self._field(tree, key), None)
        return None if value is None else str(value)

    def set_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl."""
        self._attempt(f"set {path} {value}")
        if path in self.settings:
            self.settings[path] = value
            return
        tree, name, key = path.rsplit("/", 2)
        key = self._field(tree, key)
        if (switch := self._switches().get(path)) is not None:
            setattr(self, switch, int(value))
            if switch in {"forwarding", "forwarding4"}:
                setattr(self, f"{switch}_default", int(value))
                for index, link in self.links.items():
                    self.links[index] = link._replace(**{switch: int(value)})  # type: ignore[arg-type]
            return
        if self.get_sysctl(path) is None:
            raise KernelError(f"set {path}", "No such file or directory", errno.ENOENT)
        index = self.index(name)
        self.links[index] = self.links[index]._replace(**{key: int(value)})  # type: ignore[arg-type]

    @staticmethod
    def _field(tree: str, key: str) -> str:
        return f"{key}4" if (tree, key) == (_CONF4, "forwarding") else key

    @staticmethod
    def _switches() -> dict[str, str]:
        return {
            f"{_CONF}/all/forwarding": "forwarding",
            f"{_CONF}/default/forwarding": "forwarding_default",
            "net/ipv4/ip_forward": "forwarding4",
            f"{_CONF4}/all/forwarding": "forwarding4",
            f"{_CONF4}/default/forwarding": "forwarding4_default",
            f"{_CONF4}/all/rp_filter": "rp_filter",
            f"{_CONF4}/all/proxy_arp": "proxy_arp",
        }

    def close(self) -> None:
        """Nothing is open."""

    def _attempt(self, operation: str) -> None:
        if code := self.refuse(operation):
            raise KernelError(operation, errno.errorcode[code], code)
        self.done.append(operation)


class FakeWorkers:
    """Workers that do nothing but learn what they are told to have learned."""

    def __init__(self, kernel: FakeKernel | None = None) -> None:
        self.kernel = kernel
        self.bounds: dict[str, Bound] = {}
        self.hosts: set[HostRoute] = set()
        self.prefixes: dict[str, frozenset[IPv6Network]] = {}
        self.done: list[str] = []
        self.refuse: Callable[[str], bool] = lambda _name: False

    def learn(self, address: str, ifindex: int, *, route: bool = True) -> HostRoute:
        """Learn a host, and add its route as a worker does."""
        made = HostRoute(ip_address(address).packed, ifindex, 254, 4389, 135)
        self.hosts.add(made)
        if route and self.kernel is not None:
            self.kernel.add_route(made)
        return made

    def running(self) -> dict[str, Bound]:
        """What each worker is bound to."""
        return dict(self.bounds)

    def start(self, bound: Bound) -> None:
        """Start a group's worker."""
        name = bound.group.name
        if self.refuse(name):
            raise OSError(errno.EMFILE, "Too many open files")
        assert name not in self.bounds, "started twice"
        self._sole_owner(bound)
        self.bounds[name] = bound
        self.done.append(f"start {name}")

    def update(self, bound: Bound) -> None:
        """Bind a group's worker anew."""
        self._sole_owner(bound)
        self.bounds[bound.group.name] = bound
        self.done.append(f"update {bound.group.name}")
        self._drop_lost()

    def stop(self, name: str) -> None:
        """Stop a group's worker."""
        del self.bounds[name]
        self.done.append(f"stop {name}")
        self._drop_lost()

    def lose(self, name: str, port: str) -> None:
        """Lose a port, as when its link goes down: what is left is what the worker says it works with."""
        bound = self.bounds[name]
        self.bounds[name] = replace(bound, ports=tuple(p for p in bound.ports if p.name != port))
        self._drop_lost()

    def crash(self, name: str) -> None:
        """Lose a worker with all it knew."""
        del self.bounds[name]
        self._drop_lost()

    def learned(self) -> frozenset[HostRoute]:
        """The host routes that workers want."""
        return frozenset(self.hosts)

    def heard(self) -> Mapping[str, frozenset[IPv6Network]]:
        """The on-link prefixes that workers heard of."""
        return dict(self.prefixes)

    def _drop_lost(self) -> None:
        held = {port.ifindex for bound in self.bounds.values() for port in bound.ports}
        self.hosts = {route for route in self.hosts if route.ifindex in held}

    def _sole_owner(self, bound: Bound) -> None:
        mine = {port.ifindex for port in bound.ports}
        for name, other in self.bounds.items():
            if name != bound.group.name:
                both = mine & {port.ifindex for port in other.ports}
                assert not both, f"{bound.group.name} and {name} both have {both}"
