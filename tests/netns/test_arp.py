"""IPv4 by ARP, with the kernels' own ARP, arping, and a client that detects conflicts as RFC 5227 has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.netns.lab import Capture, Host, Lab, holds_for, wait_for
from tests.netns.scenes import Scene, config

NET = "192.0.2."
UPSTREAM, PROXY = f"{NET}10", f"{NET}2"
LAN = f"[{NET}0/24]"
EVERYBODY, ZERO = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
NOBODY = NET.replace("192", "0").replace("2.", "0.") + "0"


def guest(number: int) -> str:
    """The address of the host behind ``tap<number>``."""
    return f"{NET}1{number}"


def vps(lab: Lab, guests: int = 2) -> Scene:
    """The common topology with one /24 on every segment; the downstream ports have no IPv4 address."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    lab.link(scene.u, "eth0", scene.p, "eth0")
    scene.u.ip(f"addr add {UPSTREAM}/24 dev eth0")
    scene.p.ip(f"addr add {PROXY}/24 dev eth0")
    for number in range(1, guests + 1):
        host = scene.guests[number] = lab.host(f"h{number}")
        lab.link(host, "eth0", scene.p, f"tap{number}")
        host.ip(f"addr add {guest(number)}/24 dev eth0")
    return scene


def packets(captured: Capture, *, outgoing: bool | None = None) -> list[Packet]:
    """The ARP packets of a capture; those that its host sent, or did not, if that is asked."""
    return [
        frame.packet
        for frame in captured.frames()
        if ARP in frame.packet and outgoing in {None, frame.outgoing}
    ]


def replies(captured: Capture, address: str) -> list[Packet]:
    """The replies that say where `address` is, as they came in."""
    return [p for p in packets(captured, outgoing=False) if p[ARP].op == 2 and p[ARP].psrc == address]


def who_has(host: Host, target: str, source: str, **fields: Any) -> Packet:
    """A request as `host` would send it, but for `fields`."""
    mac = host.mac("eth0")
    ether = {"src": fields.pop("src", mac), "dst": fields.pop("dst", EVERYBODY)}
    usual = {"op": 1, "hwsrc": mac, "psrc": source, "hwdst": ZERO, "pdst": target}
    return Ether(**ether) / ARP(**{**usual, **fields})


def entry(host: Host, address: str) -> dict[str, Any]:
    """What the neighbor table of `host` has for an address."""
    found = host.ip_json(f"-4 neigh show {address} dev eth0")
    return found[0] if found else {}


# -- two directions ----------------------------------------------------------------------------------------


def test_ping_in_both_directions_and_between_guests(lab: Lab) -> None:
    """The first one arrives; the host routes are there, and go with the daemon."""
    scene = vps(lab)
    scene.start(config(LAN))
    for source, target in (
        (scene.u, guest(1)),
        (scene.guests[2], UPSTREAM),
        (scene.guests[1], guest(2)),
        (scene.guests[2], PROXY),
    ):
        ping = source.ping(target)
        assert ping, ping.output
    assert scene.p.host_routes4() == {guest(1): "tap1", guest(2): "tap2"}
    assert entry(scene.u, guest(1))["lladdr"] == scene.p.mac("eth0")
    assert entry(scene.guests[1], UPSTREAM)["lladdr"] == scene.p.mac("tap1")
    assert {guest(1), guest(2)} <= scene.portier.neighbors().keys()

    scene.portier.stop()
    assert scene.p.host_routes4() == {}


def test_proxy_itself_reaches_a_guest_nobody_asked_for(lab: Lab) -> None:
    """Its kernel asks upstream, where its prefix is; Portier sees that and finds the host behind."""
    scene = vps(lab)
    scene.start(config(LAN))
    ping = scene.p.ping(guest(1), count=10, interval=0.1, timeout=2)
    assert ping.received > 0, ping.output
    assert ping.first < 2
    assert scene.p.host_routes4() == {guest(1): "tap1"}


def test_arping_in_both_directions(lab: Lab) -> None:
    """One answer to every request, from the proxy's own port."""
    scene = vps(lab, guests=1)
    scene.start(config(LAN))
    for host, target, port in ((scene.u, guest(1), "eth0"), (scene.guests[1], UPSTREAM, "tap1")):
        captured = host.capture("eth0")
        host.run(["arping", "-c", "3", "-i" if habets(host) else "-I", "eth0", target], timeout=20)
        assert len(replies(captured, target)) == 3
        assert {p[ARP].hwsrc for p in replies(captured, target)} == {scene.p.mac(port)}


def habets(host: Host) -> bool:
    """Whether this arping is Thomas Habets's, and not that of iputils."""
    return "iputils" not in host.run(["arping", "-V"], check=False).stdout


def test_a_port_without_ipv4_address_asks_from_the_upstreams(lab: Lab) -> None:
    """0.0.0.0 is for probes alone."""
    scene = vps(lab, guests=1)
    scene.start(config(LAN))
    captured = scene.guests[1].capture("eth0")
    assert scene.u.ping(guest(1))
    asked = [p for p in packets(captured, outgoing=False) if p[ARP].op == 1 and p[ARP].pdst == guest(1)]

    assert asked
    assert {(p[ARP].psrc, p[ARP].hwsrc) for p in asked} == {(PROXY, scene.p.mac("tap1"))}


def test_one_file_serves_both_families(lab: Lab) -> None:
    """The commands tell of both alike."""
    scene = vps(lab, guests=1)
    scene.u.add("eth0", "2001:db8:7::a/64")
    scene.p.add("eth0", "2001:db8:7::2/64")
    scene.guests[1].add("eth0", "2001:db8:7::11/64")
    scene.start(config(f'["{NET}0/24", "2001:db8:7::/64"]'))
    for address in (guest(1), "2001:db8:7::11"):
        assert scene.u.ping(address)
        explained = scene.portier.explain(address)
        assert explained.returncode == 0, explained.stdout
        assert "known on tap1" in explained.stdout
        assert scene.portier.neighbors()[address]["port"] == "tap1"
        scene.portier.wait_event("learned", address)
    known = scene.portier.cli("neighbors").stdout.splitlines()
    lines = [[line for line in known if address in line.split()] for address in (guest(1), "2001:db8:7::11")]
    assert all(len(found) == 1 and "tap1" in found[0].split() for found in lines), known
    status = scene.portier.cli("status")
    assert status.returncode == 0, status.stdout
    for address in (guest(1), "2001:db8:7::11"):
        assert f"learned: {address} is on tap1" in status.stdout
    plan = scene.portier.cli("plan")
    assert (plan.returncode, plan.stdout, plan.stderr.strip()) == (0, "", "nothing to do")
    assert "no rule allows it" in scene.portier.explain("198.51.100.1").stdout
    scene.portier.kill9()
    plan = scene.portier.cli("plan")
    for prefix in (f"{guest(1)}/32", "2001:db8:7::11/128"):
        assert f"- route {prefix} dev tap1" in plan.stdout
    assert scene.portier.cli("cleanup").returncode == 0
    assert scene.p.host_routes4() == scene.p.host_routes() == {}


# -- the packet table of a responder -----------------------------------------------------------------------


@dataclass
class Responder:
    """A scene whose guest 1 is known, and what goes over its upstream link."""

    scene: Scene
    captured: Capture

    def answers(self, frame: Packet | bytes, target: str = guest(1)) -> list[Packet]:
        """What comes back to a frame, waiting by a question that is sure to be answered."""
        self.scene.u.inject("eth0", frame)
        fence = guest(2)
        self.captured.clear()
        self.scene.u.inject("eth0", frame)
        self.scene.u.inject("eth0", who_has(self.scene.u, fence, UPSTREAM))
        wait_for(lambda: replies(self.captured, fence), 5, "the fence")
        return replies(self.captured, target)


@pytest.fixture
def responder(lab: Lab) -> Responder:
    scene = vps(lab)
    scene.start(config(LAN))
    assert scene.u.ping(guest(1))
    assert scene.u.ping(guest(2))
    return Responder(scene, scene.u.capture("eth0"))


Make = Callable[[Scene], Packet | bytes]

ANSWERED: dict[str, Make] = {
    "broadcast request": lambda s: who_has(s.u, guest(1), UPSTREAM),
    "unicast request": lambda s: who_has(s.u, guest(1), UPSTREAM, dst=s.p.mac("eth0")),
    "padded to 60 octets": lambda s: bytes(who_has(s.u, guest(1), UPSTREAM)) + bytes(18),
    "from outside the subnet": lambda s: who_has(s.u, guest(1), "198.51.100.7"),
    "probe": lambda s: who_has(s.u, guest(1), NOBODY),
}
SILENT: dict[str, Make] = {
    "reply": lambda s: who_has(s.u, guest(1), UPSTREAM, op=2),
    "for another destination": lambda s: who_has(s.u, guest(1), UPSTREAM, dst="02:00:00:00:00:77"),
    "its own announcement": lambda s: who_has(s.u, UPSTREAM, UPSTREAM),
    "wrong hardware type": lambda s: who_has(s.u, guest(1), UPSTREAM, hwtype=6),
    "wrong hardware length": lambda s: who_has(s.u, guest(1), UPSTREAM, hwlen=8),
    "wrong protocol type": lambda s: who_has(s.u, guest(1), UPSTREAM, ptype=0x86DD),
    "wrong operation": lambda s: who_has(s.u, guest(1), UPSTREAM, op=8),
    "short": lambda s: bytes(who_has(s.u, guest(1), UPSTREAM))[:40],
    "multicast sender": lambda s: who_has(s.u, guest(1), UPSTREAM, hwsrc="01:00:5e:00:00:01"),
    "own link-layer address": lambda s: who_has(s.u, guest(1), UPSTREAM, hwsrc=s.p.mac("tap1")),
}


@pytest.mark.parametrize("make", ANSWERED.values(), ids=ANSWERED)
def test_what_is_answered(responder: Responder, make: Make) -> None:
    """By unicast, with the port's link-layer address, naming the asker's own (ND-239, ND-251)."""
    scene = responder.scene
    frame = make(scene)
    asked = Ether(bytes(frame))[ARP]
    found = responder.answers(frame)

    assert found
    for packet in found:
        assert packet.dst == scene.u.mac("eth0")
        assert packet.src == packet[ARP].hwsrc == scene.p.mac("eth0")
        assert (packet[ARP].hwdst, packet[ARP].pdst) == (scene.u.mac("eth0"), asked.psrc)


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_what_is_not_answered(responder: Responder, make: Make) -> None:
    """And does no harm: the next question has its answer."""
    assert responder.answers(make(responder.scene)) == []


@pytest.mark.parametrize("target", [f"{NET}0", f"{NET}255", "255.255.255.255", UPSTREAM, f"{NET}99"])
def test_nd_247_and_nd_245_who_is_never_answered_for(responder: Responder, target: str) -> None:
    """The network, its broadcast addresses, a host on the asker's own link, and nobody."""
    asked = who_has(responder.scene.u, target, f"{NET}77")

    assert responder.answers(asked, target) == []


# -- address conflict detection ------------------------------------------------------------------------------


class Newcomer:
    """A host that takes an address as RFC 5227 has it: it probes, announces, and listens all the while.  The
    waits are shorter than the RFC's, by as much for all."""

    def __init__(self, host: Host, address: str) -> None:
        self.host = host
        self.address = address
        self.mac = host.mac("eth0")
        self.captured = host.capture("eth0")

    def conflicts(self) -> list[Packet]:
        """Sections 2.1.1 and 2.4: whoever else sends from the address, or probes for it too."""
        return [
            packet
            for packet in packets(self.captured, outgoing=False)
            if packet[ARP].hwsrc != self.mac
            and (
                packet[ARP].psrc == self.address
                or (packet[ARP].op == 1 and packet[ARP].psrc == NOBODY and packet[ARP].pdst == self.address)
            )
        ]

    def take(self) -> bool:
        """Probe three times; without a conflict announce twice and have the address."""
        for _ in range(3):
            self.host.inject("eth0", who_has(self.host, self.address, NOBODY))
            time.sleep(0.5)
            if self.conflicts():
                return False
        for _ in range(2):
            self.host.inject("eth0", who_has(self.host, self.address, self.address))
        self.host.ip(f"addr add {self.address}/24 dev eth0")
        return True


@pytest.mark.parametrize("known", [False, True], ids=["cold", "known"])
@pytest.mark.parametrize("owner", ["upstream", "guest"])
def test_nd_255_a_conflict_is_seen_across_the_proxy(lab: Lab, owner: str, known: bool) -> None:
    """In both directions, whether the owner is known or must be found; and the owner keeps the address."""
    scene = vps(lab)
    scene.start(config(LAN))
    if known:
        assert scene.u.ping(guest(1))
        assert scene.guests[2].ping(UPSTREAM)
    taker, address = (scene.guests[2], UPSTREAM) if owner == "upstream" else (scene.u, guest(1))

    assert not Newcomer(taker, address).take()
    assert scene.p.host_routes4().get(address) == (None if owner == "upstream" or not known else "tap1")


@pytest.mark.parametrize("side", ["upstream", "guest"])
def test_nd_242_a_free_address_is_had(lab: Lab, side: str) -> None:
    """No probe comes back to the one who sent it, and the host is reached afterwards."""
    scene = vps(lab)
    scene.start(config(LAN))
    host, other = (scene.u, scene.guests[1]) if side == "upstream" else (scene.guests[1], scene.u)
    address = f"{NET}50"

    newcomer = Newcomer(host, address)
    assert newcomer.take()
    ping = other.ping(address)
    assert ping, ping.output
    assert newcomer.conflicts() == []


def test_nd_242_two_who_want_one_address_at_once_do_not_both_get_it(lab: Lab) -> None:
    """One of them at least hears the other's probe."""
    scene = vps(lab)
    scene.start(config(LAN))
    first, second = (Newcomer(host, f"{NET}50") for host in (scene.u, scene.guests[1]))
    for newcomer in (first, second):
        newcomer.host.inject("eth0", who_has(newcomer.host, newcomer.address, NOBODY))

    wait_for(lambda: first.conflicts() or second.conflicts(), 3, "a conflict seen")


def test_nd_250_one_who_uses_anothers_address_is_told_once_in_ten_seconds(lab: Lab) -> None:
    """He did not probe, he announces every half second; the first keeps the address."""
    scene = vps(lab)
    scene.start(config(LAN))
    assert scene.u.ping(guest(1))
    taker = Newcomer(scene.u, guest(1))
    for _ in range(6):
        scene.u.inject("eth0", who_has(scene.u, guest(1), guest(1)))
        time.sleep(0.5)
    told = taker.conflicts()

    assert len(told) == 1
    assert (told[0].dst, told[0][ARP].hwsrc) == (EVERYBODY, scene.p.mac("eth0"))
    assert scene.p.host_routes4()[guest(1)] == "tap1"
    scene.portier.wait_event("conflict", guest(1))


# -- life ----------------------------------------------------------------------------------------------------


def swapped(lab: Lab, scene: Scene) -> tuple[Host, Host, Callable[[Host, bool], None]]:
    """Two hosts on a switch that can plug each into the upstream's link or behind ``tap1``, and a third that
    stays on the upstream's.  Who is plugged over sees its carrier go and come back, and nobody else does."""
    switch = lab.host("switch")
    for bridge in ("front", "back"):
        lab.bridge(switch, bridge)
    lab.link(switch, "uplink", scene.p, "eth0")
    lab.link(switch, "tap", scene.p, "tap1")
    lab.plug(switch, "front", "uplink")
    lab.plug(switch, "back", "tap")
    hosts = []
    for number, bridge in ((1, "front"), (2, "back"), (3, "front")):
        host = lab.host(f"h{number}")
        lab.link(host, "eth0", switch, f"s{number}")
        lab.plug(switch, bridge, f"s{number}")
        host.ip(f"addr add {guest(number)}/24 dev eth0")
        hosts.append(host)

    def plug(host: Host, up: bool) -> None:
        number = hosts.index(host) + 1
        port = f"s{number}"
        switch.ip(f"link set {port} down")
        wait_for(lambda: not host.carrier("eth0"), 30, "no carrier")
        switch.ip(f"link set {port} master {'front' if up else 'back'}", f"link set {port} up")
        wait_for(lambda: host.carrier("eth0"), 30, "carrier again")
        host.inject("eth0", who_has(host, guest(number), guest(number)))

    scene.guests = {3: hosts[2]}
    return hosts[0], hosts[1], plug


def test_hosts_swap_sides_under_ping(lab: Lab) -> None:
    """Two LANs with one /24: the pings go on, the routes follow, and a third host that had one of them in
    its neighbor table is corrected (its entry is read)."""
    scene = Scene(lab, lab.host("w"), lab.host("p"))
    one, two, plug = swapped(lab, scene)
    third = scene.guests.pop(3)
    scene.p.ip(f"addr add {PROXY}/24 dev eth0")
    scene.daemon = lab.portier(config(LAN), on=scene.p)
    scene.portier.wait_ports("eth0", "tap1")
    assert third.ping(guest(1))
    assert third.ping(guest(2))
    assert entry(third, guest(1))["lladdr"] == one.mac("eth0")
    assert scene.p.host_routes4() == {guest(2): "tap1"}
    pinging = third.pinging(guest(1)), third.pinging(guest(2))
    time.sleep(1)
    plug(one, False)
    plug(two, True)
    wait_for(lambda: scene.p.host_routes4() == {guest(1): "tap1"}, 3, "the routes follow")
    wait_for(
        lambda: entry(third, guest(1)).get("lladdr") == scene.p.mac("eth0"), 3, "the stale entry is corrected"
    )
    time.sleep(2)
    for each in pinging:
        count, gap = each.stop()
        assert count > 20
        assert gap < 3, gap
    scene.portier.wait_event("moved", guest(1))
    scene.portier.wait_event("moved", guest(2))


def test_a_guest_that_goes_is_forgotten_with_its_route(lab: Lab) -> None:
    """Probed by unicast, three times."""
    scene = vps(lab)
    scene.start(config(LAN, extra="timers: {reachable: 200ms, retransmit: 200ms}"))
    assert scene.u.ping(guest(1))
    captured = scene.guests[1].capture("eth0")
    scene.guests[1].ip(f"addr del {guest(1)}/24 dev eth0")

    def gone() -> bool:
        scene.u.inject("eth0", who_has(scene.u, guest(1), UPSTREAM))
        return scene.p.host_routes4() == {}

    wait_for(gone, 15, "the route goes", interval=0.2)
    probes = [
        p
        for p in packets(captured, outgoing=False)
        if p[ARP].pdst == guest(1) and p.dst == scene.guests[1].mac("eth0")
    ]
    assert len(probes) >= 3
    scene.portier.wait_event("lost", guest(1))


def test_an_idle_proxy_sends_no_arp(lab: Lab) -> None:
    """Nothing is polled, and what was announced was announced once."""
    scene = vps(lab, guests=1)
    scene.start(config(LAN))
    assert scene.u.ping(guest(1))
    time.sleep(1.5)
    captured = scene.u.capture("eth0")
    ours = scene.p.mac("eth0")
    holds_for(
        lambda: not [p for p in packets(captured, outgoing=False) if p.src == ours and p[ARP].op == 1],
        2,
        "silence",
    )


# -- another proxy beside this one ---------------------------------------------------------------------------


def test_two_proxies_beside_each_other_do_not_take_each_other_for_hosts(lab: Lab) -> None:
    """Both between the same two links, one /24 on both of them: the guest is known where it is, by both,
    traffic passes both ways, and when nobody talks there is silence."""
    switch, u, h = lab.host("switch"), lab.host("u"), lab.host("h")
    for side, host in (("upper", u), ("lower", h)):
        lab.bridge(switch, side)
        lab.link(host, "eth0", switch, f"{side}0")
        lab.plug(switch, side, f"{side}0")
    u.ip(f"addr add {UPSTREAM}/24 dev eth0")
    h.ip(f"addr add {guest(1)}/24 dev eth0")
    proxies = []
    for number in (1, 2):
        proxy = lab.host(f"p{number}")
        for side, port in (("upper", "eth0"), ("lower", "tap1")):
            lab.link(proxy, port, switch, f"{side}{number}")
            lab.plug(switch, side, f"{side}{number}")
        proxy.ip(f"addr add {NET}{number}/24 dev eth0")
        proxies.append(proxy)
    for number, proxy in enumerate(proxies):
        lab.portier(config(LAN), on=proxy, name=f"portier{number}")
    for source, target in ((u, guest(1)), (h, UPSTREAM)) * 2:
        ping = source.ping(target)
        assert ping, ping.output
        time.sleep(0.5)
    wait_for(lambda: [p.host_routes4() for p in proxies] == [{guest(1): "tap1"}] * 2, 5, "known by both")
    time.sleep(3)
    captures = [host.capture("eth0") for host in (u, h)]
    time.sleep(4)
    heard = [packet.summary() for capture in captures for packet in packets(capture)]
    assert len(heard) < 10, heard
    assert [p.host_routes4() for p in proxies] == [{guest(1): "tap1"}] * 2
