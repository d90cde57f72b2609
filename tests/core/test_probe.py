"""The frames of a probe are what scapy would make, and a trace keeps what is about its target."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr
from scapy.layers.l2 import ARP, Ether

from portier.core import ndp
from portier.core.model import HostRoute
from portier.core.outcome import AddRoute, Join, RouteResult
from portier.core.probe import Done, Trace, carries_echo_reply, echo_frame, solicitation

MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ROUTER, HOST = (socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8::5"))
ROUTER4, HOST4 = (socket.inet_aton(text) for text in ("192.0.2.1", "192.0.2.5"))
TOKEN = bytes(range(16))


@pytest.mark.parametrize("named", [True, False])
def test_a_solicitation_is_sound(named: bool) -> None:
    """It is valid, bears its nonce, and says where its sender is only where it is meant to."""
    frame = solicitation(MAC, ROUTER, HOST, b"nonce!", named=named)
    message = ndp.parse(frame)
    assert isinstance(message, ndp.Message)
    assert (message.source, message.target, message.nonce) == (ROUTER, HOST, b"nonce!")
    assert message.link_layer == (MAC if named else b"")
    packet = Ether(frame[10:])
    assert packet[ICMPv6ND_NS].tgt == "2001:db8::5"
    assert packet.haslayer(ICMPv6NDOptSrcLLAddr) == named


def test_an_arp_request() -> None:
    """The same question for IPv4."""
    packet = Ether(solicitation(MAC, ROUTER4, HOST4, b"", named=False)[10:])
    assert (packet[ARP].psrc, packet[ARP].pdst, packet[ARP].op) == ("192.0.2.1", "192.0.2.5", 1)


@pytest.mark.parametrize(("source", "target"), [(ROUTER, HOST), (ROUTER4, HOST4)])
def test_an_echo_request_is_sound(source: bytes, target: bytes) -> None:
    """Its checksums are those that scapy computes, and its answer is told from others."""
    frame = echo_frame(MAC, OTHER, source, target, 4711, TOKEN)
    packet = Ether(frame)
    echo = packet[ICMPv6EchoRequest] if len(target) == 16 else packet[ICMP]
    assert (echo.id, bytes(echo.data if len(target) == 16 else echo.payload)) == (4711, TOKEN)
    again = packet.copy()
    for layer in (IP, ICMP) if len(target) == 4 else (ICMPv6EchoRequest,):
        field = "chksum" if len(target) == 4 else "cksum"
        delattr(again[layer], field)
    assert bytes(again) == frame
    assert not carries_echo_reply(frame, len(target), TOKEN)
    echo.type = 129 if len(target) == 16 else 0
    assert carries_echo_reply(bytes(packet), len(target), TOKEN)
    assert not carries_echo_reply(bytes(packet), len(target), bytes(16))


def test_a_trace_keeps_what_is_about_its_target() -> None:
    """Others' routes and frames are none of its business."""
    trace = Trace(HOST, 0.0)
    other = ROUTER
    for address in (HOST, other):
        trace.note(Done(1.0, AddRoute(HostRoute(address, 2, 254, 4389, 135)), RouteResult.ADDED))
        trace.note(Done(1.0, ifindex=2, frame=ndp.solicitation(MAC, bytes(15) + b"\7", address)))
        trace.note(Done(1.0, Join(2, address)))
    assert len(trace.done) == 2
    assert [done.ifindex for done in trace.sends("question")] == [2]
    assert trace.sends("answer") == []


def test_a_trace_is_bounded() -> None:
    """A flood about the target does not fill the memory."""
    trace = Trace(HOST, 0.0)
    frame = ndp.solicitation(MAC, ROUTER, HOST)
    for _ in range(1000):
        trace.note(Done(1.0, ifindex=2, frame=frame))
    assert len(trace.done) == 256
