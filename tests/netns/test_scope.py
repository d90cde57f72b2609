"""`scope: group`: what comes from a group's ports reaches its own hosts and its own upstream, nothing else.

Two uplinks with a group each, a router behind each that leads to the same "world", and a network that belongs
to no group.  The proxy's main table has a default route by each, of which it uses the first group's.
"""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import dataclass, field

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from tests.netns.lab import Host, Lab, Portier, wait_for
from tests.netns.scenes import echo_requests
from tests.netns.test_ownership import assert_same, kernel_state

WORLD = "2001:db8:ffff::1"  # a host that both routers lead to
ELSEWHERE = "2001:db8:e::9"  # a host behind an interface that belongs to no group
UPLINKS = {"blue": "eth0", "red": "eth1"}
NETS = {"blue": "2001:db8:a::", "red": "2001:db8:b::"}
CONFIG = """
version: 1
defaults: {scope: group}
groups:
  blue:
    upstream: eth0
    downstream: "blue-*"
    prefixes: ["2001:db8:a::/64"]
  red:
    upstream: eth1
    downstream: "red-*"
    prefixes: ["2001:db8:b::/64"]
"""
ISOLATED = CONFIG.replace("{scope: group}", "{scope: group, isolate: true}")


def address(group: str, number: int = 1) -> str:
    """The address of a guest."""
    return f"{NETS[group]}1{number}"


@dataclass
class TwoUplinks:
    """The proxy, a router for each group, and guests by group and number."""

    lab: Lab
    p: Host
    routers: dict[str, Host] = field(default_factory=dict)
    guests: dict[tuple[str, int], Host] = field(default_factory=dict)

    def add_guest(self, group: str, number: int) -> Host:
        """Plug a guest in, which sends all it has to the proxy's link-layer address."""
        guest = self.guests[group, number] = self.lab.host(f"{group}{number}")
        port = f"{group}-{number}"
        self.lab.link(guest, "eth0", self.p, port)
        guest.add("eth0", f"{address(group, number)}/128")
        guest.ip(f"-6 route add default via {self.p.link_local(port)} dev eth0")
        return guest

    def start(self, config: str = CONFIG) -> Portier:
        """Start the daemon; its ports are active when this returns."""
        portier = self.lab.portier(config, on=self.p)
        for group, uplink in UPLINKS.items():
            ports = [f"{group}-{number}" for of, number in self.guests if of == group]
            portier.wait_ports(uplink, *ports, group=group)
        return portier

    def table(self, portier: Portier, group: str) -> int:
        """The number of a group's table."""
        table = portier.group(group)["table"]
        assert isinstance(table, int)
        return table


def two_uplinks(lab: Lab) -> TwoUplinks:
    """Make it, with two guests in each group and without a daemon."""
    scene = TwoUplinks(lab, lab.host("p"))
    p = scene.p
    for group, uplink in UPLINKS.items():
        router = scene.routers[group] = lab.host(f"router-{group}")
        lab.link(router, "eth0", p, uplink)
        router.add("eth0", "fe80::1/64")
        router.add("eth0", f"{NETS[group]}1/64")
        router.add("lo", f"{WORLD}/128")
        p.add(uplink, f"{NETS[group]}2/64")
        p.ip(f"-6 route add default via fe80::1 dev {uplink} metric {1024 if group == 'blue' else 2048}")
        for number in (1, 2):
            scene.add_guest(group, number)
    other = lab.host("elsewhere")
    lab.link(other, "eth0", p, "lan0")
    other.add("eth0", f"{ELSEWHERE}/64")
    p.add("lan0", "2001:db8:e::2/64")
    other.ip("-6 route add default via 2001:db8:e::2 dev eth0")
    p.sysctl("net/ipv6/conf/all/forwarding", 1)
    return scene


def ours(p: Host) -> list[str]:
    """What Portier has in the kernel: policy rules and routes by its number."""
    return [f"{rule}" for rule in p.rules() if str(rule.get("protocol")) == "135"] + [
        f"{route['dst']} {route['dev']} {route.get('gateway')} {route.get('table')} {route.get('metric')}"
        for route in p.routes("proto 135")
    ]


def test_each_guest_uses_its_own_uplink(lab: Lab) -> None:
    """Without a word of policy routing by the user each guest is found by its router, and what it sends
    leaves by its own uplink; the proxy reaches all of them, from a cold start."""
    scene = two_uplinks(lab)
    portier = scene.start()
    captures = {group: router.capture("eth0") for group, router in scene.routers.items()}
    for group, number in scene.guests:
        ping = scene.guests[group, number].ping(WORLD)
        assert ping, ping.output
    for group in UPLINKS:
        assert set(echo_requests(captures[group])) == {address(group, 1), address(group, 2)}
    for group, number in scene.guests:
        for source in (scene.routers[group], scene.p, scene.guests[group, 3 - number]):
            ping = source.ping(address(group, number))
            assert ping, f"{source} to {group} {number}: {ping.output}"
    tables = {group: scene.table(portier, group) for group in UPLINKS}
    assert tables["blue"] != tables["red"]
    for group, table in tables.items():
        routes = scene.p.routes(f"proto 135 table {table}")
        hosts = {route["dst"]: route["dev"] for route in routes if "/" not in route["dst"]}
        assert hosts.pop("default") == UPLINKS[group]
        assert hosts == {address(group, number): f"{group}-{number}" for number in (1, 2)}
    assert not scene.p.host_routes(), "main has none"


def test_proxy_reaches_a_guest_nobody_asked_for(lab: Lab) -> None:
    """The proxy's own ping to a guest that nobody has heard of, in either group."""
    scene = two_uplinks(lab)
    scene.start()
    for group in UPLINKS:
        ping = scene.p.ping(address(group, 2), count=10, interval=0.1, timeout=2)
        assert ping.received > 0, ping.output
        assert ping.first < 2
        ping = scene.guests[group, 2].ping(f"{NETS[group]}2")
        assert ping, ping.output


def test_a_guest_reaches_nothing_else(lab: Lab) -> None:
    """A guest that sends whatever it likes to the proxy reaches its own group's hosts, its own upstream, and
    the proxy's own addresses; the other group, its uplink, and what else the proxy routes stay out of reach,
    in either direction, and it is told so."""
    scene = two_uplinks(lab)
    scene.start()
    for group, other in (("blue", "red"), ("red", "blue")):
        for number in (1, 2):
            assert scene.routers[group].ping(address(group, number)), "known, and routed to"
        guest = scene.guests[group, 1]
        for target in (address(other, 1), f"{NETS[other]}1", f"{NETS[other]}77", ELSEWHERE):
            ping = guest.ping(target, timeout=1)
            assert not ping, f"{group} reaches {target}"
            if target == ELSEWHERE:
                continue  # that leaves by the group's own default route, to a router that has no way back
        for target in (f"{NETS[group]}1", address(group, 2), WORLD, f"{NETS[other]}2"):
            ping = guest.ping(target)
            assert ping, f"{group} to {target}: {ping.output}"
        # The upstream's link is as limited.
        assert not scene.routers[group].ping(ELSEWHERE, timeout=1)
    captured = scene.guests["red", 1].capture("eth0")
    scene.lab.hosts["elsewhere"].ping(address("red", 1), timeout=1)
    scene.guests["blue", 1].ping(address("red", 1), timeout=1)
    assert not echo_requests(captured), "not even what nobody could answer"


def test_isolate_holds_for_packets(lab: Lab) -> None:
    """With `isolate` guests of one group do not reach each other by routing either, though both know that the
    other is there; their uplink and the proxy they do reach, and these them."""
    scene = two_uplinks(lab)
    portier = scene.start(ISOLATED)
    guests = [scene.guests["red", number] for number in (1, 2)]
    for guest, other in ((guests[0], address("red", 2)), (guests[1], address("red", 1))):
        assert scene.routers["red"].ping(other)
        assert guest.ping(WORLD)
        assert guest.ping(f"{NETS['red']}2"), "the proxy"
        assert scene.p.ping(other)
        captures = [each.capture("eth0") for each in guests]
        assert not guest.ping(other, timeout=1)
        assert not any(echo_requests(capture) for capture in captures)
    status = portier.group("red")
    assert status["uplink_table"] == status["table"] + 1
    assert f"routing table {status['table']}, {status['uplink_table']}" in portier.cli("status").stdout


def test_what_somebody_deletes_is_back(lab: Lab) -> None:
    """Rules and routes of the group's tables that somebody deletes are repaired within seconds, those of
    others are none of Portier's business, and a route of the upstream that goes or comes is followed."""
    scene = two_uplinks(lab)
    p = scene.p
    portier = scene.start()
    table = scene.table(portier, "red")
    assert scene.guests["red", 1].ping(WORLD)
    assert scene.routers["red"].ping(address("red", 1))
    p.ip("-6 rule add priority 4000 from 2001:db8:77::/48 lookup 4000")
    before = sorted(ours(p))
    p.run(["sh", "-ec", "while ip -6 rule delete protocol 135 2>/dev/null; do :; done"])
    p.ip(f"-6 route flush table {table}")
    wait_for(lambda: sorted(ours(p)) == before, 5, "repaired")
    assert scene.guests["red", 1].ping(WORLD)
    assert scene.routers["red"].ping(address("red", 1))
    assert any(rule.get("table") == "4000" for rule in p.rules())

    p.ip("-6 route add 2001:db8:5::/48 via fe80::1 dev eth1")
    p.ip("-6 route delete default dev eth1")

    def destinations() -> set[str]:
        return {route["dst"] for route in p.routes(f"proto 135 table {table}") if "/" in route["dst"]}

    wait_for(lambda: destinations() == {"2001:db8:5::/48", f"{NETS['red']}/64"}, 5, "followed")
    assert not scene.guests["red", 1].ping(WORLD, timeout=1), "not by the other uplink"
    ping = scene.guests["red", 1].ping(WORLD, timeout=1)
    assert re.search("unreachable|No route", ping.output), "it is told"


def test_router_advertisements_are_followed(lab: Lab) -> None:
    """A default route and a prefix learned from a Router Advertisement are the table's too; repeated, with
    lifetimes that count down, they change nothing."""
    scene = two_uplinks(lab)
    p = scene.p
    p.sysctl("net/ipv6/conf/eth1/accept_ra", 2)
    p.ip("-6 route delete default dev eth1")
    portier = scene.start()
    table = scene.table(portier, "red")

    def advertise(lifetime: int = 600) -> None:
        router = scene.routers["red"]
        mac = router.mac("eth0")
        router.inject(
            "eth0",
            Ether(src=mac, dst="33:33:00:00:00:01")
            / IPv6(src="fe80::1", dst="ff02::1", hlim=255)
            / ICMPv6ND_RA(routerlifetime=lifetime)
            / ICMPv6NDOptPrefixInfo(
                prefix="2001:db8:bb::", validlifetime=lifetime, preferredlifetime=lifetime
            ),
        )

    def destinations() -> set[str]:
        return {route["dst"] for route in p.routes(f"proto 135 table {table}")}

    advertise()
    wait_for(lambda: destinations() >= {"default", "2001:db8:bb::/64"}, 5, "followed")
    assert scene.guests["red", 1].ping(WORLD)
    made = len(re.findall(rf"[+-] route .* table {table}", portier.log.read_text()))
    for lifetime in (500, 700, 900):
        advertise(lifetime)
        time.sleep(0.4)
    assert len(re.findall(rf"[+-] route .* table {table}", portier.log.read_text())) == made
    advertise(0)
    wait_for(lambda: "default" not in destinations(), 5, "withdrawn")


def test_a_clean_stop_leaves_nothing(lab: Lab) -> None:
    """Routes, rules and sysctls are as before, with `isolate` and after a change of scope too."""
    scene = two_uplinks(lab)
    before = kernel_state(scene.p)
    portier = scene.start(ISOLATED)
    assert scene.routers["red"].ping(address("red", 1))
    portier.write(CONFIG.replace("scope: group", "scope: host"))
    wait_for(lambda: scene.p.host_routes() == {address("red", 1): "red-1"}, 5, "in main now")
    wait_for(lambda: not scene.p.routes(f"proto 135 table {portier_table('red')}"), 5, "the table is empty")
    portier.write(CONFIG)
    wait_for(lambda: portier.group("red")["table"] == portier_table("red"), 5, "the same number again")
    wait_for(lambda: not scene.p.host_routes(), 5, "and in the table again")
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def portier_table(group: str) -> int:
    """The number that follows from a group's name."""
    return 1_350_000_000 + 2 * (zlib.crc32(group.encode()) % 40_000_000)


@pytest.mark.parametrize("config", [CONFIG, "version: 1\ngroups: {}\n"], ids=["same", "empty"])
def test_next_start_after_a_kill(lab: Lab, config: str) -> None:
    """After a kill -9 the next start adopts or removes what was left; its end leaves nothing."""
    scene = two_uplinks(lab)
    before = kernel_state(scene.p)
    portier = scene.start()
    assert scene.routers["red"].ping(address("red", 1))
    left = sorted(ours(scene.p))
    portier.kill9()
    assert sorted(ours(scene.p)) == left
    portier.config.write_text(config)
    portier.start()
    if config == CONFIG:
        kept = [line for line in left if not line.startswith(address("red", 1))]
        wait_for(lambda: set(kept) <= set(ours(scene.p)), 5, "adopted")
        assert scene.guests["red", 1].ping(WORLD, count=10, interval=0.3, timeout=2).received
    else:
        wait_for(lambda: not ours(scene.p), 5, "removed")
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def test_both_families(lab: Lab) -> None:
    """IPv4 is limited by the same tables where the rules name it: by its own uplink, to its own group.  A
    strict rp_filter finds the way back in them too."""
    scene = two_uplinks(lab)
    p = scene.p
    p.sysctl("net/ipv4/conf/all/rp_filter", 1)
    nets = {"blue": "192.0.2", "red": "198.51.100"}
    world = "203.0.113.1"
    for group, net in nets.items():
        router, uplink = scene.routers[group], UPLINKS[group]
        router.ip(f"address add {net}.1/24 dev eth0")
        router.ip(f"address add {world}/32 dev lo")
        p.ip(f"address add {net}.2/24 dev {uplink}")
        p.ip(f"route add default via {net}.1 dev {uplink} metric {10 if group == 'blue' else 20}")
        for number in (1, 2):
            guest = scene.guests[group, number]
            guest.ip(f"address add {net}.1{number}/32 dev eth0")
            guest.ip(f"route add default via {net}.2 dev eth0 onlink")
    config = CONFIG
    for group, net in nets.items():
        config = config.replace(f'["{NETS[group]}/64"]', f'["{NETS[group]}/64", {net}.0/24]')
    before = p.ip_json("-4 rule show"), p.ip_json("-4 route show table all")
    portier = scene.start(config)

    def reaches(source: Host, target: str) -> bool:
        command = ["ping", "-4", "-n", "-c", "3", "-i", "0.3", "-W", "1", target]
        return source.run(command, check=False).returncode == 0

    for group, net in nets.items():
        other = nets["red" if group == "blue" else "blue"]
        for number in (1, 2):
            assert reaches(scene.routers[group], f"{net}.1{number}")
            assert reaches(p, f"{net}.1{number}")
        guest = scene.guests[group, 1]
        for target in (world, f"{net}.1", f"{net}.12", f"{net}.2", f"{other}.2"):
            assert reaches(guest, target), target
        for target in (f"{other}.11", f"{other}.1"):
            assert not reaches(guest, target), target
        table = scene.table(portier, group)
        hosts = {route["dst"]: route["dev"] for route in p.ip_json(f"-4 route show table {table}")}
        assert hosts[f"{net}.11"] == f"{group}-1"
        assert hosts["default"] == UPLINKS[group]
    assert portier.stop() == 0
    assert (p.ip_json("-4 rule show"), p.ip_json("-4 route show table all")) == before


def test_host_routes_in_a_table_of_the_users(lab: Lab) -> None:
    """`routes: {table: N}`: as good as main where a rule leads there, for the host itself, for what is
    routed, and for `routed`, which looks there; without a rule that is told."""
    scene = two_uplinks(lab)
    p = scene.p
    config = CONFIG.replace("{scope: group}", "{routes: {table: 100}}")
    config = config.replace(
        '["2001:db8:a::/64"]', '["2001:db8:a::/64", {allow: "2001:db8:c::/64", answer: routed}]'
    )
    portier = scene.start(config)
    assert "leads to table 100" in portier.cli("status").stdout
    assert "leads to table 100" in portier.cli("plan").stderr
    assert "leads to table 100" in portier.cli("check").stdout
    p.ip("-6 rule add lookup 100 priority 2000")
    wait_for(lambda: "leads to table 100" not in portier.cli("status").stdout, 5, "a rule leads there")
    via = scene.guests["blue", 1].link_local("eth0")
    p.ip(f"-6 route add 2001:db8:c::5/128 via {via} dev blue-1 table 100")
    scene.guests["blue", 1].add("lo", "2001:db8:c::5/128")
    scene.routers["blue"].ip("-6 route add 2001:db8:c::/64 dev eth0")
    for target in (address("blue"), "2001:db8:c::5"):
        assert scene.routers["blue"].ping(target, count=10, interval=0.2, timeout=2).received, target
    assert p.ping(address("blue"))
    hosts = {route["dst"]: route["dev"] for route in p.routes("proto 135 table 100")}
    assert hosts == {address("blue"): "blue-1"}
