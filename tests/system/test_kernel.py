"""The handle on the kernel, where the fake has nothing to say: against the kernel of this machine."""

from __future__ import annotations

import errno
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from portier.core.model import PLAIN_MAKERS, HostRoute, KernelRoute, Link, PolicyRule
from portier.core.outcome import RouteResult
from portier.errors import KernelError
from portier.system import kernel as kernel_module
from portier.system import sysctl
from portier.system.kernel import Kernel
from portier.system.monitor import Monitor
from portier.system.record import Record
from tests.cables import ip, own_namespace
from tests.system.real_world import RealWorld, neighbor_host, real_world

CONF = "net/ipv6/conf"
GUEST = "2001:db8:7::5"


def packed(text: str) -> bytes:
    """An address as bytes."""
    return IPv6Address(text).packed


def shows(*words: str) -> str:
    """What ``ip -6`` says."""
    return subprocess.run(["ip", "-6", *words], check=True, capture_output=True, text=True, timeout=20).stdout


def shows_ipv4(*words: str) -> str:
    """What ``ip -4`` says."""
    return subprocess.run(["ip", "-4", *words], check=True, capture_output=True, text=True, timeout=20).stdout


def routes_to(address: str) -> list[str]:
    """The lines of the routes to one host."""
    return shows("route", "show", address).splitlines()


def link(world: RealWorld, name: str) -> Link:
    """A link of a fresh snapshot."""
    return next(link for link in world.kernel.snapshot().links if link.name == name)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    """A namespace with two links."""
    with real_world(tmp_path) as world:
        world.add_link("one")
        world.add_link("two")
        yield world


@pytest.fixture
def by_one(world: RealWorld) -> HostRoute:
    """A host route by the first link."""
    return HostRoute(packed(GUEST), world.index("one"), 254, 4389, 135)


@pytest.fixture
def by_two(world: RealWorld, by_one: HostRoute) -> HostRoute:
    """The same by the second."""
    return by_one._replace(ifindex=world.index("two"))


# -- looking


def test_settings_are_those_of_proc(world: RealWorld) -> None:
    """The three sysctls that come with a link are the ones of /proc, each for itself."""
    keys = ["forwarding", "accept_ra"]
    if sysctl.read(f"{CONF}/all/force_forwarding") is not None:
        keys.append("force_forwarding")
    for changed in keys:
        world.kernel.set_sysctl(f"{CONF}/one/{changed}", "2" if changed == "accept_ra" else "1")
        for name in ("one", "two", "lo"):
            for key in keys:
                assert getattr(link(world, name), key) == int(sysctl.read(f"{CONF}/{name}/{key}") or -1)


def test_a_dot_in_a_name(world: RealWorld) -> None:
    """An interface with a dot in its name has its own sysctls."""
    world.rename_link("one", "one.7")
    world.kernel.set_sysctl(f"{CONF}/one.7/accept_ra", "2")
    assert link(world, "one.7").accept_ra == 2
    assert link(world, "two").accept_ra == 1


def test_carrier_and_master(world: RealWorld) -> None:
    """Carrier goes with the other end; a bridge port names its bridge; the loopback is no Ethernet."""
    world.set_link("one-peer", up=False)
    deadline = time.monotonic() + 10
    while link(world, "one").carrier and time.monotonic() < deadline:  # the kernel tells in its own time
        time.sleep(0.02)
    assert (link(world, "one").up, link(world, "one").carrier) == (True, False)
    ip("link add name br0 type bridge")
    ip("link set two master br0")
    assert link(world, "two").master == world.index("br0")
    assert (link(world, "br0").kind, link(world, "br0").up) == ("bridge", False)
    assert (link(world, "lo").mac, link(world, "lo").loopback) == (None, True)


def test_a_link_without_ipv6(world: RealWorld) -> None:
    """Where IPv6 is off for lack of MTU, there are no settings."""
    ip("link set one mtu 1000")
    assert (link(world, "one").mtu, link(world, "one").forwarding) == (1000, None)


def test_states_of_addresses(world: RealWorld) -> None:
    """Tentative, failed and deprecated addresses are shown as such."""
    world.kernel.set_sysctl(f"{CONF}/all/accept_dad", "1")
    world.kernel.set_sysctl(f"{CONF}/one/accept_dad", "1")
    world.kernel.set_sysctl(f"{CONF}/one/dad_transmits", "1000")
    ip("address add 2001:db8::1/64 dev one")
    ip("address add 2001:db8::2/64 dev two nodad preferred_lft 0")
    ip("address add 2001:db8::3/64 dev two nodad")
    shown = {a.address: a[3:] for a in world.kernel.snapshot().addresses}
    assert shown[packed("2001:db8::1")] == (True, False, False)
    assert shown[packed("2001:db8::2")] == (False, False, True)
    assert shown[packed("2001:db8::3")] == (False, False, False)
    ip("address add 2001:db8::4/64 dev one-peer nodad")
    ip("address add 2001:db8::4/64 dev one")
    deadline = time.monotonic() + 20
    while "dadfailed" not in shows("address", "show", "dev", "one"):
        assert time.monotonic() < deadline, "no dadfailed"
        time.sleep(0.05)
    index = world.index("one")
    failed = [a.failed for a in world.kernel.snapshot().addresses if a[:2] == (index, packed("2001:db8::4"))]
    assert failed == [True]


def test_every_kind_of_route(world: RealWorld) -> None:
    """A multipath route is one for each nexthop, a nexthop object's is shown with what it stands for; other
    tables are looked at; what is not unicast, or link-local, is not shown."""
    world.add_address("one", "2001:db8:1::1/64")
    one, two = world.index("one"), world.index("two")
    hop, other_hop = "2001:db8:1::a", "2001:db8:1::b"
    ip(f"-6 route add 2001:db8:2::/64 nexthop via {hop} dev one nexthop via {other_hop} dev one")
    ip(f"nexthop add id 7 via {hop} dev one")
    ip("-6 route add 2001:db8:3::/64 nhid 7")
    ip("-6 route add 2001:db8:4::/64 dev two table 1000 protocol ra metric 5")
    ip("-6 route add unreachable 2001:db8:5::/64")
    ip("-6 route add fe80:1::/64 dev two")
    ip(f"-6 route add default via {hop} dev one")
    by = KernelRoute
    assert set(world.kernel.snapshot().routes) == {
        by(packed("2001:db8:1::"), 64, one, None, 254, 256, 2),
        by(packed("2001:db8:2::"), 64, one, packed(hop), 254, 1024, 3),
        by(packed("2001:db8:2::"), 64, one, packed(other_hop), 254, 1024, 3),
        by(packed("2001:db8:3::"), 64, one, packed(hop), 254, 1024, 3),
        by(packed("2001:db8:4::"), 64, two, None, 1000, 5, 9),
        by(bytes(16), 0, one, packed(hop), 254, 1024, 3),
    }


def test_routing_daemons_are_summed_up(world: RealWorld) -> None:
    """Of a routing daemon's routes those on-link are shown, and of those by a gateway the next hops."""
    world.add_address("one", "2001:db8:1::1/64")
    for number in range(20):
        hop = f"2001:db8:1::{10 + number % 2}"
        ip(f"-6 route add 2001:db8:{100 + number}::/48 via {hop} dev one protocol bgp")
    ip("-6 route add 2001:db8:2::/64 dev one protocol bgp")
    one = world.index("one")
    daemon = [route for route in world.kernel.snapshot().routes if route.protocol == 186]
    assert sorted(daemon, key=lambda route: (route.prefix_length, route.gateway)) == [
        KernelRoute(bytes(16), 0, one, packed("2001:db8:1::10"), 254, 1024, 186),
        KernelRoute(bytes(16), 0, one, packed("2001:db8:1::11"), 254, 1024, 186),
        KernelRoute(packed("2001:db8:2::"), 64, one, None, 254, 1024, 186),
    ]


def test_several_protocols(world: RealWorld, by_one: HostRoute) -> None:
    """Asked for several numbers, a snapshot has the host routes of all, in whatever table."""
    routes = {by_one, by_one._replace(protocol=200, table=100), by_one._replace(protocol=201, table=1000)}
    for route in routes:
        assert world.kernel.add_route(route) is RouteResult.ADDED
    assert world.kernel.snapshot().host_routes == {by_one}
    assert world.kernel.snapshot({135, 200, 201}).host_routes == routes


def test_rules_of_others(world: RealWorld) -> None:
    """A rule that is not shaped as Portier's is not taken for one, whatever its number; one of
    another number but otherwise equal is left alone."""
    ours = PolicyRule(1135, "one", "fe80::/10", "", 135)
    ip("-6 rule add iif one from fe80::/10 blackhole priority 1135 protocol 4")
    ip("-6 rule add iif one from fe80::/10 prohibit priority 1135 protocol 135")
    before = shows("rule")
    assert world.kernel.snapshot().rules == frozenset()
    world.kernel.remove_rule(ours)
    assert shows("rule") == before, "not on record"
    world.record.note_rule(ours)
    world.kernel.add_rule(ours)
    assert world.kernel.snapshot().rules == {ours}
    world.kernel.remove_rule(ours)
    assert shows("rule") == before


def test_a_rule_that_the_kernel_mixes_up(world: RealWorld) -> None:
    """Where the kernel takes a foreign rule for Portier's, the failure is told."""
    ours = PolicyRule(1135, "one", "fe80::/10", "", 135)
    ip("-6 rule add iif one from fe80::/10 to 2001:db8::/32 blackhole priority 1135 protocol 135")
    before = shows("rule")
    with pytest.raises(KernelError, match="in the way"):
        world.kernel.add_rule(ours)
    assert shows("rule") == before


def test_tables_that_rules_lead_to(world: RealWorld) -> None:
    """A snapshot tells which tables rules of others look up, by family, whatever they select."""
    assert world.kernel.snapshot().lookups == {(6, 254), (4, 254), (4, 253)}
    ip("-6 rule add fwmark 7 lookup 100 priority 900")
    ip("-4 rule add from 192.0.2.0/24 lookup 1000 priority 900")
    ip("-6 rule add iif one lookup 3000 priority 1136 protocol 4")
    found = world.kernel.snapshot().lookups
    assert found >= {(6, 100), (4, 1000), (6, 3000)}
    assert not found & {(4, 100), (6, 1000)}


def test_two_gateways_of_one_route(world: RealWorld) -> None:
    """Default routes by two routers stand side by side, and go one by one."""
    first = KernelRoute(bytes(16), 0, world.index("one"), packed("fe80::1"), 4389, 1024, 135)
    second = first._replace(gateway=packed("2001:db8:7::1"))
    for route in (first, second):
        world.record.note_table_route(route)
        world.kernel.add_table_route(route)
    assert world.kernel.snapshot().table_routes == {first, second}
    world.kernel.remove_table_route(first)
    assert world.kernel.snapshot().table_routes == {second}


def test_priority_of_the_local_rule(world: RealWorld) -> None:
    """A snapshot tells behind which priority Portier's rules must stand."""
    assert world.kernel.snapshot().local_rule == 0
    ip("-6 rule add from all lookup local priority 2000")
    ip("-6 rule delete priority 0")
    assert world.kernel.snapshot().local_rule == 2000


def test_rules_leave_the_own_stack_alone(world: RealWorld) -> None:
    """Behind the local table, the two rules of a port do not keep the host from being pinged by its
    link-local address; in front of it they do, which is why snapshots tell where it is."""
    address = shows("-o", "address", "show", "dev", "one", "scope", "link").split()[3].partition("/")[0]
    behind = [PolicyRule(1135, "one", "fe80::/10", "", 135), PolicyRule(1135, "one", "", "fe80::/10", 135)]
    for rule in behind:
        world.record.note_rule(rule)
        world.kernel.add_rule(rule)
    with neighbor_host("one-peer") as enter:

        def answers(count: int) -> bool:
            ping = [*enter, "ping", "-6", "-c", str(count), "-i", "0.2", "-W", "1", f"{address}%one-peer"]
            done = subprocess.run(ping, check=False, capture_output=True, timeout=60)
            return done.returncode == 0

        assert answers(10)
        ip("-6 rule add from all lookup local priority 2000")
        ip("-6 rule delete priority 0")
        assert not answers(1)
        for rule in behind:
            moved = rule._replace(priority=world.kernel.snapshot().local_rule + 1)
            world.kernel.remove_rule(rule)
            world.record.note_rule(moved)
            world.kernel.add_rule(moved)
        assert answers(10)


# -- host routes


def test_removal_spares_a_route_with_a_gateway(world: RealWorld, by_one: HostRoute) -> None:
    """A route of somebody else's that differs from Portier's only in having a gateway is not Portier's, is
    not shown as such, and is not removed in its stead."""
    world.add_address("one", "2001:db8:1::1/64")
    world.kernel.add_route(by_one)
    ip(f"-6 route del {GUEST} dev one")
    ip(f"-6 route add {GUEST} via 2001:db8:1::9 dev one metric 4389 protocol 135")
    before = routes_to(GUEST)
    assert world.kernel.snapshot().host_routes == frozenset()
    world.kernel.remove_route(by_one)
    assert routes_to(GUEST) == before
    assert world.record.routes() == frozenset()


def test_removal_spares_an_ipv4_route_with_a_gateway(world: RealWorld) -> None:
    """So it is in IPv4, where a gateway may be an IPv6 address too (RFC 5549)."""
    world.add_address("one", "192.0.2.1/24")
    for number, via in ((5, "192.0.2.9"), (6, "inet6 fe80::9")):
        ours = HostRoute(bytes([198, 51, 100, number]), world.index("one"), 254, 4389, 135)
        world.kernel.add_route(ours)
        text = f"198.51.100.{number}"
        ip(f"route del {text} dev one")
        ip(f"route add {text} via {via} dev one metric 4389 protocol 135")
        before = shows_ipv4("route", "show", text)
        assert "via" in before
        assert world.kernel.snapshot().host_routes == frozenset()
        world.kernel.remove_route(ours)
        assert shows_ipv4("route", "show", text) == before
    assert world.record.routes() == frozenset()


def test_an_ipv4_route_put_behind_another_is_used_after_it(world: RealWorld) -> None:
    """As in IPv6 the first one there is used; a move leaves no moment with none, and ends with the new."""
    one = HostRoute(bytes([198, 51, 100, 5]), world.index("one"), 254, 4389, 135)
    two = one._replace(ifindex=world.index("two"))
    world.kernel.add_route(one)
    world.add_host_route(two._replace(protocol=4))
    assert world.kernel.route(one.address) == one.ifindex
    world.kernel.remove_route(one)
    assert world.kernel.route(one.address) == two.ifindex
    world.kernel.add_route(one._replace(metric=1))
    assert world.kernel.move_route(one._replace(metric=1), two._replace(metric=1)) is RouteResult.ADDED
    assert shows_ipv4("route", "show", "198.51.100.5", "metric", "1").count("198.51.100.5") == 1


def test_what_is_not_on_record_is_not_removed(world: RealWorld, by_one: HostRoute) -> None:
    """A foreign route that is the same in all its numbers stays."""
    world.add_host_route(by_one)
    world.kernel.remove_route(by_one)
    assert world.kernel.snapshot().host_routes == {by_one}


def test_present_is_looked_for_in_every_table(world: RealWorld, by_one: HostRoute) -> None:
    """That a route is there already is known in any table, and behind one of a better metric."""
    hidden = by_one
    world.add_host_route(by_one._replace(metric=1, protocol=4))
    for route in (hidden, by_one._replace(table=100), by_one._replace(table=100_000)):
        assert world.kernel.add_route(route) is RouteResult.ADDED
        assert world.kernel.add_route(route) is RouteResult.PRESENT


def test_a_place_taken_since(world: RealWorld, by_one: HostRoute, by_two: HostRoute) -> None:
    """A route that is on record, but whose place is held by another since, is not present."""
    world.kernel.add_route(by_one)
    ip(f"-6 route del {GUEST} dev one")
    world.add_host_route(by_two._replace(protocol=4))
    assert world.kernel.add_route(by_one) is RouteResult.FOREIGN
    assert world.record.routes() == frozenset()


def test_no_route_without_a_record(world: RealWorld, by_one: HostRoute, tmp_path: Path) -> None:
    """What cannot be recorded is not done."""
    world.record.close()
    record = Record(tmp_path / "gone")
    with Kernel(record) as kernel, pytest.raises(OSError, match="No such file"):
        kernel.add_route(by_one)
    assert routes_to(GUEST) == []


def test_move(world: RealWorld, by_one: HostRoute, by_two: HostRoute) -> None:
    """After a move only the new route is there, and on record; back again as well."""
    world.kernel.add_route(by_one)
    for old, new in ((by_one, by_two), (by_two, by_one), (by_one, by_one)):
        result = world.kernel.move_route(old, new)
        assert result is (RouteResult.PRESENT if old == new else RouteResult.ADDED)
        assert world.kernel.snapshot().host_routes == {new}
        assert world.record.routes() == {new}
        assert world.kernel.route(packed(GUEST)) == new.ifindex


def test_move_leaves_no_gap(world: RealWorld, by_one: HostRoute, by_two: HostRoute) -> None:
    """At every moment of a move there is a route: the news of the new one come before those of the old."""
    world.kernel.add_route(by_one)
    with subprocess.Popen(["ip", "-6", "monitor", "route"], stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            while True:  # until it listens
                ip("-6 route add 2001:db8:ffff::/64 dev one")
                ip("-6 route del 2001:db8:ffff::/64 dev one")
                if watch.stdout in _readable(watch):
                    break
            world.kernel.move_route(by_one, by_two)
            ip("-6 route add 2001:db8:eeee::/64 dev one")
            lines = []
            for line in watch.stdout:
                lines.append(line.rstrip())
                if "2001:db8:eeee::" in line:
                    break
        finally:
            watch.kill()
    news = [" ".join(line.split()[:5]) for line in lines if GUEST in line]
    assert news == [f"{GUEST} dev two proto 135", f"Deleted {GUEST} dev one proto"]


def _readable(watch: subprocess.Popen[str]) -> list[object]:
    import select  # noqa: PLC0415  (one use)

    assert watch.stdout is not None
    return list(select.select([watch.stdout], [], [], 0.1)[0])


def test_move_of_a_route_that_is_gone(world: RealWorld, by_one: HostRoute, by_two: HostRoute) -> None:
    """Somebody deleted the old one, or its link: the new one is there all the same."""
    world.kernel.add_route(by_one)
    ip(f"-6 route del {GUEST} dev one")
    assert world.kernel.move_route(by_one, by_two) is RouteResult.ADDED
    world.remove_link("two")
    assert world.kernel.move_route(by_two, by_one) is RouteResult.ADDED
    assert world.record.routes() == {by_one}


def test_two_add_one_route(world: RealWorld, by_one: HostRoute) -> None:
    """A worker and the reconciler that add the same route at the same moment both find it theirs, and it
    stays on record, so that it can be removed."""
    record = world.record
    note = record.note_route
    results: list[RouteResult] = []

    def add() -> None:
        with Kernel(record) as kernel:
            results.append(kernel.add_route(by_one))

    worker = threading.Thread(target=add)

    def note_while_another_adds(route: HostRoute) -> None:
        record.note_route = note  # type: ignore[method-assign]
        worker.start()
        worker.join(0.2)  # time enough to add it first, if nothing makes it wait
        note(route)

    record.note_route = note_while_another_adds  # type: ignore[method-assign]
    results.append(world.kernel.add_route(by_one))
    worker.join(20)
    assert set(results) == {RouteResult.ADDED, RouteResult.PRESENT}  # who says so first is chance
    assert record.has_route(by_one)
    world.kernel.remove_route(by_one)
    assert not routes_to(GUEST)


@pytest.mark.parametrize("where", ["one", "two"])
def test_move_to_a_foreign_place(world: RealWorld, by_one: HostRoute, by_two: HostRoute, where: str) -> None:
    """Somebody replaced the old one by his own: his stays alone, and nothing is on record."""
    world.kernel.add_route(by_one)
    ip(f"-6 route del {GUEST} dev one")
    world.add_host_route((by_one if where == "one" else by_two)._replace(protocol=4))
    before = routes_to(GUEST)
    assert world.kernel.move_route(by_one, by_two) is RouteResult.FOREIGN
    assert routes_to(GUEST) == before
    assert world.record.routes() == frozenset()


def test_move_that_the_kernel_refuses(world: RealWorld, by_one: HostRoute) -> None:
    """The old route stays."""
    world.kernel.add_route(by_one)
    with pytest.raises(KernelError) as caught:
        world.kernel.move_route(by_one, by_one._replace(ifindex=4242))
    assert caught.value.errno == errno.ENODEV
    assert world.kernel.snapshot().host_routes == {by_one}
    assert world.record.routes() == {by_one}


def test_move_between_tables(world: RealWorld, by_one: HostRoute, by_two: HostRoute) -> None:
    """The table may change with the link."""
    world.kernel.add_route(by_one)
    new = by_two._replace(table=100, metric=7)
    assert world.kernel.move_route(by_one, new) is RouteResult.ADDED
    assert world.kernel.snapshot().host_routes == {new}


def test_adding_does_not_make_a_multipath_route(world: RealWorld, by_one: HostRoute) -> None:
    """Beside a foreign multipath route of the same place nothing is added."""
    world.add_address("one", "2001:db8:1::1/64")
    hops = "nexthop via 2001:db8:1::a dev one nexthop via 2001:db8:1::b dev one"
    ip(f"-6 route add {GUEST}/128 metric 4389 protocol 135 {hops}")
    before = routes_to(GUEST)
    assert world.kernel.add_route(by_one) is RouteResult.FOREIGN
    assert routes_to(GUEST) == before


# -- questions


def test_route_question(world: RealWorld, by_two: HostRoute) -> None:
    """The interface of the best route; neither the default route nor one that leads nowhere counts."""
    world.add_address("one", "2001:db8:7::1/64")
    ip("-6 route add default via 2001:db8:7::2 dev one")
    ip("-6 route add unreachable 2001:db8:8::/64")
    ip("-6 route add blackhole 2001:db8:9::/64")
    ip("-6 route add prohibit 2001:db8:a::/64")
    one, two = world.index("one"), world.index("two")
    assert world.kernel.route(packed(GUEST)) == one
    world.kernel.add_route(by_two)
    assert world.kernel.route(packed(GUEST)) == two
    for nowhere in ("2001:db8:1::1", "2001:db8:8::1", "2001:db8:9::1", "2001:db8:a::1", "2001:db8:7::1"):
        assert world.kernel.route(packed(nowhere)) == 0
    ip("-6 route del default")
    assert world.kernel.route(packed("2001:db8:1::1")) == 0


def test_route_question_follows_policy(world: RealWorld) -> None:
    """Policy rules lead the question to other tables, as they lead the kernel."""
    ip("-6 route add 2001:db8:7::/64 dev two table 100")
    ip("-6 rule add to 2001:db8:7::/64 lookup 100 priority 500")
    assert world.kernel.route(packed(GUEST)) == world.index("two")


def test_route_question_for_another_table(
    world: RealWorld, by_one: HostRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another table the longest prefix wins, the lowest metric of that, and the default does not count."""
    monkeypatch.setattr(kernel_module, "_TABLE_AGE", 0.0)
    one, two = world.index("one"), world.index("two")
    assert world.kernel.route(packed(GUEST), 100) == 0
    ip("-6 route add default dev one table 100")
    assert world.kernel.route(packed(GUEST), 100) == 0
    ip("-6 route add 2001:db8::/32 dev one table 100")
    ip("-6 route add 2001:db8:7::/64 dev one table 100 metric 2000")
    ip("-6 route add 2001:db8:7::/64 dev two table 100")
    ip("-6 route add unreachable 2001:db8:8::/64 table 100")
    assert world.kernel.route(packed(GUEST), 100) == two
    assert world.kernel.route(packed("2001:db8:6::1"), 100) == one
    assert world.kernel.route(packed("2001:db8:8::1"), 100) == 0
    assert world.kernel.route(packed("2001:dba::1"), 100) == 0
    assert world.kernel.route(packed(GUEST)) == 0
    world.kernel.add_route(by_one._replace(table=100))
    assert world.kernel.route(packed(GUEST), 100) == one


@pytest.mark.parametrize("table", [254, 100])
def test_host_route_question(world: RealWorld, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a route to the very address counts, by a gateway; that of the lowest metric decides."""
    monkeypatch.setattr(kernel_module, "_TABLE_AGE", 0.0)
    world.add_address("one", "2001:db8:7::1/64")
    guest = packed(GUEST)
    ip(f"-6 route add 2001:db8:7::/64 via fe80::2 dev one table {table} metric 1")
    assert world.kernel.host_route(guest, table) == 0
    ip(f"-6 route add {GUEST} via fe80::2 dev one table {table} proto bird metric 5000")
    assert world.kernel.host_route(guest, table) == world.index("one")
    ip(f"-6 route add {GUEST} dev two table {table} metric 4389")
    assert world.kernel.host_route(guest, table) == 0
    ip(f"-6 route add unreachable 2001:db8:8::1 table {table}")
    assert world.kernel.host_route(packed("2001:db8:8::1"), table) == 0


@pytest.mark.parametrize("ask", ["route", "host_route"])
def test_a_table_that_is_long_to_read_is_not_read_for_each_question(
    world: RealWorld, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of a group wait meanwhile: one that takes two seconds is read after forty more."""
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(kernel_module, "monotonic", lambda: next(clock))
    question = getattr(world.kernel, ask)
    world.add_address("one", "2001:db8:7::1/64")
    assert question(packed(GUEST), 100) == 0
    ip(f"-6 route add {GUEST} via fe80::2 dev one table 100")
    answers = [question(packed(GUEST), 100) for _ in range(22)]
    assert answers == [0] * 19 + [world.index("one")] * 3


@pytest.mark.parametrize("asked", [True, False], ids=["ports", "all"])
def test_neighbor_question(world: RealWorld, asked: bool) -> None:
    """The interface on which an address is in a valid state, the surer one first."""
    one, two = world.index("one"), world.index("two")

    def held() -> int:
        return world.kernel.neighbor(packed(GUEST), {4242: "", one: "", two: ""} if asked else ())

    def entry(name: str, state: str) -> None:
        ip(f"-6 neighbor replace {GUEST} dev {name} lladdr 02:00:00:00:00:05 nud {state}")

    assert held() == 0
    ip(f"-6 neighbor add proxy {GUEST} dev one")
    assert held() == 0
    entry("two", "stale")
    assert held() == two
    entry("one", "reachable")
    assert held() == one
    entry("one", "failed")
    assert held() == two
    entry("two", "permanent")
    assert held() == two
    assert world.kernel.neighbor(packed("2001:db8:7::6"), [one, two] if asked else ()) == 0


def test_who_was_heard_on_an_interface(world: RealWorld) -> None:
    """Valid neighbors of both families on that interface, without link-local and proxied ones."""
    world.add_address("one", "192.0.2.1/24")
    for address, link, state in (
        (GUEST, "one", "stale"),
        ("192.0.2.5", "one", "reachable"),
        ("2001:db8:7::6", "one", "failed"),
        ("2001:db8:7::7", "two", "stale"),
        ("fe80::5", "one", "stale"),
    ):
        device = "" if state == "failed" else " lladdr 02:00:00:00:00:05"
        ip(f"neighbor add {address} dev {link}{device} nud {state}")
    ip("-6 neighbor add proxy 2001:db8:7::8 dev one")
    mac = bytes.fromhex("020000000005")
    heard = world.kernel.heard_on(world.index("one"))
    assert sorted(heard) == sorted([(packed(GUEST), mac), (bytes((192, 0, 2, 5)), mac)])
    assert world.kernel.heard_on(999_999) == []


def test_many_ports_are_asked_in_batches(world: RealWorld) -> None:
    """More ports than fit into one batch make no difference."""
    ip(f"-6 neighbor add {GUEST} dev two lladdr 02:00:00:00:00:05 nud permanent")
    assert world.kernel.neighbor(packed(GUEST), [*range(10_000, 11_000), world.index("two")])


# -- with a monitor


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealWorld]:
    """A world whose snapshots are made as with 200,000 routes: read again only where news say so."""
    monkeypatch.setattr(kernel_module, "_CHEAP", 0.0)
    with own_namespace(ipv6=True), Monitor(lambda _reason: None) as monitor:
        ip("link set lo up")
        world = RealWorld(tmp_path, monitor)
        world.add_link("one")
        world.add_link("two")
        world.kernel.snapshot()
        yield world
        world.close()


def shown_in_time(world: RealWorld, network: str) -> bool:
    """Whether a route is shown before long."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any(route.destination == packed(network) for route in world.kernel.snapshot().routes):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("maker", ["static", "kernel", "bgp"])
def test_news_of_a_route_make_it_seen(watched: RealWorld, maker: str) -> None:
    """On-link routes of any maker are seen as soon as the monitor has heard of them, and go with their
    link without any news."""
    ip(f"-6 route add 2001:db8:7::/64 dev one protocol {maker}")
    assert shown_in_time(watched, "2001:db8:7::")
    watched.remove_link("one")
    assert all(route.destination != packed("2001:db8:7::") for route in watched.kernel.snapshot().routes)


def test_own_routes_are_always_read(watched: RealWorld) -> None:
    """Those that bear Portier's number need no news."""
    route = HostRoute(packed(GUEST), watched.index("one"), 254, 4389, 135)
    watched.kernel.add_route(route)
    assert watched.kernel.snapshot().host_routes == {route}
    ip(f"-6 route del {GUEST} dev one")
    assert watched.kernel.snapshot().host_routes == frozenset()


def test_without_news_makers_are_read_in_turn(watched: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where an event went missing, a change is seen after so many snapshots as there are makers."""
    monkeypatch.setattr(watched.kernel._monitor, "route_versions", lambda _family: (0, {}))
    watched.kernel.snapshot()
    monkeypatch.setattr(kernel_module, "_AGE", 0.0)
    ip("-6 route add 2001:db8:7::/64 dev one protocol static")
    seen = [watched.kernel.snapshot().routes for _ in PLAIN_MAKERS]
    assert any(route.destination == packed("2001:db8:7::") for route in seen[-1])
