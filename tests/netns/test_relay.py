"""Mode relay on real kernels: radvd and dnsmasq on one side, hosts that nobody configured on the others.

`Link` is the common topology: the router ``r`` with a host ``x`` beyond it, the proxy ``p`` with ``eth0``
towards the router, and hosts behind ``tap1`` and ``tap2``.  The proxy's own kernel forwards everywhere, so
whatever Portier failed to keep from it would show.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.lab import Capture, Frame, Host, Keeper, Lab, Portier, holds_for, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM
from tests.netns.test_relay_data import TAKE, give, said, serve

BEYOND = "2001:db8:99::99"
ERRORS = {1, 2, 3, 4, 137}  # ICMPv6 errors and Redirect
TOOLS = {"radvd": "radvd", "dnsmasq": "dnsmasq", "dhclient": "isc-dhcp-client"}


def need(*tools: str) -> None:
    """Skip where a program is not installed."""
    for tool in tools:
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{tool} ({TOOLS[tool]}) is not installed")


def relay(extra: str = "", *, downstream: str = '"tap*"') -> str:
    """A configuration of one relay group; ``extra`` are more settings of it."""
    return (
        "version: 1\ngroups:\n"
        f"  lan: {{mode: relay, upstream: eth0, downstream: {downstream}{', ' * bool(extra)}{extra}}}\n"
    )


class Link:
    """One link in segments: see above.  ``forwarding`` is that of the proxy's kernel."""

    def __init__(self, lab: Lab, *, forwarding: bool = True, prefix_flags: str = "") -> None:
        need("radvd")
        self.lab = lab
        self.x = lab.host("x")
        self.r = lab.host("r", forwarding=True)
        self.p = lab.host("p", forwarding=forwarding)
        lab.link(self.x, "eth0", self.r, "eth1")
        lab.link(self.r, "eth0", self.p, "eth0")
        self.x.add("eth0", f"{BEYOND}/64")
        self.x.ip("-6 route add default via 2001:db8:99::1 dev eth0")
        self.r.add("eth1", "2001:db8:99::1/64")
        self.r.add("eth0", f"{UPSTREAM}/64")
        self.p.add("eth0", f"{PROXY}/64")
        if forwarding:
            self.p.ip(f"-6 route add default via {UPSTREAM} dev eth0")
        self.hosts: dict[int, Host] = {}
        for number in (1, 2):
            self.add_host(number)
        self.prefix_flags = prefix_flags
        self.daemon: Portier | None = None

    def add_host(self, number: int, *, port: str = "") -> Host:
        """Plug in a host that nobody configures behind ``tap<number>``."""
        host = self.hosts[number] = self.lab.host(f"h{number}")
        host.sysctl("net/ipv6/conf/default/router_solicitations", 10)
        host.sysctl("net/ipv6/conf/default/router_solicitation_interval", 1)
        host.sysctl("net/ipv6/conf/default/router_solicitation_delay", 0)
        self.lab.link(host, "eth0", self.p, port or f"tap{number}")
        return host

    def advertise(self, flags: str = "", *, every: int = 4) -> None:
        """Have the router advertise itself and the prefix."""
        conf = self.lab.directory / "radvd.conf"
        conf.write_text(
            f"interface eth0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval {every}; {flags}"
            f" prefix {NET}/64 {{ {self.prefix_flags} }}; }};\n"
        )
        radvd = ["radvd", "-n", "-m", "stderr", "-C", str(conf), "-p", str(conf.with_suffix(".pid"))]
        with conf.with_suffix(".log").open("w") as log:
            self.r.popen(radvd, stdout=log, stderr=log)

    def start(self, text: str = "", *, forwards: bool = True) -> Portier:
        """Start the daemon; every port forwards when this returns."""
        self.daemon = self.lab.portier(text or relay(), on=self.p)
        if forwards:
            self.wait_service(eth0="forwarding", tap1="forwarding", tap2="forwarding")
        return self.daemon

    @property
    def portier(self) -> Portier:
        """The daemon."""
        assert self.daemon is not None
        return self.daemon

    def services(self) -> dict[str, str]:
        """The part that each port takes."""
        ports = self.portier.group()["ports"]
        return {port["name"]: (port["relay"] or {"service": port["state"]})["service"] for port in ports}

    def wait_service(self, **wanted: str) -> None:
        """Wait until ports take these parts."""
        wait_for(lambda: wanted.items() <= self.services().items(), 25, f"parts {wanted}")

    def address(self, number: int, timeout: float = 15.0) -> str:
        """The address that a host made for itself, as soon as it may use it."""
        host = self.hosts[number]

        def usable() -> str | None:
            found = host.addresses("eth0").items()
            return next((a for a, state in found if a.startswith("2001:") and state == "valid"), None)

        return str(wait_for(usable, timeout, f"a SLAAC address on {host.name}"))


@pytest.fixture(scope="module")
def link(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A link that all tests share which do not disturb it: all hosts have addresses."""
    lab = Lab(keeper, tmp_path_factory.mktemp("relay"))
    made = Link(lab)
    made.advertise()
    made.start()
    for number in made.hosts:
        made.address(number)
    yield made
    problems = lab.close()
    if problems:
        print(made.portier.tail(100))
        pytest.fail("; ".join(problems))


def icmp(frame: Frame) -> int:
    """The ICMPv6 type of a frame without extension headers, or -1."""
    raw = frame.raw
    return raw[54] if raw[12:14] == b"\x86\xdd" and raw[20] == 58 and len(raw) > 54 else -1


def echoes(capture: Capture, kind: int = 128) -> list[bytes]:
    """The echo requests (or other messages) in a capture, from the IPv6 header on."""
    return [frame.raw[14:] for frame in capture.frames() if icmp(frame) == kind]


# -- addresses, and traffic ------------------------------------------------------------------------


def test_nd_006_a_host_with_nothing_configured_is_on_the_link(link: Link) -> None:
    """It has an address by SLAAC, its default router is the real one by its own address, and it reaches it
    and what is beyond."""
    host = link.hosts[1]
    address = link.address(1)
    assert address.startswith(NET.rstrip(":"))
    routes = [route for route in host.routes() if route["dst"] == "default"]
    assert [route["gateway"] for route in routes] == [link.r.link_local("eth0")]
    assert host.ping(UPSTREAM, 3)
    assert host.ping(BEYOND, 3)
    assert link.x.ping(address, 3)


def test_nd_005_hosts_behind_different_ports_are_neighbors(link: Link) -> None:
    """Any two segments, the downstreams among themselves too, by global and by link-local addresses."""
    one, two = link.hosts[1], link.hosts[2]
    assert one.ping(link.address(2), 3)
    for host, other in ((one, two.link_local("eth0")), (one, link.r.link_local("eth0"))):
        assert host.ping(f"{other}%eth0", 3)
    assert link.r.ping(f"{two.link_local('eth0')}%eth0", 3)


def test_nd_030_packets_arrive_once_and_as_they_were_sent(link: Link) -> None:
    """Each request is seen once on the other segment, identical from the IPv6 header on, and on no third
    one; the proxy's kernel, which forwards, neither sends a copy nor an error nor a redirect."""
    host, address = link.hosts[1], link.address(1)
    link.r.ping(address, 1)
    ports = {name: link.p.capture(name) for name in ("eth0", "tap1", "tap2")}
    assert link.r.ping(address, 10, interval=0.02)
    assert host.ping(UPSTREAM, 10, interval=0.02)
    for kind in (128, 129):
        came, went = echoes(ports["eth0"], kind), echoes(ports["tap1"], kind)
        assert len(came) == 20, "each crossed once"
        assert sorted(came) == sorted(went)
        assert not echoes(ports["tap2"], kind)
    for capture in ports.values():
        assert not [frame for frame in capture.frames() if icmp(frame) in ERRORS]


@pytest.mark.parametrize("hops", [1, 255])
def test_nd_031_the_hop_limit_is_not_changed(link: Link, hops: int) -> None:
    """A packet with hop limit 1 arrives, with hop limit 1."""
    capture = link.r.capture("eth0")
    done = link.hosts[1].run(["ping", "-6", "-c", "2", "-i", "0.2", "-t", str(hops), UPSTREAM])
    assert "2 received" in done.stdout
    assert {packet[7] for packet in echoes(capture)} == {hops}


def test_nd_028_multicast_crosses_once_to_every_segment(link: Link) -> None:
    """mDNS, and what MLD says of a new member, arrive at router and at the other host as they were sent."""
    one = link.hosts[1]
    captures = [link.r.capture("eth0"), link.hosts[2].capture("eth0")]
    sent = one.capture("eth0")
    script = (
        "import socket, time\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        "i = socket.if_nametoindex('eth0')\n"
        "s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, i)\n"
        "group = socket.inet_pton(socket.AF_INET6, 'ff02::1234')\n"
        "s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + i.to_bytes(4, 'little'))\n"
        "s.sendto(b'who is there', ('ff02::fb', 5353, 0, i))\n"
        "time.sleep(1.5)\n"  # for the report
    )
    one.run(["python3", "-c", script])

    def questions(capture: Capture) -> list[bytes]:
        return [frame.raw[14:] for frame in capture.frames() if frame.raw.endswith(b"who is there")]

    def reports(capture: Capture) -> list[bytes]:
        group = bytes.fromhex("ff020000000000000000000000001234")
        return [f.raw[14:] for f in capture.frames() if f.raw[20:21] == b"\0" and group in f.raw[54:]]

    assert len(questions(sent)) == 1
    assert reports(sent)
    for capture in captures:
        assert questions(capture) == questions(sent)
    # The last of them says that the socket is closed.
    wait_for(lambda: all(reports(capture) == reports(sent) for capture in captures), 3, "the reports arrive")


def test_nd_041_the_proxys_own_stack_has_its_place(link: Link) -> None:
    """The proxy host reaches hosts behind any port, and each reaches it at its global address."""
    for number, host in link.hosts.items():
        # The first packet to a host that is not known yet is lost: it waits in the kernel on another port.
        wait_for(functools.partial(link.p.ping, link.address(number), timeout=1), 5, "its route is there")
        assert link.p.ping(link.address(number), 3), f"the proxy pings {host.name}"
        assert host.ping(PROXY, 3), f"{host.name} pings the proxy"
    assert link.p.ping(UPSTREAM, 2)
    assert link.r.ping(PROXY, 2)
    routed = {route["dst"]: route["dev"] for route in link.p.ip_json("-6 route show proto 135")}
    assert routed[link.address(1)] == "tap1"
    assert routed[link.address(2)] == "tap2"


def test_status_neighbors_and_explain_speak_of_the_relay(link: Link) -> None:
    """Status names the part of each port, neighbors the hosts, explain where solicitations go."""
    address = link.address(1)
    assert link.r.ping(address)
    done = link.portier.cli("status")
    assert done.returncode == 0
    assert "group lan: relay, upstream eth0" in done.stdout
    assert done.stdout.count("forwarding") == 3
    assert "IPv4: not relayed" in done.stdout
    assert link.portier.neighbors()[address]["port"] == "tap1"
    done = link.portier.explain(address)
    assert done.returncode == 0, done.stdout
    assert "relayed to tap1, tap2" in done.stdout
    assert "packets for it leave by tap1" in done.stdout
    assert link.portier.explain(f"{NET}dead").returncode == 1
    assert link.portier.cli("plan").returncode == 0


# -- addresses that are there twice, and hosts that move ---------------------------------------------


def test_nd_017_addresses_that_are_taken_are_refused_across_segments(link: Link) -> None:
    """DAD finds the owner wherever it is: a host's address behind another port, and the router's."""
    one, two = link.hosts[1], link.hosts[2]
    two.use_dad("eth0")
    two.add("eth0", f"{link.address(1)}/64", dad=True)
    wait_for(lambda: two.address_state("eth0", link.address(1)) == "dadfailed", 5, "DAD fails behind")
    two.add("eth0", f"{UPSTREAM}/64", dad=True)
    wait_for(lambda: two.address_state("eth0", UPSTREAM) == "dadfailed", 5, "DAD fails against the router")
    two.add("eth0", f"{NET}77/64", dad=True)
    wait_for(lambda: two.address_state("eth0", f"{NET}77") == "valid", 5, "a free address is free")
    assert one.ping(f"{NET}77", 2)
    two.ip(f"addr del {link.address(1)}/64 dev eth0", f"addr del {UPSTREAM}/64 dev eth0")


def test_nd_062_of_two_hosts_with_one_address_both_are_heard(link: Link) -> None:
    """The router sees the advertisements of both; and they are not asked in turn for ever."""
    twice = f"{NET}88"
    for host in link.hosts.values():
        host.add("eth0", f"{twice}/64")
    capture = link.r.capture("eth0")
    taps = [link.p.capture(f"tap{number}") for number in link.hosts]
    link.r.ping(twice, 1)

    def answers(captured: Capture) -> int:
        return len(captured.advertisements(twice, outgoing=False))

    wait_for(lambda: all(map(answers, taps)), 5, "both answer")
    wait_for(lambda: answers(capture) >= 2, 5, "both are relayed")
    assert link.r.ping(twice, 5), "one of them is talked to"
    assert sum(map(answers, taps)) < 30
    for host in link.hosts.values():
        host.ip(f"addr del {twice}/64 dev eth0")


def test_nd_010_a_host_that_changes_segments_is_followed(lab: Lab) -> None:
    """A host unplugged here and plugged in there, with address and link-layer address, is pinged all the
    while, and misses little; its address is never taken for a duplicate."""
    link = Link(lab)
    link.advertise()
    host, address = lab.host("host"), f"{NET}55"
    # Each segment is a switch, so that the port there keeps its carrier.
    for number in (1, 2):
        switch = link.hosts[number]
        lab.bridge(switch, "br0")
        lab.link(host, f"eth{number}", switch, "cable", mac="02:00:5e:00:55:55")
        lab.plug(switch, "br0", "eth0")
        lab.plug(switch, "br0", "cable")
        host.use_dad(f"eth{number}")
        host.ip(f"link set eth{number} down")
    link.start()

    def settled(name: str) -> bool:
        return host.address_state(name, address) == "valid"

    host.ip("link set eth1 up")
    host.add("eth1", f"{address}/64", dad=True)
    wait_for(lambda: settled("eth1"), 5, "the address is usable")
    wait_for(lambda: link.r.ping(address, timeout=1), 5, "the host answers")
    pinging = link.r.pinging(address)
    for here, there in (("eth1", "eth2"), ("eth2", "eth1"), ("eth1", "eth2")):
        host.ip(f"addr flush dev {here} scope global", f"link set {here} down", f"link set {there} up")
        host.add(there, f"{address}/64", dad=True)
        wait_for(functools.partial(settled, there), 5, "no duplicate is seen")
        wait_for(lambda: link.r.ping(address, timeout=1), 8, f"the host answers by {there}")
        link.r.ping(address, 5)
    replies, gap = pinging.stop()
    assert replies > 20
    assert gap < 6, "a second for DAD, three to see that it is not there any more"


# -- DHCPv6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [True, False], ids=["stateful", "stateless"])
def test_nd_094_dhcpv6_crosses(lab: Lab, tmp_path: Path, *, stateful: bool) -> None:
    """A client behind gets a lease from dnsmasq in front, or the DNS server alone; DUIDs stay as they are."""
    need("dnsmasq", "dhclient")
    link = Link(lab, prefix_flags="AdvAutonomous off;" if stateful else "")
    link.advertise("AdvManagedFlag on;" if stateful else "AdvOtherConfigFlag on;")
    link.start()
    pool = f"{NET}1000,{NET}1fff,64,1h" if stateful else f"{NET},ra-stateless"
    server = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0"]
    server += [f"--dhcp-range={pool}", "--dhcp-option=option6:dns-server,[2001:db8:7::53]"]
    server += [f"--dhcp-leasefile={tmp_path}/leases", f"--pid-file={tmp_path}/dnsmasq.pid", "--user="]
    with (tmp_path / "dnsmasq.log").open("w") as log:
        link.r.popen([*server, "--log-facility=-"], stdout=log, stderr=log)
    wait_for(lambda: ":547" in link.r.run(["ss", "-lun"]).stdout, 10, "dnsmasq listens")
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nenv >> {tmp_path}/lease\n")
    script.chmod(0o755)
    client = ["dhclient", "-6", "-1", "-d", "-sf", str(script), "-lf", f"{tmp_path}/dhclient.leases"]
    client += ["-pf", f"{tmp_path}/dhclient.pid", *([] if stateful else ["-S"]), "eth0"]
    requests, heard = link.hosts[1].capture("eth0"), link.r.capture("eth0")
    with (tmp_path / "dhclient.log").open("w") as log:
        link.hosts[1].popen(client, stdout=log, stderr=log)

    def lease() -> str:
        path = tmp_path / "lease"
        return path.read_text() if path.exists() else ""

    wait_for(lambda: "new_dhcp6_name_servers=2001:db8:7::53" in lease(), 20, "the DNS server is told")
    assert (f"new_ip6_address={NET}1" in lease()) == stateful

    def asked(capture: Capture) -> list[bytes]:
        found = [frame.raw[14:] for frame in capture.frames() if frame.raw[20:21] == b"\x11"]
        return [packet for packet in found if packet[42:44] == b"\x02\x23"]

    assert asked(requests)
    assert asked(heard) == asked(requests), "each request arrives as it was sent, once"


# -- routers that should not be there ----------------------------------------------------------------


def rogue(host: Host) -> Packet:
    """A Router Advertisement as this host would send it, for a prefix of its own."""
    mac = host.mac("eth0")
    return (
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src=host.link_local("eth0"), dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(M=0, O=0, routerlifetime=600)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64, validlifetime=600)
    )


def routers(host: Host) -> set[str]:
    """The default routers of a host."""
    return {route["gateway"] for route in host.routes() if route["dst"] == "default" and "gateway" in route}


@pytest.mark.parametrize("policy", ["strict", "nested", "drop", "off"])
def test_nd_067_a_rogue_router_behind(lab: Lab, policy: str) -> None:
    """With strict and nested its port is held down, the others go on; with drop only its advertisement is
    lost, and reported; with off it is a router like any other.  The real one stays the others' router."""
    link = Link(lab)
    link.advertise()
    link.start(relay(f"loop_protection: {policy}"))
    real, one, two = link.r.link_local("eth0"), link.hosts[1], link.hosts[2]
    wait_for(lambda: routers(two) == {real}, 15, "the real router is known")
    assert wait_for(lambda: one.ping(link.address(2), timeout=1), 10, "all is well")
    one.inject("eth0", rogue(one))
    if policy in ("strict", "nested"):
        link.wait_service(tap1="hold-down", tap2="forwarding", eth0="forwarding")
        assert not one.ping(UPSTREAM, timeout=1)
        done = link.portier.cli("status")
        assert done.returncode == 3
        assert "tap1 is in hold-down: a Router Advertisement" in " ".join(done.stdout.split())
        assert one.mac("eth0") in done.stdout
        assert link.p.ping(f"{one.link_local('eth0')}%tap1", timeout=2), "its own stack goes on"
    elif policy == "drop":
        link.portier.wait_event("Router Advertisement", "dropped")
        assert link.services()["tap1"] == "forwarding"
        assert one.ping(UPSTREAM, 2)
    else:
        wait_for(lambda: one.link_local("eth0") in routers(two), 5, "the other router is one too")
        assert link.services()["tap1"] == "forwarding"
    if policy != "off":
        holds_for(lambda: routers(two) == {real}, 1, "no other router is heard of")
        assert two.ping(BEYOND, 3)


def test_a_hold_down_survives_a_reload_and_is_lifted(lab: Lab) -> None:
    """A reload that changes other things leaves it; lift ends it, and the port forwards after two RAs."""
    link = Link(lab)
    link.advertise()
    link.start()
    one = link.hosts[1]
    refused = link.portier.cli("lift", "tap1")
    assert refused.returncode == 1
    assert refused.stderr == (
        "portier lift: tap1 is a port of group lan, and is not in hold-down: forwarding\n"
    )
    one.inject("eth0", rogue(one))
    link.wait_service(tap1="hold-down")
    left = next(port for port in link.portier.group()["ports"] if port["name"] == "tap1")["relay"]
    assert left["offender"] == one.link_local("eth0")
    assert left["mac"] == one.mac("eth0")
    assert 3500 < left["left"] <= 3600
    link.portier.write(relay("limits: {per_port: 99}"))
    assert link.portier.reload().returncode == 0
    assert link.services() == {"eth0": "forwarding", "tap1": "hold-down", "tap2": "forwarding"}
    done = link.portier.cli("lift", "tap1")
    assert (done.returncode, done.stderr) == (0, "")
    link.wait_service(tap1="forwarding")
    assert one.ping(UPSTREAM, 2)
    assert link.portier.cli("status").returncode == 0


# -- the daemon's life -------------------------------------------------------------------------------


def test_the_proxy_itself_lives_by_the_routers_advertisements(lab: Lab) -> None:
    """Where the proxy's kernel does not forward it stays a host: nothing is switched on, its own address and
    default route come from the router, before, while and after the daemon runs."""
    link = Link(lab, forwarding=False)
    before = link.p.sysctls()
    link.advertise()
    link.start()
    wait_for(lambda: routers(link.p) == {link.r.link_local("eth0")}, 10, "the default route")
    assert link.p.ping(BEYOND, 2)
    assert link.hosts[1].ping(BEYOND, 2)
    changed = {path for path, value in link.p.sysctls().items() if before.get(path) != value}
    assert not [path for path in changed if "forwarding" in path or "accept_ra" in path]


def test_a_clean_stop_leaves_nothing(lab: Lab) -> None:
    """Rules, routes and memberships are as before, and what was relayed is not any more."""
    link = Link(lab)
    link.advertise()
    rules, allmulti = link.p.rules(), link.p.ip_json("-details link show dev tap1")[0].get("allmulti")
    link.start()
    assert link.hosts[1].ping(link.address(2), 2)
    assert {rule["iif"] for rule in link.p.rules() if "iif" in rule} == {"eth0", "tap1", "tap2"}
    assert link.p.host_routes()
    assert link.portier.stop() == 0
    assert link.p.rules() == rules
    assert not link.p.routes("proto 135")
    assert link.p.ip_json("-details link show dev tap1")[0].get("allmulti") == allmulti


def test_a_group_changes_its_mode_and_back(lab: Lab) -> None:
    """On a reload the other engine takes over, with the rules of its mode; hosts are reached in both."""
    link = Link(lab)
    link.advertise()
    link.start()
    address = link.address(1)
    assert link.r.ping(address, 2)
    route = f"version: 1\ngroups: {{lan: {{upstream: eth0, downstream: 'tap*', prefixes: ['{NET}/64']}}}}\n"
    link.portier.write(route)
    assert link.portier.reload().returncode == 0
    assert {rule.get("dst", rule.get("src")) for rule in link.p.rules() if rule.get("iif") == "tap1"} >= {
        "fe80::"
    }
    wait_for(lambda: link.r.ping(address, timeout=1), 10, "the host is reached by routing")
    capture = link.hosts[1].capture("eth0")
    assert link.r.ping(address, 2)
    assert {packet[7] for packet in echoes(capture)} == {63}, "the kernel routed it"
    link.portier.write(relay())
    assert link.portier.reload().returncode == 0
    link.wait_service(eth0="forwarding", tap1="forwarding", tap2="forwarding")
    capture.clear()
    wait_for(lambda: link.r.ping(address, timeout=1), 10, "the host is reached by relaying")
    assert {packet[7] for packet in echoes(capture)} == {64}


def test_a_port_that_cannot_be_relayed_to_is_refused(lab: Lab) -> None:
    """An MTU below 1280 takes a port out of service, with the reason, and a larger one brings it back."""
    link = Link(lab)
    link.advertise()
    link.start()
    link.p.ip("link set tap2 mtu 1279")
    wait_for(lambda: link.services()["tap2"] == "refused", 5, "the port is refused")
    assert "its MTU of 1279 is below 1280" in " ".join(link.portier.cli("status").stdout.split())
    assert link.hosts[1].ping(UPSTREAM, 2)
    link.p.ip("link set tap2 mtu 1500")
    link.wait_service(tap2="forwarding")
    wait_for(lambda: link.hosts[2].ping(UPSTREAM, timeout=1), 10, "the port serves again")


def test_a_chain_of_two_proxies(lab: Lab) -> None:
    """With `nested` behind and the default in front, a host at the end of the chain is on the link, for TCP
    both ways too; with `strict` behind, the second proxy holds its upstream down."""
    link = Link(lab)
    link.advertise()
    end = lab.host("end")
    second = link.hosts[2]
    end.sysctl("net/ipv6/conf/default/router_solicitations", 10)
    end.sysctl("net/ipv6/conf/default/router_solicitation_interval", 1)
    lab.link(end, "eth0", second, "tap9")
    link.start()
    chained = (
        "version: 1\ngroups: {{end: {{mode: relay, upstream: eth0, downstream: tap9, loop_protection: {}}}}}"
    )
    behind = lab.portier(chained.format("nested"), on=second, name="behind")

    def parts() -> dict[str, str]:
        return {port["name"]: (port["relay"] or {}).get("service", "") for port in behind.group()["ports"]}

    wait_for(lambda: set(parts().values()) == {"forwarding"}, 25, "the second proxy forwards")
    wait_for(lambda: end.ping(BEYOND, timeout=1), 20, "the host at the end reaches beyond")
    assert routers(end) == {link.r.link_local("eth0")}
    assert end.ping(link.address(1), 2)
    own = next(address for address in end.addresses("eth0") if address.startswith("2001:"))
    for giver, taker, address in ((link.x, end, own), (end, link.x, BEYOND)):
        serve(taker, TAKE)
        assert said(give(giver, address, 5_000_000)) == "intact"
    behind.write(chained.format("strict"))
    assert behind.reload().returncode == 0
    wait_for(lambda: parts()["eth0"] == "hold-down", 10, "the mark of another proxy")
