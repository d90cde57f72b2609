"""`router_advertisements: relay` in mode route, with radvd upstream and kernels that autoconfigure."""

from __future__ import annotations

import re
from pathlib import Path

from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from portier.core import ndp, rewrite
from tests.netns.lab import Capture, Frame, Host, Lab, checksum_is_right, wait_for
from tests.netns.scenes import Scene, config

SITE = "2001:db8:9::"
ROUTER = f"{SITE}1"
BEYOND = "2001:db8:f::f"
SETTINGS = "router_advertisements: relay"
MTU = 1400
RS, RA = 133, 134


class Site(Scene):
    """A router with radvd on the upstream, another network behind it, and guests with nothing configured."""

    def __init__(self, lab: Lab, guests: int = 1) -> None:
        super().__init__(lab, lab.host("u", forwarding=True), lab.host("p"))
        lab.link(self.u, "eth0", self.p, "eth0")
        self.u.add("eth0", f"{ROUTER}/64")
        far = lab.host("far")
        lab.link(self.u, "wan", far, "eth0")
        self.u.add("wan", "2001:db8:f::1/64")
        far.add("eth0", f"{BEYOND}/64")
        far.ip("-6 route add default via 2001:db8:f::1 dev eth0")
        for number in range(1, guests + 1):
            self.add_bare_guest(number)
        self.below = self.guests[1].capture("eth0")
        self.above = self.u.capture("eth0")

    @property
    def router(self) -> str:
        """The router's link-local address."""
        return self.u.link_local("eth0")

    def add_bare_guest(self, number: int) -> Host:
        """A host that has nothing, and asks for nothing until `boot`."""
        host = self.guests[number] = self.lab.host(f"h{number}")
        self.lab.link(host, "eth0", self.p, f"tap{number}")
        self.p.ip(f"link set tap{number} mtu {MTU}")
        host.ip(f"link set eth0 mtu {MTU}")
        return host

    def advertise(self, extra: str = "", prefix: str = "") -> None:
        """Run radvd on the router, with more lines for the interface and for the prefix."""
        file = self.lab.directory / "radvd.conf"
        file.write_text(
            f"interface eth0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; {extra}\n"
            f"AdvLinkMTU 1500; AdvCurHopLimit 64; RDNSS {SITE}53 {{ }};\n"
            f"prefix {SITE}/64 {{ AdvValidLifetime 86400; AdvPreferredLifetime 14400; {prefix} }}; }};\n"
        )
        file.chmod(0o644)
        pid = Path(f"{file}.pid")
        self.u.popen(["radvd", "-n", "-C", str(file), "-p", str(pid), "-m", "none"])

    def boot(self, number: int = 1) -> Host:
        """Have a guest come up, and ask for routers."""
        host = self.guests[number]
        host.ip("link set eth0 down")
        host.use_dad("eth0")
        host.sysctl("net/ipv6/conf/eth0/accept_ra", 1)
        host.sysctl("net/ipv6/conf/eth0/router_solicitations", 3)
        host.ip("link set eth0 up")
        return host

    def autoconfigured(self, number: int = 1) -> str:
        """The address that a guest made itself, as soon as it may use it."""
        host = self.guests[number]

        def usable() -> str | None:
            found = host.addresses("eth0").items()
            return next((a for a, state in found if a.startswith(SITE) and state == "valid"), None)

        return str(wait_for(usable, 15, f"an address of its own on {host}"))


def received(capture: Capture, kind: int) -> list[Frame]:
    """Router messages that came in."""
    return capture.nd(kind, outgoing=False)


def default_routes(host: Host) -> list[str]:
    """The next hops of a host's default routes."""
    return [str(route.get("gateway")) for route in host.ip_json("-6 route show default")]


def view(frame: Frame) -> rewrite.Advertised:
    """What an advertisement says."""
    return rewrite.advertised(ndp.NO_OFFLOAD + frame.raw)


def test_nd_017_a_guest_with_nothing_configured_gets_everything(lab: Lab) -> None:
    """Address and default route by SLAAC; it reaches the router, what lies beyond, and is reached."""
    site = Site(lab)
    site.advertise()
    site.start(config("[upstream]", extra=SETTINGS))
    host = site.boot()
    address = site.autoconfigured()

    assert default_routes(host) == [site.router]
    assert host.ping(ROUTER, count=3)
    assert host.ping(BEYOND, count=3)
    assert lab.hosts["far"].ping(address, count=3)
    assert site.p.host_routes()[address] == "tap1"
    # The next hop is the proxy: by its link-layer address, as a router, and confirmed by NUD.
    (entry,) = host.ip_json(f"-6 neigh show {site.router} dev eth0")
    assert entry["lladdr"] == site.p.mac("tap1")
    assert "router" in entry

    def confirmed() -> bool:
        assert host.ping(BEYOND, count=1)
        return "REACHABLE" in host.ip_json(f"-6 neigh show {site.router} dev eth0")[0]["state"]

    wait_for(confirmed, 15, "the router is confirmed by a unicast probe")
    assert default_routes(host) == [site.router]


def test_every_frame_is_as_the_rfcs_want_it(lab: Lab) -> None:
    """Solicitations go up in our name and nowhere else; advertisements differ from what the router sent in
    P bit, hop limit, MTU, link-layer address and checksum alone."""
    site = Site(lab, guests=2)
    site.advertise("AdvOtherConfigFlag on;")
    other = site.guests[2].capture("eth0")
    site.start(config("[upstream]", extra=SETTINGS))
    site.boot()
    site.autoconfigured()

    sent = next(frame.raw for frame in site.above.nd(RA, outgoing=True) if frame.raw[38:54] == ndp.ALL_NODES)
    compared = 0
    for frame in received(site.below, RA):
        raw = frame.raw
        assert raw[6:12] == bytes.fromhex(site.p.mac("tap1").replace(":", ""))
        assert checksum_is_right(raw)
        said = view(frame)
        assert (said.proxied, said.other, said.hop_limit, said.mtu) == (True, True, 65, MTU)
        assert frame.source == site.router
        option = IPv6(raw[14:])[ICMPv6NDOptSrcLLAddr]
        assert option.lladdr == site.p.mac("tap1")
        if raw[38:54] == ndp.ALL_NODES:
            differing = {at for at in range(54, len(raw)) if raw[at] != sent[at]}
            mtu = raw.index(bytes((5, 1, 0, 0)), 70)
            slla = raw.index(bytes((1, 1)) + raw[6:12], 70)
            compared += 1
            assert differing <= {56, 57, 58, 59, *range(mtu + 4, mtu + 8), *range(slla + 2, slla + 8)}
    assert compared
    for frame in received(site.above, RS):
        assert frame.raw[6:12] == bytes.fromhex(site.p.mac("eth0").replace(":", ""))
        assert frame.source == site.p.link_local("eth0")
        assert IPv6(frame.raw[14:])[ICMPv6NDOptSrcLLAddr].lladdr == site.p.mac("eth0")
    assert received(site.above, RS)
    assert not received(other, RS), "a solicitation went to another downstream"
    assert received(other, RA)


def test_a_guest_that_comes_later_is_served_from_memory(lab: Lab) -> None:
    """At once, before the router says anything again, with what is left of the lifetimes."""
    site = Site(lab)
    site.advertise("AdvDefaultLifetime 600;")
    daemon = site.start(config("[upstream]", extra=SETTINGS))
    wait_for(lambda: daemon.group()["routers"], 10, "the router is heard")
    (router,) = daemon.group()["routers"]
    assert (router["address"], router["on_link"]) == (site.router, [f"{SITE}/64"])
    assert f"{SITE}/64" in [live["prefix"] for live in daemon.group()["live"]]
    said = daemon.cli("status").stdout
    assert f"router {site.router} on eth0: default router for" in said

    site.u.run(["sh", "-c", 'kill -KILL "$(cat "$0")"', str(lab.directory / "radvd.conf.pid")])
    site.below.clear()
    asked = site.guests[1].run(["rdisc6", "-1", "-r", "3", "-w", "2000", "eth0"]).stdout
    assert re.search(rf"from {site.router}\b", asked), asked
    assert f"{SITE}/64" in asked
    assert site.p.mac("tap1").upper() in asked.upper()
    frame = received(site.below, RA)[0]
    assert 0 < view(frame).lifetime <= 600
    assert frame.raw[38:54] != ndp.ALL_NODES, "it is for the one who asked"


def test_nd_230_when_the_upstream_goes_addresses_are_deprecated(lab: Lab) -> None:
    """The guest gives up its default route at once and prefers its address no more, but keeps it; when the
    upstream is back, so is everything."""
    site = Site(lab)
    site.advertise()
    site.start(config("[upstream]", extra=SETTINGS))
    host = site.boot()
    address = site.autoconfigured()

    site.u.ip("link set eth0 down")
    wait_for(lambda: host.address_state("eth0", address) == "deprecated", 10, "the address is deprecated")
    wait_for(lambda: default_routes(host) == [], 10, "the default route is gone")
    last = [frame for frame in received(site.below, RA) if not view(frame).lifetime]
    assert last
    assert {(said.valid, said.preferred) for said in view(last[0]).prefixes} == {(7200, 0)}

    site.u.ip("link set eth0 up")
    site.u.add("eth0", f"{ROUTER}/64")
    wait_for(lambda: default_routes(host) == [site.router], 30, "the default route is back")
    wait_for(lambda: host.address_state("eth0", address) == "valid", 10, "the address is preferred again")
    assert host.ping(BEYOND, count=5).received


def test_nd_204_a_rogue_router_on_a_downstream_is_reported(lab: Lab) -> None:
    """Nobody else hears of it, neither upstream nor on another downstream."""
    site = Site(lab, guests=2)
    site.advertise()
    daemon = site.start(config("[upstream]", extra=SETTINGS))
    other = site.guests[2].capture("eth0")
    rogue = site.guests[1]
    mac = rogue.mac("eth0")
    packet = (
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::bad", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    )
    rogue.inject("eth0", packet)

    daemon.wait_event("fe80::bad", "tap1", "not relayed")
    assert daemon.count("rogue-router") == 1
    wait_for(lambda: received(other, RA), 10, "the router itself is heard")
    assert all(frame.source == site.router for frame in received(other, RA))
    assert not received(site.above, RA)


def test_the_router_s_address_cannot_be_taken_downstream(lab: Lab) -> None:
    """A guest whose DAD asks for it is told that it is taken."""
    site = Site(lab)
    site.advertise()
    daemon = site.start(config("[upstream]", extra=SETTINGS))
    wait_for(lambda: daemon.group()["routers"], 10, "the router is heard")
    host = site.guests[1]
    host.use_dad("eth0")
    host.ip(f"addr add {site.router}/64 dev eth0")
    wait_for(lambda: host.address_state("eth0", site.router) == "dadfailed", 5, "the address is refused")


def test_a_promise_of_dhcpv6_is_a_warning(lab: Lab) -> None:
    """Status says what is missing and what to do."""
    site = Site(lab)
    site.advertise("AdvManagedFlag on; RDNSS fe80::53 { };")
    daemon = site.start(config("[upstream]", extra=SETTINGS))
    wait_for(lambda: daemon.group()["routers"], 10, "the router is heard")

    assert "fe80::53" in str([text for text in daemon.group()["warnings"] if "for names" in text])
    (warning,) = [text for text in daemon.group()["warnings"] if "DHCPv6" in text]
    assert f"the router {site.router} on eth0 promises DHCPv6 (flag M)" in warning
    assert "mode: relay" in warning


def test_a_prefix_that_no_rule_allows_is_a_warning(lab: Lab) -> None:
    """Guests would make themselves addresses at which nobody finds them."""
    site = Site(lab)
    site.advertise()
    daemon = site.start(config('["2001:db8:7::/64"]', extra=SETTINGS))
    wait_for(lambda: daemon.group()["routers"], 10, "the router is heard")

    (warning,) = daemon.group()["warnings"]
    assert f"{SITE}/64 is theirs to use, but no rule allows it" in warning


def test_prefixes_that_only_the_router_tells_are_proxied(lab: Lab) -> None:
    """The proxy itself does not heed Router Advertisements, so its kernel knows of no on-link prefix."""
    site = Site(lab)
    site.p.sysctl("net/ipv6/conf/eth0/accept_ra", 0)
    site.p.ip(f"-6 route add default via {site.router} dev eth0")
    site.advertise()
    site.start(config("[upstream]", extra=SETTINGS))
    host = site.boot()
    address = site.autoconfigured()

    assert not [a for a in site.p.addresses("eth0") if a.startswith(SITE)]
    assert host.ping(BEYOND, count=3).received
    assert lab.hosts["far"].ping(address, count=3)
