"""Router Advertisements in mode route: what a group relays, answers for, and takes back."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from portier.core import ndp, rewrite
from portier.core.model import EventKind, Group, Port, Role, RouterAdvertisements
from portier.core.outcome import Reconsider, Verdict
from tests.core.playbook import NAMES, RULES, D, E, Playbook, Sent, U, ip, mac, port

NAMES.setdefault(4, "up1")
R = "fe80::bad:1"
PREFIX = IPv6Network("2001:db8:9::/64")


class Site(Playbook):
    """A group that relays Router Advertisements, and the router R (host 1) on its upstream."""

    def __init__(self, **group: Any) -> None:
        super().__init__(router_advertisements=RouterAdvertisements.RELAY, **group)
        self.begun = list(self.sent)
        self.woken = 0

    def ra(
        self,
        ifindex: int = U,
        source: str = R,
        host: int = 1,
        *,
        prefix: str | None = "2001:db8:9::",
        to: str = "ff02::1",
        **fields: Any,
    ) -> Verdict:
        """A router advertises itself, with a prefix."""
        lifetimes = {"validlifetime": 7200, "preferredlifetime": 3600}
        lifetimes |= {name: fields.pop(name) for name in lifetimes if name in fields}
        packet: Packet = IPv6(src=source, dst=to, hlim=255) / ICMPv6ND_RA(**fields)
        if prefix:
            packet = packet / ICMPv6NDOptPrefixInfo(prefix=prefix, prefixlen=64, L=1, A=1, **lifetimes)
        packet = packet / ICMPv6NDOptMTU(mtu=9000) / ICMPv6NDOptSrcLLAddr(lladdr=mac(host).hex(":"))
        return self.receive(ifindex, framed(packet, host))

    def ra_of(self, source: str, host: int, prefixes: list[tuple[str, int]]) -> Verdict:
        """A router advertises many prefixes, each for so many seconds."""
        packet: Packet = IPv6(src=source, dst="ff02::1", hlim=255) / ICMPv6ND_RA()
        for prefix, seconds in prefixes:
            packet = packet / ICMPv6NDOptPrefixInfo(
                prefix=prefix, prefixlen=64, L=1, A=1, validlifetime=seconds, preferredlifetime=seconds
            )
        return self.receive(U, framed(packet, host))

    def rs(self, ifindex: int, source: str, host: int) -> Verdict:
        """A host looks for routers."""
        packet: Packet = IPv6(src=source, dst="ff02::2", hlim=255) / ICMPv6ND_RS()
        if source != "::":
            packet = packet / ICMPv6NDOptSrcLLAddr(lladdr=mac(host).hex(":"))
        return self.receive(ifindex, framed(packet, host))

    def receive(self, ifindex: int, frame: bytes) -> Verdict:
        self.sent, self.events = [], []
        outcome = self.engine.receive(ifindex, frame, self.now)
        self.woken += outcome.effects.count(Reconsider("router"))
        self._carry_out(outcome)
        return outcome.verdict

    def heard(self) -> set[IPv6Network]:
        return {network for info in self.engine.routers(self.now) for network in info.on_link}


def framed(packet: Packet, host: int) -> bytes:
    """A packet of a host's."""
    return ndp.NO_OFFLOAD + bytes(Ether(src=mac(host).hex(":"), dst="33:33:00:00:00:01") / packet)


def said(sent: Sent) -> rewrite.Advertised:
    """What an advertisement that went out says."""
    return rewrite.advertised(sent.frame)


def test_an_advertisement_goes_to_every_downstream() -> None:
    """Rewritten for each: our link-layer address, its MTU; the router's own address as the source."""
    site = Site()

    assert site.ra(chlim=64, M=1) is Verdict.RELAYED

    assert [(sent.port, sent.kind) for sent in site.sent] == [(D, "RA"), (E, "RA")]
    for sent in site.sent:
        message = sent.message
        assert (message.source, message.destination) == (ip(R), ndp.ALL_NODES)
        assert message.link_layer == message.ether_source == site.mac_of(sent.port)
        view = said(sent)
        assert (view.proxied, view.hop_limit, view.mtu, view.managed) == (True, 65, 1500, True)
    assert EventKind.ROUTER in site.kinds()


def test_a_proxied_advertisement_is_relayed_all_the_same() -> None:
    """Proxies that route may be chained: routing ends loops by the hop limit."""
    assert Site().ra(P=1) is Verdict.RELAYED


def test_nd_204_an_advertisement_from_a_downstream_is_reported_and_goes_nowhere() -> None:
    """And whoever sent it is not answered for."""
    site = Site()

    assert site.ra(D, "fe80::666", 66) is Verdict.ROGUE_ROUTER

    assert site.sent == []
    assert "fe80::666 on down0 with 02:00:00:00:00:42" in site.events[0][1]
    assert site.kinds() == {EventKind.ROUTER}
    assert site.ns(E, "fe80::5", "fe80::666", 5) is Verdict.LINK_LOCAL
    assert site.engine.routers(site.now) == []


def test_without_the_setting_nothing_is_relayed() -> None:
    """The kernel sees what it always saw."""
    site = Site()
    site.group = Group(name="guests", rules=RULES)
    site.configure()

    assert site.ra() is Verdict.NOT_HANDLED
    assert site.ra(D) is Verdict.NOT_HANDLED
    assert site.rs(D, "fe80::5", 5) is Verdict.NOT_HANDLED
    assert site.sent == []


def test_nd_025_a_solicitation_goes_up_and_nowhere_else() -> None:
    """In our own name: no guest's link-local address gets upstream."""
    site = Site()
    site.pass_time(20.0)

    assert site.rs(D, "fe80::5", 5) is Verdict.RELAYED

    (sent,) = site.sent
    assert (sent.port, sent.kind) == (U, "RS")
    assert (sent.message.source, sent.message.destination) == (ip("fe80::1"), ndp.ALL_ROUTERS)
    assert sent.message.link_layer == sent.message.ether_source == site.mac_of(U)


def test_hosts_that_ask_at_the_same_time_are_one_question() -> None:
    """A second later it is another."""
    site = Site()
    site.pass_time(20.0)
    site.rs(D, "fe80::5", 5)
    site.rs(E, "fe80::6", 6)
    assert site.sent == []
    site.pass_time(1.0)
    site.rs(E, "fe80::6", 6)
    assert [sent.port for sent in site.sent] == [U]


def test_solicitations_stay_within_the_limits() -> None:
    """A storm is named and goes nowhere."""
    site = Site()
    verdicts = [site.rs(D, "fe80::5", 5) for _ in range(200)]

    assert verdicts[0] is Verdict.RELAYED
    assert verdicts[-1] is Verdict.SOURCE_LIMIT


def test_a_new_host_is_served_at_once() -> None:
    """From what was heard last, with what is left of the lifetimes; and the router is asked as well."""
    site = Site()
    site.ra(routerlifetime=1800, validlifetime=7200, preferredlifetime=100)
    site.pass_time(600.0)

    assert site.rs(E, "fe80::5", 5) is Verdict.ANSWERED

    up, down = sorted(site.sent, key=lambda sent: sent.port)
    assert up.kind == "RS"
    assert (down.port, down.message.destination, down.message.ether_destination) == (E, ip("fe80::5"), mac(5))
    view = said(down)
    assert (view.lifetime, view.prefixes[0].valid, view.prefixes[0].preferred) == (1200, 6600, 0)


def test_one_without_an_address_is_told_by_multicast_in_a_frame_of_its_own() -> None:
    """RFC 6085: nobody else is bothered."""
    site = Site()
    site.ra()
    site.rs(D, "::", 5)

    (sent,) = [sent for sent in site.sent if sent.kind == "RA"]
    assert (sent.message.destination, sent.message.ether_destination) == (ndp.ALL_NODES, mac(5))


def test_what_does_not_hold_any_more_is_told_to_nobody() -> None:
    """Neither the router nor its prefixes have any time left."""
    site = Site()
    site.ra(routerlifetime=1800, validlifetime=2000, preferredlifetime=1000)
    site.pass_time(2001.0)

    assert "is no router any more" in site.events[-1][1]
    assert site.rs(D, "fe80::5", 5) is Verdict.RELAYED
    assert [sent.kind for sent in site.sent] == ["RS"]
    assert site.ns(D, "fe80::5", R, 5) is Verdict.LINK_LOCAL


def test_an_answer_to_the_proxy_is_one_for_all() -> None:
    """Routers answer by unicast: those who asked must hear of it, but not every second."""
    site = Site()
    assert site.ra(to="fe80::1") is Verdict.RELAYED
    assert {sent.message.destination for sent in site.sent} == {ndp.ALL_NODES}
    assert site.ra(to="fe80::1") is Verdict.HEARD
    assert site.sent == []
    assert site.ra(to="fe80::1", routerlifetime=0) is Verdict.RELAYED
    site.pass_time(3.0)
    assert site.ra(to="fe80::1", routerlifetime=0) is Verdict.RELAYED


def test_portier_asks_for_routers_when_it_starts() -> None:
    """Up to three times, four seconds apart, until one speaks."""
    site = Site()
    assert [(sent.port, sent.kind) for sent in site.begun] == [(U, "RS")]
    site.pass_time(60.0)
    assert [sent.kind for sent in site.sent] == ["RS", "RS"]

    site = Site()
    site.pass_time(5.0)
    assert len(site.sent) == 1
    site.ra()
    site.pass_time(60.0)
    assert site.sent == []


def test_a_port_without_an_address_asks_from_nowhere() -> None:
    """RFC 4861 section 4.1: then without the option."""
    site = Site()
    site.ports = (port(U, source=None), port(D), port(E))
    site.configure()
    site.pass_time(4.0)

    (sent,) = site.sent
    assert (sent.message.source, sent.message.link_layer) == (ndp.UNSPECIFIED, b"")


@pytest.mark.parametrize("unicast", [False, True])
def test_nd_132_the_router_is_answered_for_as_a_router(unicast: bool) -> None:
    """Its link-local address leads to the proxy, R=1; for NUD too."""
    site = Site()
    site.ra()

    assert site.ns(D, "fe80::5", R, 5, unicast=unicast) is Verdict.ANSWERED

    (sent,) = site.sent
    assert (sent.message.target, sent.message.flags) == (ip(R), ndp.R_FLAG | ndp.S_FLAG)
    assert sent.message.link_layer == site.mac_of(D)
    assert site.ns(U, "fe80::5", R, 5) is Verdict.LINK_LOCAL, "it answers for itself upstream"
    steps = site.engine.explain(ip(R), D, site.now).steps
    assert "a router upstream, whose Router Advertisements are relayed: answered" in steps


def test_the_router_s_address_is_defended() -> None:
    """A guest that wants it does not get it, and one that says it has it is reported."""
    site = Site()
    site.ra()

    assert site.dad(D, R, 6) is Verdict.DEFENDED
    (sent,) = site.sent
    assert (sent.port, sent.message.target, sent.message.flags & ndp.R_FLAG) == (D, ip(R), ndp.R_FLAG)
    assert site.na(D, R, 6, flags="O") is Verdict.CLAIM
    assert site.dad(U, R, 6) is Verdict.LINK_LOCAL


def test_an_address_that_is_the_port_s_own_too_is_left_to_the_kernel() -> None:
    """fe80::1 is on many a bridge and on many a router: the kernel's answer leads to the same place."""
    site = Site()
    site.ra(source="fe80::2")  # which is the address of D

    assert site.ns(D, "fe80::5", "fe80::2", 5) is Verdict.LINK_LOCAL
    assert site.ns(E, "fe80::5", "fe80::2", 5) is Verdict.ANSWERED


def test_prefixes_heard_are_known_as_long_as_they_are_valid() -> None:
    """And whoever plans by them is told when they come and go."""
    site = Site()
    site.ra(routerlifetime=0, validlifetime=600, preferredlifetime=600)
    assert site.heard() == {PREFIX}
    assert site.woken == 1
    site.ra(routerlifetime=0, validlifetime=600, preferredlifetime=600)
    assert site.woken == 1
    site.now += 601
    assert site.engine.deadline <= site.now
    assert site.engine.tick(site.now).effects == (Reconsider("router"),)
    assert site.heard() == set()


def test_a_router_that_resigns_is_relayed_and_gone() -> None:
    """Lifetime 0 and no prefix: the hosts hear it, and nothing is kept."""
    site = Site()
    site.ra()
    assert site.ra(routerlifetime=0, prefix=None) is Verdict.RELAYED
    assert {said(sent).lifetime for sent in site.sent} == {0}
    site.pass_time(0.0)
    assert site.engine.routers(site.now) == []


def test_nd_230_an_upstream_that_goes_takes_its_prefixes_along() -> None:
    """Three times: no router, addresses deprecated, valid for two hours at most."""
    site = Site()
    site.ra(routerlifetime=1800, validlifetime=86400, preferredlifetime=14400)
    site.pass_time(10.0)
    site.sent = []
    site.ports = (port(D), port(E))
    site.configure()

    assert [sent.port for sent in site.sent] == [D, E]
    for sent in site.sent:
        view = said(sent)
        assert (sent.message.source, view.lifetime, view.proxied) == (ip(R), 0, True)
        assert (view.prefixes[0].preferred, view.prefixes[0].valid) == (0, 7200)
    site.pass_time(60.0)
    assert len(site.sent) == 4
    assert site.engine.deadline > site.now + 1000
    assert site.rs(D, "fe80::5", 5) is Verdict.NOWHERE
    assert site.heard() == set()


def test_another_upstream_takes_the_place_of_the_first() -> None:
    """What the old router said is taken back, the new one is asked; if it names the same prefix, that is not
    deprecated again."""
    site = Site()
    site.ra()
    site.sent = []
    new = Port(4, "up1", Role.UPSTREAM, mac(44), 1500, ip("fe80::4"))
    site.ports = (new, port(D), port(E))
    site.configure()
    assert sorted((sent.port, sent.kind) for sent in site.sent) == [(D, "RA"), (E, "RA"), (4, "RS")]

    assert site.ra(4, "fe80::99", 99) is Verdict.RELAYED
    site.pass_time(60.0)
    assert site.sent == []


def test_turning_it_off_takes_all_back() -> None:
    """As when the upstream goes."""
    site = Site()
    site.ra()
    site.sent = []
    site.group = Group(name="guests", rules=RULES)
    site.configure()

    assert [said(sent).lifetime for sent in site.sent] == [0, 0]


def test_a_change_of_ports_that_leaves_the_upstream_alone_takes_nothing_back() -> None:
    """A new downstream hears of the router at once."""
    site = Site()
    site.ra()
    site.ports = (port(U, mtu=1400), port(D))
    site.sent = []
    site.configure()
    assert site.sent == []
    site.ports = (port(U), port(D), port(E))
    site.configure()
    assert [(sent.port, said(sent).lifetime) for sent in site.sent] == [(E, 1800)]


def test_nd_120_what_is_too_big_for_a_link_is_reported() -> None:
    """Neither cut in pieces nor sent."""
    site = Site()
    packet: Packet = IPv6(src=R, dst="ff02::1", hlim=255) / ICMPv6ND_RA()
    for number in range(45):
        packet = packet / ICMPv6NDOptPrefixInfo(prefix=f"2001:db8:{number:x}::", prefixlen=64)
    site.ports = (port(U), port(D, mtu=1280), port(E))
    site.configure()

    assert site.receive(U, framed(packet, 1)) is Verdict.RELAYED
    assert [sent.port for sent in site.sent] == [E]
    assert "too big for down0" in " ".join(text for _, text in site.events)


def test_routers_are_remembered_within_bounds() -> None:
    """A flood of them drives out those that have been silent longest."""
    site = Site()
    for number in range(40):
        site.ra(source=f"fe80::{number + 100}", host=number + 100)
        site.now += 0.1
    infos = site.engine.routers(site.now)

    assert len(infos) == 16
    assert infos[-1].address == ip("fe80::139")


def test_prefixes_are_believed_within_bounds() -> None:
    """A flood of them drives out none that was there before."""
    site = Site()
    site.ra()
    for number in range(15):
        options = [(f"2001:db8:{number:x}:{more:x}::", 3600) for more in range(20)]
        site.ra_of(f"fe80::{number + 100}", number + 100, options)
        site.now += 0.1
    assert len(site.heard()) == 64
    assert PREFIX in site.heard()


def test_who_looks_sees_the_routers() -> None:
    """For people, programs and the reconciler."""
    site = Site()
    site.ra(routerlifetime=1800, O=1)
    site.now += 60

    (info,) = site.engine.routers(site.now)

    assert (info.address, info.port, info.mac, info.lifetime) == (ip(R), "up0", mac(1), 1740)
    assert (info.managed, info.other, info.on_link) == (False, True, frozenset({PREFIX}))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("aAsSdnpuo"), st.integers(0, 3), st.floats(0, 2000)), max_size=30))
def test_no_sequence_breaks_an_invariant(moves: list[tuple[str, int, float]]) -> None:
    """Whatever comes in whatever order: what goes down says that it was proxied, nothing that expired is
    told, the timers come to rest."""
    site = Site()
    ports = site.ports
    for what, number, wait in moves:
        match what:
            case "a" | "A":
                site.ra(
                    U if what == "a" else D, f"fe80::{number + 50}", number + 50, routerlifetime=int(wait)
                )
            case "s" | "S":
                site.rs(D, "::" if what == "s" else "fe80::5", 5)
            case "d":
                site.dad(E, f"fe80::{number + 50}", 7)
            case "n":
                site.ns(E, "fe80::7", f"fe80::{number + 50}", 7)
            case "p":
                site.pass_time(wait)
            case "u":
                site.ports = ports[1:] if number % 2 else ports
                site.configure()
            case "o":
                site.ra(to="fe80::1", prefix=None)
        for sent in site.sent:
            if sent.kind == "RA":
                assert sent.port != U
                assert said(sent).proxied
                assert sent.message.ether_source == site.mac_of(sent.port)
        site.sent = []
    site.pass_time(10000.0)
    assert site.engine.routers(site.now) == []
    assert site.engine.deadline > site.now
