"""The topologies that most tests share, and solicitations made by hand.

`Scene` is the common VPS: an upstream host ``u``, the proxy ``p`` with ``eth0`` towards it, and hosts
behind ``tap1``, ``tap2`` and so on, all of them believing that 2001:db8:7::/64 is one link.  The
helpers judge frames by the RFCs, never by what the daemon says of itself.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.lab import (
    Capture,
    Frame,
    Host,
    Lab,
    Portier,
    checksum_is_right,
    multicast_mac,
    options_of,
    solicited_node,
)

NET = "2001:db8:7::"
UPSTREAM = f"{NET}a"
PROXY = f"{NET}2"
SLLAO, TLLAO = 1, 2
ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20


def guest(number: int) -> str:
    """The address of the host behind ``tap<number>``."""
    return f"{NET}1{number}"


def config(
    prefixes: str = f"[{NET}/64]",
    *,
    upstream: str = "eth0",
    downstream: str = '"tap*"',
    name: str = "lan",
    extra: str = "",
    head: str = "",
) -> str:
    """A configuration of one group; ``extra`` are more lines of it, ``head`` lines above the groups."""
    lines = [f"    {line}" for line in extra.strip().splitlines()]
    return "\n".join(
        [
            "version: 1",
            *head.strip().splitlines(),
            "groups:",
            f"  {name}:",
            *([f"    upstream: {upstream}"] if upstream else []),
            f"    downstream: {downstream}",
            f"    prefixes: {prefixes}",
            *lines,
            "",
        ]
    )


@dataclass
class Scene:
    """One upstream host, the proxy, and a host behind each downstream port."""

    lab: Lab
    u: Host
    p: Host
    guests: dict[int, Host] = field(default_factory=dict)
    daemon: Portier | None = None

    @property
    def portier(self) -> Portier:
        """The daemon on the proxy."""
        assert self.daemon is not None
        return self.daemon

    def start(self, text: str, *, wait: bool = True) -> Portier:
        """Start the daemon on the proxy; its ports are active when this returns."""
        self.daemon = self.lab.portier(text, on=self.p, wait=wait)
        if wait:
            self.daemon.wait_ports("eth0", *(f"tap{number}" for number in self.guests))
        return self.daemon

    def add_guest(self, number: int, *, mac: str | None = None, address: bool = True) -> Host:
        """Plug another host in behind ``tap<number>``."""
        host = self.guests[number] = self.lab.host(f"h{number}")
        self.lab.link(host, "eth0", self.p, f"tap{number}", mac=mac)
        if address:
            host.add("eth0", f"{guest(number)}/64")
        host.ip(f"-6 route add default via {self.p.link_local(f'tap{number}')} dev eth0")
        return host


def vps(lab: Lab, guests: int = 2) -> Scene:
    """Make the common topology, without a daemon yet, and with forwarding off everywhere."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    lab.link(scene.u, "eth0", scene.p, "eth0")
    scene.u.add("eth0", f"{UPSTREAM}/64")
    scene.p.add("eth0", f"{PROXY}/64")
    scene.p.ip(f"-6 route add default via {UPSTREAM} dev eth0")
    for number in range(1, guests + 1):
        scene.add_guest(number)
    return scene


# -- frames by hand --------------------------------------------------------------------------------


def solicit(
    host: Host,
    target: str,
    *,
    interface: str = "eth0",
    source: str | None = None,
    mac: str | None = None,
    to_mac: str | None = None,
    option: bool = True,
    **fields: object,
) -> Packet:
    """A Neighbor Solicitation as this host would send it: multicast, or unicast when ``to_mac`` is given.

    ``source`` is its link-local address by default; ``::`` makes it a DAD probe.  ``fields`` overwrite
    those of the IPv6 header (``hlim``, ``dst``) or of the message (``code``, ``cksum``, ``res``).
    """
    mac = mac or host.mac(interface)
    source = source or host.link_local(interface)
    group = solicited_node(target) if not ipaddress.IPv6Address(target).is_multicast else "ff02::1"
    ip_fields = {key: value for key, value in fields.items() if key in ("hlim", "dst", "plen", "nh")}
    nd_fields = {key: value for key, value in fields.items() if key not in ip_fields}
    header = {"src": source, "dst": target if to_mac else group, "hlim": 255} | ip_fields
    frame = (
        Ether(src=mac, dst=to_mac or multicast_mac(group))
        / IPv6(**header)
        / ICMPv6ND_NS(tgt=target, **nd_fields)
    )
    return frame / ICMPv6NDOptSrcLLAddr(lladdr=mac) if option and source != "::" else frame


def advertise(
    host: Host,
    target: str,
    *,
    interface: str = "eth0",
    mac: str | None = None,
    source: str | None = None,
    flags: int = OVERRIDE,
    to: str = "ff02::1",
    to_mac: str | None = None,
) -> Packet:
    """A Neighbor Advertisement as this host would send it; unsolicited unless told otherwise."""
    mac = mac or host.mac(interface)
    return (
        Ether(src=mac, dst=to_mac or multicast_mac(to))
        / IPv6(src=source or target, dst=to, hlim=255)
        / ICMPv6ND_NA(tgt=target, R=bool(flags & ROUTER), S=bool(flags & SOLICITED), O=bool(flags & OVERRIDE))
        / ICMPv6NDOptDstLLAddr(lladdr=mac)
    )


def octets(mac: str) -> bytes:
    """A link-layer address as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def assert_sound(frame: Frame, *, mac: str, source: str) -> None:
    """Assert what holds for every ND message that a node makes: RFC 4861 sections 4.3, 4.4 and 7.1."""
    raw = frame.raw
    assert raw[6:12] == octets(mac), "Ethernet source is the port's"
    assert frame.source == source, "IPv6 source is an address of the port"
    assert raw[14] >> 4 == 6, "version"
    assert raw[21] == 255, "hop limit"
    assert raw[55] == 0, "code"
    assert checksum_is_right(raw), "checksum"
    assert len(raw) == 54 + struct.unpack("!H", raw[18:20])[0], "length"


def assert_answer(
    frame: Frame, *, asker: Host, port: tuple[Host, str], interface: str = "eth0", to: str | None = None,
    router: bool = False, target: str,
) -> None:  # fmt: skip
    """Assert a solicited proxy advertisement, right in every field (RFC 4861 sections 7.2.4 and 7.2.8)."""
    host, name = port
    mac = host.mac(name)
    assert_sound(frame, mac=mac, source=host.link_local(name))
    assert frame.nd_target == str(ipaddress.IPv6Address(target))
    assert frame.raw[0:6] == octets(asker.mac(interface)), "unicast to the asker"
    assert str(ipaddress.IPv6Address(frame.raw[38:54])) == (to or asker.link_local(interface))
    assert frame.raw[58] == SOLICITED | (ROUTER if router else 0), "flags: S, not O, R as the owner"
    assert frame.raw[59:62] == b"\0\0\0", "reserved"
    assert options_of(frame.raw) == [(TLLAO, octets(mac))]


def assert_defence(frame: Frame, *, port: tuple[Host, str], target: str) -> None:
    """Assert an advertisement that defends an address: to all nodes, not solicited (RFC 4861 7.2.4)."""
    host, name = port
    mac = host.mac(name)
    assert_sound(frame, mac=mac, source=host.link_local(name))
    assert frame.nd_target == str(ipaddress.IPv6Address(target))
    assert str(ipaddress.IPv6Address(frame.raw[38:54])) == "ff02::1"
    assert not frame.raw[58] & SOLICITED
    assert options_of(frame.raw) == [(TLLAO, octets(mac))]


def assert_question(frame: Frame, *, port: tuple[Host, str], target: str, unicast: str | None = None) -> None:
    """Assert a solicitation of the proxy's own making (RFC 4861 section 7.2.2)."""
    host, name = port
    mac = host.mac(name)
    assert_sound(frame, mac=mac, source=host.link_local(name))
    assert frame.nd_target == str(ipaddress.IPv6Address(target))
    group = solicited_node(target)
    assert frame.raw[0:6] == octets(unicast or multicast_mac(group))
    assert str(ipaddress.IPv6Address(frame.raw[38:54])) == (target if unicast else group)
    assert (SLLAO, octets(mac)) in options_of(frame.raw)


def fence(scene: Scene, captured: Capture, known: str) -> None:
    """Wait until all frames that ``u`` sent so far have been dealt with.

    A port's frames are taken in order, so the answer to one more solicitation, for a host that is
    there, says that those before it had theirs.
    """
    before = len(captured.advertisements(known, outgoing=False))
    scene.u.inject("eth0", solicit(scene.u, known))
    captured.wait(lambda: captured.advertisements(known, outgoing=False)[before:], 5, f"the fence, {known}")


def echo_requests(capture: Capture) -> list[str]:
    """The sources of the echo requests that came in."""
    return [
        frame.source
        for frame in capture.frames()
        if not frame.outgoing
        and frame.raw[12:14] == b"\x86\xdd"
        and frame.raw[20] == 58
        and frame.raw[54] == 128
    ]
