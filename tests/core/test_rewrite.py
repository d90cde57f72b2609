"""Messages rewritten for another port: against vectors made independently, scapy as oracle, and garbage."""

from __future__ import annotations

import math
import struct
from ipaddress import IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6ND_INDSol,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptEFA,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPREF64,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptRedirectedHdr,
    ICMPv6NDOptRouteInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from portier.core import ndp, rewrite
from portier.core.outcome import Verdict
from tests.core.playbook import fix_checksum, ip, mac

A, B, R = "2001:db8:1::a", "2001:db8:1::b", "fe80::1"
P1 = bytes.fromhex("020000000101")
P2 = bytes.fromhex("020000000202")
PU = bytes.fromhex("020000000303")
HOST = "02:00:00:00:00:0a"
TO_B = "ff02::1:ff00:b"


def framed(packet: Packet | bytes) -> bytes:
    """An IPv6 packet as a socket would give it."""
    return ndp.NO_OFFLOAD + bytes(Ether(src=HOST, dst="33:33:00:00:00:01", type=0x86DD)) + bytes(packet)


def message_of(frame: bytes) -> ndp.Message:
    """The message in a valid frame."""
    message = ndp.parse(frame)
    assert isinstance(message, ndp.Message), message
    return message


def relay(frame: bytes, out: bytes, to_mac: bytes = b"") -> bytes:
    """What leaves by a port, and is valid there."""
    made = rewrite.relayed(frame, message_of(frame), out, to_mac)
    message_of(made)
    return made


def differences(frame: bytes, made: bytes) -> list[int]:
    """Where two frames of one length differ, counted from the IPv6 header."""
    assert len(frame) == len(made)
    return [at - ndp.IPV6 for at in range(ndp.IPV6, len(frame)) if frame[at] != made[at]]


def sllao(address: str = HOST) -> Packet:
    """A source link-layer option."""
    return ICMPv6NDOptSrcLLAddr(lladdr=address)


def tllao(address: str = "02:00:00:00:00:0b") -> Packet:
    """A target link-layer option."""
    return ICMPv6NDOptDstLLAddr(lladdr=address)


def option(kind: int, data: bytes) -> Packet:
    """An option of any kind, filled up to a multiple of eight octets."""
    data += bytes(-(len(data) + 2) % 8)
    return ICMPv6NDOptUnknown(type=kind, len=(len(data) + 2) // 8, data=data)


GOLDEN: dict[str, tuple[str, str, bytes, bytes]] = {
    "test_nd_054 solicitation": (
        (
            "6000000000203aff20010db800010000000000000000000aff0200000000000000000001ff00000b"
            "87001c010000000020010db800010000000000000000000b010102000000000a"
        ),
        (
            "6000000000203aff20010db800010000000000000000000aff0200000000000000000001ff00000b"
            "87001a090000000020010db800010000000000000000000b0101020000000202"
        ),
        P2,
        bytes.fromhex("3333ff00000b"),
    ),
    "test_nd_058 advertisement": (
        (
            "6000000000203aff20010db800010000000000000000000b20010db800010000000000000000000a"
            "88008a4a6000000020010db800010000000000000000000b020102000000000b"
        ),
        (
            "6000000000203aff20010db800010000000000000000000b20010db800010000000000000000000a"
            "880089546000000020010db800010000000000000000000b0201020000000101"
        ),
        P1,
        mac(10),
    ),
    "test_nd_160 duplicate address probe": (
        (
            "6000000000183aff00000000000000000000000000000000ff0200000000000000000001ff00000b"
            "87004cd80000000020010db800010000000000000000000b"
        ),
        (
            "6000000000183aff00000000000000000000000000000000ff0200000000000000000001ff00000b"
            "87004cd80000000020010db800010000000000000000000b"
        ),
        P2,
        bytes.fromhex("3333ff00000b"),
    ),
    "test_nd_060 defence": (
        (
            "6000000000203aff20010db800010000000000000000000bff020000000000000000000000000001"
            "8800f70b2000000020010db800010000000000000000000b020102000000000b"
        ),
        (
            "6000000000203aff20010db800010000000000000000000bff020000000000000000000000000001"
            "8800f8142000000020010db800010000000000000000000b0201020000000101"
        ),
        P1,
        bytes.fromhex("333300000001"),
    ),
    "test_nd_078 router advertisement": (
        (
            "6000000000403afffe800000000000000000000000000001ff020000000000000000000000000001"
            "86002bd8400007080000000000000000010102000000000105010000000005dc"
            "030440c000015180000038400000000020010db8000100000000000000000000"
        ),
        (
            "6000000000403afffe800000000000000000000000000001ff020000000000000000000000000001"
            "86002ad4400407080000000000000000010102000000010105010000000005dc"
            "030440c000015180000038400000000020010db8000100000000000000000000"
        ),
        P1,
        bytes.fromhex("333300000001"),
    ),
    "test_nd_025 router solicitation": (
        (
            "6000000000103afffe80000000000000000000000000000aff020000000000000000000000000002"
            "85007a1a00000000010102000000000a"
        ),
        (
            "6000000000103afffe80000000000000000000000000000aff020000000000000000000000000002"
            "85007721000000000101020000000303"
        ),
        PU,
        bytes.fromhex("333300000002"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_nd_040_golden_vectors_are_met_to_the_byte(name: str) -> None:
    """In and out of the vectors that were computed independently, with the Ethernet header around them."""
    arrived, left, out, to_mac = GOLDEN[name]
    frame = framed(bytes.fromhex(arrived))
    if name == "test_nd_060 defence":
        frame = fix_checksum(frame)  # the vector has only what leaves
    message = message_of(frame)

    made = rewrite.relayed(frame, message, out, b"" if message.destination[0] == 0xFF else to_mac)

    assert made[ndp.IPV6 :].hex() == left
    assert made[: ndp.IPV6] == ndp.NO_OFFLOAD + to_mac + out + b"\x86\xdd"


REDIRECT_2 = (
    "6000000000303afffe80000000000000000000000000000120010db800010000000000000000000a"
    "8900e9c20000000020010db800010000000000000000000b20010db800010000000000000000000b0201020000000101"
)
REDIRECT_3 = (
    "6000000000283afffe80000000000000000000000000000120010db800010000000000000000000a"
    "8900eecc0000000020010db800010000000000000000000b20010db800010000000000000000000b"
)


def redirect(*options: Packet) -> bytes:
    """The router redirects A to B."""
    packet: Packet = IPv6(src=R, dst=A, hlim=255) / ICMPv6ND_Redirect(tgt=B, dst=B)
    for one in options:
        packet = packet / one
    return framed(packet)


def redirect_relayed(frame: bytes, link_layer: bytes) -> bytes:
    """What leaves by P1 for A, and is valid there."""
    made = rewrite.relayed_redirect(frame, P1, mac(10), link_layer)
    message_of(made)
    return made


def test_nd_086_redirect_to_a_neighbor_on_the_same_port_names_it() -> None:
    """Case 1: the target's own link-layer address."""
    made = redirect_relayed(redirect(tllao()), mac(11))

    assert message_of(made).link_layer == mac(11)
    assert made[10:22] == mac(10) + P1


def test_nd_087_redirect_to_another_port_names_the_proxy() -> None:
    """Case 2, to the byte."""
    assert redirect_relayed(redirect(tllao()), P1)[ndp.IPV6 :].hex() == REDIRECT_2


def test_nd_047_088_redirect_to_the_unknown_names_nobody() -> None:
    """Case 3, to the byte: the option goes, length and checksum follow; several go as one."""
    assert redirect_relayed(redirect(tllao()), b"")[ndp.IPV6 :].hex() == REDIRECT_3
    assert redirect_relayed(redirect(tllao(), tllao()), b"")[ndp.IPV6 :].hex() == REDIRECT_3


def test_nd_089_redirect_without_the_option_gets_it() -> None:
    """And a full one makes room at the end of the packet it quotes."""
    assert redirect_relayed(redirect(), P1)[ndp.IPV6 :].hex() == REDIRECT_2
    quoted = ICMPv6NDOptRedirectedHdr(pkt=IPv6(src=A, dst=B) / Raw((bytes(range(240)) * 5)[:1152]))
    full = redirect(quoted)
    assert len(full) - ndp.IPV6 == 1280

    made = redirect_relayed(full, P1)

    assert len(made) == len(full)
    assert IPv6(made[ndp.IPV6 :])[ICMPv6NDOptRedirectedHdr].len == 149
    assert made[ndp.ICMPV6 + 48 + 8 :] == full[ndp.ICMPV6 + 40 + 8 : -8]


def test_nd_090_redirect_keeps_all_else() -> None:
    """Addresses, the packet quoted and unknown options, in their order."""
    quoted = ICMPv6NDOptRedirectedHdr(pkt=IPv6(src=A, dst=B) / Raw(bytes(40)))
    frame = redirect(quoted, tllao(), option(250, b"unknown"))

    assert differences(frame, redirect_relayed(frame, P1)) == [43, 174, 175]


def test_redirects_are_read() -> None:
    """Target, destination and what it says of the link layer."""
    frame = redirect(tllao())

    assert rewrite.redirected(frame, message_of(frame)) == rewrite.Redirected(ip(B), ip(B), mac(11))


def test_nd_059_nothing_but_link_layer_addresses_changes() -> None:
    """Flags R, S and O, reserved bits, addresses and unknown options stay."""
    unknown = option(250, b"left as it is")
    packet = IPv6(src=B, dst=A, hlim=255, tc=8, fl=77) / ICMPv6ND_NA(tgt=B, R=1, S=1, O=1, res=0x1234567)
    frame = framed(packet / unknown / tllao())

    assert differences(frame, relay(frame, P1, mac(10))) == [42, 43, 86, 87]


def test_nd_061_an_advertisement_without_the_option_gets_none() -> None:
    """Only the Ethernet header is another."""
    frame = framed(IPv6(src=B, dst=A, hlim=255) / ICMPv6ND_NA(tgt=B, S=1))

    assert differences(frame, relay(frame, P1, mac(10))) == []


def test_nd_064_065_the_p_bit_is_added_to_the_flags() -> None:
    """Every other flag stays as it came, reserved ones and preference included (ND-211, ND-223)."""
    for flags in range(256):
        frame = bytearray(framed(IPv6(src=R, dst="ff02::1", hlim=255) / ICMPv6ND_RA()))
        frame[ndp.ICMPV6 + 5] = flags
        assert relay(fix_checksum(bytes(frame)), P1)[ndp.ICMPV6 + 5] == flags | 0x04


def test_nd_093_inverse_discovery_is_rewritten_too() -> None:
    """Future and rare types of ND that carry the two options (RFC 3122)."""
    frame = framed(IPv6(src=R, dst="ff02::1", hlim=255) / ICMPv6ND_INDSol() / sllao() / tllao())

    made = IPv6(relay(frame, P1)[ndp.IPV6 :])

    assert made[ICMPv6NDOptSrcLLAddr].lladdr == made[ICMPv6NDOptDstLLAddr].lladdr == P1.hex(":")


def test_nd_094_other_protocols_keep_their_link_layer_addresses() -> None:
    """A DHCPv6 client identifies itself by one: that is no message that anybody rewrites."""
    client = bytes.fromhex("01000001") + bytes.fromhex("0001000a") + b"\0\3\0\1" + mac(10)
    frame = framed(IPv6(src="fe80::a", dst="ff02::1:2", hlim=255) / UDP(sport=546, dport=547) / Raw(client))

    assert ndp.parse(frame) is Verdict.NOT_ND


def test_nd_096_no_proxy_signature_is_added() -> None:
    """Secure Proxy ND (RFC 6496) is not spoken: no option comes along the way."""
    for frame in MESSAGES:
        assert len(relay(frame, P1, mac(1))) == len(frame)


def test_nd_095_secured_messages_keep_their_options() -> None:
    """CGA, signature, timestamp and nonce stay: the receiver takes the message as unsecured."""
    secured = [option(kind, bytes((kind,)) * 20) for kind in (11, 12, 13, 14)]
    packet: Packet = IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B) / sllao()
    for one in secured:
        packet = packet / one
    frame = framed(packet)

    assert set(differences(frame, relay(frame, P2))) <= {42, 43, *range(66, 72)}


def test_nd_049_nothing_invalid_is_a_message() -> None:
    """A wrong checksum is found before anybody rewrites it."""
    frame = framed(IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B, cksum=1) / sllao())

    assert ndp.parse(frame) is Verdict.BAD_CHECKSUM


def test_an_unfinished_checksum_is_finished() -> None:
    """A local peer leaves the checksum to the hardware; what leaves is whole, and says so."""
    right = framed(IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B) / sllao())
    unfinished = b"\1\0\0\0\0\0\x36\0\x02\0" + right[10:66] + b"\xab\xcd" + right[68:]

    assert relay(unfinished, P2) == relay(right, P2)
    assert relay(unfinished, P2)[: ndp.VNET_HEADER] == ndp.NO_OFFLOAD


def test_nd_113_114_options_in_any_order_and_number() -> None:
    """Two source options and an unknown one between them: both are rewritten."""
    packet = IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B)
    frame = framed(packet / sllao() / option(250, b"x") / sllao("02:00:00:00:00:0c"))

    made = relay(frame, P2)

    assert made[ndp.OPTIONS + 2 : ndp.OPTIONS + 8] == made[ndp.OPTIONS + 18 : ndp.OPTIONS + 24] == P2
    assert made[ndp.OPTIONS + 8 : ndp.OPTIONS + 16] == frame[ndp.OPTIONS + 8 : ndp.OPTIONS + 16]


def test_nd_116_unexpected_link_layer_options_do_not_leak() -> None:
    """A source option in an advertisement, a target option in a solicitation."""
    advertised = framed(IPv6(src=B, dst=A, hlim=255) / ICMPv6ND_NA(tgt=B) / sllao() / tllao())
    asked = framed(IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B) / tllao() / sllao())

    for frame in (advertised, asked):
        made = relay(frame, P2, P1)
        assert mac(10) not in made
        assert mac(11) not in made


def test_nd_169_170_optimistic_and_enhanced_probes_are_kept() -> None:
    """No option is added, O stays 0, the nonce is the one that came."""
    probe = framed(IPv6(src="::", dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B) / option(14, b"nonce!"))
    optimistic = framed(IPv6(src=B, dst=A, hlim=255) / ICMPv6ND_NA(tgt=B, S=1, O=0))
    asking = framed(IPv6(src="fe80::a", dst="ff02::2", hlim=255) / ICMPv6ND_RS())

    for frame in (probe, optimistic, asking):
        assert differences(frame, relay(frame, P2, P1)) == []


def test_nd_024_extension_headers_stay_in_front() -> None:
    """The message behind them is rewritten in place."""
    packet: Packet = IPv6(src=A, dst=TO_B, hlim=255) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    frame = framed(packet / ICMPv6ND_NS(tgt=B) / sllao())

    made = relay(frame, P2)

    assert set(differences(frame, made)) <= {58, 59, *range(82, 88)}
    assert message_of(made).link_layer == P2


def test_what_lies_behind_the_packet_does_not_leave() -> None:
    """Octets that Ethernet added are no part of the message."""
    frame = framed(IPv6(src="fe80::a", dst="ff02::2", hlim=255) / ICMPv6ND_RS())

    assert relay(frame + b"padding", PU) == relay(frame, PU)


# -- Router Advertisements and what is inside -----------------------------------------------------------


def advertisement(*options: Packet | bytes, **fields: object) -> bytes:
    """What the router says to all."""
    packet: Packet = IPv6(src=R, dst="ff02::1", hlim=255) / ICMPv6ND_RA(**fields)
    for one in options:
        packet = packet / (Raw(one) if isinstance(one, bytes) else one)
    return framed(packet)


def pvd(
    *inside: Packet | bytes, name: bytes = b"\3foo\7example\0", header: bytes = b"", flags: int = 0
) -> bytes:
    """A PvD option (RFC 8801 section 3.1)."""
    front = struct.pack("!HH", flags | (0x2000 if header else 0), 7) + name
    front += bytes(-(len(front) + 2) % 8)
    whole = front + header + b"".join(map(bytes, inside))
    whole += bytes(-(len(whole) + 2) % 8)
    return bytes((21, (len(whole) + 2) // 8)) + whole


INNER = bytes((134, 0, 0, 0, 64, 0x48)) + struct.pack("!HII", 1800, 0, 0)


def test_nd_207_222_all_other_options_are_relayed_to_the_byte() -> None:
    """Prefixes, routes, DNS, NAT64, flags, captive portal, intervals, and one that nobody knows."""
    frame = advertisement(
        ICMPv6NDOptPrefixInfo(prefix="2001:db8:1::", prefixlen=64, L=1, A=1, R=1, res1=0x1F),
        ICMPv6NDOptRouteInfo(prefix="2001:db8:9::", plen=64),
        ICMPv6NDOptRDNSS(dns=["2001:db8::53"]),
        ICMPv6NDOptDNSSL(searchlist=["example.org."]),
        ICMPv6NDOptPREF64(prefix="64:ff9b::"),
        ICMPv6NDOptEFA(),
        ICMPv6NDOptMTU(mtu=9000),
        option(37, b"https://portal.example/"),
        option(7, bytes(6)),
        option(8, bytes(6)),
        option(32, bytes(22)),
        option(250, b"unknown"),
        sllao(),
    )

    made = relay(frame, P1)

    assert set(differences(frame, made)) <= {
        42,
        43,
        45,
        *range(len(made) - ndp.IPV6 - 6, len(made) - ndp.IPV6),
    }
    assert made[-6:] == P1


def test_nd_219_what_is_inside_a_pvd_option_is_rewritten() -> None:
    """The link-layer option, and the P bit of the header that is inside; nothing else."""
    container = pvd(sllao(), option(250, b"x"), header=INNER, flags=0x8003)
    frame = advertisement(sllao(), container)
    inner = 56 + 8 + 24

    made = relay(frame, P1)

    allowed = {42, 43, 45, *range(58, 64), inner + 5, *range(inner + 18, inner + 24)}
    assert set(differences(frame, made)) <= allowed
    assert made[ndp.IPV6 + inner + 5] == 0x4C
    assert made.count(P1) == 3  # Ethernet source, option, option inside


@pytest.mark.parametrize(
    "malformed",
    [
        pvd(sllao(), name=b"\xc0\x0c"),
        pvd(name=b"\3foo\x3fbar"),
        pvd(sllao(), header=b"\0" * 16),
        pvd(header=INNER)[:2] + b"\x20\0" + pvd()[4:],
        b"\x15\x02" + b"\x20\0\0\0\3foo\3bar\0\0",
    ],
)
def test_a_malformed_pvd_option_is_left_alone(malformed: bytes) -> None:
    """What no receiver can read is not read here either, and the rest of the message is as ever."""
    malformed = malformed[:1] + bytes((len(malformed) // 8,)) + malformed[2:]
    frame = advertisement(sllao(), malformed)

    made = relay(frame, P1)

    assert made[ndp.ICMPV6 + 24 :] == frame[ndp.ICMPV6 + 24 :]
    assert message_of(made).link_layer == P1


def test_an_advertisement_is_read() -> None:
    """Flags, lifetimes, MTU and prefixes, those inside a PvD option too."""
    frame = advertisement(
        ICMPv6NDOptMTU(mtu=1400),
        ICMPv6NDOptPrefixInfo(
            prefix="2001:db8:1::5", prefixlen=64, L=1, A=1, validlifetime=7200, preferredlifetime=600
        ),
        ICMPv6NDOptRDNSS(dns=["2001:db8::53", "fe80::53"]),
        pvd(
            ICMPv6NDOptPrefixInfo(
                prefix="2001:db8:2::",
                prefixlen=56,
                L=0,
                A=0,
                validlifetime=0xFFFFFFFF,
                preferredlifetime=0xFFFFFFFF,
            )
        ),
        M=1,
        O=1,
        P=1,
        chlim=64,
        routerlifetime=1800,
    )

    assert rewrite.advertised(frame) == rewrite.Advertised(
        hop_limit=64,
        managed=True,
        other=True,
        proxied=True,
        lifetime=1800,
        mtu=1400,
        prefixes=(
            rewrite.Prefix(IPv6Network("2001:db8:1::/64"), True, True, 7200, 600),
            rewrite.Prefix(IPv6Network("2001:db8:2::/56"), False, False, math.inf, math.inf),
        ),
        name_servers=(ip("2001:db8::53"), ip("fe80::53")),
    )


def test_nd_208_209_prefixes_that_hosts_pass_over_are_passed_over() -> None:
    """Link-local, preferred beyond valid, a length that cannot be, an option of another size."""
    prefix = {"prefix": "2001:db8:1::", "L": 1, "validlifetime": 100, "preferredlifetime": 50}
    frame = advertisement(
        ICMPv6NDOptPrefixInfo(**{**prefix, "prefix": "fe80::", "prefixlen": 64}),
        ICMPv6NDOptPrefixInfo(**{**prefix, "prefixlen": 64, "preferredlifetime": 101}),
        ICMPv6NDOptPrefixInfo(**{**prefix, "prefixlen": 129}),
        option(3, bytes(6)),
        option(5, bytes(14)),
    )

    view = rewrite.advertised(frame)

    assert (view.prefixes, view.mtu) == ((), 0)


# -- where packets are routed ------------------------------------------------------------------------------

ALL = rewrite.Leg(P1, 1400, ndp.ALL_NODES_MAC, ndp.ALL_NODES)


def lifetimes(frame: bytes) -> tuple[int, ...]:
    """All lifetimes in an advertisement, in order; a prefix has two."""
    packet = IPv6(frame[ndp.IPV6 :])
    found = [packet[ICMPv6ND_RA].routerlifetime]
    layer = packet[ICMPv6ND_RA].payload
    while isinstance(layer, Packet) and layer.fields:
        names = ("lifetime", "rtlifetime", "scaledlifetime", "validlifetime", "preferredlifetime")
        found += [layer.fields[name] for name in names if name in layer.fields]
        layer = layer.payload
    return tuple(found)


EVERYTHING = advertisement(
    ICMPv6NDOptPrefixInfo(
        prefix="2001:db8:1::", prefixlen=64, L=1, A=1, validlifetime=86400, preferredlifetime=14400
    ),
    ICMPv6NDOptPrefixInfo(prefix="2001:db8:2::", prefixlen=64, validlifetime=600, preferredlifetime=300),
    ICMPv6NDOptPrefixInfo(prefix="2001:db8:3::", prefixlen=64),
    ICMPv6NDOptRouteInfo(prefix="2001:db8:9::", plen=64, rtlifetime=1000),
    ICMPv6NDOptRDNSS(dns=["2001:db8::53"], lifetime=900),
    ICMPv6NDOptDNSSL(searchlist=["example.org."], lifetime=0xFFFFFFFF),
    ICMPv6NDOptPREF64(prefix="64:ff9b::", scaledlifetime=100, plc=1),
    ICMPv6NDOptMTU(mtu=1500),
    sllao(),
    chlim=64,
    routerlifetime=1800,
)


def test_an_advertisement_comes_down_for_the_link_below() -> None:
    """P bit, a hop limit of one more, the MTU of the link, our link-layer address; the rest is the same."""
    made = rewrite.readvertised(EVERYTHING, ALL)

    allowed = {42, 43, 44, 45, *range(len(made) - ndp.IPV6 - 12, len(made) - ndp.IPV6)}
    assert set(differences(EVERYTHING, made)) <= allowed
    assert made[ndp.ICMPV6 + 4] == 65
    assert made[ndp.ICMPV6 + 5] & rewrite.P_FLAG
    assert rewrite.advertised(made).mtu == 1400
    assert message_of(made).link_layer == P1
    assert made[10:22] == ndp.ALL_NODES_MAC + P1


@pytest.mark.parametrize(("hop_limit", "told"), [(0, 0), (1, 2), (64, 65), (254, 255), (255, 255)])
def test_the_hop_limit_is_one_more_unless_it_says_nothing(hop_limit: int, told: int) -> None:
    """0 leaves it to the hosts, 255 is the most there is; inside a PvD option too."""
    inner = INNER[:4] + bytes((hop_limit,)) + INNER[5:]
    made = rewrite.readvertised(advertisement(pvd(header=inner), chlim=hop_limit), ALL)

    assert (made[ndp.ICMPV6 + 4], made[ndp.ICMPV6 + 16 + 24 + 4]) == (told, told)


def test_nd_220_a_smaller_mtu_stays() -> None:
    """Only what is larger than the link takes is lowered."""
    small = advertisement(ICMPv6NDOptMTU(mtu=1280))

    assert rewrite.advertised(rewrite.readvertised(small, ALL)).mtu == 1280


def test_it_may_be_for_one_who_asked() -> None:
    """The destination is another, and the checksum right."""
    leg = rewrite.Leg(P1, 1500, mac(10), ip("fe80::a"))
    made = rewrite.readvertised(EVERYTHING, leg)

    assert message_of(made).destination == ip("fe80::a")
    assert message_of(made).ether_destination == mac(10)


def test_lifetimes_are_what_is_left_of_them() -> None:
    """Of routers, prefixes, routes, name servers and NAT64; what has no end has none later."""
    forever = 0xFFFFFFFF

    assert lifetimes(EVERYTHING) == (
        *(1800, 86400, 14400, 600, 300, forever, forever),
        *(1000, 900, forever, 100),
    )
    assert lifetimes(rewrite.readvertised(EVERYTHING, ALL, 400)) == (
        *(1400, 86000, 14000, 200, 0, forever, forever),
        *(600, 500, forever, 50),
    )
    old = IPv6(rewrite.readvertised(EVERYTHING, ALL, 5000)[ndp.IPV6 :])
    assert old[ICMPv6ND_RA].routerlifetime == old[ICMPv6NDOptRDNSS].lifetime == 0
    assert (old[ICMPv6NDOptPREF64].scaledlifetime, old[ICMPv6NDOptPREF64].plc) == (0, 1)


def test_a_farewell_takes_all_back() -> None:
    """The router is none, addresses are deprecated at once and gone in two hours, and the flags stay."""
    made = rewrite.readvertised(EVERYTHING, ALL, 100, farewell=True)

    assert lifetimes(made) == (0, 7200, 0, 500, 0, 7200, 0, 0, 0, 0, 0)
    first = rewrite.advertised(made).prefixes[0]
    assert (first.on_link, first.autonomous) == (True, True)


# -- no surprises ---------------------------------------------------------------------------------------

MESSAGES = [
    framed(IPv6(src=A, dst=TO_B, hlim=255) / ICMPv6ND_NS(tgt=B) / sllao() / option(14, b"nonce!")),
    framed(IPv6(src=B, dst=A, hlim=255) / ICMPv6ND_NA(tgt=B, S=1, O=1) / tllao()),
    framed(IPv6(src="fe80::a", dst="ff02::2", hlim=255) / ICMPv6ND_RS() / sllao()),
    framed(IPv6(src=R, dst=A, hlim=255) / IPv6ExtHdrHopByHop() / ICMPv6ND_RA() / sllao()),
    advertisement(sllao(), ICMPv6NDOptMTU(mtu=1500), pvd(sllao(), ICMPv6NDOptPrefixInfo(), header=INNER)),
    redirect(tllao(), option(250, b"x")),
]


@given(st.sampled_from(MESSAGES), st.binary(min_size=6, max_size=6))
def test_nd_048_scapy_agrees_with_every_checksum(frame: bytes, out: bytes) -> None:
    """Whatever the link-layer address of the port, the checksum is the one scapy computes."""
    made = rewrite.relayed(frame, message_of(frame), out, mac(1))
    packet = IPv6(made[ndp.IPV6 :])
    layer = packet
    while "cksum" not in layer.fields:
        layer = layer.payload
    checksum = layer.cksum
    del layer.cksum

    layer = IPv6(bytes(packet))
    while "cksum" not in layer.fields:
        layer = layer.payload
    assert layer.cksum == checksum


@given(st.sampled_from(MESSAGES), st.data())
def test_mutated_messages_are_rewritten_or_have_a_verdict(frame: bytes, data: st.DataObject) -> None:
    """A right message with octets changed, cut or added: never an exception, and what is relayed keeps its
    meaning."""
    whole = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(22, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(60, len(whole)))]) + data.draw(st.binary(max_size=40))
    cut = b"\1" + cut[1:]  # so that no checksum hides what is behind it
    message = ndp.parse(cut)
    if isinstance(message, Verdict):
        return

    made = ndp.parse(rewrite.relayed(cut, message, P1, mac(1)))

    assert isinstance(made, ndp.Message)
    kept = message._replace(ether_source=P1, ether_destination=mac(1))
    if message.type == ndp.ROUTER_ADVERTISEMENT:
        rewrite.advertised(cut)
        for farewell in (False, True):
            assert isinstance(ndp.parse(rewrite.readvertised(cut, ALL, 7, farewell=farewell)), ndp.Message)
    else:
        assert made == kept._replace(link_layer=message.link_layer and P1)
    if message.type == ndp.REDIRECT:
        rewrite.redirected(cut, message)
        for link_layer in (b"", P1, mac(7)):
            again = rewrite.relayed_redirect(cut, P1, mac(1), link_layer)
            assert ndp.parse(again) == kept._replace(link_layer=link_layer)
