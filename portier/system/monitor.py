"""Listens to the kernel's news of links, addresses, routes and policy rules, of both address families, and
wakes the reconciler.

An event is only a hint that something may have changed: it is told by its type and a few fixed offsets,
never decoded.  What cannot matter is dropped by a socket filter inside the kernel, so that a routing
daemon's churn costs nothing here: routes by a gateway of any maker that is not among
`portier.core.model.PLAIN_MAKERS`, and routes that are not unicast.  Its routes to single hosts on a link
are dropped here.  Routes and rules that Portier's own netlink sockets make are known by their port ids.

Events that come in a storm make one wake for each reason, twenty times a second at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Self

from portier.core.model import PLAIN_MAKERS
from portier.system import rtnetlink as nl
from portier.system.kernel import PROTOCOL

# RTNLGRP_LINK, then _IFADDR, _ROUTE, _RULE and _NETCONF of IPv4 and of IPv6.
_GROUPS: Final = (1, 5, 7, 8, 24, 9, 11, 19, 25)
_REASONS: Final = {
    nl.RTM_NEWLINK: "link",
    nl.RTM_DELLINK: "link",
    nl.RTM_NEWADDR: "address",
    nl.RTM_DELADDR: "address",
    nl.RTM_NEWROUTE: "route",
    nl.RTM_DELROUTE: "route",
    nl.RTM_NEWRULE: "rule",
    nl.RTM_DELRULE: "rule",
    nl.RTM_NEWNETCONF: "sysctl",  # forwarding of an interface, whoever wrote it
    nl.RTM_DELNETCONF: "sysctl",
}
_OWN: Final = frozenset({nl.RTM_NEWROUTE, nl.RTM_DELROUTE, nl.RTM_NEWRULE, nl.RTM_DELRULE})
_FLUSHING: Final = frozenset({nl.RTM_NEWLINK, nl.RTM_DELLINK, nl.RTM_DELADDR})
_FLAGS: Final = nl.LENGTH + 8  # ifi_flags, IFF_UP the lowest bit of it
_FAMILY: Final = nl.LENGTH  # ifa_family, rtm_family
_PREFIX: Final = nl.LENGTH + 1  # rtm_dst_len
_MAKER: Final = nl.LENGTH + 5  # rtm_protocol
_TYPE: Final = nl.LENGTH + 7  # rtm_type

_BUFFER: Final = 8 << 20
_PAUSE_MS: Final = 50  # after a wake, while a storm goes on into the buffer
_BATCH: Final = 4096  # events before a wake
_REOPEN_MS: Final = 1000

_SO_ATTACH_FILTER: Final = 26
_LD_BYTE, _LD_HALF, _LD_WORD, _LD_IMMEDIATE = 0x30, 0x28, 0x20, 0x00
_LDX_IMMEDIATE, _JUMP_EQUAL, _RETURN = 0x01, 0x15, 0x06
_STEP: Final = struct.Struct("=HBBI")  # sock_filter: code, jump if true, if false, value
_FIND_ATTRIBUTE: Final = 0xFFFFF000 + 12  # SKF_AD_NLATTR: offset of attribute X from A on, or 0

log = logging.getLogger(__name__)


class Monitor:
    """A thread that listens from when this is made, in the network namespace it is made in.

    ``wake`` is called in that thread with a reason: link, address, route (one with Portier's protocol number,
    by another hand), foreign (another maker's route), rule, sysctl, or overflow when events were lost and
    anything may have changed.  It must not block.
    """

    def __init__(self, wake: Callable[[str], None], own: Iterable[int] = ()) -> None:
        self._wake = wake
        self._own = set(own)
        self._makers: Collection[int] = frozenset({PROTOCOL})
        self._epoch = 0
        self._versions: dict[int, dict[int, int]] = {socket.AF_INET: {}, socket.AF_INET6: {}}
        self._socket = _open()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="portier-monitor", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread.  What happened since this was made is not lost."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the thread; within milliseconds, unless ``wake`` takes longer."""
        if self._thread.ident is not None:
            os.eventfd_write(self._bell, 1)
            self._thread.join()
        self._socket.close()
        os.close(self._bell)

    # -- for the kernel handles, from any thread

    def ignore(self, portid: int) -> None:
        """Route and rule events that this netlink port causes are nobody's news."""
        self._own.add(portid)

    def heed(self, portid: int) -> None:
        """Take `ignore` back."""
        self._own.discard(portid)

    def count_as_own(self, makers: Collection[int]) -> None:
        """These are the protocol numbers (rtm_protocol) of Portier's routes."""
        self._makers = makers

    def route_versions(self, family: int) -> tuple[int, Mapping[int, int]]:
        """A number that changes when any routes may have changed unnoticed, and one for each maker
        (rtm_protocol) with every event of one of its routes of that address family.  That of maker 0 changes
        with every event that may have taken routes of any in silence."""
        return self._epoch, dict(self._versions[family])

    # -- the thread

    def _run(self) -> None:
        bell = select.poll()
        bell.register(self._bell, select.POLLIN)
        while True:
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            poll.register(self._socket, select.POLLIN)
            try:
                while not any(descriptor == self._bell for descriptor, _ in poll.poll()):
                    self._tell(self._read())
                    if bell.poll(_PAUSE_MS):
                        break
            except OSError as error:
                log.warning("netlink monitor: %s; opening it anew", error)
            else:
                return
            self._socket.close()
            while not bell.poll(_REOPEN_MS):
                with contextlib.suppress(OSError):
                    self._socket = _open()
                    break
            else:
                return
            self._epoch += 1
            self._tell({"overflow"})

    def _tell(self, reasons: set[str]) -> None:
        for reason in sorted(reasons):
            self._wake(reason)

    def _read(self) -> set[str]:
        """Read what has come, and return for which reasons it is worth a wake."""
        reasons = set()
        receive = self._socket.recv
        for _ in range(_BATCH):
            try:
                data = receive(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._epoch += 1
                reasons.add("overflow")
                continue
            _, kind, _, _, portid = nl.HEADER.unpack_from(data)
            if kind in _OWN and portid in self._own:
                continue
            reason = _REASONS.get(kind)
            if reason is None:
                continue
            up = kind == nl.RTM_NEWLINK and nl.U32.unpack_from(data, _FLAGS)[0] & 1
            if kind in _FLUSHING and not up:
                # IPv4 routes go when their link goes down, or with its last address; no event tells of each.
                self._versions[socket.AF_INET][0] = self._versions[socket.AF_INET].get(0, 0) + 1
            if reason == "route":
                if data[_TYPE] != nl.RTN_UNICAST:
                    continue
                maker, family = data[_MAKER], data[_FAMILY]
                versions = self._versions.get(family)
                if versions is None:
                    continue
                if maker not in self._makers:
                    full = 32 if family == socket.AF_INET else 128
                    if data[_PREFIX] == full and maker not in PLAIN_MAKERS:
                        continue  # without gateway: those by one never get here
                    reason = "foreign"
                versions[maker] = versions.get(maker, 0) + 1
            reasons.add(reason)
        return reasons


def _open() -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        nl.raise_buffer(listening, _BUFFER)
        _attach_filter(listening)
        listening.bind((0, 0))
        for group in _GROUPS:
            listening.setsockopt(nl.SOL_NETLINK, nl.NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        listening.close()
        raise
    return listening


def _attach_filter(listening: socket.socket) -> None:
    """Have the kernel drop the events of routes that cannot matter."""
    makers = sorted(PLAIN_MAKERS)
    gateways = (nl.RTA_GATEWAY, nl.RTA_MULTIPATH, nl.RTA_VIA)
    accept = 6 + len(makers) + 4 * len(gateways)
    drop = accept + 1
    program: list[bytes] = []

    def step(code: int, value: int, *, yes: int = 0, no: int = 0) -> None:
        """Add an instruction; ``yes`` and ``no`` are where a jump goes, 0 the next instruction."""
        at = len(program) + 1
        program.append(_STEP.pack(code, yes - at if yes else 0, no - at if no else 0, value))

    # Loads are big-endian and netlink is not: compare with the swapped number.
    step(_LD_HALF, 4)
    step(_JUMP_EQUAL, socket.htons(nl.RTM_NEWROUTE), yes=3)
    step(_JUMP_EQUAL, socket.htons(nl.RTM_DELROUTE), no=accept)
    step(_LD_BYTE, _TYPE)
    step(_JUMP_EQUAL, nl.RTN_UNICAST, no=drop)
    step(_LD_BYTE, _MAKER)
    for maker in makers:
        step(_JUMP_EQUAL, maker, yes=accept)
    for kind in gateways:
        step(_LDX_IMMEDIATE, kind)
        step(_LD_IMMEDIATE, nl.LENGTH + 12)
        step(_LD_WORD, _FIND_ATTRIBUTE)
        step(_JUMP_EQUAL, 0, no=drop)
    step(_RETURN, 0xFFFFFFFF)
    step(_RETURN, 0)
    code = ctypes.create_string_buffer(b"".join(program))
    described = struct.pack("@HP", len(program), ctypes.addressof(code))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
