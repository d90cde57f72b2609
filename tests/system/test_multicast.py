"""Memberships on a real kernel, judged by what /proc/net/igmp6 and the wire show."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portier.core.mld import Joined
from portier.system.multicast import Memberships
from tests.cables import Plug, cable, ip, own_namespace

PREFIX = "ff0200000000000000000001ff"
REPORT = 143
PATIENCE = 20.0


def group(number: int) -> bytes:
    return bytes.fromhex(PREFIX) + number.to_bytes(3, "big")


def groups(name: str) -> set[int]:
    """The solicited-node groups that the kernel is in on an interface for somebody else than itself."""
    lines = (line.split() for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines())
    found = {
        int(fields[2][26:], 16) for fields in lines if fields[1] == name and fields[2].startswith(PREFIX)
    }
    return {number for number in found if number < 0x10000}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


@pytest.fixture
def plug() -> Iterator[tuple[Plug, Plug]]:
    """A cable in a namespace of its own, its link-local addresses made from link-layer addresses."""
    with own_namespace(ipv6=True):
        ends = cable("one", "other")
        wait_for(lambda: not groups("one"), "nothing joined that looks like a test's")
        yield ends
        for end in ends:
            end.close()


@pytest.fixture
def memberships() -> Iterator[Memberships]:
    opened = Memberships()
    yield opened
    opened.close()


def test_join_leave_and_close(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """A membership is the kernel's from `join` to `leave`, reported on the wire, and ends with `close`."""
    here, there = plug
    memberships.join(here.index, group(5))
    memberships.join(here.index, group(5))
    memberships.join(here.index, group(6))
    memberships.join(there.index, group(5))
    wait_for(lambda: groups("one") == {5, 6} and groups("other") == {5}, "joined")
    wait_for(lambda: memberships.joined() == Joined(3, 0, ""), "counted")
    while True:
        frame = there.receive()
        if frame[12:14] == b"\x86\xdd" and frame[62] == REPORT and group(5) in frame:
            break
    memberships.leave(here.index, group(5))
    memberships.leave(here.index, group(7))
    wait_for(lambda: groups("one") == {6} and groups("other") == {5}, "left")
    memberships.close()
    memberships.close()
    wait_for(lambda: not groups("one") and not groups("other"), "closed")
    memberships.join(here.index, group(8))
    assert not groups("one")


def test_more_than_one_socket_holds(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """One socket holds 2,340 groups, or a few hundred on older kernels: more are spread over others, and
    who leaves makes room."""
    here, _ = plug
    for number in range(6000):
        memberships.join(here.index, group(number))
    wait_for(lambda: len(groups("one")) == 6000, "all joined")
    for number in range(3000):
        memberships.leave(here.index, group(number))
    wait_for(lambda: len(groups("one")) == 3000, "half of them left")
    sockets = len(memberships._sockets)
    for number in range(3000):
        memberships.join(here.index, group(number))
    wait_for(lambda: len(groups("one")) == 6000, "all again")
    assert len(memberships._sockets) == sockets, "nothing was lost of the room in the sockets"
    assert memberships.joined() == Joined(6000, 0, "")


def test_the_last_word_counts(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """Who is joined and left at once, many times over, is left; the other way round, joined."""
    here, _ = plug
    for _ in range(500):
        memberships.join(here.index, group(1))
        memberships.leave(here.index, group(1))
        memberships.leave(here.index, group(2))
        memberships.join(here.index, group(2))
    memberships.join(here.index, group(3))
    wait_for(lambda: groups("one") == {2, 3}, "settled")


def test_link_down_and_up_keeps_memberships(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """The kernel keeps them, and reports them again by itself when the link is up."""
    here, _ = plug
    memberships.join(here.index, group(5))
    wait_for(lambda: groups("one") == {5}, "joined")
    ip("link set one down")
    memberships.join(here.index, group(6))
    wait_for(lambda: groups("one") == {5, 6}, "joined while down")
    ip("link set other down")
    ip("link set other up")
    again = Plug("other")
    ip("link set one up")
    seen: set[int] = set()
    while seen != {5, 6}:
        frame = again.receive()
        if frame[12:14] == b"\x86\xdd" and frame[62] == REPORT:
            seen |= {number for number in (5, 6) if group(number) in frame}
    again.close()


def test_link_that_is_gone_is_no_fault(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """Its memberships went with it; joining there is nothing, leaving neither; its successor begins anew."""
    here, _ = plug
    memberships.join(here.index, group(5))
    wait_for(lambda: groups("one") == {5}, "joined")
    ip("link del one")
    memberships.join(here.index, group(6))
    memberships.leave(here.index, group(5))
    wait_for(lambda: memberships.joined() == Joined(0, 0, ""), "nothing held, nothing refused")
    ip("link add one type veth peer name other")
    ip("link set one up")
    memberships.join(socket.if_nametoindex("one"), group(5))
    wait_for(lambda: groups("one") == {5}, "joined on the new one")


def test_what_the_kernel_refuses_is_counted(plug: tuple[Plug, Plug], memberships: Memberships) -> None:
    """A refusal is shown, and no longer once it is joined after all or left."""
    here, _ = plug
    ip("link set one mtu 1000")  # less than IPv6 needs: the kernel has no IPv6 there
    memberships.join(here.index, group(5))
    memberships.join(here.index, group(6))
    wait_for(lambda: memberships.joined().refused == 2, "refused")
    assert memberships.joined().error == "Invalid argument"
    ip("link set one mtu 1500")
    memberships.join(here.index, group(5))
    memberships.leave(here.index, group(6))
    wait_for(lambda: memberships.joined()[:2] == (1, 0), "joined")
    assert groups("one") == {5}
