"""Duplicate Address Detection across segments, with the kernels' own DAD, and two proxies side by side."""

from __future__ import annotations

import time

import pytest

from tests.netns.lab import Capture, Host, Lab, collect, wait_for
from tests.netns.scenes import NET, UPSTREAM, Scene, assert_defence, config, guest, solicit, vps


def reaches(source: Host, target: str) -> bool:
    """Whether pings arrive; under `always` the first may go astray before the host route is there."""
    return source.ping(target, count=5, interval=0.1, timeout=1).received >= 3


def try_address(host: Host, address: str) -> tuple[str, float]:
    """Add an address with DAD; returns what came of it, and the seconds from the probe to the objection.

    Both are taken from the wire and the kernel of the newcomer; without objection the time is infinite.
    """
    captured = host.capture("eth0")
    host.use_dad("eth0")
    host.add("eth0", f"{address}/64", dad=True)
    probe = captured.wait_solicitation(address, outgoing=True)
    state = wait_for(
        lambda: (seen := host.address_state("eth0", address)) != "tentative" and seen, 5, "DAD at its end"
    )
    objections = captured.advertisements(address, outgoing=False)
    return str(state), objections[0].time - probe.time if objections else float("inf")


@pytest.mark.parametrize("known", [False, True], ids=["cold", "known"])
@pytest.mark.parametrize("answer", ["resolve", "always"])
def test_newcomer_upstream_wants_a_guests_address(lab: Lab, answer: str, known: bool) -> None:
    """The owner is downstream, the newcomer upstream: `dadfailed` within the second."""
    scene = vps(lab)
    scene.start(config(f'[{{allow: "{NET}/64", answer: {answer}}}]'))
    if known:
        assert reaches(scene.u, guest(1))
    state, objection = try_address(scene.u, guest(1))
    assert state == "dadfailed"
    assert objection < 1
    assert scene.guests[1].address_state("eth0", guest(1)) == "valid"
    scene.u.ip(f"addr del {guest(1)}/64 dev eth0")
    assert reaches(scene.guests[1], UPSTREAM)


@pytest.mark.parametrize("known", [False, True], ids=["cold", "known"])
@pytest.mark.parametrize("owner", ["upstream", "guest"])
def test_newcomer_downstream_wants_anothers_address(lab: Lab, owner: str, known: bool) -> None:
    """The newcomer is a guest, the owner upstream or another guest: `dadfailed` within the second."""
    scene = vps(lab)
    scene.start(config())
    address = UPSTREAM if owner == "upstream" else guest(2)
    holder = scene.u if owner == "upstream" else scene.guests[2]
    if known:
        assert holder.ping(guest(1))
        assert scene.guests[1].ping(address)
    state, objection = try_address(scene.guests[1], address)
    assert state == "dadfailed"
    assert objection < 1
    assert holder.address_state("eth0", address) == "valid"
    assert scene.p.host_routes().get(address) != "tap1"


def test_defence_is_right_in_every_field(lab: Lab) -> None:
    """What ends the newcomer's DAD is sound: to all nodes, not solicited, from the port."""
    scene = vps(lab)
    scene.start(config())
    front = scene.u.capture("eth0")
    state, _ = try_address(scene.u, guest(1))
    assert state == "dadfailed"
    answer = front.wait_advertisement(guest(1), outgoing=False)
    assert_defence(answer, port=(scene.p, "eth0"), target=guest(1))


def test_free_addresses_are_had(lab: Lab) -> None:
    """An address that nobody has, or that nobody has any more, passes DAD on either side."""
    scene = vps(lab)
    scene.start(config(extra="timers: {reachable: 100ms}"))
    for host, address in ((scene.u, f"{NET}51"), (scene.guests[1], f"{NET}52")):
        state, _ = try_address(host, address)
        assert state == "valid", address
    ping = scene.u.ping(f"{NET}52")
    assert ping, ping.output


def test_new_vm_gets_its_address_under_always(lab: Lab) -> None:
    """Where everything is answered from upstream, a new VM's own DAD is not, and it is reached at once."""
    scene = vps(lab)
    scene.start(config(f'[{{allow: "{NET}/64", answer: always}}]'))
    assert reaches(scene.u, guest(2))
    state, _ = try_address(scene.guests[1], f"{NET}77")
    assert state == "valid"
    assert reaches(scene.u, f"{NET}77")


def test_host_repeats_its_own_dad(lab: Lab) -> None:
    """A host that takes its address away and gives it back at once is not told that it is taken."""
    scene = vps(lab)
    scene.start(config())
    host = scene.guests[1]
    assert scene.u.ping(guest(1))
    for _ in range(2):
        host.ip(f"addr del {guest(1)}/64 dev eth0")
        state, _ = try_address(host, guest(1))
        assert state == "valid"
    assert scene.u.ping(guest(1))


def test_moved_host_keeps_its_address(lab: Lab) -> None:
    """A known host comes up on another port and repeats DAD: it keeps the address, the route follows."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    mac = scene.guests[1].mac("eth0")
    scene.guests[1].ip("link del eth0")
    moved = scene.add_guest(3, mac=mac, address=False)
    portier.wait_ports("eth0", "tap2", "tap3")
    state, _ = try_address(moved, guest(1))
    assert state == "valid"
    assert scene.u.ping(guest(1))
    assert scene.p.host_routes()[guest(1)] == "tap3"


def test_moved_host_keeps_its_address_while_its_old_port_stays(lab: Lab) -> None:
    """The same, when the proxy cannot see that the host has left its old port."""
    scene = vps(lab)
    scene.start(config())
    assert scene.u.ping(guest(1))
    mac = scene.guests[1].mac("eth0")
    scene.guests[1].ip(f"addr del {guest(1)}/64 dev eth0", "link set eth0 address 02:00:5e:00:77:01")
    moved = scene.add_guest(3, mac=mac, address=False)
    scene.portier.wait_ports("eth0", "tap1", "tap2", "tap3")
    state, _ = try_address(moved, guest(1))
    assert state == "valid"
    assert scene.u.ping(guest(1))
    assert scene.p.host_routes()[guest(1)] == "tap3"


def test_both_at_the_same_time(lab: Lab) -> None:
    """Two hosts on two segments want one address at one time: neither gets it (RFC 4862 section 5.4.3)."""
    scene = vps(lab)
    scene.start(config())
    address = f"{NET}66"
    hosts = (scene.u, scene.guests[1])
    for host in hosts:
        host.use_dad("eth0")
    for host in hosts:
        host.add("eth0", f"{address}/64", dad=True)
    for host in hosts:
        wait_for(lambda host=host: host.address_state("eth0", address) != "tentative", 5, "DAD at its end")  # type: ignore[misc]
    states = [host.address_state("eth0", address) for host in hosts]
    assert states.count("valid") <= 1, states
    assert "dadfailed" in states


# -- two proxies side by side --------------------------------------------------------------------------


def side_by_side(lab: Lab) -> tuple[Scene, list[Capture]]:
    """Two Portiers between the same two links; captures of both links, as the switches see them."""
    switch, u, h = lab.host("switch"), lab.host("u"), lab.host("h")
    proxies = [lab.host("p1"), lab.host("p2")]
    lab.bridge(switch, "front")
    lab.bridge(switch, "back")
    for host, bridge, port, name in (
        (u, "front", "fu", "eth0"),
        (h, "back", "bh", "eth0"),
        (proxies[0], "front", "f1", "eth0"),
        (proxies[1], "front", "f2", "eth0"),
        (proxies[0], "back", "b1", "tap1"),
        (proxies[1], "back", "b2", "tap1"),
    ):
        lab.link(host, name, switch, port)
        lab.plug(switch, bridge, port)
    u.add("eth0", f"{UPSTREAM}/64")
    h.add("eth0", f"{guest(1)}/64")
    for number, proxy in enumerate(proxies, 1):
        proxy.add("eth0", f"{NET}f{number}/64")
        lab.portier(config(), on=proxy, name=f"portier{number}")
    for daemon in lab.portiers:
        daemon.wait_ports("eth0", "tap1")
    scene = Scene(lab, u, proxies[0], {1: h}, lab.portiers[0])
    return scene, [switch.capture("front"), switch.capture("back")]


def settled(captures: list[Capture], *, quiet: float = 2.0, timeout: float = 15.0) -> int:
    """Wait until no ND message has been seen for a while; returns how many there were."""
    deadline = time.monotonic() + timeout
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < quiet:
        assert time.monotonic() < deadline, f"no end of frames: {seen}"
        count = sum(frame.nd_type in (135, 136) for frame in collect(captures))
        assert count < 1000, "a storm"
        if count != seen:
            seen, since = count, time.monotonic()
        time.sleep(0.05)
    return seen


def test_two_proxies_make_no_storm_of_a_dad_probe(lab: Lab) -> None:
    """One DAD probe for a free address makes a bounded number of frames, and the address is had."""
    scene, captures = side_by_side(lab)
    settled(captures)
    for capture in captures:
        capture.clear()
    state, _ = try_address(scene.u, f"{NET}88")
    frames = settled(captures)
    assert state == "valid"
    assert frames <= 40


def test_two_proxies_make_no_storm_of_a_solicitation(lab: Lab) -> None:
    """One solicitation, for a host that is there or one that is not, makes a bounded number of frames."""
    scene, captures = side_by_side(lab)
    settled(captures)
    for target in (guest(1), f"{NET}99"):
        for capture in captures:
            capture.clear()
        scene.u.inject("eth0", solicit(scene.u, target))
        assert settled(captures) <= 80, target


def test_two_proxies_carry_a_ping(lab: Lab) -> None:
    """One ping through them arrives, in both directions, and makes a bounded number of frames."""
    scene, captures = side_by_side(lab)
    settled(captures)
    for source, target in ((scene.u, guest(1)), (scene.guests[1], UPSTREAM)):
        for capture in captures:
            capture.clear()
        ping = source.ping(target, count=3, timeout=3)
        assert ping.received > 0, ping.output
        assert settled(captures) <= 100, target
