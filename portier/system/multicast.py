"""Memberships of multicast groups, for which the kernel speaks MLD.

A switch that snoops MLD passes solicitations on only to where their group was joined: so Portier joins the
solicited-node groups of the addresses that it answers for.  All-multicast reception on the port does not help
with that, because no switch hears of it.

One join takes the kernel 0.01 to 0.4 ms, growing with the groups of the interface, and now and then 10 ms,
while it makes its reports (measured).  A host is joined for on many ports.  So this has a thread of its own,
and whoever wants a group only says so.

A membership outlives the link going down and up, which the kernel reports again by itself; it ends with the
interface, and where the MTU falls below what IPv6 needs.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
import struct
import threading
from typing import Final

from portier.core.mld import Joined

_IPV6_JOIN_GROUP: Final = 20
_IPV6_LEAVE_GROUP: Final = 21
# What one socket may hold is bounded by net.core.optmem_max: 2,340 groups at its 131,072 octets, 365 at the
# 20,480 of kernels before 6.7.
_FULL: Final = frozenset({errno.ENOMEM, errno.ENOBUFS})
_SOCKETS: Final = 64
_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO})

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)  # socket.setsockopt would hold up every other thread meanwhile


class Memberships:
    """The memberships of one group's worker.  `join` and `leave` return at once and never fail; what the
    kernel refuses is counted, and tried again at the next `join`.  For one thread, but for `joined`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._todo: dict[tuple[int, bytes], bool] = {}  # whether it is to be joined; the last word counts
        self._closing = False
        self._busy = False  # whether the thread runs
        # What belongs to the thread.
        self._sockets: list[socket.socket] = []
        self._room: list[socket.socket] = []  # those that may hold more
        self._members: dict[tuple[int, bytes], socket.socket] = {}
        self._refused: set[tuple[int, bytes]] = set()
        self._error = ""

    def join(self, ifindex: int, group: bytes) -> None:
        """Be a member of `group` (packed) on an interface; being one already is success."""
        self._want((ifindex, group), True)

    def leave(self, ifindex: int, group: bytes) -> None:
        """Be no member any more; that the interface is gone is success."""
        self._want((ifindex, group), False)

    def joined(self) -> Joined:
        """How things stand; from any thread."""
        return Joined(len(self._members), len(self._refused), self._error)

    def close(self) -> None:
        """End all memberships, without waiting for that.  Closing twice is nothing."""
        with self._lock:
            self._closing = True
            self._todo.clear()
            self._begin()

    def _want(self, membership: tuple[int, bytes], wanted: bool) -> None:
        with self._lock:
            if not self._closing:
                self._todo[membership] = wanted
                self._begin()

    def _begin(self) -> None:
        if self._busy:
            return
        try:
            threading.Thread(target=self._main, name="portier-multicast", daemon=True).start()
        except RuntimeError as error:  # no more threads: whoever wants something next tries again
            self._error = str(error)
        else:
            self._busy = True

    # -- the thread, which ends when nothing is to be done

    def _main(self) -> None:
        while True:
            with self._lock:
                todo, self._todo = self._todo, {}
                self._busy = bool(todo)
                closing = self._closing
            if not todo:
                break
            for membership, wanted in todo.items():
                if not self._closing:
                    (self._join if wanted else self._leave)(membership)
        if closing:
            while self._sockets:
                self._sockets.pop().close()

    def _join(self, membership: tuple[int, bytes]) -> None:
        if membership in self._members:
            return
        try:
            self._members[membership] = self._place(membership)
            self._refused.discard(membership)
        except OSError as error:
            if error.errno not in _GONE:
                log.debug("group %s on interface %d: %s", membership[1].hex(), membership[0], error)
                self._refused.add(membership)
                self._error = error.strerror or str(error)

    def _place(self, membership: tuple[int, bytes]) -> socket.socket:
        """Join on the first socket that has room, or on a new one."""
        while True:
            if not self._room:
                if len(self._sockets) >= _SOCKETS:
                    raise OSError(errno.ENOBUFS, f"{len(self._sockets)} sockets are full of groups")
                sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._sockets.append(sock)
                self._room.append(sock)
            sock = self._room[-1]
            try:
                _set(sock, _IPV6_JOIN_GROUP, membership)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._room.pop()
            else:
                return sock

    def _leave(self, membership: tuple[int, bytes]) -> None:
        self._refused.discard(membership)
        sock = self._members.pop(membership, None)
        if sock is None:
            return
        try:
            _set(sock, _IPV6_LEAVE_GROUP, membership)
        except OSError as error:
            log.debug("group %s on interface %d: %s", membership[1].hex(), membership[0], error)
        if sock not in self._room:
            self._room.insert(0, sock)


def _set(sock: socket.socket, option: int, membership: tuple[int, bytes]) -> None:
    ifindex, group = membership
    request = struct.pack("@16sI", group, ifindex)  # struct ipv6_mreq
    if _libc.setsockopt(sock.fileno(), socket.IPPROTO_IPV6, option, request, len(request)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
