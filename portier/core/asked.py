"""Who asks for whom, read off a frame whether or not it is valid: for `portier watch --packets`.

The engines judge by the whole of RFC 4861 and RFC 826; what is wrong with a frame is their verdict, and a
person who wants to know why nobody answers has to see that frame too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from portier.core.engine import text

_ETHERNET: Final = 10  # behind the virtio-net header
_TYPE: Final = 22
_PACKET: Final = 24
_ARP: Final = b"\x08\x06"
_IPV6: Final = b"\x86\xdd"
_REQUEST: Final = b"\0\1"
_ICMPV6: Final = b"\x3a"
_SOLICITATION: Final = b"\x87"
_ICMP: Final = _PACKET + 40
_TARGET: Final = _ICMP + 8
_OPTIONS: Final = _TARGET + 16
_SLLAO: Final = b"\1\1"
_NOBODY: Final = frozenset(
    {text(bytes(16)), text(bytes(4))}
)  # RFC 4862 section 5.4.2, RFC 5227 section 2.1.1


class Asked(NamedTuple):
    """A solicitation, in words.  ``protocol`` is "nd" or "arp"; ``mac`` the Ethernet source; ``to`` the
    link-layer address that it went to; ``link_layer`` the one that it gives for its source, "" where it gives
    none; ``source`` or ``target`` are "" where the frame ends before them."""

    protocol: str
    mac: str
    to: str
    source: str
    target: str
    link_layer: str

    def __str__(self) -> str:
        target = self.target or "?"
        if self.source in _NOBODY:
            asks = f"a host asks whether anybody has {target}"
        else:
            asks = f"{self.source or '?'} asks for {target}"
        given = f", gives {self.link_layer}" if self.link_layer not in {"", self.mac} else ""
        return f"{asks} ({self.mac} to {self.to}{given})"


def solicits(frame: bytes) -> bool:
    """Whether a frame, virtio-net header in front, is a Neighbor Solicitation or an ARP request."""
    kind = frame[_TYPE:_PACKET]
    if kind == _IPV6:
        return frame[_PACKET + 6 : _PACKET + 7] == _ICMPV6 and frame[_ICMP : _ICMP + 1] == _SOLICITATION
    return kind == _ARP and frame[_PACKET + 6 : _PACKET + 8] == _REQUEST


def asked(frame: bytes) -> Asked:
    """What a frame that `solicits` asks."""
    to, mac = frame[_ETHERNET : _ETHERNET + 6].hex(":"), frame[_ETHERNET + 6 : _TYPE].hex(":")
    if frame[_TYPE:_PACKET] == _ARP:
        given = frame[_PACKET + 8 : _PACKET + 14]
        source, target = frame[_PACKET + 14 : _PACKET + 18], frame[_PACKET + 24 : _PACKET + 28]
        return Asked("arp", mac, to, _said(source, 4), _said(target, 4), given.hex(":"))
    source, target = frame[_PACKET + 8 : _PACKET + 24], frame[_TARGET:_OPTIONS]
    option = frame[_OPTIONS : _OPTIONS + 8]
    given = option[2:] if option[:2] == _SLLAO else b""
    return Asked("nd", mac, to, _said(source, 16), _said(target, 16), given.hex(":"))


def _said(address: bytes, length: int) -> str:
    return text(address) if len(address) == length else ""
