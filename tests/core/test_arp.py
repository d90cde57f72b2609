"""The ARP codec, with scapy as the other opinion."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from portier.core import arp, ndp
from portier.core.family import Kind, read
from portier.core.outcome import Verdict

OURS = bytes.fromhex("0200000000ff")
HOST = bytes.fromhex("020000000005")
HERE, THERE = IPv4Address("192.0.2.5").packed, IPv4Address("192.0.2.9").packed
NOBODY = str(IPv4Address(0))


def made(**fields: Any) -> bytes:
    """A frame as scapy makes it: a broadcast request of `HOST`, but for `fields`."""
    ether = {
        "dst": fields.pop("dst", "ff:ff:ff:ff:ff:ff"),
        "src": fields.pop("src", HOST.hex(":")),
        "type": 0x0806,
    }
    usual = {
        "op": 1,
        "hwsrc": HOST.hex(":"),
        "psrc": "192.0.2.5",
        "hwdst": "0:0:0:0:0:0",
        "pdst": "192.0.2.9",
    }
    return ndp.NO_OFFLOAD + bytes(Ether(**ether) / ARP(**{**usual, **fields}))


def shown(frame: bytes) -> dict[str, Any]:
    """What scapy sees in a frame of ours."""
    whole = Ether(frame[ndp.VNET_HEADER :])
    assert bytes(whole) == frame[ndp.VNET_HEADER :]
    packet = whole[ARP]
    return {
        "dst": whole.dst,
        "src": whole.src,
        **{name: getattr(packet, name) for name in ("op", "hwsrc", "psrc", "hwdst", "pdst")},
        "types": (packet.hwtype, packet.ptype, packet.hwlen, packet.plen),
    }


# -- frames to fields ------------------------------------------------------------------------------------


def test_nd_240_a_request_and_a_reply_are_read_field_by_field() -> None:
    """RFC 826: hardware and protocol type and length, operation, two pairs of addresses."""
    assert arp.parse(made()) == arp.Message(arp.REQUEST, arp.BROADCAST_MAC, HOST, HOST, HERE, bytes(6), THERE)
    reply = made(op=2, dst=OURS.hex(":"), hwdst=OURS.hex(":"))
    assert arp.parse(reply) == arp.Message(arp.REPLY, OURS, HOST, HOST, HERE, OURS, THERE)


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"hwtype": 6}, Verdict.BAD_HARDWARE),
        ({"hwlen": 8}, Verdict.BAD_HARDWARE),
        ({"ptype": 0x86DD}, Verdict.BAD_PROTOCOL),
        ({"plen": 16}, Verdict.BAD_PROTOCOL),
        ({"op": 0}, Verdict.BAD_OPERATION),
        ({"op": 3}, Verdict.BAD_OPERATION),
        ({"op": 9}, Verdict.BAD_OPERATION),
        ({"hwsrc": "01:00:5e:00:00:01"}, Verdict.BAD_LINK_LAYER),
        ({"hwsrc": "ff:ff:ff:ff:ff:ff"}, Verdict.BAD_LINK_LAYER),
        ({"hwsrc": "00:00:00:00:00:00"}, Verdict.BAD_LINK_LAYER),
        ({"src": "33:33:00:00:00:01"}, Verdict.BAD_LINK_LAYER),
        ({"psrc": NOBODY, "hwsrc": "02:00:00:00:00:06"}, Verdict.BAD_LINK_LAYER),
        ({"psrc": "224.0.0.1"}, Verdict.BAD_SOURCE),
        ({"psrc": "239.1.2.3"}, Verdict.BAD_SOURCE),
        ({"psrc": "255.255.255.255"}, Verdict.BAD_SOURCE),
        ({"psrc": "127.0.0.1"}, Verdict.BAD_SOURCE),
        ({"psrc": "0.0.0.1"}, Verdict.BAD_SOURCE),
        ({"op": 2, "psrc": NOBODY}, Verdict.BAD_SOURCE),
        ({"pdst": "224.0.0.1"}, Verdict.BAD_TARGET),
        ({"pdst": "255.255.255.255"}, Verdict.BAD_TARGET),
        ({"pdst": "127.0.0.1"}, Verdict.BAD_TARGET),
        ({"pdst": NOBODY}, Verdict.BAD_TARGET),
        ({"psrc": NOBODY, "pdst": NOBODY}, Verdict.BAD_TARGET),
    ],
)
def test_nd_240_every_defect_has_its_verdict(fields: dict[str, Any], verdict: Verdict) -> None:
    """Whoever looks at the counters sees what is wrong."""
    assert arp.parse(made(**fields)) is verdict
    assert read(made(**fields)) is verdict


def test_a_short_packet_is_truncated_and_padding_is_nothing() -> None:
    """Ethernet pads to 60 octets."""
    whole = made()
    for length in range(len(whole)):
        assert arp.parse(whole[:length]) is Verdict.TRUNCATED
    assert arp.parse(whole + bytes(18)) == arp.parse(whole)


def test_another_ethertype_is_no_arp() -> None:
    """Nor read as such."""
    assert arp.parse(made()[:22] + b"\x08\x00" + made()[24:]) is Verdict.NOT_ND


@given(st.binary(max_size=80), st.booleans())
def test_garbage_never_raises(garbage: bytes, plausible: bool) -> None:
    """A message or a verdict, whatever comes."""
    frame = (made()[: arp.ARP + 8] if plausible else b"") + garbage
    for found in (arp.parse(frame), read(frame)):
        assert isinstance(found, Verdict) or found.target


# -- what the engine hears ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, Kind.SOLICITATION),
        ({"dst": OURS.hex(":")}, Kind.SOLICITATION),
        ({"psrc": NOBODY}, Kind.PROBE),
        ({"psrc": "192.0.2.9"}, Kind.ADVERTISEMENT),
        ({"op": 2, "pdst": "192.0.2.5"}, Kind.ADVERTISEMENT),
        ({"op": 2, "dst": OURS.hex(":")}, Kind.ADVERTISEMENT),
    ],
)
def test_what_a_packet_is_to_the_engine(fields: dict[str, Any], kind: Kind) -> None:
    """RFC 5227 section 1.1: a probe has no sender address, an announcement the same twice."""
    heard = read(made(**fields))

    assert not isinstance(heard, Verdict)
    assert heard.kind is kind
    assert heard.link_layer == HOST


def test_only_a_reply_to_one_address_answers_a_question() -> None:
    """A gratuitous reply proves nothing, nor does one to everybody."""
    solicited = {
        name: read(made(op=2, **fields))
        for name, fields in {
            "answer": {"dst": OURS.hex(":")},
            "gratuitous": {"pdst": "192.0.2.5"},
            "gratuitous to us": {"pdst": "192.0.2.5", "dst": OURS.hex(":")},
            "to everybody": {},
        }.items()
    }

    assert [name for name, heard in solicited.items() if getattr(heard, "solicited", None)] == ["answer"]


# -- fields to frames ----------------------------------------------------------------------------------------

ETHERNET_IPV4 = (1, 0x0800, 6, 4)


def test_a_request_is_as_rfc_826_has_it() -> None:
    """By broadcast, and by unicast to see whether a host is still there."""
    ours = OURS.hex(":")
    fields = {
        "src": ours,
        "op": 1,
        "hwsrc": ours,
        "psrc": "192.0.2.5",
        "hwdst": "00:00:00:00:00:00",
        "pdst": "192.0.2.9",
        "types": ETHERNET_IPV4,
    }

    assert shown(arp.request(OURS, HERE, THERE)) == {**fields, "dst": "ff:ff:ff:ff:ff:ff"}
    assert shown(arp.request(OURS, HERE, THERE, HOST)) == {**fields, "dst": HOST.hex(":")}


def test_a_probe_has_no_sender_address_and_an_announcement_the_same_twice() -> None:
    """RFC 5227 section 1.1; zero is for probes alone."""
    probe = shown(arp.probe(OURS, THERE))
    assert (probe["op"], probe["psrc"], probe["pdst"], probe["hwdst"]) == (
        1,
        NOBODY,
        "192.0.2.9",
        "00:00:00:00:00:00",
    )
    told = shown(arp.request(OURS, THERE, THERE, link_layer=HOST))
    assert (told["op"], told["psrc"], told["pdst"]) == (1, "192.0.2.9", "192.0.2.9")
    assert (told["src"], told["hwsrc"], told["dst"]) == (OURS.hex(":"), HOST.hex(":"), "ff:ff:ff:ff:ff:ff")


def test_nd_239_a_reply_names_the_askers_own_link_layer_address() -> None:
    """And goes to that address alone (ND-251)."""
    ours, host = OURS.hex(":"), HOST.hex(":")
    want = {
        "dst": host,
        "src": ours,
        "op": 2,
        "hwsrc": ours,
        "psrc": "192.0.2.9",
        "hwdst": host,
        "pdst": "192.0.2.5",
        "types": ETHERNET_IPV4,
    }

    assert shown(arp.reply(HOST, OURS, OURS, THERE, HERE)) == want
    assert shown(arp.Reply(HOST, OURS, OURS, HERE).frame(THERE, 0)) == want


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_what_is_built_is_read_back(sender: bytes, target: bytes) -> None:
    """Whatever addresses are in it."""
    for frame in (
        arp.request(OURS, sender, target),
        arp.probe(OURS, target),
        arp.reply(HOST, OURS, OURS, sender, target),
    ):
        message = arp.parse(frame)
        assert message in {Verdict.BAD_SOURCE, Verdict.BAD_TARGET} or (
            isinstance(message, arp.Message) and message.sender_mac == OURS and message.target == frame[48:52]
        )
