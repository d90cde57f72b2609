"""`scope: group`: which routes and rules a group's own tables have, and how tables are numbered."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest

from portier.core import plan
from portier.core.model import (
    Config,
    Group,
    HostRoute,
    KernelRoute,
    Live,
    PolicyRule,
    Routes,
    Rule,
    Scope,
    State,
)
from portier.core.plan import Memory, Report
from tests.fakes import FakeKernel

ROUTER, OTHER = "fe80::1", "fe80::2"
UPSTREAM = (Rule(prefix=Live.UPSTREAM),)
BOTH = (*UPSTREAM, Rule(prefix=IPv4Network("192.0.2.0/24")))


def group(name: str = "guests", **more: Any) -> Group:
    """A group with a table of its own, at eth0 and tap-*."""
    fields = {"upstream": ("eth0",), "downstream": ("tap-*",), "rules": UPSTREAM, "scope": Scope.GROUP} | more
    return Group(name=name, **fields)


def desired(kernel: FakeKernel, *groups: Group, memory: Memory | None = None) -> tuple[State, Report, Memory]:
    """What should be."""
    return plan.desired(Config(groups=groups), kernel.snapshot(), memory or Memory(), now=0.0)


def tables(report: Report) -> dict[str, tuple[int, int]]:
    """The tables of each group."""
    return {of.group.name: tuple(of.tables) for of in report.groups if of.tables}  # type: ignore[misc]


def shown(kernel: FakeKernel, routes: frozenset[KernelRoute], table: int = 0) -> set[str]:
    """Routes as words, those of one table or of all."""
    return {
        f"{ip_address(route.destination)}/{route.prefix_length}"
        f"{f' via {ip_address(route.gateway)}' if route.gateway else ''}"
        f" {kernel.links[route.ifindex].name} {route.metric}"
        for route in routes
        if table in (0, route.table)
    }


def add_route(kernel: FakeKernel, destination: str, device: str, *, table: int = 254, **more: Any) -> None:
    """A route of somebody else's, in any table."""
    network = ip_network(destination)
    via = more.get("via")
    route = KernelRoute(
        network.network_address.packed,
        network.prefixlen,
        kernel.index(device),
        ip_address(via).packed if via else None,
        table,
        more.get("metric", 1024),
        more.get("protocol", 3),
    )
    kernel.routes = [*kernel.routes, route]


@pytest.fixture
def kernel() -> FakeKernel:
    """An uplink with a prefix and a router, a guest's port, and a network of nobody's."""
    made = FakeKernel()
    made.add_link("eth0")
    made.add_address("eth0", "2001:db8:7::1/64")
    made.add_link("tap-3")
    made.add_link("lan0")
    made.add_address("lan0", "2001:db8:e::1/64")
    add_route(made, "::/0", "eth0", via=ROUTER, protocol=9)
    return made


def test_what_the_table_has(kernel: FakeKernel) -> None:
    """The upstream's prefixes and routers and what is routed to downstreams, but no other network, no default
    route by a downstream, and no single address on the link."""
    add_route(kernel, "2001:db8:5::/48", "eth0", via=OTHER)
    add_route(kernel, "2001:db8:7::99/128", "eth0")
    add_route(kernel, "2001:db8:c::/60", "tap-3", via="fe80::99")
    add_route(kernel, "::/0", "tap-3", via="fe80::99")
    add_route(kernel, "::/0", "lan0", via="fe80::98")
    want, report, _ = desired(kernel, group())
    assert shown(kernel, want.table_routes) == {
        "2001:db8:7::/64 eth0 256",
        f"::/0 via {ROUTER} eth0 1024",
        f"2001:db8:5::/48 via {OTHER} eth0 1024",
        "2001:db8:c::/60 via fe80::99 tap-3 1024",
    }
    own = tables(report)["guests"][0]
    assert {(route.table, route.protocol) for route in want.table_routes} == {(own, 135)}


def test_the_rules(kernel: FakeKernel) -> None:
    """What comes from a port is looked up in the table and then nowhere else; what the host sends finds hosts
    there, and nothing shorter.  All behind the rules that keep the kernel quiet."""
    want, report, _ = desired(kernel, group())
    own, uplink = tables(report)["guests"]
    assert not uplink
    made = want.rules - {rule for rule in want.rules if rule.source or rule.destination}
    expected = {PolicyRule(1138, "lo", "", "", 135, own, 6, 127)}
    for port in ("eth0", "tap-3"):
        expected |= {
            PolicyRule(1136, port, "", "", 135, own),
            PolicyRule(1137, port, "", "", 135, unreachable=True),
        }
    assert made == expected


def test_isolate_has_a_table_of_the_upstreams_part(kernel: FakeKernel) -> None:
    """By which what comes from downstreams is routed; the upstream, and the host itself, use the whole."""
    add_route(kernel, "2001:db8:c::/60", "tap-3")
    want, report, _ = desired(kernel, group(isolate=True))
    own, uplink = tables(report)["guests"]
    part = {"2001:db8:7::/64 eth0 256", f"::/0 via {ROUTER} eth0 1024"}
    assert shown(kernel, want.table_routes, uplink) == part
    assert shown(kernel, want.table_routes, own) == part | {"2001:db8:c::/60 tap-3 1024"}
    assert {rule.iif: rule.table for rule in want.rules if rule.table} == {
        "eth0": own,
        "tap-3": uplink,
        "lo": own,
    }
    (bound,) = want.workers.values()
    assert {port.table for port in bound.ports} == {own}, "hosts are in the whole"


def test_families_that_rules_name(kernel: FakeKernel) -> None:
    """Only these are limited: a group without IPv4 rules leaves IPv4 alone."""
    kernel.add_address("eth0", "192.0.2.1/24")
    add_route(kernel, "0.0.0.0/0", "eth0", via="192.0.2.254", metric=0)
    want, _, _ = desired(kernel, group())
    assert {rule.version for rule in want.rules} == {6}
    assert not any(len(route.destination) == 4 for route in want.table_routes)
    want, _, _ = desired(kernel, group(rules=BOTH))
    four = frozenset(route for route in want.table_routes if len(route.destination) == 4)
    assert shown(kernel, four) == {"192.0.2.0/24 eth0 0", "0.0.0.0/0 via 192.0.2.254 eth0 0"}
    assert [rule.suppress for rule in want.rules if rule.version == 4 and rule.iif == "lo"] == [31]


def test_several_routers(kernel: FakeKernel) -> None:
    """Routers with one metric stand side by side, and metrics tell the others apart."""
    add_route(kernel, "::/0", "eth0", via=OTHER, protocol=9)
    add_route(kernel, "::/0", "eth0", via="fe80::3", metric=2048)
    want, _, _ = desired(kernel, group())
    defaults = {line for line in shown(kernel, want.table_routes) if line.startswith("::/0")}
    assert defaults == {
        f"::/0 via {ROUTER} eth0 1024",
        f"::/0 via {OTHER} eth0 1024",
        "::/0 via fe80::3 eth0 2048",
    }


def test_main_comes_before_other_tables(kernel: FakeKernel) -> None:
    """A route that only another table has is taken from there; one with a place in main is not."""
    add_route(kernel, "::/0", "eth0", via=OTHER, table=100)
    add_route(kernel, "2001:db8:5::/48", "eth0", via=OTHER, table=101)
    add_route(kernel, "2001:db8:5::/48", "eth0", via=ROUTER, table=100)
    want, _, _ = desired(kernel, group())
    assert shown(kernel, want.table_routes) == {
        "2001:db8:7::/64 eth0 256",
        f"::/0 via {ROUTER} eth0 1024",
        f"2001:db8:5::/48 via {ROUTER} eth0 1024",
    }


def test_a_routing_daemon_summed_up(kernel: FakeKernel) -> None:
    """Its next hops stand for the default route where there is none, and for nothing where there is."""
    add_route(kernel, "::/0", "eth0", via=OTHER, protocol=186, metric=32)
    want, _, _ = desired(kernel, group())
    assert f"::/0 via {OTHER} eth0 32" not in shown(kernel, want.table_routes)
    kernel.routes = [route for route in kernel.routes if route.protocol != 9]
    want, _, _ = desired(kernel, group())
    assert f"::/0 via {OTHER} eth0 32" in shown(kernel, want.table_routes)


def test_one_prefix_on_two_ports(kernel: FakeKernel) -> None:
    """The upstream's route comes first; a table has no place for a second one of the same metric."""
    kernel.add_address("tap-3", "2001:db8:7::3/64")
    want, _, _ = desired(kernel, group())
    on_link = {line for line in shown(kernel, want.table_routes) if line.startswith("2001:db8:7::/64")}
    assert on_link == {"2001:db8:7::/64 eth0 256"}


def test_numbers_follow_from_names(kernel: FakeKernel) -> None:
    """Neither the order of groups nor others that come and go change a group's number."""
    names = [f"group{number}" for number in range(50)]
    groups = [group(name, upstream=(), downstream=(f"{name}-x",)) for name in names]
    _, report, _ = desired(kernel, *groups)
    numbers = tables(report)
    assert len({own for own, _ in numbers.values()}) == len(names)
    _, report, _ = desired(kernel, *reversed(groups[10:20]))
    assert tables(report) == {name: numbers[name] for name in names[10:20]}


def test_a_number_that_is_taken(kernel: FakeKernel) -> None:
    """One that routes, rules or VRFs of others have is passed over; but a group that runs keeps its own."""
    _, report, memory = desired(kernel, group())
    number = tables(report)["guests"][0]
    add_route(kernel, "2001:db8:5::/48", "lan0", table=number)
    _, report, _ = desired(kernel, group(), memory=memory)
    assert tables(report)["guests"][0] == number
    _, report, _ = desired(kernel, group())
    assert tables(report)["guests"][0] == number + 2
    kernel.lookups.add((6, number + 2))
    kernel.add_link("blue", kind="vrf", address=False)
    kernel.change_link("blue", table=number + 5)
    _, report, _ = desired(kernel, group())
    assert tables(report)["guests"][0] == number + 6


def test_a_table_that_the_user_names(kernel: FakeKernel) -> None:
    """`routes: {table: N}` names the group's own table."""
    want, report, _ = desired(kernel, group(routes=Routes(table=700, protocol=200)))
    assert tables(report)["guests"] == (700, 0)
    assert {(route.table, route.protocol) for route in want.table_routes} == {(700, 200)}
    assert not report.groups[0].warnings


def test_hosts_are_in_the_table(kernel: FakeKernel) -> None:
    """Host routes there are wanted, and those in main are not any more."""
    want, report, memory = desired(kernel, group())
    own = tables(report)["guests"][0]
    here = HostRoute(b"\x20" * 16, kernel.index("tap-3"), own, 4389, 135)
    learned = frozenset({here, here._replace(table=254)})
    config = Config(groups=(group(),))
    want, _, _ = plan.desired(config, kernel.snapshot(), memory, learned=learned, now=1.0)
    assert want.host_routes == {here}


def test_lifetimes_change_nothing(kernel: FakeKernel) -> None:
    """What is the same again gives the same rules and routes."""
    want, _, memory = desired(kernel, group())
    kernel.routes = [*kernel.routes[1:], kernel.routes[0]]
    again, _, _ = desired(kernel, group(), memory=memory)
    assert (again.rules, again.table_routes) == (want.rules, want.table_routes)


# -- VRFs, and tables that nothing leads to -----------------------------------------------------------------


def in_vrf(kernel: FakeKernel, *names: str) -> None:
    """Put links into a VRF with table 77."""
    kernel.add_link("vrf-blue", kind="vrf", address=False)
    kernel.change_link("vrf-blue", table=77)
    for name in names:
        kernel.change_link(name, master=kernel.index("vrf-blue"))


def port_tables(want: State) -> dict[str, int]:
    """The table of each port."""
    return {port.name: port.table for bound in want.workers.values() for port in bound.ports}


def test_ports_inside_a_vrf_have_its_table(kernel: FakeKernel) -> None:
    """Host routes go there, unless the configuration says where; nothing is said of it."""
    in_vrf(kernel, "eth0", "tap-3")
    host = group(scope=Scope.HOST)
    want, report, _ = desired(kernel, host)
    assert port_tables(want) == {"eth0": 77, "tap-3": 77}
    assert not report.groups[0].warnings
    want, _, _ = desired(kernel, replace(host, routes=Routes(table=78)))
    assert port_tables(want) == {"eth0": 78, "tap-3": 78}
    want, _, _ = desired(kernel, replace(host, routes=None))
    assert port_tables(want) == {"eth0": 77, "tap-3": 77}


def test_scope_leaves_a_vrf_to_itself(kernel: FakeKernel) -> None:
    """It is a table of its own already, and the kernel looks there first; that is told."""
    in_vrf(kernel, "tap-3")
    want, report, _ = desired(kernel, group())
    own = tables(report)["guests"][0]
    assert port_tables(want) == {"eth0": own, "tap-3": 77}
    assert {rule.iif for rule in want.rules if rule.table} == {"eth0", "lo"}
    assert "inside a VRF" in report.groups[0].warnings[0]


def test_a_table_that_nothing_leads_to(kernel: FakeKernel) -> None:
    """Host routes in a table that no rule and no VRF leads to are warned of, until something does."""
    elsewhere = group(scope=Scope.HOST, routes=Routes(table=100))
    _, report, memory = desired(kernel, elsewhere)
    (warning,) = report.groups[0].warnings
    assert "leads to table 100" in warning
    assert "ip -6 rule add lookup 100" in warning
    kernel.lookups.add((4, 100))
    _, report, memory = desired(kernel, elsewhere, memory=memory)
    assert report.groups[0].warnings
    kernel.lookups.add((6, 100))
    _, report, memory = desired(kernel, elsewhere, memory=memory)
    assert not report.groups[0].warnings
    _, report, _ = desired(kernel, replace(elsewhere, rules=(Rule(prefix=IPv6Network("2001:db8:7::/64")),)))
    assert not report.groups[0].warnings


def test_rules_behind_the_main_table(kernel: FakeKernel) -> None:
    """Where the local table's rule was moved so far down that Portier's come too late, that is told."""
    kernel.local_rule = 32765
    _, report, _ = desired(kernel, group())
    assert "have no effect" in report.groups[0].warnings[0]
    kernel.local_rule = 2000
    want, report, _ = desired(kernel, group())
    assert not report.groups[0].warnings
    assert min(rule.priority for rule in want.rules) == 2001
