"""What is around the ports: other proxies in this network namespace, and the members of bridges."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from portier.core.doctor.facts import Member, Proxy
from portier.errors import PortierError
from portier.system import rtnetlink as nl

# Programs that answer for others, by the names of their processes, which the kernel cuts at 15 characters.
_PROXIES: Final = frozenset(
    {
        "6relayd",
        "goparprouted",
        "ndp-proxy",
        "ndp-proxy-go",
        "ndppd",
        "ndprbrd",
        "ndpresponder",
        "ndproxy",
        "npd6",
        "odhcpd",
        "parprouted",
        "pndpd",
        "relayd",
    }
)

# linux/if_link.h
_LINK: Final = struct.Struct("=BxHiII")
_IFLA_IFNAME: Final = 3
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_LINK_NETNSID: Final = 37
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5
_BR_MCAST_SNOOPING: Final = 23
_BRPORT_MCAST_FLOOD: Final = 27
_BRPORT_NEIGH_SUPPRESS: Final = 32
_ON: Final = b"\1"


def proxies(root: Path = Path("/proc")) -> tuple[Proxy, ...]:
    """The other proxies that run in this network namespace, with the interfaces on which they listen.
    Raises `PortierError` where processes of others cannot be looked at."""
    try:
        here = (root / "self/ns/net").readlink()
        sockets = _packet_sockets(root)
    except OSError as error:
        raise PortierError(f"sockets cannot be looked at: {error.strerror}") from error
    found = []
    for process in sorted(root.glob("[0-9]*")):
        try:
            name = (process / "comm").read_text(errors="replace").strip()
            if name not in _PROXIES:
                continue
            if (process / "ns/net").readlink() != here:
                continue
            inodes = {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except PermissionError as error:
            if os.geteuid() == 0:
                continue  # root of a user namespace; this one is outside of it, and its network is another
            raise PortierError(f"process {process.name} ({name}) cannot be looked at: run as root") from error
        ports = frozenset(sockets[inode] for inode in inodes & sockets.keys())
        found.append(Proxy(name, int(process.name), ports))
    return tuple(found)


def _packet_sockets(root: Path) -> dict[str, int]:
    """The interfaces (0 for all) that packet sockets listen on, by the name of the socket."""
    lines = (root / "self/net/packet").read_text().splitlines()[1:]
    return {f"socket:[{fields[8]}]": int(fields[4]) for line in lines if len(fields := line.split()) >= 9}


def members() -> tuple[Member, ...]:
    """The members of all bridges.  Raises `KernelError`."""
    with nl.Socket() as kernel:
        links = kernel.dump(nl.RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0), _links)
    bridges: dict[int, tuple[str, bool]] = {}
    for index, found, info in links:
        if _text(info.get(_INFO_KIND)) == "bridge":
            data = _nested(info.get(_INFO_DATA))
            bridges[index] = _text(found.get(_IFLA_IFNAME)), data.get(_BR_MCAST_SNOOPING) == _ON
    made = []
    for index, found, info in links:
        master = _number(found.get(_IFLA_MASTER))
        if master not in bridges or _text(info.get(_INFO_SLAVE_KIND)) != "bridge":
            continue
        data = _nested(info.get(_INFO_SLAVE_DATA))
        name, snoops = bridges[master]
        made.append(
            Member(
                ifindex=index,
                name=_text(found.get(_IFLA_IFNAME)),
                bridge=master,
                bridge_name=name,
                # The other end of a cable, where it is in this namespace too.
                peer=0 if _IFLA_LINK_NETNSID in found else _number(found.get(_IFLA_LINK)),
                snoops=snoops,
                floods=data.get(_BRPORT_MCAST_FLOOD, _ON) == _ON,
                suppress=data.get(_BRPORT_NEIGH_SUPPRESS) == _ON,
            )
        )
    return tuple(made)


_Link = tuple[int, dict[int, bytes], dict[int, bytes]]


def _links(chunks: Iterator[bytes]) -> list[_Link]:
    """Index, attributes and those of the kind of each link."""
    found = []
    for chunk in chunks:
        for message in nl.messages(chunk):
            with contextlib.suppress(struct.error):  # the end of the dump
                _, _, index, _, _ = _LINK.unpack_from(message, nl.LENGTH)
                known = nl.attributes(message, nl.LENGTH + _LINK.size, len(message))
                found.append((index, known, _nested(known.get(_IFLA_LINKINFO))))
    return found


def _nested(data: bytes | None) -> dict[int, bytes]:
    return nl.attributes(data, 0, len(data)) if data else {}


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int(nl.U32.unpack(data)[0]) if data else 0
