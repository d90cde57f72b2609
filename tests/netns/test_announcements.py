"""What the kernels of neighbors make of what they are told: read from their neighbor tables."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.netns.lab import Host, Lab, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM, Scene, advertise, config, guest, octets, vps

NET4 = "192.0.2."
BOTH = f'["{NET}/64", "{NET4}0/24"]'
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def address(version: int, number: int) -> str:
    """That of the host behind ``tap<number>``."""
    return guest(number) if version == 6 else f"{NET4}1{number}"


def give4(scene: Scene) -> None:
    """IPv4 addresses beside those of IPv6."""
    scene.u.ip(f"addr add {NET4}10/24 dev eth0")
    scene.p.ip(f"addr add {NET4}2/24 dev eth0", f"route add default via {NET4}10")
    for number, host in scene.guests.items():
        host.ip(f"addr add {address(4, number)}/24 dev eth0")


def entry(host: Host, target: str) -> dict[str, Any]:
    """What the neighbor table has for an address."""
    found = host.ip_json(f"neigh show {target} dev eth0")
    return found[0] if found else {}


def lladdr(host: Host, target: str) -> str:
    """The link-layer address that it has, "" for none."""
    return str(entry(host, target).get("lladdr", ""))


def wait_entry(scene: Scene, target: str) -> None:
    """Wait until the router has the proxy for an address."""
    mac = scene.p.mac("eth0")
    wait_for(lambda: lladdr(scene.u, target) == mac, 10, f"the router has {mac} for {target}")


def show_itself(host: Host, version: int, target: str) -> None:
    """Be heard as hypervisors have a guest that has moved be heard, without being asked."""
    mac = host.mac("eth0")
    if version == 6:
        host.inject("eth0", advertise(host, target))
        return
    who = {"hwsrc": mac, "psrc": target, "hwdst": "00:00:00:00:00:00", "pdst": target}
    host.inject("eth0", Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, **who))


@FAMILIES
def test_a_stale_entry_is_corrected_after_a_move(lab: Lab, version: int) -> None:
    """A host leaves the upstream's link for one behind the proxy, which never heard of it before: the router
    that had its link-layer address has the proxy's then, without asking."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    switch, host = lab.host("switch"), lab.host("h1")
    for bridge in ("front", "back"):
        lab.bridge(switch, bridge)
    for one, name, bridge in (
        (scene.u, "eth0", "front"),
        (scene.p, "eth0", "front"),
        (scene.p, "tap1", "back"),
        (host, "eth0", "front"),
    ):
        port = f"{one.name}{name}"
        lab.link(one, name, switch, port)
        lab.plug(switch, bridge, port)
    scene.u.add("eth0", f"{UPSTREAM}/64")
    scene.p.add("eth0", f"{PROXY}/64")
    host.add("eth0", f"{guest(1)}/64")
    host.ip(f"addr add {address(4, 1)}/24 dev eth0")
    give4(scene)
    scene.daemon = lab.portier(config(BOTH), on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1")
    target = address(version, 1)
    assert scene.u.ping(target)
    assert lladdr(scene.u, target) == host.mac("eth0")

    switch.ip("link set h1eth0 down")
    wait_for(lambda: not host.carrier("eth0"), 30, "no carrier")
    switch.ip("link set h1eth0 master back", "link set h1eth0 up")
    wait_for(lambda: host.carrier("eth0"), 30, "carrier again")
    show_itself(host, version, target)

    wait_entry(scene, target)
    host.ip(f"-6 route add default via {scene.p.link_local('tap1')} dev eth0")
    assert scene.u.ping(target)


@FAMILIES
def test_an_upstream_that_comes_back_is_told(lab: Lab, version: int) -> None:
    """While the proxy's link was down the router has come to have something else: it is corrected."""
    scene = vps(lab, guests=1)
    give4(scene)
    scene.start(config(BOTH))
    target = address(version, 1)
    assert scene.u.ping(target)
    scene.p.ip("link set eth0 down")
    scene.portier.wait_event("eth0 is waiting", timeout=10)
    wait_for(lambda: not scene.u.carrier("eth0"), 30, "no carrier, with which the router's entries went")
    scene.u.ip(f"neigh replace {target} lladdr 02:00:00:00:00:77 dev eth0 nud stale")
    scene.p.ip("link set eth0 up", *([f"addr replace {PROXY}/64 dev eth0 nodad"] if version == 6 else []))

    wait_entry(scene, target)


def hears(lab: Lab, announce: str, *, accepts: bool) -> Scene:
    """A router upstream that has never heard of guest 1, which shows itself."""
    scene = vps(lab, guests=1)
    give4(scene)
    scene.u.sysctl("net/ipv6/conf/all/forwarding", 1)
    scene.u.sysctl("net/ipv6/conf/eth0/accept_untracked_na", int(accepts))
    scene.start(config(BOTH, extra=f"announce: {announce}"))
    for version in (4, 6):
        assert not entry(scene.u, address(version, 1))
        show_itself(scene.guests[1], version, address(version, 1))
        scene.portier.wait_event("learned", address(version, 1))
    return scene


def test_a_router_that_takes_note_knows_a_host_before_it_asks(lab: Lab) -> None:
    """RFC 9131: `accept_untracked_na` makes an entry of what the routers are told."""
    scene = hears(lab, "true", accepts=True)
    wait_entry(scene, guest(1))
    captured = scene.u.capture("eth0")
    assert scene.u.ping(guest(1))
    assert not [f for f in captured.solicitations(guest(1), outgoing=True) if f.raw[:2] == b"\x33\x33"]


def test_a_router_that_takes_no_note_learns_by_being_asked(lab: Lab) -> None:
    """`announce: solicit`, for both families: a plain router has the entries, told of them by no news."""
    scene = hears(lab, "solicit", accepts=False)
    for version in (4, 6):
        wait_entry(scene, address(version, 1))
        assert scene.u.ping(address(version, 1))


def test_nobody_is_told_where_it_is_switched_off(lab: Lab) -> None:
    """`announce: false`."""
    scene = hears(lab, "false", accepts=True)
    captured = scene.u.capture("eth0")
    show_itself(scene.guests[1], 6, guest(1))
    assert scene.guests[1].ping(UPSTREAM), "which had the router ask"
    asked = captured.advertisements(guest(1), outgoing=False)
    assert {frame.raw[:6] for frame in asked} == {octets(scene.u.mac("eth0"))}
