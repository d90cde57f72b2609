"""A network namespace for the calling thread, and veth pairs in it: enough to test what holds a socket."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)  # of the ends of cables


@contextlib.contextmanager
def own_namespace(*, ipv6: bool = False) -> Iterator[None]:
    """Put this thread, and those that it starts, into a network namespace of their own.  Without ``ipv6``
    the kernel is silent there.  Skips the test where that is not permitted."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}; try unshare -Urn pytest")
        try:
            if not ipv6:
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            yield
        finally:
            assert _libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


def ip(command: str) -> None:
    """Run the ip command with these arguments."""
    subprocess.run(["ip", *command.split()], check=True, timeout=20)


def cable(one: str, other: str) -> tuple[Plug, Plug]:
    """Make a veth pair, both ends up.  Their link-layer addresses are not left to chance: the group of a
    link-local address made from one could be a group that a test joins."""
    here, there = (f"02:00:5e:ff:{n >> 8 & 0xFF:02x}:{n & 0xFF:02x}" for n in itertools.islice(_numbers, 2))
    ip(f"link add {one} address {here} type veth peer name {other} address {there}")
    ip(f"link set {one} up")
    ip(f"link set {other} up")
    await_carrier(one, other)
    return Plug(one), Plug(other)


def await_carrier(*names: str) -> None:
    """Wait until the kernel has noticed that the links have carrier; before that they lose what is sent."""
    deadline = time.monotonic() + 20
    for name in names:
        while True:
            command = ["ip", "-json", "link", "show", name]
            shown = subprocess.run(command, check=True, capture_output=True, timeout=20)
            if json.loads(shown.stdout)[0]["operstate"] == "UP":
                break
            assert time.monotonic() < deadline, f"{name} gets no carrier"
            time.sleep(0.01)


class Plug:
    """One end of a cable: its name, index and link-layer address, and a socket to send and hear with."""

    def __init__(self, name: str, *, mark: int = 0) -> None:
        self.name = name
        self.index = socket.if_nametoindex(name)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((name, ETH_P_ALL))
        self._socket.settimeout(20)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        self.mac: bytes = self._socket.getsockname()[4]

    def send(self, frame: bytes) -> None:
        """Send a frame, from its Ethernet header on."""
        self._socket.send(frame)

    def receive(self) -> bytes:
        """Wait for a frame that somebody else sent."""
        while True:
            frame: bytes
            frame, address = self._socket.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING:
                return frame

    def close(self) -> None:
        """Close the socket; the cable stays."""
        self._socket.close()
