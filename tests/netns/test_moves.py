"""The life of a host: it moves, goes away, or is just idle."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.netns.lab import Host, Lab, holds_for, wait_for
from tests.netns.scenes import NET, OVERRIDE, UPSTREAM, Scene, advertise, config, guest, octets, vps


@dataclass
class Roaming:
    """Guest 9 hangs on a switch that can plug it into ``tap1`` or ``tap2``, as a VM is migrated."""

    scene: Scene
    host: Host
    switch: Host

    address = f"{NET}99"

    def plug(self, number: int | None) -> None:
        """Be behind this port from now on, and behind no other; None: behind none.

        The host sees its carrier go and come back, the proxy's ports keep theirs.
        """
        self.switch.ip("link set host down", "link set s1 nomaster", "link set s2 nomaster")
        if number is not None:
            self.switch.ip(f"link set s{number} master br0", "link set host up")
            wait_for(lambda: self.host.carrier("eth0"), 30, "carrier again")


@pytest.fixture
def roaming(lab: Lab) -> Roaming:
    """A guest that can move, and two that stay; every downstream port has fe80::1 for its guests."""
    scene = vps(lab, guests=0)
    switch, host = lab.host("switch"), lab.host("h9")
    lab.bridge(switch, "br0")
    lab.link(host, "eth0", switch, "host")
    lab.plug(switch, "br0", "host")
    for number in (1, 2):
        lab.link(scene.p, f"tap{number}", switch, f"s{number}")
        scene.p.add(f"tap{number}", "fe80::1/64")
    host.add("eth0", f"{Roaming.address}/64")
    host.ip("-6 route add default via fe80::1 dev eth0")
    scene.guests = {}
    result = Roaming(scene, host, switch)
    result.plug(1)
    return result


def start(roaming: Roaming, extra: str = "") -> None:
    """Start the daemon, and let the upstream host reach the guest behind ``tap1``."""
    scene = roaming.scene
    scene.daemon = scene.lab.portier(config(extra=extra), on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1", "tap2")
    wait_for(lambda: scene.u.ping(roaming.address, timeout=1), 10, "the guest reached on tap1")
    assert scene.p.host_routes() == {roaming.address: "tap1"}


@pytest.mark.parametrize("how", ["announcement", "dad", "traffic"])
def test_move_while_being_pinged(roaming: Roaming, how: str) -> None:
    """A guest moves to another port under a running ping and keeps its address: two seconds at most.

    It says so by an unsolicited advertisement as hypervisors send it, by its own DAD, or only by asking
    for a host upstream.
    """
    start(roaming)
    scene, host = roaming.scene, roaming.host
    old = roaming.switch.capture("s1")
    pid = scene.portier.pid
    pinging = scene.u.pinging(roaming.address)
    time.sleep(1)
    if how == "dad":
        host.use_dad("eth0")
    roaming.plug(2)
    begin = time.monotonic()
    if how == "announcement":
        host.inject("eth0", advertise(host, roaming.address, flags=OVERRIDE))
    elif how == "dad":
        host.ip(f"addr del {roaming.address}/64 dev eth0")
        host.add("eth0", f"{roaming.address}/64", dad=True)
    else:
        host.popen(["ping", "-6", "-n", "-c", "3", "-W", "1", UPSTREAM], stdout=-3)
    wait_for(
        lambda: scene.p.host_routes() == {roaming.address: "tap2"}, 2, "the route follows", interval=0.01
    )
    assert time.monotonic() - begin < 2
    time.sleep(2)
    replies, gap = pinging.stop()
    assert replies > 10  # however busy the machine is
    # From the moment it moved; a host that uses DAD must itself be silent for a second.
    assert gap < (3.5 if how == "dad" else 2), gap
    assert scene.portier.pid == pid
    assert host.address_state("eth0", roaming.address) == "valid"
    told = [frame for frame in old.advertisements(roaming.address) if frame.raw[58] & OVERRIDE]
    assert any(frame.raw[6:12] == octets(scene.p.mac("tap1")) for frame in told), (
        "neighbors left on the old port are told, with O=1"
    )
    scene.portier.wait_event("moved", roaming.address)


def test_move_there_and_back(roaming: Roaming) -> None:
    """Moves follow each other; the last one counts."""
    start(roaming)
    scene = roaming.scene
    for number in (2, 1, 2, 1):
        roaming.plug(number)

        def followed(port: str = f"tap{number}") -> bool:
            # Hypervisors repeat the announcement; more than a move a second is not believed.
            roaming.host.inject("eth0", advertise(roaming.host, roaming.address))
            return scene.p.host_routes() == {roaming.address: port}

        wait_for(followed, 2, f"moved to tap{number}", interval=0.2)
        assert scene.u.ping(roaming.address)


def test_move_to_the_upstream_and_back(lab: Lab) -> None:
    """A host that now answers upstream has no host route any more."""
    scene = vps(lab)
    scene.start(config(extra="timers: {reachable: 200ms, retransmit: 200ms}"))
    assert scene.u.ping(guest(1))
    scene.guests[1].ip(f"addr del {guest(1)}/64 dev eth0")
    scene.u.add("eth0", f"{guest(1)}/64")
    scene.u.inject("eth0", advertise(scene.u, guest(1)))
    wait_for(lambda: guest(1) not in scene.p.host_routes(), 5, "the route goes")
    assert scene.guests[2].ping(guest(1))


def test_another_device_takes_the_address(lab: Lab) -> None:
    """The guest's device is replaced, link-layer address and all: with the old one silent, it is a move."""
    scene = vps(lab)
    scene.start(config())
    assert scene.u.ping(guest(1))
    scene.guests[1].ip(f"addr del {guest(1)}/64 dev eth0")
    scene.guests[2].add("eth0", f"{guest(1)}/64")
    scene.guests[2].inject("eth0", advertise(scene.guests[2], guest(1)))
    wait_for(lambda: scene.p.host_routes().get(guest(1)) == "tap2", 2, "the route follows")
    assert scene.u.ping(guest(1))


TIMERS = "timers: {reachable: 500ms, retransmit: 200ms, retries: 3, forget: 2s, negative: 1s}"


def test_host_goes_away(roaming: Roaming) -> None:
    """A host that is silent is probed by unicast, as often as the retries say, and then its route goes."""
    start(roaming, TIMERS)
    scene = roaming.scene
    behind = roaming.switch.capture("s1")
    mac = roaming.host.mac("eth0")
    roaming.plug(None)
    behind.clear()
    wait_for(lambda: not scene.p.host_routes(), 10, "the route goes")
    probes = [f for f in behind.solicitations(roaming.address, outgoing=False) if f.raw[:6] == octets(mac)]
    from_portier = [f for f in probes if f.source == scene.p.link_local("tap1") or f.source == "fe80::1"]
    assert len(from_portier) >= 3
    assert roaming.address not in scene.portier.neighbors()
    scene.portier.wait_event(roaming.address, "not answer")
    assert not scene.u.ping(roaming.address, timeout=0.5)


def test_host_goes_away_and_is_asked_for(roaming: Roaming) -> None:
    """Asked for after `reachable`, it is answered for and probed at the same time; then it is gone."""
    start(roaming, "timers: {reachable: 500ms, retransmit: 200ms, retries: 3, negative: 1s}")
    scene = roaming.scene
    roaming.plug(None)
    time.sleep(0.6)
    scene.u.ip("neigh flush all")
    assert not scene.u.ping(roaming.address, timeout=0.5)
    wait_for(lambda: not scene.p.host_routes(), 5, "the route goes, long before `forget`")
    roaming.plug(1)
    wait_for(lambda: scene.u.ping(roaming.address, timeout=1), 10, "back again")


def test_host_is_idle_but_there(lab: Lab) -> None:
    """Idle for longer than `forget`, it is probed, answers, and is still known: no packet is lost."""
    scene = vps(lab)
    scene.start(config(extra=TIMERS))
    assert scene.u.ping(guest(1))
    behind = scene.guests[1].capture("eth0")
    holds_for(lambda: scene.p.host_routes().get(guest(1)) == "tap1", 5, "the route stays")
    assert behind.solicitations(guest(1), outgoing=False), "it was probed"
    scene.u.ip("neigh flush all")
    ping = scene.u.ping(guest(1), count=3, interval=0.1)
    assert ping, ping.output
    assert ping.replies[1] < 1


def test_port_goes_with_all_its_hosts(lab: Lab) -> None:
    """A port that vanishes takes its hosts and their routes with it; the others stay."""
    scene = vps(lab)
    scene.start(config())
    assert scene.u.ping(guest(1))
    assert scene.u.ping(guest(2))
    scene.guests[1].ip("link del eth0")
    wait_for(lambda: set(scene.portier.neighbors()) & {guest(1), guest(2)} == {guest(2)}, 5, "forgotten")
    assert scene.p.host_routes() == {guest(2): "tap2"}
    assert scene.u.ping(guest(2))


def test_deleted_route_comes_back(lab: Lab) -> None:
    """A host route that somebody deletes is back within a second."""
    scene = vps(lab)
    scene.start(config())
    assert scene.u.ping(guest(1))
    for _ in range(3):
        scene.p.ip("-6 route flush proto 135")
        wait_for(lambda: scene.p.host_routes() == {guest(1): "tap1"}, 1, "back", interval=0.01)
        assert scene.u.ping(guest(1))


def test_a_host_that_spoke_before_its_port_was_open(lab: Lab) -> None:
    """The proxy's own kernel has heard it: it is asked, and known and routed, though nobody wants it."""
    scene = vps(lab, guests=1)
    scene.p.ip("addr flush dev eth0 scope global")  # nothing here leads to guests, so nothing asks for them
    for host, port in ((scene.guests[1], "eth0"), (scene.p, "tap1")):  # no kernel asks for a while
        host.sysctl(f"net/ipv6/neigh/{port}/delay_first_probe_time", 60)
    scene.guests[1].ping(f"{scene.p.link_local('tap1')}%eth0", source=guest(1), timeout=0.2)
    assert guest(1) in {entry["dst"] for entry in scene.p.ip_json("-6 neighbor show dev tap1")}
    scene.start(config())
    wait_for(lambda: scene.p.host_routes() == {guest(1): "tap1"}, 5, "its route")
