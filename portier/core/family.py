"""What the engine for mode `route` hears and says, whatever the family: Neighbor Discovery or ARP.

ARP does with fewer words what Neighbor Discovery does, so the engine thinks in the terms of RFC 4861 and
4862, and this is where they are matched:

====================  ======================================  ==============================================
the engine's          IPv6                                    IPv4
====================  ======================================  ==============================================
solicitation          Neighbor Solicitation                   request
probe                 Neighbor Solicitation from ``::``       request from 0.0.0.0 (RFC 5227)
advertisement         Neighbor Advertisement                  reply
the same, unasked     the same with S=0                       request or reply with equal addresses
the proxy's word      O=0                                     `portier.core.arp.PROXIED` behind the packet
====================  ======================================  ==============================================

`read` turns a frame into what was `Heard`; a `Voice` makes the frames that one port sends in one family.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, NamedTuple

from portier.core import arp, ndp
from portier.core.model import Advertisement, Port, Source
from portier.core.outcome import Verdict


class Kind(enum.Enum):
    """What a message is to the engine."""

    SOLICITATION = "solicitation"
    PROBE = "probe"
    ADVERTISEMENT = "advertisement"
    ROUTER_SOLICITATION = "router solicitation"
    ROUTER_ADVERTISEMENT = "router advertisement"
    OTHER = "other"


class Heard(NamedTuple):
    """A valid message.

    ``source`` is the address that asks, `target` the one that is asked for, probed for or advertised.
    ``link_layer`` is the link-layer address that the message names, b"" where it names none; ``nonce`` b""
    where there is none.  ``everybody`` says that it was for the whole link.  The flags are those of an
    advertisement, ``override`` where a host speaks for itself; ``router`` is None where the family has no
    such flag.  ``news`` says that it tells those who have not heard of the host, and objects to nobody.
    """

    kind: Kind
    ether_source: bytes
    source: bytes
    target: bytes
    link_layer: bytes
    nonce: bytes
    everybody: bool
    solicited: bool = False
    override: bool = False
    router: bool | None = None
    news: bool = False


_KINDS: Final = {
    ndp.SOLICITATION: Kind.SOLICITATION,
    ndp.ADVERTISEMENT: Kind.ADVERTISEMENT,
    ndp.ROUTER_SOLICITATION: Kind.ROUTER_SOLICITATION,
    ndp.ROUTER_ADVERTISEMENT: Kind.ROUTER_ADVERTISEMENT,
}


def read(frame: bytes) -> Heard | Verdict:
    """What is heard in `frame`, or the verdict that names its defect."""
    if frame[ndp.ETHERNET + 12 : ndp.IPV6] == arp.ETHERTYPE:
        return _read_arp(frame)
    message = ndp.parse(frame)
    if isinstance(message, Verdict):
        return message
    kind, _, ether_source, source, destination, flags, target, link_layer, nonce = message
    everybody = destination[0] == 0xFF
    if kind == ndp.ADVERTISEMENT:
        solicited = bool(flags & ndp.S_FLAG)
        # What answers a unicast solicitation may leave the link-layer address out (RFC 4861 section 7.2.4).
        # Linux leaves O out with it: there is nothing to override. From the address itself it is the host's.
        own = solicited and not link_layer and source == target
        return Heard(
            Kind.ADVERTISEMENT,
            ether_source,
            source,
            target,
            link_layer,
            nonce,
            everybody,
            solicited,
            own or bool(flags & ndp.O_FLAG),
            bool(flags & ndp.R_FLAG),
            destination == ndp.ALL_ROUTERS,
        )
    what = _KINDS.get(kind, Kind.OTHER)
    if what is Kind.SOLICITATION and source == ndp.UNSPECIFIED:
        what = Kind.PROBE
    return Heard(what, ether_source, source, target, link_layer, nonce, everybody)


def _read_arp(frame: bytes) -> Heard | Verdict:
    message = arp.parse(frame)
    if isinstance(message, Verdict):
        return message
    operation, ether_destination, ether_source, sender_mac, sender, _, target, proxied = message
    everybody = bool(ether_destination[0] & 1)
    if operation == arp.REQUEST and sender != target:
        kind = Kind.PROBE if sender == arp.UNSPECIFIED else Kind.SOLICITATION
        return Heard(kind, ether_source, sender, target, sender_mac, b"", everybody)
    solicited = operation == arp.REPLY and sender != target and not everybody
    return Heard(
        Kind.ADVERTISEMENT,
        ether_source,
        sender,
        sender,
        sender_mac,
        b"",
        everybody,
        solicited=solicited,
        override=not proxied,
        news=proxied and sender == target,
    )


class Voice(ABC):
    """How one port speaks in one family.  ``asks`` says that it has what a question needs, ``answers`` what
    an answer needs, ``probes`` what a relayed probe needs; the methods may be called only where that is so.

    Flags are those of a Neighbor Advertisement.  ``ROUTER`` is an address that any router may ask from, b""
    where there is no such thing; ``kernel_defends`` says that a proxy entry of the kernel answers probes too.
    """

    ROUTER = b""
    kernel_defends = False

    asks: bool
    answers: bool
    probes: bool

    @staticmethod
    @abstractmethod
    def asker_key(address: bytes, mac: bytes) -> bytes:
        """What a plain solicitation of an asker holds of him, as it lies in the frame."""

    @abstractmethod
    def solicitation(self, target: bytes, to_mac: bytes = b"") -> bytes:
        """The question for `target`: to everybody, or to `to_mac` alone, to see whether it is still there."""

    @abstractmethod
    def dad_probe(self, target: bytes, nonce: bytes) -> bytes:
        """Somebody else's probe for `target`, passed on."""

    @abstractmethod
    def replies(self, asker: bytes, to_mac: bytes) -> Callable[[bytes, int], bytes]:
        """What makes the answers to one asker, from target and flags."""

    @abstractmethod
    def defence(self, to_mac: bytes, target: bytes, flags: int) -> bytes:
        """The objection to a probe for `target` by `to_mac`."""

    @abstractmethod
    def news(self, address: bytes, flags: int) -> bytes:
        """That frames for `address` go to this port, for those who have not heard of it."""

    @abstractmethod
    def correction(self, address: bytes, flags: int) -> bytes:
        """The same for those who have another link-layer address for it."""

    @abstractmethod
    def introduction(self, address: bytes, router: bytes) -> bytes:
        """A question of `address` for a router's own address, from which that learns as from a host's."""

    @abstractmethod
    def rebuttal(self, address: bytes) -> bytes:
        """The objection to one who uses `address` without having asked; b"" where the family knows none."""

    @abstractmethod
    def group(self, target: bytes) -> bytes:
        """The multicast group in which `target` is asked for on this port; b"" for none."""


class NdVoice(Voice):
    """Neighbor Discovery on a port."""

    ROUTER = b"\xfe\x80" + bytes(13) + b"\1"
    kernel_defends = True

    def __init__(self, port: Port, advertisement: Advertisement) -> None:
        self._mac = port.mac or b""
        self._source = port.source or b""
        self._link_layer = advertisement.link_layer or self._mac
        self._from_target = advertisement.source is Source.TARGET
        self.probes = bool(self._mac)
        self.asks = self.answers = self.probes and bool(self._source)

    @staticmethod
    def asker_key(address: bytes, mac: bytes) -> bytes:
        """Source address, and source link-layer option."""
        return address + b"\x01\x01" + mac

    def solicitation(self, target: bytes, to_mac: bytes = b"") -> bytes:
        """RFC 4861 sections 7.2.2 and 7.3.3."""
        return ndp.solicitation(self._mac, self._source, target, to_mac)

    def dad_probe(self, target: bytes, nonce: bytes) -> bytes:
        """RFC 4862 section 5.4.2, the nonce as it came (RFC 7527)."""
        return ndp.dad_probe(self._mac, target, nonce)

    def replies(self, asker: bytes, to_mac: bytes) -> Callable[[bytes, int], bytes]:
        """RFC 4861 section 7.2.4."""
        mac, link_layer = self._mac, self._link_layer
        if self._from_target:
            return lambda target, flags: ndp.advertisement(
                to_mac, mac, target, asker, target, flags, link_layer
            )
        return ndp.Reply(to_mac, mac, self._source, asker, link_layer).frame

    def defence(self, to_mac: bytes, target: bytes, flags: int) -> bytes:
        """RFC 4861 section 7.2.4: S=0, to all nodes."""
        del to_mac
        return self._unasked(target, flags & ~ndp.S_FLAG)

    def news(self, address: bytes, flags: int) -> bytes:
        """RFC 9131 section 6.1.2: O=0, to all routers."""
        return self._unasked(address, flags, ndp.ALL_ROUTERS_MAC, ndp.ALL_ROUTERS)

    def correction(self, address: bytes, flags: int) -> bytes:
        """RFC 4861 section 7.2.6: O=1, to all nodes."""
        return self._unasked(address, flags | ndp.O_FLAG)

    def introduction(self, address: bytes, router: bytes) -> bytes:
        """RFC 4861 section 7.2.3: the router makes an entry of source and option."""
        return ndp.solicitation(self._mac, address, router, link_layer=self._link_layer)

    def rebuttal(self, address: bytes) -> bytes:
        """RFC 4862 detects duplicates by probes alone."""
        del address
        return b""

    def group(self, target: bytes) -> bytes:
        """RFC 4291 section 2.7.1."""
        return ndp.solicited_node(target) if self.probes else b""

    def _unasked(
        self,
        address: bytes,
        flags: int,
        to_mac: bytes = ndp.ALL_NODES_MAC,
        destination: bytes = ndp.ALL_NODES,
    ) -> bytes:
        source = address if self._from_target else self._source
        return ndp.advertisement(to_mac, self._mac, source, destination, address, flags, self._link_layer)


class ArpVoice(Voice):
    """ARP on a port.  `source` is the IPv4 address it asks from, b"" for none; an answer needs none, for its
    sender is the address that was asked for."""

    def __init__(self, port: Port, advertisement: Advertisement, source: bytes) -> None:
        self._mac = port.mac or b""
        self._source = source
        self._link_layer = advertisement.link_layer or self._mac
        self.probes = self.answers = bool(self._mac)
        self.asks = self.answers and bool(source)

    @staticmethod
    def asker_key(address: bytes, mac: bytes) -> bytes:
        """Sender link-layer address and sender address."""
        return mac + address

    def solicitation(self, target: bytes, to_mac: bytes = b"") -> bytes:
        """RFC 826; by unicast, RFC 1122 section 2.3.2.1."""
        return arp.request(self._mac, self._source, target, to_mac or arp.BROADCAST_MAC)

    def dad_probe(self, target: bytes, nonce: bytes) -> bytes:
        """RFC 5227 section 2.1.1."""
        del nonce
        return arp.probe(self._mac, target)

    def replies(self, asker: bytes, to_mac: bytes) -> Callable[[bytes, int], bytes]:
        """RFC 826; the asker's own address in it, because some believe no other (RFC 5227 section 3)."""
        return arp.Reply(to_mac, self._mac, self._link_layer, asker).frame

    def defence(self, to_mac: bytes, target: bytes, flags: int) -> bytes:
        """A reply, to the one who probes alone (RFC 5227 sections 2.1.1 and 2.6)."""
        del flags
        return arp.reply(to_mac, self._mac, self._link_layer, target, arp.UNSPECIFIED) + arp.PROXIED

    def news(self, address: bytes, flags: int) -> bytes:
        """RFC 5227 section 2.3: an announcement, to whom it may concern."""
        del flags
        return self._announcement(address)

    def correction(self, address: bytes, flags: int) -> bytes:
        """The same."""
        del flags
        return self._announcement(address)

    def introduction(self, address: bytes, router: bytes) -> bytes:
        """RFC 826: who is asked for makes an entry of the sender."""
        return arp.request(self._mac, address, router, link_layer=self._link_layer)

    def rebuttal(self, address: bytes) -> bytes:
        """RFC 5227 section 2.4: one announcement."""
        return self._announcement(address)

    def group(self, target: bytes) -> bytes:
        """ARP asks by broadcast."""
        del target
        return b""

    def _announcement(self, address: bytes) -> bytes:
        return arp.request(self._mac, address, address, link_layer=self._link_layer) + arp.PROXIED
