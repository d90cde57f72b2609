"""The steps from what is to what should be, each with the line that `portier plan`, the log and the tests
show of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from ipaddress import ip_address

from portier.core.model import (
    Bound,
    Group,
    HostRoute,
    KernelRoute,
    Mode,
    PolicyRule,
    Port,
    ProxyEntry,
    Role,
    network_order,
)
from portier.core.scope import MAIN


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Write a sysctl; ``path`` is below /proc/sys."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"~ sysctl {self.path} {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class PutRule:
    """Add a policy rule."""

    rule: PolicyRule

    def __str__(self) -> str:
        return f"+ {_rule_text(self.rule)}"


@dataclass(frozen=True, slots=True)
class DropRule:
    """Remove a policy rule."""

    rule: PolicyRule

    def __str__(self) -> str:
        return f"- {_rule_text(self.rule)}"


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start the worker of a group."""

    bound: Bound

    def __str__(self) -> str:
        by_role = ((role, [p.name for p in self.bound.ports if p.role is role]) for role in Role)
        ports = ", ".join(f"{role} {' '.join(names)}" for role, names in by_role if names)
        mode = " (relay)" if self.bound.group.mode is Mode.RELAY else ""
        return f"+ worker {self.bound.group.name}{mode}: {ports}"


@dataclass(frozen=True, slots=True)
class UpdateWorker:
    """Tell the worker of a group what it is bound to now."""

    bound: Bound
    old: Bound

    def __str__(self) -> str:
        return f"~ worker {self.bound.group.name}: {_change(self.old, self.bound)}"


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Stop the worker of a group."""

    name: str

    def __str__(self) -> str:
        return f"- worker {self.name}"


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Add a host route that a worker has learned and the kernel does not have."""

    route: HostRoute
    device: str

    def __str__(self) -> str:
        return f"+ {_route_text(self.route, self.device)}"


@dataclass(frozen=True, slots=True)
class DropRoute:
    """Remove a host route that nobody wants."""

    route: HostRoute
    device: str

    def __str__(self) -> str:
        return f"- {_route_text(self.route, self.device)}"


@dataclass(frozen=True, slots=True)
class PutTableRoute:
    """Add a route of a group's own table."""

    route: KernelRoute
    device: str

    def __str__(self) -> str:
        return f"+ {_table_route_text(self.route, self.device)}"


@dataclass(frozen=True, slots=True)
class DropTableRoute:
    """Remove a route of a group's own table."""

    route: KernelRoute
    device: str

    def __str__(self) -> str:
        return f"- {_table_route_text(self.route, self.device)}"


@dataclass(frozen=True, slots=True)
class PutProxy:
    """Add a proxy entry, so that the kernel answers for an address."""

    entry: ProxyEntry
    device: str

    def __str__(self) -> str:
        return f"+ proxy {ip_address(self.entry.address)} dev {self.device}"


@dataclass(frozen=True, slots=True)
class DropProxy:
    """Remove a proxy entry."""

    entry: ProxyEntry
    device: str

    def __str__(self) -> str:
        return f"- proxy {ip_address(self.entry.address)} dev {self.device}"


Step = (
    SetSysctl
    | PutRule
    | DropRule
    | StartWorker
    | UpdateWorker
    | StopWorker
    | PutRoute
    | DropRoute
    | PutTableRoute
    | DropTableRoute
    | PutProxy
    | DropProxy
)


def _route_text(route: HostRoute, device: str) -> str:
    table = "" if route.table == MAIN else f" table {route.table}"
    return f"route {ip_address(route.address)}/{8 * len(route.address)} dev {device}{table}"


def _table_route_text(route: KernelRoute, device: str) -> str:
    via = f" via {ip_address(route.gateway)}" if route.gateway else ""
    destination = f"{ip_address(route.destination)}/{route.prefix_length}"
    return f"route {destination}{via} dev {device} table {route.table} metric {route.metric}"


def _rule_text(rule: PolicyRule) -> str:
    source = f" from {rule.source}" if rule.source else ""
    destination = f" to {rule.destination}" if rule.destination else ""
    lookup = f"lookup {_table_name(rule.table)}" if rule.table else "blackhole"
    action = "unreachable" if rule.unreachable else lookup
    suppress = f" suppress_prefixlength {rule.suppress}" if rule.suppress >= 0 else ""
    family = " (IPv4)" if rule.version == 4 else ""
    return f"rule iif {rule.iif}{source}{destination} {action}{suppress}{family}"


def _table_name(table: int) -> str:
    return "main" if table == MAIN else str(table)


def _change(old: Bound, new: Bound) -> str:
    """What is different, in the order in which people look for it: ports, prefixes, settings."""
    before = {port[:3]: port for port in old.ports}
    after = {port[:3]: port for port in new.ports}
    parts = [f"+{port.name}" for key, port in after.items() if key not in before]
    parts += [f"-{port.name}" for key, port in before.items() if key not in after]
    for key, port in after.items():
        if key in before and before[key] != port:
            pairs = zip(Port._fields, before[key], port, strict=True)
            what = " and ".join(name.replace("_", "-") for name, a, b in pairs if a != b)
            parts.append(f"{port.name} has other {what}")
    gained, lost = set(new.live) - set(old.live), set(old.live) - set(new.live)
    if gained or lost:
        words = [f"+{network}" for network in sorted(gained, key=network_order)]
        words += [f"-{network}" for network in sorted(lost, key=network_order)]
        parts.append(f"upstream is {' '.join(words)}")
    if old.group is not new.group:
        changed = [f.name for f in fields(Group) if getattr(old.group, f.name) != getattr(new.group, f.name)]
        if changed:
            parts.append(f"other {' and '.join(changed)}".replace("_", " "))
    if old.next_hops != new.next_hops:
        parts.append("other next hops")
    return ", ".join(parts) or "bound anew"
