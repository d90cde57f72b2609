"""Neighbor Discovery messages on their way from one port to another (RFC 4389 section 4.1).

A relayed message names the link-layer address of the port it leaves by, a Router Advertisement says that it
was proxied (the P bit), and everything else stays as it came, extension headers and unknown options
included.  What is inside a PvD option (RFC 8801) is treated alike, because hosts that understand it prefer
what stands there.

Frames are as in `portier.core.ndp`, and every function here takes a frame of which `ndp.parse` made a
message: invalid ones must not become valid by a new checksum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from ipaddress import IPv6Network
from typing import Final, NamedTuple

from portier.core import ndp
from portier.core.engine import link_local
from portier.core.ndp import Message
from portier.core.outcome import Verdict

# Flags in the sixth octet of a Router Advertisement (RFC 4861 section 4.2, RFC 4389 section 4.1.3.3).
M_FLAG: Final = 0x80
O_FLAG: Final = 0x40
P_FLAG: Final = 0x04

_PREFIX: Final = 3
_REDIRECTED: Final = b"\x04"
_MTU: Final = 5
_PVD: Final = 21
_ROUTE: Final = 24
_NAME_SERVERS: Final = 25
_SEARCH_LIST: Final = 31
_NAT64: Final = 38
_LIFETIME_AT_4: Final = frozenset({_ROUTE, _NAME_SERVERS, _SEARCH_LIST})
_LINK_LAYER: Final = frozenset({ndp.SOURCE_LINK_LAYER, ndp.TARGET_LINK_LAYER})

_ON_LINK: Final = 0x80
_AUTONOMOUS: Final = 0x40
_PVD_HEADER: Final = 0x20  # a header of a Router Advertisement is inside
_PVD_NAME: Final = 6
_LABEL: Final = 63

# How long addresses may go on working after their router has gone: hosts disregard less (RFC 4862 section
# 5.5.3), and more would keep those of a prefix that may never come back (RFC 9096).
_TWO_HOURS: Final = 7200
_INFINITY: Final = 0xFFFFFFFF
_LEAST_MTU: Final = 1280
_ICMPV6: Final = 58


class Prefix(NamedTuple):
    """A Prefix Information option that hosts heed.  ``valid`` and ``preferred`` are seconds, infinity for
    ever (RFC 4861 section 4.6.2)."""

    network: IPv6Network
    on_link: bool
    autonomous: bool
    valid: float
    preferred: float


class Advertised(NamedTuple):
    """What a Router Advertisement says.  ``proxied`` is the P bit, ``lifetime`` that of the router in
    seconds, ``mtu`` 0 where there is no such option; ``name_servers`` are packed addresses."""

    hop_limit: int
    managed: bool
    other: bool
    proxied: bool
    lifetime: int
    mtu: int
    prefixes: tuple[Prefix, ...]
    name_servers: tuple[bytes, ...]


class Redirected(NamedTuple):
    """What a Redirect says: packets to ``destination`` go to ``target``, which has ``link_layer`` (b"" where
    it does not say)."""

    target: bytes
    destination: bytes
    link_layer: bytes


def relayed(frame: bytes, message: Message, mac: bytes, to_mac: bytes = b"") -> bytes:
    """The whole frame as it leaves by a port with link-layer address `mac`: to `to_mac`, or to the Ethernet
    group of its IPv6 destination where that is b"" (RFC 2464 section 7).

    All source and target link-layer options become `mac`, unexpected ones too, so that no link-layer
    address of another segment gets out; the checksum is finished.  The extension headers stay in front.
    """
    whole, at = _opened(frame, mac, to_mac or b"\x33\x33" + message.destination[12:])
    headers, options = _layout(whole, at)
    for kind, place, size in options:
        if kind in _LINK_LAYER and size == 8:
            whole[place + 2 : place + 8] = mac
    for header in headers:
        whole[header + 5] |= P_FLAG
    return _closed(whole, at)


def relayed_redirect(frame: bytes, mac: bytes, to_mac: bytes, link_layer: bytes) -> bytes:
    """A Redirect as it leaves by a port with link-layer address `mac`, saying that its target has
    `link_layer`: the target's own where it lives on that port, `mac` where it lives on another, b"" where
    that is not known, and then nothing is said of it (the three cases of RFC 4389 section 4.1.3.4)."""
    whole, at = _opened(frame, mac, to_mac)
    start = at + ndp.LEAST[ndp.REDIRECT]
    options = []
    said = False
    for kind, place, size in _options(whole, start, len(whole)):
        option = whole[place : place + size]
        if kind in _LINK_LAYER:
            told = link_layer if kind == ndp.TARGET_LINK_LAYER else mac
            said = said or kind == ndp.TARGET_LINK_LAYER
            option = option[:2] + told if told else bytearray()
        options.append(option)
    if link_layer and not said:
        options.insert(0, bytearray((ndp.TARGET_LINK_LAYER, 1)) + link_layer)
    # A message that grew must not outgrow what every link takes (RFC 4861 section 4.5).
    excess = start + sum(map(len, options)) - max(len(whole), ndp.IPV6 + _LEAST_MTU)
    for option in options:
        if excess > 0 and option[:1] == _REDIRECTED and len(option) > 8:
            del option[-8:]
            option[1] -= 1
            excess -= 8
    whole[start:] = b"".join(options)
    whole[ndp.IPV6 + 4 : ndp.IPV6 + 6] = (len(whole) - ndp.ICMPV6).to_bytes(2, "big")
    return _closed(whole, at)


class Leg(NamedTuple):
    """The last leg of a Router Advertisement: it leaves by a port with link-layer address ``mac`` and
    ``mtu``, in a frame to ``to_mac`` and for the IPv6 address ``destination``."""

    mac: bytes
    mtu: int
    to_mac: bytes
    destination: bytes


def readvertised(frame: bytes, leg: Leg, age: int = 0, *, farewell: bool = False) -> bytes:
    """A Router Advertisement as it leaves where packets are routed, `age` seconds after it was heard.

    What `relayed` does, and: the hop limit that hosts are to use is one more, because routing takes it off
    again; the MTU is no larger than that of the link; lifetimes are what is left of them.  A `farewell` says
    that nothing of it holds any more: the router is none, addresses are deprecated.
    """
    whole, at = _opened(frame, leg.mac, leg.to_mac)
    whole[ndp.IPV6 + 24 : ndp.IPV6 + 40] = leg.destination
    passed = _INFINITY if farewell else age
    headers, options = _layout(whole, at)
    for header in headers:
        if whole[header + 4]:
            whole[header + 4] = min(whole[header + 4] + 1, 255)
        whole[header + 5] |= P_FLAG
        lifetime = int.from_bytes(whole[header + 6 : header + 8], "big")
        whole[header + 6 : header + 8] = max(0, lifetime - passed).to_bytes(2, "big")
    for kind, place, size in options:
        if kind in _LINK_LAYER and size == 8:
            whole[place + 2 : place + 8] = leg.mac
        elif kind == _MTU and size == 8:
            mtu = int.from_bytes(whole[place + 4 : place + 8], "big")
            whole[place + 4 : place + 8] = min(mtu, leg.mtu).to_bytes(4, "big")
        elif kind == _PREFIX and size == 32:
            _age(whole, place + 4, age, _TWO_HOURS if farewell else _INFINITY)
            _age(whole, place + 8, age, 0 if farewell else _INFINITY)
        elif kind in _LIFETIME_AT_4:
            _age(whole, place + 4, age, 0 if farewell else _INFINITY)
        elif kind == _NAT64 and size == 16:
            # 13 bits of 8 seconds each, then the length of the prefix (RFC 8781 section 4).
            field = int.from_bytes(whole[place + 2 : place + 4], "big")
            left = max(0, (field & 0xFFF8) - passed) & 0xFFF8
            whole[place + 2 : place + 4] = (left | field & 7).to_bytes(2, "big")
    return _closed(whole, at)


def _age(whole: bytearray, at: int, age: int, most: int) -> None:
    """Have a lifetime be what is left of it, and `most` at most; one without end stays so."""
    seconds = int.from_bytes(whole[at : at + 4], "big")
    left = seconds if seconds == _INFINITY else max(0, seconds - age)
    whole[at : at + 4] = min(left, most).to_bytes(4, "big")


def advertised(frame: bytes) -> Advertised:
    """What the Router Advertisement in `frame` says, to hosts that understand PvD options and to others."""
    at = _place(frame)
    _, options = _layout(frame, at)
    mtu = 0
    prefixes = []
    servers = []
    for kind, place, size in options:
        if kind == _MTU and size == 8:
            mtu = mtu or int.from_bytes(frame[place + 4 : place + 8], "big")
        elif kind == _PREFIX and (prefix := _prefix(frame, place, size)):
            prefixes.append(prefix)
        elif kind == _NAME_SERVERS:
            servers += [frame[there : there + 16] for there in range(place + 8, place + size - 8, 16)]
    flags = frame[at + 5]
    return Advertised(
        hop_limit=frame[at + 4],
        managed=bool(flags & M_FLAG),
        other=bool(flags & O_FLAG),
        proxied=bool(flags & P_FLAG),
        lifetime=int.from_bytes(frame[at + 6 : at + 8], "big"),
        mtu=mtu,
        prefixes=tuple(prefixes),
        name_servers=tuple(servers),
    )


def redirected(frame: bytes, message: Message) -> Redirected:
    """What the Redirect in `frame` says."""
    at = _place(frame)
    return Redirected(message.target, bytes(frame[at + 24 : at + 40]), message.link_layer)


def _prefix(frame: bytes, place: int, size: int) -> Prefix | None:
    """The prefix in an option, or None where hosts must pass it over: a preferred lifetime beyond the valid
    one, a link-local prefix (RFC 4861 section 6.3.4, RFC 4862 section 5.5.3), a length that cannot be."""
    length, flags = frame[place + 2], frame[place + 3]
    network = bytes(frame[place + 16 : place + 32])
    valid = _lifetime(frame, place + 4)
    preferred = _lifetime(frame, place + 8)
    if size != 32 or length > 128 or preferred > valid or link_local(network) or network[0] == 0xFF:
        return None
    return Prefix(
        IPv6Network((network, length), strict=False),
        bool(flags & _ON_LINK),
        bool(flags & _AUTONOMOUS),
        valid,
        preferred,
    )


def _lifetime(frame: bytes, at: int) -> float:
    seconds = int.from_bytes(frame[at : at + 4], "big")
    return math.inf if seconds == _INFINITY else seconds


def _place(frame: bytes) -> int:
    place = ndp.locate(frame)
    assert not isinstance(place, Verdict)  # noqa: S101 - ndp.parse made a message of the frame
    return place[0]


def _opened(frame: bytes, mac: bytes, to_mac: bytes) -> tuple[bytearray, int]:
    """A copy with another Ethernet header and no offload state, to work on, and where its message begins."""
    place = ndp.locate(frame)
    assert not isinstance(place, Verdict)  # noqa: S101 - ndp.parse made a message of the frame
    at, end = place
    return bytearray(ndp.NO_OFFLOAD + to_mac + mac + frame[ndp.IPV6 - 2 : end]), at


def _closed(whole: bytearray, at: int) -> bytes:
    """The frame with its checksum made right (RFC 4443 section 2.3)."""
    whole[at + 2 : at + 4] = b"\0\0"
    length = len(whole) - at
    message = int.from_bytes(whole[at:], "big") << (8 if length & 1 else 0)
    addresses = int.from_bytes(whole[ndp.IPV6 + 8 : ndp.ICMPV6], "big")
    whole[at + 2 : at + 4] = (-(addresses + message + length + _ICMPV6) % 0xFFFF).to_bytes(2, "big")
    return bytes(whole)


def _options(frame: bytes | bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, place and size of the options between `at` and `end`, as far as they are well formed."""
    while at + 8 <= end:
        size = frame[at + 1] * 8
        if size == 0 or at + size > end:
            return
        yield frame[at], at, size
        at += size


def _layout(frame: bytes | bytearray, at: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Where the headers of a Router Advertisement are (there are none in other messages), and type, place
    and size of all options; what is in a PvD option comes after the others."""
    end = ndp.ICMPV6 + int.from_bytes(frame[ndp.IPV6 + 4 : ndp.IPV6 + 6], "big")
    options = list(_options(frame, at + ndp.LEAST[frame[at]], end))
    if frame[at] != ndp.ROUTER_ADVERTISEMENT:
        return [], options
    headers = [at]
    for kind, place, size in tuple(options):
        if kind != _PVD or (inner := _inside(frame, place, place + size)) is None:
            continue
        if frame[place + 2] & _PVD_HEADER:
            behind = inner + ndp.LEAST[ndp.ROUTER_ADVERTISEMENT]
            if behind > place + size or frame[inner] != ndp.ROUTER_ADVERTISEMENT:
                continue
            headers.append(inner)
            inner = behind
        options += _options(frame, inner, place + size)
    return headers, options


def _inside(frame: bytes | bytearray, place: int, end: int) -> int | None:
    """Where the contents of the PvD option at `place` begin, behind its name (RFC 8801 section 3.1); None
    where the name is malformed, and receivers cannot tell either."""
    at = place + _PVD_NAME
    while at < end and frame[at]:
        if frame[at] > _LABEL:
            return None
        at += 1 + frame[at]
    inner = place + (at + 1 - place + 7) // 8 * 8
    return inner if inner <= end else None
