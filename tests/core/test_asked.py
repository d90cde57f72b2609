"""Who asks for whom, as scapy has made it: valid or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from portier.core.asked import Asked, asked, solicits

MAC, TO = "02:00:00:00:00:01", "33:33:ff:00:00:05"


def octets(packet: Packet) -> bytes:
    """A frame as engines take it."""
    return bytes(10) + bytes(packet)


ND = Ether(src=MAC, dst=TO) / IPv6(src="fe80::1", dst="ff02::1:ff00:5") / ICMPv6ND_NS(tgt="2001:db8::5")
WHO_HAS = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc="192.0.2.1", pdst="192.0.2.5")

CASES = {
    "nd": (
        ND / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
        Asked("nd", MAC, TO, "fe80::1", "2001:db8::5", MAC),
        f"fe80::1 asks for 2001:db8::5 ({MAC} to {TO})",
    ),
    "nd, another link-layer address": (
        ND / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:99"),
        Asked("nd", MAC, TO, "fe80::1", "2001:db8::5", "02:00:00:00:00:99"),
        f"fe80::1 asks for 2001:db8::5 ({MAC} to {TO}, gives 02:00:00:00:00:99)",
    ),
    "nd without option, wrong hop limit and checksum": (
        Ether(src=MAC, dst=TO)
        / IPv6(src="fe80::1", dst="ff02::1:ff00:5", hlim=64)
        / ICMPv6ND_NS(tgt="2001:db8::5", cksum=1),
        Asked("nd", MAC, TO, "fe80::1", "2001:db8::5", ""),
        f"fe80::1 asks for 2001:db8::5 ({MAC} to {TO})",
    ),
    "dad": (
        Ether(src=MAC, dst=TO) / IPv6(src="::", dst="ff02::1:ff00:5") / ICMPv6ND_NS(tgt="2001:db8::5"),
        Asked("nd", MAC, TO, "::", "2001:db8::5", ""),
        f"a host asks whether anybody has 2001:db8::5 ({MAC} to {TO})",
    ),
    "arp": (
        WHO_HAS,
        Asked("arp", MAC, "ff:ff:ff:ff:ff:ff", "192.0.2.1", "192.0.2.5", MAC),
        f"192.0.2.1 asks for 192.0.2.5 ({MAC} to ff:ff:ff:ff:ff:ff)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_solicitations_are_read(name: str) -> None:
    """Each kind of solicitation is one, and says who asks for whom."""
    packet, what, words = CASES[name]
    frame = octets(packet)
    assert solicits(frame)
    assert asked(frame) == what
    assert str(what) == words


def test_others_are_none() -> None:
    """Advertisements, ARP replies, data and nothing at all are no solicitations."""
    for packet in (
        Ether(src=MAC, dst=TO) / IPv6(src="fe80::1") / ICMPv6ND_NA(tgt="2001:db8::5"),
        Ether(src=MAC, dst=TO) / ARP(op=2),
        Ether(src=MAC, dst=TO) / IP() / UDP(),
        Ether(src=MAC, dst=TO) / IPv6() / UDP(),
    ):
        assert not solicits(octets(packet))
    assert not solicits(b"")


@given(st.integers(0, 120), st.sampled_from([ND, WHO_HAS]))
def test_half_a_solicitation_is_read_as_far_as_it_goes(length: int, packet: Packet) -> None:
    """A frame may end anywhere: what it does not hold is said to be missing."""
    frame = octets(packet)[:length]
    if solicits(frame):
        said = asked(frame)
        assert said.target in {"", "2001:db8::5", "192.0.2.5"}
        assert str(said)
