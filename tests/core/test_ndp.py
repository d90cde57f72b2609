"""The codec against the golden vectors of the field, scapy as oracle, and random garbage."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from portier.core import ndp
from portier.core.outcome import Verdict
from tests.core.playbook import fix_checksum, ip, mac, strip_option

A, B = "2001:db8:1::a", "2001:db8:1::b"
NODE = "ff02::1:ff00:b"


def framed(packet: Packet) -> bytes:
    """An IPv6 packet of scapy's making, as a socket would give it."""
    return ndp.NO_OFFLOAD + bytes(Ether(src="02:00:00:00:00:0a", dst="33:33:ff:00:00:0b") / packet)


def solicitation(**changes: object) -> Packet:
    """A right solicitation from A for B."""
    return IPv6(src=A, dst=NODE, hlim=255) / ICMPv6ND_NS(tgt=B, **changes)


OPTION = ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:0a")


def test_a_solicitation_is_read_in_full() -> None:
    """Every field comes out as it went in."""
    nonce = ICMPv6NDOptUnknown(type=14, len=1, data=b"sixoct")
    message = ndp.parse(framed(solicitation() / nonce / OPTION))

    assert message == ndp.Message(
        type=135,
        ether_destination=bytes.fromhex("3333ff00000b"),
        ether_source=mac(10),
        source=ip(A),
        destination=ip(NODE),
        flags=0,
        target=ip(B),
        link_layer=mac(10),
        nonce=b"sixoct",
    )


GOLDEN_SOLICITATION = (
    "6000000000203aff20010db800010000000000000000000aff0200000000000000000001ff00000b"
    "87001c010000000020010db800010000000000000000000b010102000000000a"
)
GOLDEN_DEFENCE = (
    "6000000000203aff20010db800010000000000000000000bff020000000000000000000000000001"
    "8800f8142000000020010db800010000000000000000000b0201020000000101"
)
GOLDEN_DAD = (
    "6000000000183aff00000000000000000000000000000000ff0200000000000000000001ff00000b"
    "87004cd80000000020010db800010000000000000000000b"
)


def test_frames_are_made_to_the_byte() -> None:
    """Solicitation, defence and DAD probe equal vectors that were computed independently."""
    port = bytes.fromhex("020000000101")
    made = ndp.solicitation(mac(10), ip(A), ip(B))
    assert made[ndp.IPV6 :].hex() == GOLDEN_SOLICITATION
    assert made[10:16] == bytes.fromhex("3333ff00000b")
    made = ndp.advertisement(ndp.ALL_NODES_MAC, port, ip(B), ndp.ALL_NODES, ip(B), ndp.O_FLAG, port)
    assert made[ndp.IPV6 :].hex() == GOLDEN_DEFENCE
    assert ndp.dad_probe(mac(10), ip(B), b"")[ndp.IPV6 :].hex() == GOLDEN_DAD


@given(st.binary(min_size=16, max_size=16), st.sampled_from([0x40, 0x60, 0xC0, 0xE0]))
@example(ip(B), 0x40)
def test_prepared_replies_equal_made_ones(target: bytes, flags: int) -> None:
    """The shortcut of the hot path gives the same bytes as the long way, for any target."""
    reply = ndp.Reply(mac(1), mac(2), ip("fe80::1"), ip(A), mac(3))

    assert reply.frame(target, flags) == ndp.advertisement(
        mac(1), mac(2), ip("fe80::1"), ip(A), target, flags, mac(3)
    )


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=6, max_size=6), st.integers(0, 255))
def test_scapy_agrees_with_what_is_made(target: bytes, link_layer: bytes, flags: int) -> None:
    """Scapy computes the same checksum and reads the same fields."""
    flags &= 0xE0
    made = ndp.advertisement(mac(1), mac(2), ip("fe80::1"), ip(A), target, flags, link_layer)
    packet = IPv6(made[ndp.IPV6 :])
    checksum = packet[ICMPv6ND_NA].cksum
    del packet[ICMPv6ND_NA].cksum

    assert IPv6(bytes(packet))[ICMPv6ND_NA].cksum == checksum
    assert packet[ICMPv6ND_NA].tgt == str(IPv6Address(target))
    assert flags == (packet[ICMPv6ND_NA].R << 7 | packet[ICMPv6ND_NA].S << 6 | packet[ICMPv6ND_NA].O << 5)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == link_layer.hex(":")


def changed(frame: bytes, at: int, value: int) -> bytes:
    """One octet changed, checksum made right again."""
    whole = bytearray(frame)
    whole[at] = value
    return fix_checksum(bytes(whole))


RIGHT = framed(solicitation() / OPTION)
ADVERTISEMENT = framed(
    IPv6(src=B, dst=A, hlim=255)
    / ICMPv6ND_NA(tgt=B, R=0, S=1, O=1)
    / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:0b")
)
PROBE = framed(IPv6(src="::", dst=NODE, hlim=255) / ICMPv6ND_NS(tgt=B))
ROUTER = framed(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA())
ROUTER_WANTED = framed(IPv6(src="fe80::a", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
REDIRECT = framed(IPv6(src="fe80::1", dst=A, hlim=255) / ICMPv6ND_Redirect(tgt=B, dst=B))
OPT = ndp.OPTIONS

INVALID: dict[str, tuple[bytes, Verdict]] = {
    "ND-098 hop limit 254": (changed(RIGHT, 31, 254), Verdict.BAD_HOP_LIMIT),
    "ND-098 hop limit 64": (changed(RIGHT, 31, 64), Verdict.BAD_HOP_LIMIT),
    "ND-098 checksum": (RIGHT[:66] + bytes((RIGHT[66] ^ 1,)) + RIGHT[67:], Verdict.BAD_CHECKSUM),
    "ND-098 code": (changed(RIGHT, 65, 1), Verdict.BAD_CODE),
    "ND-098 length 23": (changed(RIGHT, 29, 23), Verdict.TRUNCATED),
    "ND-098 shorter than it says": (RIGHT[:-1], Verdict.TRUNCATED),
    "ND-099 advertisement, code": (changed(ADVERTISEMENT, 65, 1), Verdict.BAD_CODE),
    "ND-099 advertisement, hop limit": (changed(ADVERTISEMENT, 31, 1), Verdict.BAD_HOP_LIMIT),
    "ND-103 option of length zero": (changed(RIGHT, OPT + 1, 0), Verdict.BAD_OPTION),
    "ND-104 option past the end": (changed(RIGHT, OPT + 1, 4), Verdict.BAD_OPTION),
    "ND-104 trailing octets": (
        fix_checksum(changed(RIGHT + b"\1\1\1\1", 29, 36)),
        Verdict.BAD_OPTION,
    ),
    "ND-105 multicast target": (changed(RIGHT, 72, 0xFF), Verdict.BAD_TARGET),
    "ND-105 advertisement of a multicast target": (changed(ADVERTISEMENT, 72, 0xFF), Verdict.BAD_TARGET),
    "ND-106 probe to another group": (changed(PROBE, 60, 0), Verdict.BAD_DESTINATION),
    "ND-107 probe with an option": (
        framed(IPv6(src="::", dst=NODE, hlim=255) / ICMPv6ND_NS(tgt=B) / OPTION),
        Verdict.BAD_OPTION,
    ),
    "ND-109 solicited to a group": (
        framed(IPv6(src=B, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=B, S=1)),
        Verdict.BAD_FLAGS,
    ),
    "ND-100 router advertisement, code": (changed(ROUTER, 65, 1), Verdict.BAD_CODE),
    "ND-100 router advertisement, hop limit": (changed(ROUTER, 31, 254), Verdict.BAD_HOP_LIMIT),
    "ND-100 router advertisement, length 15": (changed(ROUTER, 29, 15), Verdict.TRUNCATED),
    "ND-101 router solicitation, code": (changed(ROUTER_WANTED, 65, 1), Verdict.BAD_CODE),
    "ND-101 router solicitation, hop limit": (changed(ROUTER_WANTED, 31, 64), Verdict.BAD_HOP_LIMIT),
    "ND-101 router solicitation, length 7": (changed(ROUTER_WANTED, 29, 7), Verdict.TRUNCATED),
    "ND-102 redirect, code": (changed(REDIRECT, 65, 1), Verdict.BAD_CODE),
    "ND-102 redirect, hop limit": (changed(REDIRECT, 31, 0), Verdict.BAD_HOP_LIMIT),
    "ND-102 redirect, length 39": (changed(REDIRECT, 29, 39), Verdict.TRUNCATED),
    "ND-110 router solicitation from nowhere with an option": (
        framed(IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS() / OPTION),
        Verdict.BAD_OPTION,
    ),
    "ND-111 router advertisement from a global source": (changed(ROUTER, 32, 0x20), Verdict.BAD_SOURCE),
    "ND-111 router advertisement from nowhere": (
        framed(IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_RA()),
        Verdict.BAD_SOURCE,
    ),
    "ND-112 redirect from a global source": (changed(REDIRECT, 32, 0x20), Verdict.BAD_SOURCE),
    "ND-112 redirect of a group": (changed(REDIRECT, 88, 0xFF), Verdict.BAD_DESTINATION),
    "ND-112 redirect to another's global address": (changed(REDIRECT, 87, 0xEE), Verdict.BAD_TARGET),
    "extension header in a frame cut short": (
        framed(IPv6(src=A, dst=NODE, hlim=255) / IPv6ExtHdrDestOpt() / ICMPv6ND_NS(tgt=B))[:-1],
        Verdict.TRUNCATED,
    ),
    "multicast source": (
        framed(IPv6(src="ff02::5", dst=NODE, hlim=255) / ICMPv6ND_NS(tgt=B)),
        Verdict.BAD_SOURCE,
    ),
    "advertisement from nowhere": (
        framed(IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=B, S=0)),
        Verdict.BAD_SOURCE,
    ),
    "group address as link-layer source": (changed(RIGHT, 16, 0x33), Verdict.BAD_SOURCE),
    "group address in the option": (changed(RIGHT, OPT + 2, 0x33), Verdict.BAD_OPTION),
    "link-layer option of another size": (
        framed(solicitation() / ICMPv6NDOptUnknown(type=1, len=2, data=bytes(14))),
        Verdict.BAD_OPTION,
    ),
    "unspecified target": (
        framed(IPv6(src=A, dst=NODE, hlim=255) / ICMPv6ND_NS(tgt="::")),
        Verdict.BAD_TARGET,
    ),
    "ND-179 fragment": (
        framed(IPv6(src=A, dst=NODE, hlim=255, nh=44) / IPv6ExtHdrFragment(nh=58) / ICMPv6ND_NS(tgt=B)),
        Verdict.FRAGMENTED,
    ),
    "ND-180 later fragment": (
        framed(IPv6(src=A, dst=NODE, hlim=255) / IPv6ExtHdrFragment(nh=58, offset=3) / bytes(24)),
        Verdict.FRAGMENTED,
    ),
    "not ICMPv6": (changed(RIGHT, 30, 17), Verdict.NOT_ND),
    "an echo request": (changed(RIGHT, 64, 128), Verdict.NOT_ND),
    "not IPv6": (RIGHT[:22] + b"\x08\0" + RIGHT[24:], Verdict.NOT_ND),
    "nothing": (b"", Verdict.TRUNCATED),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_messages_end_in_the_verdict_that_names_the_defect(name: str) -> None:
    """One defect at a time, each with its own name."""
    frame, verdict = INVALID[name]

    assert ndp.parse(frame) is verdict


def test_an_unfinished_checksum_of_a_local_peer_is_taken_as_good() -> None:
    """The virtio-net header says that the checksum is still to be computed."""
    broken = RIGHT[:66] + b"\0\0" + RIGHT[68:]

    assert ndp.parse(broken) is Verdict.BAD_CHECKSUM
    assert isinstance(ndp.parse(b"\1" + broken[1:]), ndp.Message)


def test_nd_113_unknown_options_and_reserved_fields_are_passed_over() -> None:
    """A known option behind an unknown one still counts."""
    unknown = ICMPv6NDOptUnknown(type=250, len=2, data=bytes(14))
    message = ndp.parse(changed(framed(solicitation() / unknown / OPTION), 68, 0x1F))

    assert isinstance(message, ndp.Message)
    assert message.link_layer == mac(10)


def test_nd_181_extension_headers_are_walked() -> None:
    """ND behind extension headers is recognised, eight of them included."""
    packet: Packet = IPv6(src=A, dst=NODE, hlim=255) / IPv6ExtHdrHopByHop()
    for _ in range(8):
        packet = packet / IPv6ExtHdrDestOpt()
    message = ndp.parse(framed(packet / ICMPv6ND_NS(tgt=B) / OPTION))

    assert isinstance(message, ndp.Message)
    assert (message.target, message.link_layer) == (ip(B), mac(10))


def test_router_messages_are_validated_and_have_no_target() -> None:
    """Solicitation and advertisement of routers come out as what they are."""
    solicited = ndp.parse(framed(IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS() / OPTION))
    advertised = ndp.parse(framed(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA() / OPTION))

    assert isinstance(solicited, ndp.Message)
    assert isinstance(advertised, ndp.Message)
    assert (solicited.type, advertised.type, solicited.target) == (133, 134, b"")


@given(st.binary(max_size=200))
@example(b"")
def test_garbage_is_a_verdict_or_a_message(garbage: bytes) -> None:
    """Nothing on the wire raises."""
    assert isinstance(ndp.parse(garbage), ndp.Message | Verdict)


@given(st.sampled_from([RIGHT, ADVERTISEMENT, PROBE]), st.data())
def test_mutated_messages_are_a_verdict_or_a_message(frame: bytes, data: st.DataObject) -> None:
    """A right message with a few octets changed, cut or added, checksum right: never an exception."""
    whole = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(22, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(70, len(whole)))]) + data.draw(st.binary(max_size=40))

    assert isinstance(ndp.parse(fix_checksum(cut)), ndp.Message | Verdict)


def test_the_option_can_be_stripped_for_other_tests() -> None:
    """The helper that other tests rely on makes a valid solicitation."""
    message = ndp.parse(strip_option(ndp.solicitation(mac(1), ip(A), ip(B))))

    assert isinstance(message, ndp.Message)
    assert message.link_layer == b""
