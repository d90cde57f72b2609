"""What a probe asks of the kernel and of the link: who the router is, which way a packet would take, and
whether a host answers a ping."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
import time
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final, NamedTuple

from portier.core.probe import carries_echo_reply, echo_frame, echo_message, is_echo_reply
from portier.errors import KernelError
from portier.system import rtnetlink as nl
from portier.system import sysctl

_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_NEIGHBOR: Final = struct.Struct("=BxxxiHBB")
_RTA_SRC: Final = 2
_RTA_IIF: Final = 3
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT
_KNOCK: Final = 1.0  # seconds that a router has to answer a ping
_OUTGOING: Final = 4
_ETH_P_ALL: Final = 3
_SOL_ICMPV6: Final = 58
_ICMP6_FILTER: Final = 1
OUTSIDE: Final = {4: socket.inet_aton("1.0.0.1"), 16: socket.inet_pton(socket.AF_INET6, "2000::1")}
"""Addresses somewhere in the internet, to ask for the way there.  Nothing is ever sent to them."""


class Router(NamedTuple):
    """The default router on a port; ``mac`` is b"" where the kernel cannot find it."""

    address: bytes
    mac: bytes


class Way(NamedTuple):
    """The kernel's decision for a packet: the interface that it leaves by, or 0 and why it goes nowhere.
    ``asked`` is the command that shows the same."""

    ifindex: int
    why: str
    asked: str


def router(ifindex: int, length: int) -> Router | None:
    """The default router by an interface, for addresses of so many octets; None where there is none."""
    with nl.Socket() as kernel:
        target = OUTSIDE[length]
        found = _ask_route(kernel, target, [(nl.RTA_OIF, nl.U32.pack(ifindex))])
        if isinstance(found, int):
            return None
        gateway = found[1].get(nl.RTA_GATEWAY)
        via = found[1].get(nl.RTA_VIA)
        address = gateway or (via[2:] if via else None)
        if address is None or len(address) != length:
            return None
        mac = _link_layer(kernel, address, ifindex)
        if not mac:
            ping(address, None, _KNOCK, ifindex)  # which makes the kernel look for it
            mac = _link_layer(kernel, address, ifindex)
        return Router(address, mac)


def _link_layer(kernel: nl.Socket, address: bytes, ifindex: int) -> bytes:
    """The link-layer address that the kernel knows of a neighbor, b"" where it knows none."""
    question = _NEIGHBOR.pack(_family(address), ifindex, 0, 0, 0) + nl.attribute(_NDA_DST, address)
    answer = kernel.ask(nl.RTM_GETNEIGH, question)
    if isinstance(answer, int) or not _NEIGHBOR.unpack_from(answer, nl.LENGTH)[2] & _VALID:
        return b""
    mac = nl.attributes(answer, nl.LENGTH + _NEIGHBOR.size, len(answer)).get(_NDA_LLADDR, b"")
    return mac if len(mac) == 6 else b""


def way(source: bytes | None, target: bytes, iif: int) -> Way:
    """Where the kernel would send a packet from `source`, or from somewhere in the internet, that comes in by
    an interface."""
    source = source or OUTSIDE[len(target)]
    name = name_of(iif)
    asked = f"ip route get {ip_address(target)} from {ip_address(source)} iif {name}"
    with nl.Socket() as kernel:
        found = _ask_route(kernel, target, [(_RTA_SRC, source), (_RTA_IIF, nl.U32.pack(iif))])
    if isinstance(found, int):
        return Way(0, _refusal(found), asked)
    kind, attributes = found
    if kind == nl.RTN_UNICAST and nl.RTA_OIF in attributes:
        return Way(int(nl.U32.unpack(attributes[nl.RTA_OIF])[0]), "", asked)
    return Way(0, "it takes it for itself" if kind == 2 else "its route is of a kind that drops", asked)


def _refusal(code: int) -> str:
    return {
        errno.EINVAL: "a blackhole route or rule, or an address that may not come in there",
        errno.EACCES: "a prohibit route or rule",
        errno.EHOSTUNREACH: "an unreachable route, or forwarding is off",
        errno.ENETUNREACH: "no route",
        errno.EXDEV: "rp_filter: the route back leaves by another interface",
    }.get(code, os.strerror(code))


def _ask_route(
    kernel: nl.Socket, target: bytes, more: Collection[tuple[int, bytes]]
) -> tuple[int, dict[int, bytes]] | int:
    """The type and the attributes of the route that the kernel takes, or the errno."""
    attributes = b"".join(nl.attribute(kind, value) for kind, value in more)
    bits = 8 * len(target)
    from_bits = bits if any(kind == _RTA_SRC for kind, _ in more) else 0
    head = _ROUTE.pack(_family(target), bits, from_bits, 0, 0, 0, 0, 0, 0)
    answer = kernel.ask(nl.RTM_GETROUTE, head + nl.attribute(nl.RTA_DST, target) + attributes)
    if isinstance(answer, int):
        return answer
    kind = answer[nl.LENGTH + 7]
    return kind, nl.attributes(answer, nl.LENGTH + _ROUTE.size, len(answer))


def forwards(name: str, length: int) -> str:
    """The command for what keeps the kernel from forwarding what comes in by an interface, or ""."""
    with contextlib.suppress(KernelError):
        if length == 4:
            if sysctl.read(f"net/ipv4/conf/{name}/forwarding") == "0":
                return f"sysctl -w net/ipv4/conf/{name}/forwarding=1"
        elif (
            sysctl.read("net/ipv6/conf/all/forwarding") == "0"
            and sysctl.read(f"net/ipv6/conf/{name}/force_forwarding") != "1"
        ):
            return "sysctl -w net/ipv6/conf/all/forwarding=1"
    return ""


def ping(target: bytes, source: bytes | None, patience: float, scope: int = 0) -> str:
    """Ping a host from here, from an address of ours where one is given; returns "" when it answers, and else
    why not.  A link-local address needs its interface as `scope`."""
    token = secrets.token_bytes(16)
    number = secrets.randbelow(1 << 16)
    six = len(target) == 16
    family = socket.AF_INET6 if six else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    where = (str(ip_address(target)), 0, 0, scope) if six else (str(ip_address(target)), 0)
    try:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            if six:
                block = [0xFFFFFFFF] * 8
                block[129 >> 5] &= ~(1 << (129 & 31))
                sock.setsockopt(_SOL_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *block))
            if source is not None:
                sock.bind((str(ip_address(source)), 0))
            deadline = time.monotonic() + patience
            sock.sendto(echo_message(source or bytes(len(target)), target, number, token), where)
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                data = sock.recv(2048)
                message = data if six else data[4 * (data[0] & 0xF) :]
                if is_echo_reply(message, len(target), token):
                    return ""
    except TimeoutError:
        pass
    except OSError as error:
        return error.strerror or str(error)
    return f"no answer within {patience:g} s"


class Passed(NamedTuple):
    """How far the answer to a ping came that looked as if the router had sent it."""

    answered: bool
    left: bool


def ping_as(
    source: bytes, target: bytes, host: tuple[int, bytes, bytes], upstream: int, patience: float
) -> Passed:
    """Put an echo request from `source`, who is elsewhere, on the link of a host, given as (interface index,
    our link-layer address there, the host's), and see its answer come back and leave by `upstream`."""
    ifindex, own, mac = host
    token = secrets.token_bytes(16)
    answered = left = False
    with _tap(ifindex) as behind, _tap(upstream) as front:
        behind.send(echo_frame(own, mac, source, target, secrets.randbelow(1 << 16), token))
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not left:
            for sock in (behind, front):
                sock.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    frame, address = sock.recvfrom(2048)
                    if carries_echo_reply(frame, len(target), token):
                        outgoing = address[2] == _OUTGOING
                        answered = answered or (sock is behind and not outgoing)
                        left = left or (sock is front and outgoing)
    return Passed(answered or left, left)


def _tap(ifindex: int) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.bind((name_of(ifindex), _ETH_P_ALL))
    except OSError:
        sock.close()
        raise
    return sock


def _family(address: bytes) -> int:
    return socket.AF_INET6 if len(address) == 16 else socket.AF_INET


def name_of(ifindex: int) -> str:
    """What an interface is called."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"
