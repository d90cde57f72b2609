"""A packet socket on one interface, and the filter that keeps out of it what is not Portier's business.

The filter only separates: it runs in the kernel for every frame of the link.  In mode route nothing but
Neighbor Discovery and ARP is wanted, so data must cost a handful of instructions and never wake the daemon;
in mode relay everything IPv6 is.  Whether a message is valid (hop limit, code, checksum) is the engine's
verdict, because a verdict can be counted.  Nothing here looks into a message further than its type.

A frame travels with its virtio-net header: it says how a segment larger than the link is to be cut, and
which checksum is still to be computed.  Sent with the header it came with, a frame is cut and completed by
the kernel when, and only when, the link that it leaves by cannot.

The socket is made without a protocol, so that it hears nothing until it is bound, and the filter is attached
before that: no frame that the filter would refuse is ever queued.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from functools import partial

ETH_P_ALL = 0x0003  # a socket bound to ETH_P_IPV6 does not see the frames that its own host sends
ETH_P_IPV6 = 0x86DD
ETH_P_ARP = 0x0806

MARK = 0x4389_0087
"""SO_MARK of Portier's own frames, for which filters can tell them from the kernel's."""

FRAME_SIZE = 9216 + 14 + 10
"""Octets of a frame that are read: the largest jumbo MTU in use, Ethernet and virtio-net headers."""

RECEIVE_BUFFER = 4 << 20  # rides out a reload of 10,000 rules at 10,000 solicitations a second
SEND_BUFFER = 4 << 20  # of a data port: what waits for a slow link; the default holds three large segments

# What the socket module does not name (linux/if_packet.h, asm-generic/socket.h).
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_STATISTICS = 6
_PACKET_VNET_HDR = 15
_PACKET_MR_ALLMULTI = 2

# Frames by where they come from (linux/if_packet.h).
_OTHERHOST = 3
_OUTGOING = 4

# Offsets in a frame, from its Ethernet header on.
ETHERNET_HEADER = 14
_SOURCE_MAC = 6
_ETHERTYPE = 12
_NEXT_HEADER = 20
_PAYLOAD = 54

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _ICMPV6 = 0, 43, 44, 60, 58
_EXTENSION_HEADERS = 4  # at most so many are looked behind
_ARP_OPERATION, _ARP_REQUEST = 20, 1
_FIRST_TYPE, _SOLICITATION, _LAST_TYPE = 133, 135, 137  # of the ND messages
_WHOLE = 0xFFFF_FFFF  # what a filter says that cuts nothing

# Classic BPF (linux/filter.h): operation codes, by what an assembler calls them.
_CODES = {
    "ld [k]": 0x20,
    "ldh [k]": 0x28,
    "ldb [k]": 0x30,
    "ldh [x+k]": 0x48,
    "ldb [x+k]": 0x50,
    "ld M[k]": 0x60,
    "st M[k]": 0x02,
    "ldx #k": 0x01,
    "ldx M[k]": 0x61,
    "add #k": 0x04,
    "add x": 0x0C,
    "and #k": 0x54,
    "lsh #k": 0x64,
    "jeq": 0x15,
    "jgt": 0x25,
    "jset": 0x45,
    "ret #k": 0x06,
}
# What the kernel knows of a frame besides its octets: SKF_AD_OFF and on.
_PACKET_TYPE = 0xFFFFF000 + 4
_PACKET_MARK = 0xFFFFF000 + 20
_VLAN_TAG = 0xFFFFF000 + 44
_VLAN_TAG_PRESENT = 0xFFFFF000 + 48

_libc = ctypes.CDLL(None, use_errno=True)

Instruction = tuple[str, int] | tuple[str, int, str, str] | str
"""``(operation, k)``; a jump is ``(operation, k, label if true, label if false)``, where an empty label means
the next instruction; a lone string is a label."""


def assemble(program: Sequence[Instruction]) -> bytes:
    """Turn instructions into an array of ``struct sock_filter``.

    Raises ValueError for a jump backwards or further than classic BPF reaches (255 instructions), KeyError
    for an unknown label or operation.
    """
    labels: dict[str, int] = {}
    code: list[tuple[str, int] | tuple[str, int, str, str]] = []
    for line in program:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)
    assembled = bytearray()
    for here, (operation, k, *targets) in enumerate(code):
        yes, no = [labels[target] - here - 1 if target else 0 for target in targets] or [0, 0]
        if not (0 <= yes <= 255 and 0 <= no <= 255):
            raise ValueError(f"jump out of reach: {operation} at {here}")
        assembled += struct.pack("=HBBI", _CODES[operation], yes, no, k)
    return bytes(assembled)


def nd_filter(mac: bytes, mark: int) -> bytes:
    """Make the filter of a port of mode route, whose link-layer address is `mac` and whose own frames bear
    `mark`.

    In come ND messages (types 133 to 137), also behind up to four extension headers, and first fragments of
    them, which RFC 6980 has dropped and the engine counts; and ARP, whatever it says; of those what
    `_of_this_link` lets in.
    """
    program: list[Instruction] = [
        # What most frames are is dropped first.
        ("ldh [k]", _ETHERTYPE),
        ("jeq", ETH_P_IPV6, "ipv6", ""),
        ("jeq", ETH_P_ARP, "link", "drop"),
        "ipv6",
        ("ldb [k]", _NEXT_HEADER),
        ("ldx #k", _PAYLOAD),
    ]
    for n in range(_EXTENSION_HEADERS):  # classic BPF has no loops; A is the type of the header at X
        program += [
            ("jeq", _ICMPV6, "icmpv6", ""),
            ("jeq", _HOP_BY_HOP, f"options{n}", ""),
            ("jeq", _DESTINATION, f"options{n}", ""),
            ("jeq", _ROUTING, f"options{n}", ""),
            ("jeq", _FRAGMENT, "", "drop"),
            ("ldh [x+k]", 2),  # its size field is reserved, 0 is meant; what is left in A is masked below
            ("jset", 0xFFF8, "drop", f"next{n}"),  # an offset: not the first fragment
            f"options{n}",
            ("ldb [x+k]", 1),
            ("lsh #k", 3),
            f"next{n}",
            ("and #k", 0xFFF8),
            ("add #k", 8),
            ("add x", 0),
            ("st M[k]", 0),
            ("ldb [x+k]", 0),
            ("ldx M[k]", 0),
        ]
    program += [
        ("jeq", _ICMPV6, "", "drop"),
        "icmpv6",
        ("ldb [x+k]", 0),
        ("jgt", _LAST_TYPE, "drop", ""),
        ("jgt", _FIRST_TYPE - 1, "", "drop"),
        "link",
        *_of_this_link(mac, mark, FRAME_SIZE),
    ]
    return assemble(program)


def data_filter(mac: bytes, mark: int) -> bytes:
    """Make the filter of a port of mode relay: in comes everything IPv6 that `_of_this_link` lets in."""
    return assemble(
        [
            ("ldh [k]", _ETHERTYPE),
            ("jeq", ETH_P_IPV6, "", "drop"),
            *_of_this_link(mac, mark, _WHOLE),
        ]
    )


def _of_this_link(mac: bytes, mark: int, size: int) -> list[Instruction]:
    """The end of a filter, which takes `size` octets of an IPv6 or ARP frame that belongs to this link.

    Out stay frames for other hosts, frames tagged with a VLAN other than 0 (a priority tag belongs to the
    untagged link), and whatever this host sends except the kernel's own solicitations and ARP requests.  Of a
    frame that came from outside and yet bears our link-layer address only the Ethernet header comes in, by
    which the engine tells it.
    """
    mac_high, mac_low = struct.unpack("!IH", mac)
    return [
        ("ld [k]", _VLAN_TAG_PRESENT),
        ("jeq", 0, "untagged", ""),
        ("ld [k]", _VLAN_TAG),
        ("jset", 0x0FFF, "drop", ""),
        "untagged",
        ("ld [k]", _PACKET_TYPE),
        ("jeq", _OTHERHOST, "drop", ""),
        ("jeq", _OUTGOING, "outgoing", ""),
        ("jgt", _OUTGOING, "drop", ""),  # looped back
        ("ld [k]", _SOURCE_MAC),
        ("jeq", mac_high, "", "accept"),
        ("ldh [k]", _SOURCE_MAC + 4),
        ("jeq", mac_low, "", "accept"),
        ("ret #k", ETHERNET_HEADER),
        "outgoing",
        ("ldh [k]", _ETHERTYPE),
        ("jeq", ETH_P_ARP, "", "solicitation"),
        ("ldh [k]", _ARP_OPERATION),
        ("jeq", _ARP_REQUEST, "kernel", "drop"),
        "solicitation",
        ("ldb [k]", _NEXT_HEADER),  # the kernel puts no extension headers in front of its own
        ("jeq", _ICMPV6, "", "drop"),
        ("ldb [k]", _PAYLOAD),
        ("jeq", _SOLICITATION, "", "drop"),
        "kernel",
        ("ld [k]", _PACKET_MARK),
        ("jeq", mark, "drop", ""),
        ("ld [k]", _SOURCE_MAC),  # a macvlan's frames pass here too, and it lives on this link
        ("jeq", mac_high, "", "drop"),
        ("ldh [k]", _SOURCE_MAC + 4),
        ("jeq", mac_low, "accept", "drop"),
        "accept",
        ("ret #k", size),
        "drop",
        ("ret #k", 0),
    ]


class PacketPort:
    """An open port: every frame it gives and takes begins with a virtio-net header of 10 octets.

    `index` is the interface's, `mac` its link-layer address (6 octets), `mark` the SO_MARK of what is sent,
    `data` whether everything IPv6 comes in (mode relay), or Neighbor Discovery and ARP only.
    Nothing blocks.  Raises OSError when the interface is gone (ENODEV) or the right is missing (EPERM: it
    takes CAP_NET_RAW and CAP_NET_ADMIN in the user namespace that owns the network namespace).

    All-multicast reception ends with the socket, even when the process is killed.
    """

    recv: Callable[[], bytes]
    """Take the next frame.  Raises BlockingIOError when there is none, OSError (ENETDOWN) once when the link
    has gone down or away, OSError (EINVAL) for a frame, lost by that, whose segmentation a virtio-net header
    has no name for (tunnels, SCTP; UDP before Linux 6.2)."""
    send: Callable[[bytes | memoryview], int]
    """Put a frame on the link.  Raises BlockingIOError or OSError (ENOBUFS) when the link takes no more for
    now, OSError (EMSGSIZE) when the frame is larger than the link, OSError (EINVAL) when its virtio-net
    header does not fit it, OSError (ENETDOWN, ENXIO, ENODEV) when the link takes nothing at all."""
    fileno: Callable[[], int]

    def __init__(self, index: int, mac: bytes, mark: int = MARK, *, data: bool = False) -> None:
        self._drops = 0
        self._lock = threading.Lock()
        self._socket = sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        # Bound C functions: a Python method around each would cost a tenth of a whole answer.
        self.recv = partial(sock.recv, FRAME_SIZE)
        self.send = sock.send
        self.fileno = sock.fileno
        try:
            sock.setblocking(False)
            _attach(sock, data_filter(mac, mark) if data else nd_filter(mac, mark))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
            sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
                if data:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
            except PermissionError:  # only root outside may go beyond net.core.rmem_max and wmem_max
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                if data:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            membership = struct.pack("@iHH8s", index, _PACKET_MR_ALLMULTI, 0, b"")
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            _bind(sock, index)
        except BaseException:
            sock.close()
            raise

    def into(self, buffer: bytearray) -> Callable[[], int]:
        """Make a `recv` that puts the next frame into `buffer`, and returns the length of the frame: where
        that is more than the buffer has room for, the frame was cut."""
        return partial(self._socket.recv_into, buffer, 0, socket.MSG_TRUNC)

    def drops(self) -> int:
        """Count the frames that were lost since the port was opened because nobody read them in time.  May
        be called from any thread, and after `close`."""
        with self._lock:  # the kernel's counter starts anew when it is read
            if self._socket.fileno() >= 0:
                statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
                self._drops += struct.unpack("@II", statistics)[1]
            return self._drops

    def close(self) -> None:
        """Close the socket.  Closing twice is nothing."""
        with self._lock:
            self._socket.close()


def _attach(sock: socket.socket, program: bytes) -> None:
    code = array("B", program)
    address, size = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", size // 8, address))


def _bind(sock: socket.socket, index: int) -> None:
    """Bind by index: socket.bind takes a name, which another interface may have got in between."""
    address = struct.pack("@HHiHBB8s", socket.AF_PACKET, socket.htons(ETH_P_ALL), index, 0, 0, 0, b"")
    if _libc.bind(sock.fileno(), address, len(address)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
