"""A switch between router and proxy that snoops MLD, and floods no multicast towards the proxy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from portier.core.groups import MOST
from tests.netns.lab import Capture, Host, Lab, multicast_mac, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM, Scene, config, guest, solicit

TERMINATION = 153


@dataclass
class Snooping:
    """The usual scene, with a bridge between ``u`` and ``p`` whose port to the proxy is ``sp``."""

    scene: Scene
    switch: Host
    wire: Capture

    def passes(self, target: str) -> bool:
        """Whether a solicitation by the router gets to the proxy, each of three."""
        self.wire.clear()
        for _ in range(3):
            self.scene.u.inject("eth0", solicit(self.scene.u, target))
        try:
            self.wire.wait(lambda: self.wire.solicitations(target, outgoing=False)[2:], 0.5, "three")
        except AssertionError:
            assert not self.wire.solicitations(target, outgoing=False)
            return False
        return True


@pytest.fixture
def snooping(lab: Lab) -> Snooping:
    """The bridge snoops, asks for members itself, and knows that nobody else has to be asked for."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    switch = lab.host("switch")
    lab.bridge(switch, "br0", snooping=True)
    # In this order: a new querier lets all pass for as long as its response interval was before.
    switch.ip(
        "link set br0 type bridge mcast_query_response_interval 20 mcast_query_interval 200 "
        "mcast_startup_query_interval 100",
        "link set br0 type bridge mcast_querier 1",
    )
    for host, port in ((scene.u, "su"), (scene.p, "sp")):
        lab.link(host, "eth0", switch, port)
        lab.plug(switch, "br0", port)
    switch.ip("link set sp type bridge_slave mcast_flood off")
    scene.u.add("eth0", f"{UPSTREAM}/64")
    scene.p.add("eth0", f"{PROXY}/64")
    scene.p.ip(f"-6 route add default via {UPSTREAM} dev eth0")
    scene.add_guest(1)
    scene.add_guest(2)
    result = Snooping(scene, switch, scene.p.capture("eth0"))
    wait_for(lambda: result.passes(PROXY), 10, "the switch to know whom the proxy's kernel listens for")
    return result


def test_nothing_passes_without_a_membership(snooping: Snooping) -> None:
    """The switch is as strict as it should be: nobody hears of an address that nobody joined for."""
    assert not snooping.passes(guest(1))
    assert not snooping.scene.u.ping(guest(1), timeout=1)


def test_groups_draw_solicitations_for_known_hosts(snooping: Snooping) -> None:
    """`multicast: groups`: a served single address is asked for from the start, a host as soon as it is
    known; others are not, and what is over is left."""
    scene = snooping.scene
    single = guest(2)
    portier = scene.start(config(f"[{NET}/64, {{allow: {single}}}]"))
    wait_for(lambda: snooping.passes(single), 5, "solicitations for a single address")
    assert scene.u.ping(single)
    assert not snooping.passes(guest(1))
    assert not scene.u.ping(guest(1), timeout=1)
    wait_for(lambda: scene.guests[1].ping(UPSTREAM, timeout=1), 10, "the guest shows itself")
    wait_for(lambda: snooping.passes(guest(1)), 5, "solicitations for a host that is known")
    scene.u.ip("neigh flush dev eth0")
    assert scene.u.ping(guest(1))
    assert not snooping.passes(f"{guest(1)}:77")
    multicast = portier.group()["multicast"]
    assert multicast["use"] == "groups"
    assert multicast["members"] >= 4, "two hosts on two ports"
    assert multicast["refused"] == 0
    assert f"{multicast['members']} groups joined" in portier.cli("status").stdout
    portier.stop()
    wait_for(lambda: not snooping.passes(guest(1)), 5, "left, and the switch has noticed")


def test_router_draws_solicitations_for_the_whole_prefix(snooping: Snooping) -> None:
    """`multicast: router`: from none to all, without a group joined, and taken back at the stop."""
    scene = snooping.scene
    assert not snooping.passes(guest(1))
    portier = scene.start(config(extra="multicast: router"))
    wait_for(lambda: snooping.passes(f"{guest(1)}:77"), 5, "solicitations for an address that nobody has")
    assert scene.u.ping(guest(1))
    assert scene.u.ping(guest(2))
    assert portier.group()["multicast"] == {
        "use": "router",
        "members": 0,
        "refused": 0,
        "error": "",
        "drawn": [],
    }
    assert "advertised as a router" in portier.cli("status").stdout
    snooping.wire.clear()
    portier.stop()
    destination = bytes.fromhex(multicast_mac("ff02::6a").replace(":", ""))
    said = [frame.raw for frame in snooping.wire.frames() if frame.outgoing and frame.raw[:6] == destination]
    assert said, "no word to the snoopers"
    assert said[-1][62] == TERMINATION


def test_more_groups_than_are_joined_draw_everything(snooping: Snooping) -> None:
    """`multicast: groups` with more single addresses than the kernel should carry: those over the bound are
    asked for all the same."""
    scene = snooping.scene
    singles = ", ".join(f"{NET}5:{number:x}" for number in range(1, MOST + 20))
    portier = scene.start(config(f"[{NET}/64, {singles}]"))
    wait_for(lambda: snooping.passes(f"{guest(1)}:77"), 15, "solicitations for an address that nobody has")
    assert scene.u.ping(guest(1))
    multicast = portier.group()["multicast"]
    assert "eth0" in multicast["drawn"]
    wait_for(lambda: portier.group()["multicast"]["members"] >= MOST, 15, "so many are joined as may be")
    assert "too many for" in portier.cli("status").stdout
