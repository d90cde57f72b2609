"""Neighbor Discovery messages: frames to fields, fields to frames.

`parse` applies every receive check of RFC 4861 (sections 6.1, 7.1, 8.1) and RFC 6980 before anybody sees
a field: an invalid message comes out as the `Verdict` that names its defect, never as an exception.
The builders make whole frames with right checksums.

A frame here is what an AF_PACKET socket with PACKET_VNET_HDR carries: a virtio-net header of ten bytes,
then Ethernet.  Bit 0 of the first byte says that a local peer left the checksum unfinished.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from portier.core.engine import link_local
from portier.core.outcome import Verdict

VNET_HEADER: Final = 10
NO_OFFLOAD: Final = bytes(VNET_HEADER)
ETHERNET: Final = VNET_HEADER
IPV6: Final = ETHERNET + 14
ICMPV6: Final = IPV6 + 40
TARGET: Final = ICMPV6 + 8
OPTIONS: Final = ICMPV6 + 24

ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
SOLICITATION: Final = 135
ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
INVERSE_SOLICITATION: Final = 141
INVERSE_ADVERTISEMENT: Final = 142

R_FLAG: Final = 0x80
S_FLAG: Final = 0x40
O_FLAG: Final = 0x20

UNSPECIFIED: Final = bytes(16)
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
ALL_ROUTERS: Final = bytes.fromhex("ff020000000000000000000000000002")
ALL_ROUTERS_MAC: Final = bytes.fromhex("333300000002")
SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")  # and the low 24 bits (RFC 4291 2.7.1)

SOURCE_LINK_LAYER: Final = 1
TARGET_LINK_LAYER: Final = 2
NONCE: Final = 14

# The least ICMPv6 length of each message, which is where its options begin (RFC 4861 sections 4.1 to 4.5,
# RFC 3122 section 2).
LEAST: Final = {
    ROUTER_SOLICITATION: 8,
    ROUTER_ADVERTISEMENT: 16,
    SOLICITATION: 24,
    ADVERTISEMENT: 24,
    REDIRECT: 40,
    INVERSE_SOLICITATION: 8,
    INVERSE_ADVERTISEMENT: 8,
}
_QUOTED: Final = 1280 - 40 - 8
_ICMPV6 = 58
_FRAGMENT = 44
_AUTHENTICATION = 51
# Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in units of 8 after the first 8.
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})

_FIXED = Struct("!B9x6s6sH4xHBB16s16sBB")


class Message(NamedTuple):
    """A valid Neighbor Discovery message.

    ``flags`` is the first octet after the checksum: R, S and O of an advertisement.  ``link_layer`` is the
    source option of a solicitation or of a router's advertisement, or the target option of an advertisement
    or a redirect; ``nonce`` that of RFC 3971 section 5.3.2; both b"" when absent.  ``target`` is b"" in
    messages that have none.
    """

    type: int
    ether_destination: bytes
    ether_source: bytes
    source: bytes
    destination: bytes
    flags: int
    target: bytes
    link_layer: bytes
    nonce: bytes


def checksum_ok(frame: bytes, end: int, length: int) -> bool:
    """Whether the ICMPv6 message of `length` octets that ends at `end`, and begins right behind the
    IPv6 header, has a right checksum (RFC 4443 section 2.3), or one that a local peer left unfinished."""
    if frame[0] & 1:
        return True
    # 2**16 is 1 modulo 2**16 - 1, so the one's complement sum is a remainder.  Source, destination and
    # message lie side by side in the frame.
    total = int.from_bytes(frame[IPV6 + 8 : end], "big")
    if length & 1:
        total <<= 8
    return (total + length + _ICMPV6) % 0xFFFF == 0


def parse(frame: bytes) -> Message | Verdict:
    """The Neighbor Discovery message in `frame`, or the verdict that names why there is none."""
    if len(frame) < ICMPV6 + 2:
        return Verdict.TRUNCATED
    _, to_mac, from_mac, ethertype, length, following, hop_limit, source, destination, kind, code = (
        _FIXED.unpack_from(frame)
    )
    if ethertype != 0x86DD or frame[IPV6] >> 4 != 6:
        return Verdict.NOT_ND
    if following != _ICMPV6:
        unwrapped = _unwrap(frame)
        return unwrapped if isinstance(unwrapped, Verdict) else parse(unwrapped)
    least = LEAST.get(kind)
    if least is None:
        return Verdict.NOT_ND
    end = ICMPV6 + length
    if length < least or len(frame) < end:
        return Verdict.TRUNCATED
    if hop_limit != 255:
        return Verdict.BAD_HOP_LIMIT
    if not checksum_ok(frame, end, length):
        return Verdict.BAD_CHECKSUM
    if code:
        return Verdict.BAD_CODE
    if from_mac[0] & 1 or source[0] == 0xFF:
        return Verdict.BAD_SOURCE
    options = _options(frame, ICMPV6 + least, end)
    if options is None:
        return Verdict.BAD_OPTION
    source_option, target_option, nonce = options
    if kind == SOLICITATION:
        target = frame[TARGET:OPTIONS]
        if target[0] == 0xFF or target == UNSPECIFIED:
            return Verdict.BAD_TARGET
        if source == UNSPECIFIED:
            if destination[:13] != SOLICITED_NODE:
                return Verdict.BAD_DESTINATION
            if source_option:
                return Verdict.BAD_OPTION
        link_layer = source_option
    elif kind == ADVERTISEMENT:
        target = frame[TARGET:OPTIONS]
        if target[0] == 0xFF or target == UNSPECIFIED:
            return Verdict.BAD_TARGET
        if source == UNSPECIFIED:
            return Verdict.BAD_SOURCE
        if destination[0] == 0xFF and frame[ICMPV6 + 4] & S_FLAG:
            return Verdict.BAD_FLAGS
        link_layer = target_option
    elif kind == REDIRECT:
        target, subject = frame[TARGET:OPTIONS], frame[OPTIONS : OPTIONS + 16]
        if not link_local(source):
            return Verdict.BAD_SOURCE
        if subject[0] == 0xFF:
            return Verdict.BAD_DESTINATION
        if not link_local(target) and target != subject:
            return Verdict.BAD_TARGET
        link_layer = target_option
    else:
        if kind == ROUTER_ADVERTISEMENT and not link_local(source):
            return Verdict.BAD_SOURCE
        if kind == ROUTER_SOLICITATION and source == UNSPECIFIED and source_option:
            return Verdict.BAD_OPTION
        target, link_layer = b"", source_option
    return Message(kind, to_mac, from_mac, source, destination, frame[ICMPV6 + 4], target, link_layer, nonce)


def _options(frame: bytes, at: int, end: int) -> tuple[bytes, bytes, bytes] | None:
    """Source link-layer, target link-layer and nonce options between `at` and `end`; None when one is
    malformed (RFC 4861 section 4.6), or gives a group address where a host's belongs: an answer sent
    there would go to everybody."""
    source = target = nonce = b""
    while at < end:
        if at + 8 > end:
            return None
        kind = frame[at]
        size = frame[at + 1] * 8
        if size == 0 or at + size > end:
            return None
        if kind in {SOURCE_LINK_LAYER, TARGET_LINK_LAYER}:
            address = frame[at + 2 : at + 8]
            if size != 8 or address[0] & 1 or address == b"\0\0\0\0\0\0":
                return None
            if kind == SOURCE_LINK_LAYER:
                source = source or address
            else:
                target = target or address
        elif kind == NONCE:
            nonce = frame[at + 2 : at + size]
        at += size
    return source, target, nonce


def locate(frame: bytes) -> tuple[int, int] | Verdict:
    """Where the ICMPv6 message of an IPv6 frame begins and ends, behind whatever extension headers.  ND in a
    fragment, atomic ones included, is never looked into (RFC 6980 section 5)."""
    following = frame[IPV6 + 6]
    at = ICMPV6
    end = at + int.from_bytes(frame[IPV6 + 4 : IPV6 + 6], "big")
    if len(frame) < end:
        return Verdict.TRUNCATED
    fragmented = False
    while following != _ICMPV6:
        if at + 8 > end:
            return Verdict.TRUNCATED
        if following in _EXTENSIONS:
            size = 8 + 8 * frame[at + 1]
        elif following == _AUTHENTICATION:
            size = 8 + 4 * frame[at + 1]
        elif following == _FRAGMENT:
            size = 8
            fragmented = True
            if int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8:
                return Verdict.FRAGMENTED  # not the first: what it carries cannot be told
        else:
            return Verdict.NOT_ND
        following = frame[at]
        at += size
    if at >= end:
        return Verdict.TRUNCATED
    if frame[at] not in LEAST:
        return Verdict.NOT_ND
    return Verdict.FRAGMENTED if fragmented else (at, end)


def _unwrap(frame: bytes) -> bytes | Verdict:
    """The same frame without the extension headers in front of its ICMPv6 message."""
    place = locate(frame)
    if isinstance(place, Verdict):
        return place
    at, end = place
    length = (end - at).to_bytes(2, "big")
    header = frame[: IPV6 + 4] + length + bytes((_ICMPV6,)) + frame[IPV6 + 7 : ICMPV6]
    return header + frame[at:end]


def solicited_node(target: bytes) -> bytes:
    """The solicited-node multicast address of `target` (RFC 4291 section 2.7.1)."""
    return SOLICITED_NODE + target[13:]


def _frame(to_mac: bytes, from_mac: bytes, source: bytes, destination: bytes, message: bytes) -> bytes:
    """A whole frame around an ICMPv6 message whose checksum field is zero; hop limit 255."""
    length = len(message)
    addresses = source + destination
    checksum = -(int.from_bytes(addresses + message, "big") + length + _ICMPV6) % 0xFFFF
    return b"".join(
        (
            NO_OFFLOAD,
            to_mac,
            from_mac,
            b"\x86\xdd\x60\0\0\0",
            length.to_bytes(2, "big"),
            b"\x3a\xff",
            addresses,
            message[:2],
            checksum.to_bytes(2, "big"),
            message[4:],
        )
    )


def solicitation(
    from_mac: bytes, source: bytes, target: bytes, to_mac: bytes = b"", link_layer: bytes = b""
) -> bytes:
    """A Neighbor Solicitation: by multicast to find `target`, or by unicast to `to_mac` to see whether it
    is still there (RFC 4861 section 7.2.2, 7.3.3).  Its option is `link_layer`, else where it comes from."""
    if to_mac:
        destination = target
    else:
        destination = solicited_node(target)
        to_mac = b"\x33\x33\xff" + target[13:]
    message = b"\x87\0\0\0\0\0\0\0" + target + b"\x01\x01" + (link_layer or from_mac)
    return _frame(to_mac, from_mac, source, destination, message)


def dad_probe(from_mac: bytes, target: bytes, nonce: bytes) -> bytes:
    """A Duplicate Address Detection probe, as relayed: source ``::``, no link-layer option, the nonce as
    it came (RFC 4862 section 5.4.2, RFC 7527)."""
    message = b"\x87\0\0\0\0\0\0\0" + target
    if nonce:
        message += bytes((NONCE, (len(nonce) + 2) // 8)) + nonce
    return _frame(b"\x33\x33\xff" + target[13:], from_mac, UNSPECIFIED, solicited_node(target), message)


def unique_solicitation(from_mac: bytes, source: bytes, target: bytes, nonce: bytes, *, named: bool) -> bytes:
    """A Neighbor Solicitation by multicast with a nonce of 6 octets that tells it from all others; only where
    it is `named` does it say what its sender's link-layer address is, and others learn it."""
    option = b"\x01\x01" + from_mac if named else b""
    message = b"\x87\0\0\0\0\0\0\0" + target + option + bytes((NONCE, 1)) + nonce
    return _frame(b"\x33\x33\xff" + target[13:], from_mac, source, solicited_node(target), message)


def router_solicitation(from_mac: bytes, source: bytes | None = None) -> bytes:
    """A Router Solicitation from `source`; or from the unspecified address and then without the link-layer
    option, which routers answer by multicast (RFC 4861 sections 4.1 and 6.2.6)."""
    message = b"\x85\0\0\0\0\0\0\0" + (b"\x01\x01" + from_mac if source else b"")
    return _frame(ALL_ROUTERS_MAC, from_mac, source or UNSPECIFIED, ALL_ROUTERS, message)


def advertisement(
    to_mac: bytes,
    from_mac: bytes,
    source: bytes,
    destination: bytes,
    target: bytes,
    flags: int,
    link_layer: bytes,
) -> bytes:
    """A Neighbor Advertisement with the target link-layer option (RFC 4861 section 4.4)."""
    message = b"\x88\0\0\0" + bytes((flags, 0, 0, 0)) + target + b"\x02\x01" + link_layer
    return _frame(to_mac, from_mac, source, destination, message)


def too_big(
    to_mac: bytes, from_mac: bytes, source: bytes, destination: bytes, mtu: int, packet: bytes
) -> bytes:
    """A Packet Too Big message about `packet`, of which it carries as much as fits into 1280 octets
    (RFC 4443 sections 2.4 and 3.2)."""
    message = b"\x02\0\0\0" + mtu.to_bytes(4, "big") + packet[:_QUOTED]
    return _frame(to_mac, from_mac, source, destination, message)


class Reply:
    """The advertisements that one asker on one port gets: all of the frame but checksum, flags and target
    is made once, so an answer costs a sum and a join."""

    __slots__ = ("_base", "_head", "_tail")

    def __init__(
        self, to_mac: bytes, from_mac: bytes, source: bytes, asker: bytes, link_layer: bytes
    ) -> None:
        whole = advertisement(to_mac, from_mac, source, asker, UNSPECIFIED, 0, link_layer)
        self._head = whole[: ICMPV6 + 2]
        self._tail = whole[OPTIONS:]
        # Minus what the checksum of the empty frame says is the sum of all that stays.
        self._base = -int.from_bytes(whole[ICMPV6 + 2 : ICMPV6 + 4], "big") % 0xFFFF

    def frame(self, target: bytes, flags: int) -> bytes:
        """The advertisement of `target` with `flags` in its first octet."""
        checksum = -(self._base + (flags << 8) + int.from_bytes(target, "big")) % 0xFFFF
        return b"".join(
            (
                self._head,
                checksum.to_bytes(2, "big"),
                _FLAGS[flags],
                target,
                self._tail,
            )
        )


_FLAGS: Final = tuple(bytes((flags, 0, 0, 0)) for flags in range(256))
