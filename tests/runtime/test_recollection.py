"""Who is remembered where, and for how long routes wait for their hosts."""

from __future__ import annotations

from portier.core.engine import KnownHost
from portier.core.model import Bound, Group
from portier.runtime.recollection import Recollection
from tests.runtime.rig import MAC, port


def host(last: int, **changes: object) -> KnownHost:
    made = KnownHost(bytes(15) + bytes([last]), b"\2\0\0\0\0\5", 2, MAC[2], "port2", "guests")
    return made._replace(**changes)  # type: ignore[arg-type]


def bound(*numbers: int, name: str = "guests") -> Bound:
    return Bound(group=Group(name=name), ports=tuple(port(number) for number in numbers))


def test_each_is_given_once_when_its_port_comes() -> None:
    """However often a group is bound anew, and whichever ports come first."""
    there = host(7, ifindex=1, port="port1", port_mac=MAC[1])
    recollection = Recollection([host(5), host(6), there], lambda: 0.0)
    assert recollection.take(bound(2, name="others")) == []
    assert recollection.take(bound(1)) == [there]
    assert recollection.take(bound(1, 2)) == [host(5), host(6)]
    assert recollection.take(bound(1, 2)) == []


def test_a_port_that_is_another_now_gets_nobody() -> None:
    """Another index, name or link-layer address is another link."""
    changed = [host(5, ifindex=9), host(6, port="port9"), host(7, port_mac=MAC[3])]
    assert Recollection(changed, lambda: 0.0).take(bound(1, 2, 3)) == []


def test_routes_wait_for_as_long_as_asking_takes() -> None:
    """Ten seconds, and longer for many hosts; then they are nobody's."""
    now = 100.0
    few = Recollection([host(5)], lambda: now)
    many = Recollection([host(5)] * 5000, lambda: now)
    assert few.known() == {(host(5).address, 2)}
    now = 111.0
    assert few.known() == frozenset()
    assert many.known()
    now = 131.0
    assert not many.known()
    assert few.until < many.until <= now
