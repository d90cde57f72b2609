"""ARP for IPv4 on Ethernet (RFC 826): frames to fields, fields to frames.

`parse` applies every receive check before anybody sees a field: an invalid packet comes out as the `Verdict`
that names its defect, never as an exception.  Words are those of RFC 5227: a probe is a request whose sender
address is 0.0.0.0, an announcement one whose sender and target addresses are the same.

A frame is laid out as in `portier.core.ndp`: a virtio-net header of ten bytes, then Ethernet.

ARP has no flag by which a proxy's word gives way to the host's own, as Neighbor Discovery has (O=0, RFC 4861
section 7.2.8).  Without one, two proxies between the same links take each other for the owner of every
address.  So what is said on behalf of another bears a mark where every receiver expects padding: behind the
28 octets of the packet, in the 18 that an Ethernet frame has at least.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from portier.core.ndp import NO_OFFLOAD
from portier.core.outcome import Verdict

ARP: Final = 24
SENDER_MAC: Final = ARP + 8
SENDER: Final = ARP + 14
TARGET_MAC: Final = ARP + 18
TARGET: Final = ARP + 24
END: Final = ARP + 28

ETHERTYPE: Final = b"\x08\x06"
REQUEST: Final = 1
REPLY: Final = 2

# Ethertype, hardware type, protocol type, both lengths and operation, as they lie in every request and reply.
REQUEST_HEAD: Final = bytes.fromhex("08060001080006040001")
REPLY_HEAD: Final = bytes.fromhex("08060001080006040002")

UNSPECIFIED: Final = bytes(4)
BROADCAST: Final = b"\xff\xff\xff\xff"
BROADCAST_MAC: Final = b"\xff\xff\xff\xff\xff\xff"
_NO_MAC: Final = bytes(6)

PROXIED: Final = b"proxied (RFC 1027)"

_FIXED = Struct("!10x6s6s2sHHBBH6s4s6s4s")


class Message(NamedTuple):
    """A valid ARP packet.  ``sender`` is 0.0.0.0 in a probe; ``target_mac`` means nothing in a request;
    ``proxied`` says that it bears the mark of a proxy."""

    operation: int
    ether_destination: bytes
    ether_source: bytes
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes
    proxied: bool = False


def parse(frame: bytes) -> Message | Verdict:
    """The ARP packet in `frame`, or the verdict that names why there is none."""
    if len(frame) < END:
        return Verdict.TRUNCATED
    (
        to_mac,
        from_mac,
        ethertype,
        hardware,
        protocol,
        hardware_length,
        protocol_length,
        operation,
        sender_mac,
        sender,
        target_mac,
        target,
    ) = _FIXED.unpack_from(frame)
    if ethertype != ETHERTYPE:
        return Verdict.NOT_ND
    if hardware != 1 or hardware_length != 6:
        return Verdict.BAD_HARDWARE
    if protocol != 0x0800 or protocol_length != 4:
        return Verdict.BAD_PROTOCOL
    if operation not in {REQUEST, REPLY}:
        return Verdict.BAD_OPERATION
    if from_mac[0] & 1 or sender_mac[0] & 1 or sender_mac == _NO_MAC:
        return Verdict.BAD_LINK_LAYER
    probe = operation == REQUEST and sender == UNSPECIFIED
    if probe and sender_mac != from_mac:
        return Verdict.BAD_LINK_LAYER  # whose probe it is decides whether he is told that he has lost
    if not probe and not _unicast(sender):
        return Verdict.BAD_SOURCE
    if operation == REQUEST and not _unicast(target):
        return Verdict.BAD_TARGET
    proxied = frame[END : END + len(PROXIED)] == PROXIED
    return Message(operation, to_mac, from_mac, sender_mac, sender, target_mac, target, proxied)


def _unicast(address: bytes) -> bool:
    """Whether an address may be a host's: not of 0/8, 127/8 or 224/4, and not 255.255.255.255 (RFC 1122
    section 3.2.1.3)."""
    return address[0] not in {0, 127} and address[0] & 0xF0 != 0xE0 and address != BROADCAST


def request(
    from_mac: bytes, sender: bytes, target: bytes, to_mac: bytes = BROADCAST_MAC, link_layer: bytes = b""
) -> bytes:
    """A request: by broadcast to find `target`, or by unicast to `to_mac` to see whether it is still there
    (RFC 1122 section 2.3.2.1).  It says that `sender` is at `link_layer`, else where it comes from."""
    return b"".join(
        (NO_OFFLOAD, to_mac, from_mac, REQUEST_HEAD, link_layer or from_mac, sender, _NO_MAC, target),
    )


def probe(from_mac: bytes, target: bytes) -> bytes:
    """A probe for `target`, by which others are asked whether they have it (RFC 5227 section 2.1.1)."""
    return request(from_mac, UNSPECIFIED, target)


def reply(to_mac: bytes, from_mac: bytes, link_layer: bytes, sender: bytes, target: bytes) -> bytes:
    """A reply that `sender` is at `link_layer`, to `target` at `to_mac`."""
    return b"".join(
        (NO_OFFLOAD, to_mac, from_mac, REPLY_HEAD, link_layer, sender, to_mac, target),
    )


class Reply:
    """The replies on behalf of others that one asker on one port gets: all of the frame but the address is
    made once."""

    __slots__ = ("_head", "_tail")

    def __init__(self, to_mac: bytes, from_mac: bytes, link_layer: bytes, asker: bytes) -> None:
        whole = reply(to_mac, from_mac, link_layer, UNSPECIFIED, asker)
        self._head = whole[:SENDER]
        self._tail = whole[TARGET_MAC:] + PROXIED

    def frame(self, target: bytes, _flags: int) -> bytes:
        """The reply for `target`; ARP has no flags."""
        return self._head + target + self._tail
