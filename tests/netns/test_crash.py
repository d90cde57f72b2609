"""A worker that crashes takes its own group down for a moment, and no other group at all.

The product has no hook to crash it with: the daemon under test is started with its engine patched to raise
when it sees one address.
"""

from __future__ import annotations

import pytest

from tests.netns.lab import Lab, Portier, wait_for
from tests.netns.scenes import NET, Scene, config, guest, solicit, vps

MAGIC = f"{NET}dead:beef"
NET2 = "2001:db8:8::"
CRASHING = f"""
import ipaddress
from portier.core.route import RouteEngine
magic, receive = ipaddress.IPv6Address("{MAGIC}").packed, RouteEngine.receive
def patched(self, ifindex, frame, now):
    if magic in frame:
        raise ZeroDivisionError("the test wants it so")
    return receive(self, ifindex, frame, now)
RouteEngine.receive = patched
"""


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """Group one has eth0 and tap1, group two eth1 and tap2."""
    scene = vps(lab)
    other = lab.host("u2")
    lab.link(other, "eth0", scene.p, "eth1")
    other.add("eth0", f"{NET2}a/64")
    scene.p.add("eth1", f"{NET2}2/64")
    for number in (21, 22):
        scene.guests[2].add("eth0", f"{NET2}{number}/64")
    one = config(name="one", downstream="tap1")
    two = config(f'["{NET2}/64"]', name="two", upstream="eth1", downstream="tap2").partition("groups:\n")[2]
    scene.daemon = lab.portier(one + two, on=scene.p, crashing=CRASHING)
    scene.daemon.wait_ports("eth0", "tap1", group="one")
    scene.daemon.wait_ports("eth1", "tap2", group="two")
    return scene


def restarts(portier: Portier, group: str) -> int:
    """How often a group's worker was restarted."""
    return int(portier.group(group)["worker"]["restarts"])


def test_other_groups_do_not_notice(scene: Scene) -> None:
    """While one group's worker is down, the other group answers for hosts it knows and finds new ones, and
    a ping through it loses nothing; the first serves again by itself, in the same process."""
    portier, other = scene.portier, scene.lab.hosts["u2"]
    assert scene.u.ping(guest(1))
    assert other.ping(f"{NET2}21")
    pid = portier.pid
    pinging = other.pinging(f"{NET2}21")
    front = other.capture("eth0")
    scene.u.inject("eth0", solicit(scene.u, MAGIC))
    wait_for(lambda: "the test wants it so" in portier.log.read_text(), 5, "crashed, and said so")
    other.inject("eth0", solicit(other, f"{NET2}21"))
    front.wait_advertisement(f"{NET2}21", outgoing=False)
    assert other.ping(f"{NET2}22")

    def reached() -> bool:
        scene.u.ip("neigh flush all")
        return bool(scene.u.ping(guest(1), timeout=1))

    wait_for(lambda: restarts(portier, "one") > 0, 10, "restarted")
    portier.wait_ports("eth0", "tap1", group="one")
    wait_for(reached, 10, "serves again")
    _, gap = pinging.stop()
    assert gap < 0.11, "the other group lost pings"  # 0.1 when the last was under way still
    assert restarts(portier, "two") == 0
    assert f"{NET2}21" in portier.neighbors(), "it kept what it knew"
    assert portier.pid == pid
    assert portier.running
