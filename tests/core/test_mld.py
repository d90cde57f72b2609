"""Multicast Router Discovery: the frames against scapy, the times against RFC 4286."""

from __future__ import annotations

import itertools
import math

import pytest
from scapy.layers.inet6 import (
    ICMPv6MRD_Advertisement,
    ICMPv6MRD_Termination,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from portier.core import mld
from portier.core.mld import RouterBeacon
from portier.core.model import Bound, Group, Multicast, Port, Role

MAC = bytes.fromhex("020000000001")
SOURCE = bytes.fromhex("fe800000000000000000000000000001")


def port(ifindex: int, *, mac: bytes | None = MAC, source: bytes | None = SOURCE) -> Port:
    return Port(ifindex, f"port{ifindex}", Role.DOWNSTREAM, mac, 1500, source)


def bound(*ports: Port, multicast: Multicast = Multicast.ROUTER) -> Bound:
    return Bound(group=Group(name="lan", multicast=multicast), ports=ports)


def oracle(message: Packet) -> bytes:
    """The message as scapy makes it, without the virtio-net header."""
    header = IPv6(src="fe80::1", dst="ff02::6a", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    return bytes(Ether(src=MAC.hex(":"), dst="33:33:00:00:00:6a") / header / message)


def test_advertisement_is_as_rfc_4286_says() -> None:
    """Section 3.2: to all snoopers, hop limit 1, router alert, the interval in the second octet."""
    frame = mld.advertisement(MAC, SOURCE)
    assert frame[:10] == bytes(10)
    assert frame[10:] == oracle(ICMPv6MRD_Advertisement(advinter=20, queryint=0, robustness=0))


def test_termination_is_as_rfc_4286_says() -> None:
    """Section 5: type 153 and nothing else."""
    assert mld.termination(MAC, SOURCE)[10:] == oracle(ICMPv6MRD_Termination())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_three_at_two_seconds_then_one_in_twenty(share: float) -> None:
    """Sections 3.1 and 4.1: the first after a random part of 2 s, three 2 s apart, then every 20 s give
    or take 0.5 s."""
    beacon = RouterBeacon(lambda: share)
    assert beacon.deadline == math.inf
    assert beacon.configure(bound(port(1)), 100.0) == ()
    times = []
    for _ in range(6):
        now = beacon.deadline
        assert beacon.tick(now - 0.01) == ()
        assert beacon.tick(now) == ((1, mld.advertisement(MAC, SOURCE)),)
        times.append(now)
    assert times[0] == 100.0 + 2 * share
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == pytest.approx([2.0, 2.0, *[19.5 + share] * 3])


def test_ports_that_cannot_say_it_are_left_out() -> None:
    """Without link-layer address or link-local source nothing is said (RFC 4286 section 3.2)."""
    beacon = RouterBeacon(lambda: 0.0)
    somewhere = bytes.fromhex("20010db8000700000000000000000001")
    beacon.configure(bound(port(1, mac=None), port(2, source=None), port(3, source=somewhere), port(4)), 0.0)
    assert [ifindex for ifindex, _ in beacon.tick(0.0)] == [4]


def test_ports_that_leave_say_so() -> None:
    """A port that leaves, and all when the beacon stops or the group uses `groups` again, end with a
    termination; one that never spoke does not."""
    beacon = RouterBeacon(lambda: 0.0)
    beacon.configure(bound(port(1), port(2)), 0.0)
    beacon.tick(0.0)
    end = mld.termination(MAC, SOURCE)
    assert beacon.configure(bound(port(1), port(3)), 1.0) == ((2, end),)
    assert beacon.stop() == ((1, end),)
    assert beacon.deadline == math.inf
    beacon.configure(bound(port(1)), 2.0)
    beacon.tick(2.0)
    assert beacon.configure(bound(port(1), multicast=Multicast.GROUPS), 3.0) == ((1, end),)
    assert beacon.deadline == math.inf


def test_a_new_address_changes_the_source_alone() -> None:
    """A port that speaks from another address goes on at its own times; a new device begins anew."""
    beacon = RouterBeacon(lambda: 0.0)
    beacon.configure(bound(port(1)), 0.0)
    for now in (0.0, 2.0, 4.0):
        beacon.tick(now)
    due = beacon.deadline
    other = SOURCE[:15] + b"\2"
    assert beacon.configure(bound(port(1, source=other)), 5.0) == ()
    assert beacon.deadline == due
    assert beacon.tick(due) == ((1, mld.advertisement(MAC, other)),)
    assert beacon.configure(bound(port(1, mac=MAC[:5] + b"\2")), 6.0) == ((1, mld.termination(MAC, other)),)
    assert beacon.deadline == 6.0


def test_one_port_is_drawn_where_the_group_joins() -> None:
    """Until it is drawn no more; what else changes meanwhile does not end it, and it may come first."""
    beacon = RouterBeacon(lambda: 0.0)
    assert beacon.draw(2, 100.0, wanted=True) == ()
    assert beacon.deadline == math.inf, "no such port yet"
    both = bound(port(1), port(2), multicast=Multicast.GROUPS)
    assert beacon.configure(both, 100.0) == ()
    assert [ifindex for ifindex, _ in beacon.tick(100.0)] == [2]
    assert beacon.configure(both, 101.0) == ()
    assert [ifindex for ifindex, _ in beacon.tick(102.0)] == [2]
    assert beacon.draw(2, 103.0, wanted=False) == ((2, mld.termination(MAC, SOURCE)),)
    assert beacon.deadline == math.inf
