"""The engine for mode relay, frame by frame: the numbers are those of the checklist."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Solicit, DHCP6OptClientId
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Raw

from portier.core import ndp
from portier.core.model import EventKind, Limits, LoopProtection, Routes, Timers
from portier.core.outcome import RouteResult, Verdict
from portier.core.relay import RelayEngine, wire_length
from tests.core.relaybook import LAN, VNET, D, E, RelayBook, U, advertised, datagram, ip, mac, port

RELAYED, QUEUED, LOOP = Verdict.RELAYED, Verdict.QUEUED, Verdict.LOOP
ROUTER = "fe80::1:1"


def mac_text(number: int) -> str:
    return mac(number).hex(":")


def known(**group: Any) -> RelayBook:
    """A (host 10) is known on D, B (host 11) on E."""
    play = RelayBook(**group)
    play.learn(D, 0xA)
    play.learn(E, 0xB)
    return play


# -- solicitations and advertisements --------------------------------------------------------------


def test_nd_054_059_040_a_multicast_solicitation_leaves_by_every_other_port_with_its_address() -> None:
    """And nothing but link-layer addresses and the checksum changes."""
    play = RelayBook()
    assert play.ns(D, 0xA, "::b") is RELAYED
    assert play.where() == [U, E]
    for out in play.sent:
        assert out.by == out.message.link_layer == play.mac_of(out.port)
        assert out.to == bytes.fromhex("3333ff00000b")
        assert out.message.source == ip("::a")
        assert out.message.target == ip("::b")


def test_nd_051_052_a_solicitation_for_a_known_host_is_relayed_and_never_answered() -> None:
    """The answer comes when the owner gives it."""
    play = known()
    assert play.ns(D, 0xA, "::b") is RELAYED
    assert all(out.message.type == ndp.SOLICITATION for out in play.sent)
    play.pass_time(60)
    assert not [out for out in play.sent if out.message.type == ndp.ADVERTISEMENT], (
        "B is gone, and nobody speaks for it"
    )


def test_nd_057_058_061_an_advertisement_is_learned_from_then_relayed_to_the_asker() -> None:
    """Unicast, with the flags it came with; one without option stays without."""
    play = RelayBook()
    play.ns(D, 0xA, "::b")
    assert play.state(D, "::a") == "stale"
    assert play.na(E, 0xB, "::a") is RELAYED
    assert play.state(E, "::b") == "reachable"
    (out,) = play.sent
    assert (out.port, out.to) == (D, mac(0xA))
    assert out.message.link_layer == out.by == play.mac_of(D)
    assert out.message.flags == ndp.S_FLAG | ndp.O_FLAG
    bare = IPv6(src="2001:db8:7::b", dst="2001:db8:7::a", hlim=255) / ICMPv6ND_NA(
        tgt="2001:db8:7::b", R=0, S=1, O=0
    )
    assert play.put(E, 0xB, bare) is RELAYED
    assert play.sent[0].packet == bytes(bare)


def test_nd_055_a_unicast_solicitation_goes_to_its_destination_alone() -> None:
    """B's entry says by which port and to which link-layer address; hop limit 255 stays."""
    play = known()
    assert play.ns(D, 0xA, "::b", unicast=True) is RELAYED
    (out,) = play.sent
    assert (out.port, out.to, out.packet[7]) == (E, mac(0xB), 255)
    assert out.message.link_layer == play.mac_of(E)
    bare = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b", hlim=255) / ICMPv6ND_NS(tgt="2001:db8:7::b")
    assert play.put(D, 0xA, bare) is RELAYED
    assert play.sent[0].packet == bytes(bare), "no option is added"


def test_nd_056_a_relayed_solicitation_makes_its_target_incomplete() -> None:
    """Data that comes meanwhile waits for the same answer."""
    play = RelayBook()
    play.ns(D, 0xA, "::b")
    assert play.engine.pending_size() == 1
    assert play.udp(D, 0xC, "::b") is QUEUED
    play.na(E, 0xB, "::a")
    assert play.engine.pending_size() == 0
    assert [out.port for out in play.sent] == [E, D], "the datagram, and the answer"


def test_nd_060_a_multicast_advertisement_is_relayed_to_all_others() -> None:
    """To all nodes, and to all routers (RFC 9131)."""
    play = RelayBook()
    assert play.na(E, 0xB, flags="O") is RELAYED
    assert play.where() == [U, D]
    assert all(out.message.link_layer == play.mac_of(out.port) for out in play.sent)
    packet = (
        IPv6(src="2001:db8:7::c", dst="ff02::2", hlim=255)
        / ICMPv6ND_NA(tgt="2001:db8:7::c", R=0, S=0, O=0)
        / ICMPv6NDOptDstLLAddr(lladdr=mac_text(0xC))
    )
    assert play.put(E, 0xC, packet) is RELAYED
    assert [out.message.flags for out in play.sent] == [0, 0]


def test_nd_062_advertisements_of_two_hosts_with_one_address_are_both_relayed() -> None:
    """The asker sees the conflict, and so does the operator."""
    play = RelayBook()
    play.ns(D, 0xA, "::b")
    assert play.na(E, 0xB, "::a") is RELAYED
    assert play.na(U, 0xC, "::a", target="::b") is RELAYED
    assert [out.port for out in play.sent if out.message.type == ndp.ADVERTISEMENT] == [D]
    assert play.na(E, 0xB, "fe80::3") is Verdict.HEARD, "the answer to Portier's own question"
    assert EventKind.CONFLICT in play.kinds()


def test_nd_062_two_hosts_with_one_address_are_not_asked_in_turn_for_ever() -> None:
    """Each answer tells of the other host; one that was just heard is not asked for because of it."""
    play = RelayBook()
    asked = 0
    for _ in range(50):
        for index, host in ((E, 0xB), (U, 0xC)):
            play.na(index, host, f"fe80::{index}", target="::b")
            asked += sum(out.message.type == ndp.SOLICITATION for out in play.sent)
    assert asked <= 2


def test_nd_020_a_dad_probe_of_a_known_device_elsewhere_has_its_host_asked_for() -> None:
    """It has moved, if nobody answers where it was; from the probe itself nothing is learned.  A probe from
    another device asks nobody: the owner hears it."""
    play = known()
    play.dad(E, 0xC, "::a")
    assert {out.to for out in play.sent} == {bytes.fromhex("3333ff00000a")}
    play.now += 10
    play.dad(E, 0xA, "::a")
    assert (D, mac(0xA)) in {(out.port, out.to) for out in play.sent}
    assert play.state(E, "::a") is None
    play.pass_time(3)
    assert play.state(D, "::a") is None


def test_nd_053_own_addresses_are_answered_where_they_do_not_live_and_by_the_kernel_where_they_do() -> None:
    """With the receiving port's link-layer address, O=1; a DAD probe is told that the address is taken."""
    own = "2001:db8:7::100"
    play = RelayBook(ports=(port(U, addresses=(ip(own),), on_link=(LAN,)), port(D), port(E)))
    assert play.ns(U, 0xA, own) is Verdict.OWN_ADDRESS
    assert play.sent == []
    assert play.ns(D, 0xA, own) is Verdict.ANSWERED
    (out,) = play.sent
    assert (out.port, out.to, out.message.destination) == (D, mac(0xA), ip("::a"))
    assert out.message.flags == ndp.S_FLAG | ndp.O_FLAG
    assert out.message.source == out.message.target == ip(own)
    assert out.message.link_layer == play.mac_of(D)
    assert play.dad(E, 0xB, own) is Verdict.DEFENDED
    assert play.sent[0].message.destination == ndp.ALL_NODES
    assert play.ns(D, 0xA, "fe80::2") is Verdict.OWN_ADDRESS, "link-local ones on their own port"
    assert play.ns(E, 0xA, "fe80::2") is RELAYED
    assert play.na(D, 0xC, flags="O", target=own) is Verdict.CLAIM
    assert EventKind.CLAIM in play.kinds()


def test_nd_024_solicitations_behind_extension_headers_are_rewritten_too() -> None:
    """Hop-by-hop or destination options in front."""
    for header in (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()):
        play = RelayBook()
        packet = (
            IPv6(src="2001:db8:7::a", dst="ff02::1:ff00:b", hlim=255)
            / header
            / ICMPv6ND_NS(tgt="2001:db8:7::b")
            / ICMPv6NDOptSrcLLAddr(lladdr=mac_text(0xA))
        )
        assert play.put(D, 0xA, packet) is RELAYED
        assert [out.message.link_layer for out in play.sent] == [play.mac_of(U), play.mac_of(E)]
        assert all(mac(0xA) not in out.frame for out in play.sent)


def test_nd_025_a_router_solicitation_is_rewritten() -> None:
    """Its source option names the port it leaves by."""
    play = RelayBook()
    packet = (
        IPv6(src="fe80::a", dst="ff02::2", hlim=255)
        / ICMPv6ND_RS()
        / ICMPv6NDOptSrcLLAddr(lladdr=mac_text(0xA))
    )
    assert play.put(D, 0xA, packet) is RELAYED
    assert {out.port: out.message.link_layer for out in play.sent} == {
        U: play.mac_of(U),
        E: play.mac_of(E),
    }
    assert play.state(D, "fe80::a") == "stale"


def test_nd_048_049_invalid_messages_are_neither_relayed_nor_learned_from() -> None:
    """Each defect has its name, and is counted."""
    good = ndp.solicitation(mac(0xA), ip("::a"), ip("::b"))
    for at, value, verdict in (
        (ndp.IPV6 + 7, 254, Verdict.BAD_HOP_LIMIT),
        (ndp.ICMPV6 + 3, good[ndp.ICMPV6 + 3] ^ 1, Verdict.BAD_CHECKSUM),
        (ndp.IPV6 + 5, 200, Verdict.TRUNCATED),
    ):
        play = RelayBook()
        bad = good[:at] + bytes((value,)) + good[at + 1 :]
        assert play.receive(D, bad) is verdict
        assert play.sent == []
        assert play.engine.table_size() == 0
        assert play.counts(D) == {verdict.label: 1}


def test_nd_093_inverse_discovery_is_rewritten_too() -> None:
    """RFC 3122 messages carry the same options."""
    play = known()
    body = b"\x8d\0\0\0\0\0\0\0\x01\x01" + mac(0xA)
    packet = IPv6(src="2001:db8:7::a", dst="ff02::1", hlim=255, nh=58) / Raw(body)
    octets = bytearray(bytes(packet))
    total = sum(struct.unpack("!16H", octets[8:40])) + sum(struct.unpack("!8H", octets[40:])) + 16 + 58
    octets[42:44] = (-total % 0xFFFF).to_bytes(2, "big")
    assert play.put(D, 0xA, bytes(octets)) is RELAYED
    assert [out.frame[-6:] for out in play.sent] == [play.mac_of(U), play.mac_of(E)]


def test_nd_094_link_layer_addresses_that_are_not_for_frames_stay() -> None:
    """The DUID of a DHCPv6 client."""
    play = RelayBook()
    packet = bytes(
        IPv6(src="fe80::a", dst="ff02::1:2", hlim=1)
        / UDP(sport=546, dport=547)
        / DHCP6_Solicit(trid=1)
        / DHCP6OptClientId(duid=DUID_LL(lladdr=mac_text(0xA)))
    )
    assert play.put(D, 0xA, packet) is RELAYED
    assert [out.packet for out in play.sent] == [packet, packet]


def test_nd_095_096_secured_messages_keep_their_options_and_get_none() -> None:
    """CGA, timestamp, nonce and signature stay as they are; a proxy signature is never added."""
    play = RelayBook()
    options = bytes((11, 1)) + bytes(6) + bytes((13, 2)) + bytes(14) + bytes((14, 1)) + b"nonce!"
    whole = ndp.solicitation(mac(0xA), ip("::a"), ip("::b"))
    body = bytearray(whole[: ndp.OPTIONS] + options + whole[ndp.OPTIONS :])
    length = len(body) - ndp.ICMPV6
    body[ndp.IPV6 + 4 : ndp.IPV6 + 6] = length.to_bytes(2, "big")
    body[ndp.ICMPV6 + 2 : ndp.ICMPV6 + 4] = bytes(2)
    total = int.from_bytes(body[ndp.IPV6 + 8 :], "big") + length + 58
    body[ndp.ICMPV6 + 2 : ndp.ICMPV6 + 4] = (-total % 0xFFFF).to_bytes(2, "big")
    assert play.receive(D, bytes(body)) is RELAYED
    for out in play.sent:
        assert options in out.frame
        assert len(out.frame) == len(body)
        assert out.message.nonce == b"nonce!"


# -- duplicate address detection ---------------------------------------------------------------------


def test_nd_017_dad_is_relayed_and_the_owners_defence_too() -> None:
    """A probe goes out unchanged but for the Ethernet source, the objection comes back to all."""
    play = RelayBook()
    assert play.dad(D, 0xA, "::b", b"nonce1") is RELAYED
    assert play.where() == [U, E]
    assert {out.packet for out in play.sent} == {ndp.dad_probe(mac(0xA), ip("::b"), b"nonce1")[24:]}
    assert play.na(E, 0xB, flags="O") is RELAYED
    assert play.where() == [U, D]


def test_nd_010_a_host_that_moved_is_not_told_that_its_address_is_taken() -> None:
    """Nobody objects to its probe, and traffic follows it at once."""
    play = known()
    assert play.dad(E, 0xA, "::a") is RELAYED
    assert all(out.message.type == ndp.SOLICITATION for out in play.sent)
    play.pass_time(0.9)
    assert play.sent == [], "but for the question whether A is still where it was"
    assert play.ns(E, 0xA, "::1") is RELAYED
    assert EventKind.MOVED in play.kinds()
    play.udp(U, 0xC, "::a")
    assert play.where() == [E]


def test_nd_004_each_port_has_its_own_cache() -> None:
    """One address, two entries, with their own states and link-layer addresses."""
    play = known()
    play.pass_time(1)
    play.na(D, 0xC, flags="O", target="::b")
    assert play.mac_known(E, "::b") == mac(0xB)
    assert play.mac_known(D, "::b") == mac(0xC)
    assert (play.state(E, "::b"), play.state(D, "::b")) == ("probe", "stale")


def test_another_link_layer_address_takes_over_when_the_old_place_is_silent() -> None:
    """The old one is probed by unicast, and is preferred as long as it may answer."""
    play = known()
    play.pass_time(1)
    play.na(D, 0xC, flags="O", target="::b")
    play.udp(U, 0xA, "::b", source="::d")
    assert play.where() == [E]
    play.pass_time(3.5)
    assert play.state(E, "::b") is None
    play.udp(U, 0xA, "::b", source="::d")
    (out,) = play.sent
    assert (out.port, out.to) == (D, mac(0xC))


# -- learning ------------------------------------------------------------------------------------------


def test_nd_019_a_packets_source_is_learned_stale_and_packets_for_it_need_no_solicitation() -> None:
    """Any packet will do."""
    play = RelayBook()
    play.learn(E, 0xB)
    assert play.udp(D, 0xA, "::b") is RELAYED
    assert play.state(D, "::a") == "stale"
    assert play.udp(E, 0xB, "::a") is RELAYED
    (out,) = play.sent
    assert (out.port, out.to) == (D, mac(0xA))


def test_nd_020_nothing_is_learned_from_the_unspecified_address() -> None:
    """Neither from a DAD probe nor from a solicitation for routers."""
    play = RelayBook()
    play.dad(D, 0xA, "::a")
    play.put(D, 0xA, IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    assert play.engine.table_size() == 0


def test_nd_021_097_a_data_frame_never_changes_an_entry() -> None:
    """Whoever sends from A's address is not A: neither on A's own segment nor on another."""
    play = known()
    play.udp(D, 0xC, "::b", source="::a")
    assert play.mac_known(D, "::a") == mac(0xA)
    play.udp(E, 0xC, "::d", source="::a")
    assert play.udp(U, 0xE, "::a") is RELAYED
    assert [out.to for out in play.sent if out.port == D] == [mac(0xA)]


def test_remote_sources_do_not_fill_the_table() -> None:
    """What a router forwards comes from its link-layer address, and is not on the link."""
    play = known()
    play.receive(U, advertised())
    before = play.engine.table_size()
    assert play.udp(U, 1, "::a", source="2001:db8:ffff::1") is RELAYED
    assert play.engine.table_size() == before


def test_packets_off_the_link_go_to_the_router_that_advertises_itself() -> None:
    """Of which Portier knows by its advertisement; on-link is what the prefixes say."""
    play = known()
    play.receive(U, advertised())
    assert play.udp(D, 0xA, "2001:db8:ffff::1") is RELAYED
    (out,) = play.sent
    assert (out.port, out.to) == (U, mac(1))
    assert play.udp(D, 0xA, "::99") is QUEUED, "that one is on the link"
    play.receive(U, advertised(lifetime=0))
    assert play.udp(D, 0xC, "2001:db8:ffff::2") is QUEUED


WORLD = "2001:db8:ffff::1"


def test_routers_are_asked_for_at_the_start_whatever_the_ports_wait_for() -> None:
    """Hosts that have one already do not ask again, and what they send leaves the link by it."""
    play = RelayBook()
    play.crash()
    assert [(out.port, out.message.type) for out in play.sent] == [(U, ndp.ROUTER_SOLICITATION)]
    play.pass_time(20)
    assert len([out for out in play.sent if out.message.type == ndp.ROUTER_SOLICITATION]) == 2
    play.crash()
    play.receive(U, advertised())
    play.pass_time(20)
    assert play.sent == []


def test_routers_of_another_upstream_are_forgotten() -> None:
    """And their prefixes."""
    play = known()
    play.receive(U, advertised(prefix=("2001:db8:b::", 3600)))
    play.configure(ports=(play.ports[0]._replace(mac=mac(0x77)), *play.ports[1:]))
    play.receive(U, advertised(2))
    for target in (WORLD, "2001:db8:b::1"):
        play.udp(D, 0xA, target)
        assert [out.to for out in play.sent] == [mac(2)]


def test_nd_097_who_claims_an_address_of_the_world_draws_nothing() -> None:
    """Neither what other hosts send there by way of the router, nor what the host itself sends."""
    play = known()
    play.receive(U, advertised())
    play.ns(E, 0xE, "::1", source=WORLD)
    play.na(E, 0xE, flags="O", target=WORLD)
    play.na(E, 0xE, "fe80::3", target=WORLD)
    play.ns(E, 0xE, WORLD, source="::e")
    play.na(E, 0xE, flags="O", target=WORLD)
    assert (play.state(E, WORLD), play.route(WORLD)) == (None, None)
    play.udp(D, 0xA, WORLD)
    assert play.where() == [U]


def test_nd_097_nor_before_there_is_a_router() -> None:
    """Then everything is on the link for hosts, but not for the kernel; a router puts that right."""
    play = known()
    play.ns(E, 0xE, "::1", source=WORLD)
    assert (play.state(E, WORLD), play.route(WORLD)) == ("stale", None)
    play.receive(U, advertised())
    assert play.state(E, WORLD) is None
    assert play.state(E, "::b") == "reachable"
    play.udp(D, 0xA, WORLD)
    assert play.where() == [U]


def test_a_neighbor_of_a_prefix_that_no_router_tells_of_is_found_when_somebody_looks_for_it() -> None:
    """Its prefix may be known to hosts alone."""
    play = known()
    play.receive(U, advertised())
    assert play.ns(D, 0xA, WORLD) is RELAYED
    assert play.na(E, 0xE, "::a", target=WORLD) is RELAYED
    play.udp(D, 0xA, WORLD)
    assert play.where() == [E]


def test_packets_off_the_link_do_not_go_back_to_a_router_where_they_came_from() -> None:
    """It meant them for somebody here."""
    play = known()
    play.receive(U, advertised())
    assert play.udp(U, 1, WORLD, source="2001:db8:fffe::1") is QUEUED
    assert {out.message.target for out in play.sent} == {ip(WORLD)}
    assert play.where() == [D, E]


def test_prefixes_and_routers_that_are_no_more_make_room_for_others() -> None:
    """However many there were."""
    play = known(loop_protection=LoopProtection.OFF)
    for number in range(16):
        play.receive(U, advertised(0x40 + number, lifetime=10))
    for number in range(64):
        play.receive(U, advertised(0x40, lifetime=10, prefix=(f"2001:db8:a:{number:x}::", 10)))
    play.pass_time(11)
    play.receive(U, advertised(2, prefix=("2001:db8:b::", 3600)))
    play.udp(D, 0xA, WORLD)
    assert [(out.port, out.to) for out in play.sent] == [(U, mac(2))]
    assert play.udp(D, 0xA, "2001:db8:b::1") is QUEUED
    assert {out.message.target for out in play.sent} == {ip("2001:db8:b::1")}
    play.receive(U, advertised(2, prefix=("2001:db8:b::", 0)))
    play.udp(D, 0xA, "2001:db8:b::2")
    assert {out.to for out in play.sent} == {mac(2)}


# -- data ------------------------------------------------------------------------------------------------


def test_nd_030_037_038_a_unicast_packet_changes_nothing_but_its_link_layer_header() -> None:
    """Once, on the port of its destination; the second by the fast path, alike."""
    play = known()
    packet = datagram("::a", "::b", hlim=7)
    assert play.forward(D, 0xA, packet) is None
    assert play.put(D, 0xA, packet) is RELAYED
    (out,) = play.sent
    assert (out.port, out.to, out.by, out.packet) == (E, mac(0xB), play.mac_of(E), packet)
    assert play.forward(D, 0xA, packet) == out
    assert play.counts(D)["relayed"] == 3, "an advertisement, and two packets"


@pytest.mark.parametrize("hops", [0, 1, 255])
def test_nd_014_028_029_031_the_hop_limit_stays_and_is_nobodys_business(hops: int) -> None:
    """Unicast and multicast: no Time Exceeded, no Parameter Problem."""
    play = known()
    packet = datagram("::a", "::b", hlim=hops)
    assert play.put(D, 0xA, packet) is RELAYED
    assert [out.packet for out in play.sent] == [packet]
    group = datagram("::a", "ff02::fb", hlim=hops)
    assert play.put(D, 0xA, group) is RELAYED
    assert [(out.port, out.packet) for out in play.sent] == [(U, group), (E, group)]


def test_nd_022_026_039_multicast_and_link_local_packets_cross_unchanged() -> None:
    """Once on every other port, with the Ethernet address of the group."""
    play = RelayBook()
    for group in ("ff02::fb", "ff02::16", "ff0e::1234"):
        packet = datagram("fe80::a", group, hlim=1)
        assert play.put(D, 0xA, packet) is RELAYED
        assert [(out.port, out.packet) for out in play.sent] == [(U, packet), (E, packet)]
        assert {out.to for out in play.sent} == {b"\x33\x33" + ip(group)[12:]}
        assert all(out.by == play.mac_of(out.port) for out in play.sent)
    play.learn(E, 0xB, "fe80::b")
    assert play.udp(D, 0xA, "fe80::b", source="fe80::a") is RELAYED
    assert play.where() == [E]


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("::a", "::", Verdict.BAD_DESTINATION),
        ("::a", "0:0:0:0:0:0:0:1", Verdict.BAD_DESTINATION),
        ("::a", "ff01::1", Verdict.BAD_DESTINATION),
        ("ff02::1", "::b", Verdict.BAD_SOURCE),
    ],
)
def test_nd_023_what_belongs_to_no_link_is_not_relayed(source: str, target: str, verdict: Verdict) -> None:
    """The unspecified and the loopback address, node-local groups, groups as source."""
    play = known()
    packet = bytearray(datagram("::a", "::b"))
    packet[8:24] = ip(source)
    packet[24:40] = ip(target) if target[0] != "0" else bytes(15) + b"\1"
    assert play.put(D, 0xA, bytes(packet)) is verdict
    assert play.sent == []


def test_nd_033_the_entry_in_the_best_state_says_the_port() -> None:
    """REACHABLE before PROBE before DELAY before STALE."""
    play = RelayBook()
    play.na(U, 0xC, flags="O", target="::b")
    play.pass_time(1)
    play.na(E, 0xB, flags="O")
    assert (play.state(U, "::b"), play.state(E, "::b")) == ("probe", "stale")
    play.udp(D, 0xA, "::b")
    assert play.where() == [U]
    play.na(E, 0xB, "fe80::3")
    assert play.state(E, "::b") == "reachable"
    play.udp(D, 0xA, "::b")
    assert play.where() == [E]


def test_nd_034_nothing_goes_back_where_it_came_from() -> None:
    """Dropped, without a word."""
    play = known()
    assert play.udp(D, 0xC, "::a") is Verdict.SAME_PORT
    assert play.sent == []


def test_nd_035_an_unknown_destination_is_solicited_and_what_waits_is_delivered() -> None:
    """On the other ports, from the proxy's own address; three packets wait, the newest."""
    play = RelayBook()
    packets = [datagram("::a", "::b", size) for size in (1, 2, 3, 4)]
    assert play.put(D, 0xA, packets[0]) is QUEUED
    assert play.where() == [U, E]
    assert play.sent[0].message.source == ip("fe80::1")
    assert play.sent[0].message.link_layer == play.mac_of(U)
    for packet in packets[1:]:
        assert play.put(D, 0xA, packet) is QUEUED
        assert play.sent == []
    play.na(E, 0xB, "fe80::3")
    assert [out.packet for out in play.on(E)] == packets[1:]
    assert {out.to for out in play.sent} == {mac(0xB)}
    assert play.counts(D) == {"relayed": 3, "queue-full": 1}


def test_nd_032_036_nobody_there_means_silence() -> None:
    """Three solicitations, then what waits is dropped, counted by name; not asked again for a while."""
    play = RelayBook()
    play.udp(D, 0xA, "::b")
    play.pass_time(5)
    assert [out.port for out in play.sent if out.message.target] == [U, E, U, E]
    assert play.counts(D) == {"nobody-there": 1}
    assert play.udp(D, 0xA, "::b") is Verdict.NOBODY
    assert play.sent == []
    play.pass_time(3)
    assert play.udp(D, 0xA, "::b") is QUEUED


def test_nd_036_a_solicitation_repairs_the_path_of_what_was_given_up() -> None:
    """The asker's own solicitation is relayed, and its answer makes the entry."""
    play = RelayBook()
    play.udp(D, 0xA, "::b")
    play.pass_time(4)
    play.ns(D, 0xA, "::b")
    play.na(E, 0xB, "::a")
    assert play.udp(D, 0xA, "::b") is RELAYED


def test_nd_041_packets_for_the_proxy_are_the_kernels() -> None:
    """On whichever port they arrive."""
    own = "2001:db8:7::100"
    play = RelayBook(ports=(port(U, addresses=(ip(own),)), port(D), port(E)))
    for index in (U, D):
        assert play.udp(index, 0xA, own) is Verdict.OWN_ADDRESS
        assert play.sent == []
    assert play.udp(D, 0xA, "fe80::2") is Verdict.OWN_ADDRESS


def small() -> RelayBook:
    """E takes no more than 1280 octets."""
    on_link: dict[str, Any] = {"on_link": (LAN,), "prefixes": (LAN,)}
    play = RelayBook(ports=(port(U, addresses=(ip("::100"),), **on_link), port(D), port(E, mtu=1280)))
    play.learn(D, 0xA)
    play.learn(E, 0xB)
    return play


def test_nd_042_044_a_packet_too_big_is_dropped_and_its_sender_told() -> None:
    """From the proxy's own address, with as much of the packet as fits, its hop limit as it was."""
    play = small()
    packet = datagram("::a", "::b", 1400, hlim=3)
    assert play.put(D, 0xA, packet) is Verdict.TOO_BIG
    (out,) = play.sent
    assert (out.port, out.to, out.by) == (D, mac(0xA), play.mac_of(D))
    told = IPv6(out.packet)
    assert told[ICMPv6PacketTooBig].mtu == 1280
    assert (told.src, told.dst) == ("2001:db8:7::100", "2001:db8:7::a")
    assert len(out.packet) == 1280
    assert out.packet[48:] == packet[:1232]
    checksum = told[ICMPv6PacketTooBig].cksum
    del told[ICMPv6PacketTooBig].cksum
    assert IPv6(bytes(told))[ICMPv6PacketTooBig].cksum == checksum
    assert play.udp(D, 0xA, "::b", size=1280 - 48) is RELAYED


def test_nd_042_the_fast_path_lets_nothing_through_that_is_too_big() -> None:
    """A known flow whose packets grow."""
    play = small()
    play.udp(D, 0xA, "::b")
    assert play.forward(D, 0xA, datagram("::a", "::b", 1232))
    assert play.forward(D, 0xA, datagram("::a", "::b", 1233)) is None


def test_nd_043_a_multicast_packet_too_big_for_one_port_reaches_the_others() -> None:
    """And its sender is told of the one."""
    play = small()
    assert play.udp(D, 0xA, "ff02::fb", size=1400) is RELAYED
    assert play.where() == [D, U]
    assert IPv6(play.sent[0].packet)[ICMPv6PacketTooBig].mtu == 1280


def test_nd_045_errors_are_not_told_of_errors_nor_to_nobody_and_not_too_often() -> None:
    """At most ten a second to one sender."""
    play = small()
    error = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b") / ICMPv6DestUnreach() / Raw(b"x" * 1400)
    assert play.put(D, 0xA, error) is Verdict.TOO_BIG
    assert play.sent == []
    assert play.udp(D, 0xA, "ff02::fb", size=1400, source="::") is RELAYED
    assert play.where() == [U]
    told = 0
    for _ in range(100):
        play.udp(D, 0xA, "::b", size=1400)
        told += len(play.sent)
    assert told == 10
    play.now += 0.5
    told = sum(play.udp(D, 0xA, "::b", size=1400) is Verdict.TOO_BIG and len(play.sent) for _ in range(50))
    assert told == 5


def test_nd_045_the_hosts_own_stack_gets_no_error_by_the_wire() -> None:
    """What it sends to a group and does not fit another port reaches those that it fits."""
    play = RelayBook(ports=(port(U), port(D, mtu=1280), port(E)))
    octets = datagram("fe80::1", "ff02::fb", 1400)
    frame = VNET + b"\x33\x33\0\0\0\xfb" + play.mac_of(U) + b"\x86\xdd" + octets
    assert play.receive(U, frame) is RELAYED
    assert play.where() == [E]


def test_nd_045_errors_of_one_port_are_limited_however_many_are_told() -> None:
    """A hundred a second, for any number of senders."""
    play = RelayBook(ports=(port(U), port(D), port(E, mtu=1280)))
    play.learn(E, 0xB)
    told = 0
    for number in range(300):
        play.put(D, number % 200, datagram(f"::{0x100 + number:x}", "::b", 1400))
        told += len(play.on(D))
    assert told == 100


def test_nd_046_no_mtu_below_1280_is_ever_told() -> None:
    """Whatever a link says of itself."""
    play = RelayBook(ports=(port(U), port(D), port(E, mtu=1000)))
    play.learn(E, 0xB)
    play.udp(D, 0xA, "::b", size=1200)
    assert IPv6(play.sent[0].packet)[ICMPv6PacketTooBig].mtu == 1280


def segments(size: int, linear: int) -> bytes:
    """A virtio-net header of a packet to be cut into TCP segments of `size` octets."""
    return struct.pack("=BBHHHH", 1, 4, linear, size, 54, 16)


@pytest.mark.parametrize(("size", "fits"), [(1428, True), (1429, False), (1208, True)])
@pytest.mark.parametrize("linear", [86, 2000])
def test_a_packet_that_will_be_cut_up_is_judged_by_its_segments(size: int, fits: bool, linear: int) -> None:
    """Whatever part of it the kernel says lies in one piece: TCP with 12 octets of options."""
    play = known()
    tcp = bytes.fromhex("0001000200000000000000008010ffff00000000") + b"\1\1\x08\x0a" + bytes(8)
    packet = b"\x60\0\0\0" + (32 + 30000).to_bytes(2, "big") + b"\x06\x40" + ip("::a") + ip("::b") + tcp
    packet += bytes(30000)
    frame = segments(size, linear) + play.mac_of(D) + mac(0xA) + b"\x86\xdd" + packet
    assert wire_length(frame, len(frame)) == 24 + 40 + 32 + size
    assert play.receive(D, frame) is (RELAYED if fits else Verdict.TOO_BIG)
    (out,) = play.sent
    if fits:
        assert out.frame[:10] == frame[:10], "what is left to do travels with the frame"
        assert out.packet == packet
    else:
        assert IPv6(out.packet[48:]).plen == 32 + size, "a segment, not the whole"


@pytest.mark.parametrize("inner", [124, 54])
def test_segments_in_a_tunnel_are_not_relayed(inner: int) -> None:
    """The header that travels with a frame has no word for the tunnel, so what the kernel would make of it at
    the other end is nothing that anybody sent."""
    play = known()
    play.udp(D, 0xA, "::b")
    packet = datagram("::a", "::b", size=3000)
    head = struct.pack("=BBHHHH", 1, 5 if inner == 54 else 4, 144, 1200, inner, 16)
    frame = head + play.mac_of(D) + mac(0xA) + b"\x86\xdd" + packet
    buffer = bytearray(frame)
    assert bool(play.engine.forward(D, buffer, len(frame), play.now)) is (inner == 54)
    assert play.receive(D, frame) is (RELAYED if inner == 54 else Verdict.OFFLOAD)


def test_what_the_socket_cannot_hand_over_is_counted() -> None:
    """It comes as an empty frame."""
    assert known().receive(D, b"") is Verdict.OFFLOAD


def test_fragments_and_extension_headers_cross_unchanged() -> None:
    """What is no Neighbor Discovery is data, first fragment or not."""
    play = known()
    base = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b")
    for packet in (
        base / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / Raw(b"x" * 64),
        base / IPv6ExtHdrFragment(offset=10, m=0, nh=58) / Raw(b"\x87" * 64),
        base / IPv6ExtHdrHopByHop() / UDP() / Raw(b"x"),
        base / IPv6ExtHdrDestOpt() / ICMPv6EchoRequest(),
        base / ICMPv6EchoRequest(),
    ):
        assert play.put(D, 0xA, packet) is RELAYED
        assert [out.packet for out in play.sent] == [bytes(packet)]


def test_fragmented_discovery_and_headers_without_end_are_dropped() -> None:
    """RFC 6980; and what hides its kind is not believed to be harmless."""
    play = known()
    base = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b", hlim=255)
    atomic = base / IPv6ExtHdrFragment(offset=0, m=0) / ICMPv6ND_NS(tgt="2001:db8:7::b")
    assert play.put(D, 0xA, atomic) is Verdict.FRAGMENTED
    hidden = bytes(IPv6(src="2001:db8:7::a", dst="2001:db8:7::b", nh=60)) + b"\x3a\xff" + bytes(6)
    hidden = hidden[:4] + b"\0\x08" + hidden[6:]
    assert play.put(D, 0xA, hidden) is Verdict.TRUNCATED
    assert play.sent == []


def test_what_follows_a_packet_in_its_frame_says_nothing() -> None:
    """Else an octet behind a first fragment would pass for the type of the message, and a Router
    Advertisement in two pieces would pass."""
    play = known()
    chain = bytes((60, 0, 0, 1, 0, 0, 0, 9)) + bytes((58, 0, 1, 4, 0, 0, 0, 0))
    packet = (
        b"\x60\0\0\0" + len(chain).to_bytes(2, "big") + b"\x2c\xff" + ip("fe80::a") + ndp.ALL_NODES + chain
    )
    assert play.put(D, 0xA, packet) is Verdict.TRUNCATED
    assert play.put(D, 0xA, packet + b"\x80" * 8) is Verdict.TRUNCATED


def test_ping_takes_the_fast_path_and_discovery_does_not() -> None:
    """Both are ICMPv6."""
    play = known()
    ping = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b") / ICMPv6EchoRequest()
    play.put(D, 0xA, ping)
    assert play.forward(D, 0xA, ping)
    probe = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b", hlim=255) / ICMPv6ND_NS(tgt="2001:db8:7::b")
    assert play.forward(D, 0xA, probe) is None
    behind = IPv6(src="2001:db8:7::a", dst="2001:db8:7::b", hlim=255) / IPv6ExtHdrHopByHop() / ICMPv6ND_NS()
    assert play.forward(D, 0xA, behind) is None


def test_a_frame_to_all_by_ethernet_and_to_one_by_ipv6_is_not_relayed() -> None:
    """Every proxy on the link would."""
    play = known()
    assert play.put(D, 0xA, datagram("::a", "::b"), to=ndp.ALL_NODES_MAC) is Verdict.BAD_DESTINATION
    play.udp(D, 0xA, "::b")
    frame = VNET + ndp.ALL_NODES_MAC + mac(0xA) + b"\x86\xdd" + datagram("::a", "::b")
    buffer = bytearray(frame) + bytes(100)
    assert play.engine.forward(D, buffer, len(frame), play.now) == 0


# -- the life of an entry and of its flows -----------------------------------------------------------


def test_an_entry_in_use_is_probed_and_stays_while_it_answers() -> None:
    """REACHABLE for 30 s, DELAY for 5 s with the next packet, PROBE, REACHABLE (RFC 4861 section 7.3)."""
    play = known()
    packet = datagram("::a", "::b")
    play.put(D, 0xA, packet)
    play.pass_time(30)
    assert play.state(E, "::b") == "stale"
    assert play.forward(D, 0xA, packet) is None, "the first packet afterwards is looked at"
    assert play.put(D, 0xA, packet) is RELAYED
    assert play.state(E, "::b") == "delay"
    assert play.forward(D, 0xA, packet)
    play.pass_time(5)
    assert play.state(E, "::b") == "probe"
    (probe,) = play.on(E)
    assert (probe.to, probe.message.source, probe.message.target) == (mac(0xB), ip("fe80::3"), ip("::b"))
    assert play.forward(D, 0xA, packet), "and meanwhile traffic flows"
    assert play.na(E, 0xB, "fe80::3") is Verdict.HEARD
    assert play.state(E, "::b") == "reachable"
    assert play.forward(D, 0xA, packet)


def test_an_entry_that_does_not_answer_goes_with_its_flows() -> None:
    """Three probes, RetransTimer apart."""
    play = known()
    packet = datagram("::a", "::b")
    play.pass_time(30)
    play.put(D, 0xA, packet)
    play.pass_time(9)
    assert len(play.on(E)) == 3
    assert play.state(E, "::b") is None
    assert EventKind.LOST in play.kinds()
    assert play.forward(D, 0xA, packet) is None
    assert play.put(D, 0xA, packet) is QUEUED


def test_a_silent_entry_is_asked_before_it_is_forgotten() -> None:
    """After `forget` it is probed."""
    play = known(timers=Timers(forget=60))
    play.pass_time(62)
    assert play.state(E, "::b") == "probe"
    play.na(E, 0xB, "fe80::3")
    play.pass_time(40)
    assert play.state(E, "::b") == "stale"


def test_a_flow_follows_a_host_that_moves() -> None:
    """With its own link-layer address: at once."""
    play = known()
    packet = datagram("::a", "::b")
    play.put(D, 0xA, packet)
    play.na(U, 0xB, flags="O")
    assert EventKind.MOVED in play.kinds()
    assert play.forward(D, 0xA, packet) is None
    play.put(D, 0xA, packet)
    fast = play.forward(D, 0xA, packet)
    assert fast is not None
    assert fast.port == U


def test_hosts_that_swap_segments_are_both_followed() -> None:
    """A goes where B was, and B where A was."""
    play = known()
    play.ns(E, 0xA, "::1")
    play.ns(D, 0xB, "::1")
    play.udp(U, 0xC, "::a")
    assert play.where() == [E]
    play.udp(U, 0xC, "::b")
    assert play.where() == [D]


def test_o_0_changes_no_link_layer_address() -> None:
    """RFC 4861 section 7.2.5: a REACHABLE entry becomes STALE, and that is all."""
    play = known()
    play.na(E, 0xB, flags="", says=mac(0xC))
    assert (play.state(E, "::b"), play.mac_known(E, "::b")) == ("stale", mac(0xB))
    play.na(E, 0xB, flags="O", says=mac(0xC))
    assert play.mac_known(E, "::b") == mac(0xC)


# -- redirects ---------------------------------------------------------------------------------------------


def redirect(play: RelayBook, target: str, *, said: bool = True) -> Verdict:
    """R, known upstream, redirects A on D."""
    packet = IPv6(src=ROUTER, dst="2001:db8:7::a", hlim=255) / ICMPv6ND_Redirect(
        tgt="2001:db8:7" + target, dst="2001:db8:7" + target
    )
    if said:
        packet /= ICMPv6NDOptDstLLAddr(lladdr=play.mac_of(U).hex(":"))
    return play.put(U, 1, packet)


def test_nd_016_086_090_a_redirect_to_a_neighbor_on_the_same_port_names_its_own_address() -> None:
    """Source, target and destination stay."""
    play = known()
    play.learn(D, 0xC)
    assert redirect(play, "::c") is RELAYED
    (out,) = play.sent
    assert (out.port, out.to, out.message.link_layer) == (D, mac(0xA), mac(0xC))
    assert (out.message.source, out.message.target) == (ip(ROUTER), ip("::c"))


@pytest.mark.parametrize("said", [True, False])
def test_nd_087_089_a_redirect_to_a_neighbor_on_another_port_names_the_proxy(said: bool) -> None:
    """Whether the router said an address or not."""
    play = known()
    assert redirect(play, "::b", said=said) is RELAYED
    assert play.sent[0].message.link_layer == play.mac_of(D)


def test_nd_047_088_a_redirect_to_an_unknown_target_says_no_link_layer_address() -> None:
    """The redirected host finds out for itself."""
    play = known()
    assert redirect(play, "::f") is RELAYED
    (out,) = play.sent
    assert out.message.link_layer == b""
    assert len(out.packet) == 80


# -- the host's own stack ------------------------------------------------------------------------------


def own_solicits(play: RelayBook, target: str) -> Verdict:
    """The kernel looks for a neighbor on U, from its own address."""
    return play.receive(U, ndp.solicitation(play.mac_of(U), ip("::100"), ip(target)))


def test_nd_091_the_hosts_own_stack_finds_neighbors_behind_every_port() -> None:
    """Asked for on the other ports, and reached by a host route."""
    play = RelayBook()
    assert own_solicits(play, "::b") is Verdict.RESOLVING
    assert play.where() == [D, E]
    assert play.na(E, 0xB, "fe80::3") is Verdict.HEARD
    assert play.route("::b") == E
    assert own_solicits(play, "fe80::b") is Verdict.NOT_HANDLED, "link-local ones on their own port alone"


def test_host_routes_are_for_those_whom_the_kernel_would_look_for_elsewhere() -> None:
    """Not for upstream hosts of the upstream's own prefix, not for link-local ones, not for what only sent
    data; they move with the host, and go with it."""
    play = RelayBook()
    play.na(U, 1, flags="O")
    play.na(E, 0xB, flags="O", target="fe80::b")
    play.udp(E, 0xC, "ff02::fb")
    assert play.host_routes == []
    play.na(E, 0xB, flags="O")
    assert play.route("::b") == E
    assert play.engine.wanted_routes() == set(play.host_routes)
    play.na(D, 0xB, flags="O")
    assert play.route("::b") == D
    play.na(U, 0xB, flags="O")
    assert play.route("::b") is None
    assert RelayBook(routes=None).na(E, 0xB, flags="O") is RELAYED


def test_a_gateway_of_the_kernels_gets_no_host_route_elsewhere() -> None:
    """Who claims its address on another port does not draw what the host routes by it."""
    play = RelayBook()
    play.configure(next_hops=frozenset({(ip("::1"), U)}))
    play.na(D, 0xE, flags="O", target="::1")
    play.na(D, 0xE, flags="O", target="::2")
    assert (play.route("::1"), play.route("::2")) == (None, D)


def test_a_route_that_the_kernel_refuses_is_tried_again_and_holds_nothing_back() -> None:
    """What is relayed goes out with the same frame."""
    play = RelayBook(routes=Routes(table=100))
    play.result = RouteResult.FAILED
    assert play.na(E, 0xB, flags="O") is RELAYED
    assert play.where() == [U, D]
    assert EventKind.ROUTE in play.kinds()
    assert play.engine.wanted_routes() == frozenset()
    play.result = RouteResult.ADDED
    assert own_solicits(play, "::b") is Verdict.HEARD
    assert play.route("::b") == E


def test_nd_092_what_the_host_sends_to_all_goes_to_all_ports() -> None:
    """Its DAD probes and reports among them; its unicast packets are none of our business."""
    play = RelayBook()
    probe = ndp.dad_probe(play.mac_of(U), ip("::100"), b"")
    assert play.receive(U, probe) is RELAYED
    assert [(out.port, out.by) for out in play.sent] == [(D, play.mac_of(D)), (E, play.mac_of(E))]
    octets = datagram("fe80::1", "ff02::fb")
    frame = VNET + b"\x33\x33\0\0\0\xfb" + play.mac_of(U) + b"\x86\xdd" + octets
    assert play.receive(U, frame) is RELAYED
    assert [out.packet for out in play.sent] == [octets, octets]
    unicast = VNET + mac(1) + play.mac_of(U) + b"\x86\xdd" + datagram("::100", "::1")
    assert play.receive(U, unicast) is Verdict.NOT_HANDLED


def test_nd_012_050_frames_with_an_own_link_layer_address_are_dropped() -> None:
    """Cut down by the filter, or of another of our ports; nothing is learned from them."""
    play = RelayBook()
    assert play.receive(D, bytes(24)) is Verdict.OWN_FRAME
    frame = ndp.solicitation(play.mac_of(U), ip("::a"), ip("::b"))
    assert play.receive(D, frame) is Verdict.OWN_FRAME
    says = ndp.solicitation(mac(0xA), ip("::a"), ip("::b"))
    says = says[:-6] + play.mac_of(E)
    total = int.from_bytes(says[ndp.IPV6 + 8 : ndp.ICMPV6 + 2] + bytes(2) + says[ndp.TARGET - 4 :], "big")
    says = says[: ndp.ICMPV6 + 2] + (-(total + 32 + 58) % 0xFFFF).to_bytes(2, "big") + says[ndp.TARGET - 4 :]
    assert play.receive(D, says) is Verdict.OWN_FRAME
    assert play.engine.table_size() == 0
    bpdu = VNET + bytes.fromhex("0180c2000000") + mac(1) + b"\0\x26\x42\x42\x03" + bytes(60)
    assert play.receive(D, bpdu) is Verdict.NOT_IPV6


# -- limits --------------------------------------------------------------------------------------------------


def test_a_storm_of_unknown_destinations_is_bounded() -> None:
    """Targets by `pending`, octets by the queue, solicitations by rate; another port has its share."""
    limits = Limits(pending=16, per_source=10_000, resolutions=10_000)
    play = RelayBook(limits=limits)
    verdicts = {play.udp(D, 0xA, f"::1:{number:x}", size=1400) for number in range(1, 200)}
    assert play.engine.pending_size() == 16
    assert Verdict.PENDING_FULL in verdicts
    assert play.udp(E, 0xB, "::2:1") is QUEUED
    play.pass_time(10)
    assert play.engine.pending_size() == 0
    assert sum(play.counts(D).values()) == 199


def test_the_octets_that_wait_are_bounded() -> None:
    """64 KiB segments fill the queue before its count does."""
    play = RelayBook(limits=Limits(pending=1000, per_source=1000))
    for number in range(1, 200):
        octets = datagram("::a", f"::1:{number:x}", 60_000)
        frame = struct.pack("=BBHHHH", 1, 5, 62, 1200, 54, 6) + play.mac_of(D) + mac(0xA) + b"\x86\xdd"
        play.receive(D, frame + octets)
    assert play.counts(D)["queue-full"] > 100


def test_solicitations_of_one_source_and_of_one_port_are_limited() -> None:
    """Relayed multicast costs a token."""
    play = RelayBook(limits=Limits(per_source=5, resolutions=8))
    verdicts = [play.ns(D, 0xA, f"::{n:x}", source="fe80::a") for n in range(20, 26)]
    assert verdicts.count(RELAYED) <= 5
    assert verdicts[-1] is Verdict.SOURCE_LIMIT
    assert Verdict.PORT_LIMIT in [play.ns(D, n, f"::{n:x}") for n in range(30, 50)]


def test_entries_are_bounded_by_port_and_by_host() -> None:
    """A full share evicts only its own."""
    play = RelayBook(limits=Limits(neighbors=30, per_port=20, per_host=8, per_source=1000))
    play.learn(E, 0xB)
    for number in range(100):
        play.na(D, 0xC, flags="O", target=f"::1:{number:x}")
    assert play.engine.table_size() == 9
    for number in range(100):
        play.na(D, number, flags="O", target=f"::2:{number:x}")
    assert play.engine.table_size() == 21
    assert play.state(E, "::b") == "reachable"


def test_flows_are_bounded() -> None:
    """However many sources there are."""
    play = known()
    packet = bytearray(datagram("2001:db8:ffff::1", "::b"))
    play.receive(U, advertised())
    for number in range(33_000):
        packet[20:24] = number.to_bytes(4, "big")
        play.put(U, 1, bytes(packet))
    assert len(play.engine._flows[U]) == 32768


def test_what_waits_on_a_port_that_is_held_down_meanwhile_is_not_delivered() -> None:
    """And makes no flow, by which more would follow."""
    play = RelayBook(loop_protection=LoopProtection.NESTED, upstream=(), ports=(port(D), port(E)))
    play.learn(D, 0xA)
    assert play.udp(D, 0xA, "::b") is QUEUED
    assert play.receive(D, advertised(7)) is Verdict.HOLD_DOWN
    assert play.na(E, 0xB, "fe80::3") is Verdict.HEARD
    assert play.sent == []
    assert play.counts(D)["hold-down"] == 2
    assert play.forward(D, 0xA, datagram("::a", "::b")) is None


# -- reconfiguration -------------------------------------------------------------------------------


def test_ports_may_leave_while_an_address_becomes_the_proxys_own() -> None:
    """A host known on three ports: two go, and the third gets its address."""
    play = RelayBook()
    for index in (U, D, E):
        play.na(index, 0xA + index, "fe80::9", target="::c", source=f"fe80::{index}:c")
    play.configure(ports=(play.ports[0]._replace(addresses=(ip("::c"),)),))
    assert play.engine.neighbors(play.now) == []


def test_a_reload_keeps_neighbors_and_a_port_that_leaves_takes_its_own_along() -> None:
    """And its host routes."""
    play = known()
    play.configure(ports=(play.ports[0], play.ports[1], port(E, mtu=1400)))
    assert play.state(E, "::b") == "reachable"
    play.configure(ports=play.ports[:2])
    play.pass_time(0)
    assert play.state(E, "::b") is None
    assert play.route("::b") is None
    assert play.receive(E, ndp.solicitation(mac(0xB), ip("::b"), ip("::a"))) is Verdict.NOWHERE
    assert play.udp(D, 0xA, "::b") is QUEUED


def test_explain_says_what_becomes_of_solicitations_and_of_data() -> None:
    """Step by step, as the wire has it."""
    play = known()
    found = play.engine.explain(ip("::b"), D, play.now)
    assert found.verdict is RELAYED
    words = "\n".join(found.steps)
    assert "relayed to up0, down1" in words
    assert "known on down1 with link-layer address 02:00:00:00:00:0b, reachable" in words
    assert "packets for it leave by down1" in words
    assert "wait while" in "\n".join(play.engine.explain(ip("::77"), D, play.now).steps)
    assert play.engine.explain(ip("fe80::2"), D, play.now).verdict is Verdict.OWN_ADDRESS


@pytest.mark.parametrize(
    ("address", "verdict"), [(bytes([192, 0, 2, 1]), Verdict.NOT_IPV6), (ip("ff02::1"), Verdict.BAD_TARGET)]
)
def test_explain_of_what_nobody_asks_for_here(address: bytes, verdict: Verdict) -> None:
    """IPv4 is not relayed, and for multicast addresses there are no solicitations."""
    assert known().engine.explain(address, D, 0.0).verdict is verdict


def test_ask_looks_for_a_neighbor_on_all_ports() -> None:
    """For one who wants to know."""
    play = RelayBook()
    outcome = play.engine.ask(ip("::b"), play.now)
    assert [ifindex for ifindex, _ in outcome.sends] == [U, D, E]
    play.na(E, 0xB, "fe80::3")
    assert play.state(E, "::b") == "reachable"


# -- garbage -----------------------------------------------------------------------------------------


SEEDS = (
    ndp.solicitation(mac(0xA), ip("::a"), ip("::b")),
    ndp.dad_probe(mac(0xA), ip("::b"), b"nonce1"),
    advertised(),
    VNET + bytes.fromhex("020000000002") + mac(0xA) + b"\x86\xdd" + datagram("::a", "::b", 100),
    VNET + b"\x33\x33\0\0\0\xfb" + mac(0xA) + b"\x86\xdd" + datagram("::a", "ff02::fb", 1400),
)


@settings(max_examples=300)
@given(data=st.data())
def test_garbage_ends_in_a_verdict_and_leaves_bounded_state(data: st.DataObject) -> None:
    """Whole frames changed here and there, and cut."""
    play = RelayBook(limits=Limits(neighbors=8, per_port=4, per_host=2, pending=4), ports=small().ports)
    for _ in range(data.draw(st.integers(1, 8))):
        frame = bytearray(data.draw(st.sampled_from(SEEDS)))
        for _ in range(data.draw(st.integers(0, 6))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        frame = frame[: data.draw(st.integers(0, len(frame)))] if data.draw(st.booleans()) else frame
        index = data.draw(st.sampled_from((U, D, E)))
        buffer = bytearray(frame) + bytes(200)
        play.engine.forward(index, buffer, len(frame), play.now)
        assert isinstance(play.receive(index, bytes(frame)), Verdict)
        play.pass_time(data.draw(st.sampled_from((0.0, 1.0, 31.0))))
        assert play.engine.table_size() <= 8
        assert play.engine.pending_size() <= 4


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_octets_end_in_a_verdict(octets: bytes) -> None:
    """From nothing to two hundred of them."""
    engine = RelayEngine(lambda: 0.0, {})
    play = RelayBook()
    assert engine.receive(D, octets, 0.0).verdict is Verdict.NOWHERE
    assert isinstance(play.receive(D, octets), Verdict)
