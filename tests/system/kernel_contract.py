"""What the reconciler relies on in a kernel: one suite for the real one and for the fake.

A subclass gives the fixture ``world``: an empty world whose kernel and record are ``world.kernel`` and
``world.record``, and in which administrators do what the methods of `World` say.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from ipaddress import ip_address
from typing import Protocol

import pytest

from portier.core.model import HostRoute, KernelRoute, Link, PolicyRule, ProxyEntry, Snapshot
from portier.core.outcome import RouteResult
from portier.errors import KernelError

CONF = "net/ipv6/conf"
CONF4 = "net/ipv4/conf"


HostMaker = Callable[..., HostRoute]


class KernelUnderTest(Protocol):
    """The part of a kernel that the suite uses."""

    def snapshot(self, protocol: int = ..., ports: Container[int] | None = ...) -> Snapshot:
        """What there is."""

    def add_route(self, route: HostRoute) -> RouteResult:
        """Add a host route."""

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        """Add a host route in the place of another."""

    def remove_route(self, route: HostRoute) -> None:
        """Remove a host route."""

    def add_rule(self, rule: PolicyRule) -> None:
        """Add a policy rule."""

    def remove_rule(self, rule: PolicyRule) -> None:
        """Remove a policy rule."""

    def add_table_route(self, route: KernelRoute) -> None:
        """Add a route of a group's own table."""

    def remove_table_route(self, route: KernelRoute) -> None:
        """Remove a route of a group's own table."""

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Add a proxy entry."""

    def remove_proxy(self, entry: ProxyEntry) -> None:
        """Remove a proxy entry."""

    def get_sysctl(self, path: str) -> str | None:
        """Read a sysctl."""

    def set_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl."""


class RecordUnderTest(Protocol):
    """The part of a record that the suite uses."""

    def routes(self) -> frozenset[HostRoute]:
        """The routes on record."""

    def note_proxy(self, entry: ProxyEntry) -> None:
        """Record a proxy entry."""

    def note_rule(self, rule: PolicyRule) -> None:
        """Record a rule."""

    def note_table_route(self, route: KernelRoute) -> None:
        """Record a route of a group's own table."""

    def forget_table_route(self, route: KernelRoute) -> None:
        """Strike one off."""


class World(Protocol):
    """A machine and its administrator."""

    @property
    def kernel(self) -> KernelUnderTest:
        """The kernel under test."""

    @property
    def record(self) -> RecordUnderTest:
        """The record that it writes to."""

    def add_link(self, name: str) -> None:
        """Make a link with a peer; both are up."""

    def set_link(self, name: str, *, up: bool) -> None:
        """Set a link up or down."""

    def rename_link(self, name: str, new: str) -> None:
        """Give a link another name, which keeps its index."""

    def remove_link(self, name: str) -> None:
        """Delete a link and its peer."""

    def index(self, name: str) -> int:
        """The index of a link."""

    def add_address(self, name: str, text: str) -> None:
        """Add an address like ``2001:db8::1/64``, not tentative."""

    def remove_address(self, name: str, text: str) -> None:
        """Take an address away."""

    def add_host_route(self, route: HostRoute) -> None:
        """Make an on-link host route of somebody else's, whatever number it bears."""

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Make a proxy entry of somebody else's, whatever number it bears."""

    def add_route(self, network: str, name: str, *, via: str | None = None) -> None:
        """Make a static route of somebody else's, metric 1024."""


def packed(text: str) -> bytes:
    """An address as bytes."""
    return ip_address(text).packed


def rule(name: str, source: str = "fe80::/10", destination: str = "") -> PolicyRule:
    """A policy rule as Portier makes them."""
    return PolicyRule(1135, name, source, destination, 135)


class KernelContract:
    """The suite."""

    @pytest.fixture(params=["2001:db8:7::", "198.51.100."], ids=["ipv6", "ipv4"])
    def host(self, world: World, request: pytest.FixtureRequest) -> HostMaker:
        """Makes host routes of one address family."""

        def make(name: str, last: int = 5, *, metric: int = 4389, protocol: int = 135) -> HostRoute:
            """A host route by that link."""
            address = packed(f"{request.param}{last}")
            return HostRoute(address, world.index(name), 254, metric, protocol)

        return make

    @staticmethod
    def link(world: World, name: str) -> Link:
        """A link of a fresh snapshot."""
        return next(link for link in world.kernel.snapshot().links if link.name == name)

    # -- looking

    def test_links(self, world: World) -> None:
        """A link is shown with what it is; setting it down, renaming and deleting it shows."""
        world.add_link("one")
        link = self.link(world, "one")
        assert (link.ifindex, link.kind, link.mtu) == (world.index("one"), "veth", 1500)
        assert (link.up, link.carrier, link.loopback, link.master) == (True, True, False, 0)
        assert link.mac is not None
        assert len(link.mac) == 6
        world.set_link("one", up=False)
        assert not self.link(world, "one").up
        world.rename_link("one", "two")
        assert self.link(world, "two").ifindex == link.ifindex
        world.remove_link("two")
        assert link.ifindex not in [link.ifindex for link in world.kernel.snapshot().links]

    def test_addresses_come_with_a_route(self, world: World) -> None:
        """An address is shown, and the on-link route of its prefix; both go with the link."""
        world.add_link("one")
        world.add_address("one", "2001:db8:1::1/64")
        index = world.index("one")
        snapshot = world.kernel.snapshot()
        shown = [a for a in snapshot.addresses if a.address == packed("2001:db8:1::1")]
        assert [(a.ifindex, a.prefix_length, a.tentative, a.failed) for a in shown] == [
            (index, 64, False, False)
        ]
        route = KernelRoute(packed("2001:db8:1::"), 64, index, None, 254, 256, 2)
        assert route in snapshot.routes
        world.remove_link("one")
        snapshot = world.kernel.snapshot()
        assert route not in snapshot.routes
        assert all(address.ifindex != index for address in snapshot.addresses)

    def test_ipv4_addresses(self, world: World) -> None:
        """IPv4 addresses are shown beside IPv6's, and the route that comes with them."""
        world.add_link("one")
        world.add_address("one", "192.0.2.1/24")
        index = world.index("one")
        snapshot = world.kernel.snapshot()
        shown = [a for a in snapshot.addresses if len(a.address) == 4 and a.ifindex == index]
        assert [(a.address, *a[2:]) for a in shown] == [(packed("192.0.2.1"), 24, False, False, False)]
        assert KernelRoute(packed("192.0.2.0"), 24, index, None, 254, 0, 2) in snapshot.routes

    def test_routes_of_others(self, world: World) -> None:
        """Others' routes are shown with their gateway, and limited to some links when asked."""
        world.add_link("one")
        world.add_link("two")
        world.add_address("one", "2001:db8:1::1/64")
        world.add_route("2001:db8:2::/64", "one", via="2001:db8:1::2")
        world.add_route("2001:db8:3::/64", "two")
        one, two = world.index("one"), world.index("two")
        gateway = packed("2001:db8:1::2")
        by_gateway = KernelRoute(packed("2001:db8:2::"), 64, one, gateway, 254, 1024, 4)
        on_link = KernelRoute(packed("2001:db8:3::"), 64, two, None, 254, 1024, 4)
        world.add_address("one", "192.0.2.1/24")
        world.add_route("198.51.100.0/24", "one", via="192.0.2.2")
        world.add_route("203.0.113.0/24", "two")
        gateway4 = packed("192.0.2.2")
        by_gateway4 = KernelRoute(packed("198.51.100.0"), 24, one, gateway4, 254, 1024, 4)
        on_link4 = KernelRoute(packed("203.0.113.0"), 24, two, None, 254, 1024, 4)
        assert {by_gateway4, on_link4} <= set(world.kernel.snapshot().routes)
        assert {by_gateway, on_link} <= set(world.kernel.snapshot().routes)
        assert on_link not in world.kernel.snapshot(135, {one}).routes
        assert by_gateway in world.kernel.snapshot(135, {one}).routes

    def test_an_unchanged_world_gives_equal_snapshots(self, world: World) -> None:
        """Looking changes nothing."""
        world.add_link("one")
        world.add_address("one", "2001:db8:1::1/64")
        first = world.kernel.snapshot()
        assert world.kernel.snapshot() == first

    # -- host routes

    def test_add_route(self, world: World, host: HostMaker) -> None:
        """A host route is added once, is shown as Portier's and not as others', and is on record."""
        world.add_link("one")
        route = host("one")
        assert world.kernel.add_route(route) is RouteResult.ADDED
        assert world.record.routes() == {route}
        snapshot = world.kernel.snapshot()
        assert snapshot.host_routes == {route}
        assert all(other.destination != route.address for other in snapshot.routes)
        assert world.kernel.add_route(route) is RouteResult.PRESENT
        assert world.record.routes() == {route}

    def test_a_foreign_route_holds_the_place(self, world: World, host: HostMaker) -> None:
        """One with the same destination, table and metric, by whatever link, is neither replaced nor joined,
        and does not get on record."""
        world.add_link("one")
        world.add_link("two")
        for number in (4, 135):
            foreign = host("one", number, protocol=number)
            world.add_host_route(foreign)
            for name in ("one", "two"):
                ours = host(name, number)
                assert world.kernel.add_route(ours) is RouteResult.FOREIGN
            assert world.record.routes() == frozenset()
            assert world.kernel.snapshot(number).host_routes == {foreign}

    def test_a_foreign_route_of_another_metric_does_not(self, world: World, host: HostMaker) -> None:
        """Routes of different metrics live side by side."""
        world.add_link("one")
        foreign = host("one", metric=1024, protocol=4)
        world.add_host_route(foreign)
        ours = host("one")
        assert world.kernel.add_route(ours) is RouteResult.ADDED
        assert world.kernel.snapshot(4).host_routes == {foreign}
        assert world.kernel.snapshot().host_routes == {ours}

    def test_remove_route(self, world: World, host: HostMaker) -> None:
        """A route is removed, and nothing next to it; once more is success."""
        world.add_link("one")
        world.add_link("two")
        route, other = host("one"), host("two", 6)
        near = host("one", metric=1024, protocol=4)
        world.add_host_route(near)
        world.kernel.add_route(route)
        world.kernel.add_route(other)
        for _ in range(2):
            world.kernel.remove_route(route)
            assert world.kernel.snapshot().host_routes == {other}
        assert world.kernel.snapshot(4).host_routes == {near}
        assert world.record.routes() == {other}

    def test_routes_go_with_their_link(self, world: World, host: HostMaker) -> None:
        """Down or deleted: its host routes are gone, and removing them is success."""
        world.add_link("one")
        world.add_link("two")
        one, two = host("one"), host("two", 6)
        world.kernel.add_route(one)
        world.kernel.add_route(two)
        world.set_link("one", up=False)
        assert world.kernel.snapshot().host_routes == {two}
        world.remove_link("two")
        assert world.kernel.snapshot().host_routes == frozenset()
        world.kernel.remove_route(one)
        world.kernel.remove_route(two)
        assert world.record.routes() == frozenset()

    @pytest.mark.parametrize("name", ["one", "two"])
    def test_a_route_moves(self, world: World, host: HostMaker, name: str) -> None:
        """From one link to another, or to where it is already."""
        world.add_link("one")
        world.add_link("two")
        old, new = host("one"), host(name)
        world.kernel.add_route(old)
        assert world.kernel.move_route(old, new) is (RouteResult.PRESENT if old == new else RouteResult.ADDED)
        assert world.kernel.snapshot().host_routes == {new} == world.record.routes()

    def test_a_route_does_not_move_to_where_anothers_is(self, world: World, host: HostMaker) -> None:
        """A foreign route of the same metric holds the place, and stays."""
        world.add_link("one")
        world.add_link("two")
        foreign = host("one", protocol=4)
        world.add_host_route(foreign)
        assert world.kernel.move_route(host("one"), host("two")) is RouteResult.FOREIGN
        assert world.kernel.snapshot(4).host_routes == {foreign}
        assert world.kernel.snapshot().host_routes == frozenset() == world.record.routes()

    def test_ipv4_routes_go_with_the_last_address(self, world: World) -> None:
        """When an interface loses its last IPv4 address, its other IPv4 routes go too; others' stay."""
        world.add_link("one")
        world.add_link("two")
        for last in (1, 2):
            world.add_address("one", f"192.0.2.{last}/24")
        one = HostRoute(packed("198.51.100.5"), world.index("one"), 254, 4389, 135)
        two, six = one._replace(ifindex=world.index("two")), one._replace(address=packed("2001:db8:7::5"))
        two = two._replace(metric=4390)
        for route in (one, two, six):
            assert world.kernel.add_route(route) is RouteResult.ADDED
        world.remove_address("one", "192.0.2.2/24")
        assert world.kernel.snapshot().host_routes == {one, two, six}
        world.remove_address("one", "192.0.2.1/24")
        assert world.kernel.snapshot().host_routes == {two, six}

    def test_no_route_by_a_missing_link(self, world: World) -> None:
        """The kernel refuses, and nothing is left on record."""
        for text in ("2001:db8:7::5", "198.51.100.5"):
            route = HostRoute(packed(text), 4242, 254, 4389, 135)
            with pytest.raises(KernelError, match=f"add route {text}"):
                world.kernel.add_route(route)
            assert world.record.routes() == frozenset()

    # -- policy rules

    def test_rules(self, world: World) -> None:
        """Rules come and go one by one; twice is success, and the interface need not exist."""
        rules = {rule("one"), rule("one", "", "fe80::/10"), rule("two")}
        for made in rules:
            world.record.note_rule(made)
            world.kernel.add_rule(made)
            world.kernel.add_rule(made)
        assert world.kernel.snapshot().rules == rules
        for _ in range(2):
            world.kernel.remove_rule(rule("one"))
            assert world.kernel.snapshot().rules == rules - {rule("one")}

    def test_rules_for_whole_interfaces(self, world: World) -> None:
        """A rule without prefixes stands beside those with, at a priority of its own, and goes alone."""
        quiet = {rule("one"), rule("one", "", "fe80::/10")}
        whole = rule("one", "")._replace(priority=rule("one").priority + 1)
        for made in (*sorted(quiet), whole):
            world.record.note_rule(made)
            world.kernel.add_rule(made)
        assert world.kernel.snapshot().rules == quiet | {whole}
        world.kernel.remove_rule(whole)
        assert world.kernel.snapshot().rules == quiet

    def test_rules_that_lead_to_a_table(self, world: World) -> None:
        """Rules of a group's own table, of both families, come, are told apart, and go."""
        lookup = PolicyRule(1136, "one", "", "", 135, 1_350_000_000)
        rules = {
            lookup,
            lookup._replace(version=4),
            lookup._replace(priority=1137, table=0, unreachable=True),
            lookup._replace(priority=1138, iif="lo", suppress=127),
        }
        for made in rules:
            world.record.note_rule(made)
            world.kernel.add_rule(made)
            world.kernel.add_rule(made)
        assert world.kernel.snapshot().rules == rules
        world.kernel.remove_rule(lookup)
        assert world.kernel.snapshot().rules == rules - {lookup}

    # -- routes of a group's own table

    def test_routes_of_a_table(self, world: World) -> None:
        """They come and go one by one, are told from host routes and from those of others, and who is not on
        record is left alone."""
        world.add_link("one")
        on_link = KernelRoute(packed("2001:db8:9::"), 64, world.index("one"), None, 100_000, 256, 135)
        default = KernelRoute(bytes(16), 0, on_link.ifindex, packed("fe80::1"), 100_000, 1024, 135)
        before = world.kernel.snapshot()
        for route in (default, on_link):
            world.record.note_table_route(route)
            world.kernel.add_table_route(route)
            world.kernel.add_table_route(route)
        after = world.kernel.snapshot()
        assert after.table_routes == {default, on_link}
        assert (after.routes, after.host_routes) == (before.routes, before.host_routes)
        world.record.forget_table_route(default)
        for route in (on_link, on_link, default):
            world.kernel.remove_table_route(route)
        assert world.kernel.snapshot().table_routes == {default}
        world.record.note_table_route(default)
        world.kernel.remove_table_route(default)
        assert world.kernel.snapshot().table_routes == frozenset()

    def test_rules_outlive_their_interface(self, world: World) -> None:
        """Deleting a link leaves the rules that name it."""
        world.add_link("one")
        world.kernel.add_rule(rule("one"))
        world.remove_link("one")
        assert world.kernel.snapshot().rules == {rule("one")}

    # -- proxy entries

    @pytest.fixture(params=["2001:db8:7::5", "198.51.100.5"], ids=["ipv6", "ipv4"])
    def entry(self, world: World, request: pytest.FixtureRequest) -> ProxyEntry:
        """An entry of Portier's on a link, which is made for it."""
        world.add_link("one")
        return ProxyEntry(packed(request.param), world.index("one"), 135)

    def test_proxy_entries(self, world: World, entry: ProxyEntry) -> None:
        """An entry comes and goes, with everybody's shown; twice is success."""
        world.add_link("two")
        theirs = ProxyEntry(entry.address, world.index("two"), 4)
        world.add_proxy(theirs)
        world.record.note_proxy(entry)
        for _ in range(2):
            world.kernel.add_proxy(entry)
            assert world.kernel.snapshot().proxies == {entry, theirs}
        for _ in range(2):
            world.kernel.remove_proxy(entry)
            assert world.kernel.snapshot().proxies == {theirs}

    def test_proxy_entries_of_others(self, world: World, entry: ProxyEntry) -> None:
        """One for the same address on the same link is neither taken over nor removed."""
        theirs = entry._replace(protocol=4)
        world.add_proxy(theirs)
        world.record.note_proxy(entry)
        with pytest.raises(KernelError, match="somebody else's"):
            world.kernel.add_proxy(entry)
        world.kernel.remove_proxy(entry)
        assert world.kernel.snapshot().proxies == {theirs}

    def test_proxy_entries_not_on_record(self, world: World, entry: ProxyEntry) -> None:
        """An entry that looks like Portier's and is not on record stays."""
        world.add_proxy(entry)
        world.kernel.remove_proxy(entry)
        assert world.kernel.snapshot().proxies == {entry}

    def test_proxy_entries_go_with_their_link(self, world: World, entry: ProxyEntry) -> None:
        """Down is enough; removing what is gone is success, adding where nothing is is not."""
        world.record.note_proxy(entry)
        world.kernel.add_proxy(entry)
        world.set_link("one", up=False)
        assert world.kernel.snapshot().proxies == frozenset()
        world.kernel.remove_proxy(entry)
        world.remove_link("one")
        with pytest.raises(KernelError, match="add proxy"):
            world.kernel.add_proxy(entry)

    # -- sysctls

    def test_sysctls(self, world: World) -> None:
        """A sysctl reads as it was written, and is shown with its link."""
        world.add_link("one")
        for key, value in (("accept_ra", 2), ("forwarding", 1)):
            path = f"{CONF}/one/{key}"
            world.kernel.set_sysctl(path, str(value))
            assert world.kernel.get_sysctl(path) == str(value)
            assert getattr(self.link(world, "one"), key) == value

    def test_force_forwarding(self, world: World) -> None:
        """Where the kernel has it, it is shown with every link; elsewhere with none."""
        world.add_link("one")
        path = f"{CONF}/one/force_forwarding"
        if world.kernel.snapshot().force_forwarding:
            assert self.link(world, "one").force_forwarding == 0
            world.kernel.set_sysctl(path, "1")
            assert self.link(world, "one").force_forwarding == 1
        else:
            assert self.link(world, "one").force_forwarding is None
            assert world.kernel.get_sysctl(path) is None

    def test_the_global_switch_overwrites(self, world: World) -> None:
        """``all/forwarding`` sets the default and every interface's own value, whatever that was."""
        world.add_link("one")
        world.add_link("two")
        world.kernel.set_sysctl(f"{CONF}/one/forwarding", "1")
        assert world.kernel.snapshot().forwarding == 0
        for value in (1, 0):
            world.kernel.set_sysctl(f"{CONF}/all/forwarding", str(value))
            assert world.kernel.snapshot().forwarding == value
            assert world.kernel.get_sysctl(f"{CONF}/default/forwarding") == str(value)
            assert self.link(world, "one").forwarding == value
            assert self.link(world, "two").forwarding == value

    def test_ipv4_forwarding(self, world: World) -> None:
        """Each interface has its own, which net.ipv4.ip_forward overwrites, and the default with it."""
        world.add_link("one")
        world.add_link("two")
        world.kernel.set_sysctl(f"{CONF4}/one/forwarding", "1")
        assert (self.link(world, "one").forwarding4, self.link(world, "two").forwarding4) == (1, 0)
        assert world.kernel.get_sysctl(f"{CONF4}/one/forwarding") == "1"
        assert world.kernel.snapshot().forwarding4 == 0
        for value in (1, 0):
            world.kernel.set_sysctl("net/ipv4/ip_forward", str(value))
            assert world.kernel.snapshot().forwarding4 == value
            assert world.kernel.get_sysctl(f"{CONF4}/default/forwarding") == str(value)
            assert {self.link(world, name).forwarding4 for name in ("one", "two")} == {value}

    def test_settings_of_ipv4_that_only_show(self, world: World) -> None:
        """Each interface's own, and those of all interfaces, which leave its own alone."""
        world.add_link("one")
        for key, value in (("rp_filter", 2), ("proxy_arp", 1)):
            for name in ("one", "all"):
                world.kernel.set_sysctl(f"{CONF4}/{name}/{key}", "0")
            world.kernel.set_sysctl(f"{CONF4}/one/{key}", str(value))
            assert getattr(self.link(world, "one"), key) == value
            assert getattr(world.kernel.snapshot(), key) == 0
            world.kernel.set_sysctl(f"{CONF4}/all/{key}", "1")
            assert getattr(self.link(world, "one"), key) == value
            assert getattr(world.kernel.snapshot(), key) == 1

    def test_missing_sysctls(self, world: World) -> None:
        """What is not there reads as None, and cannot be written."""
        path = f"{CONF}/nowhere/forwarding"
        assert world.kernel.get_sysctl(path) is None
        with pytest.raises(KernelError, match="net/ipv6/conf/nowhere/forwarding"):
            world.kernel.set_sysctl(path, "1")
