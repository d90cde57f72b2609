"""Floods: whatever arrives, what Portier keeps and does stays within `limits`, and every drop has a name."""

from __future__ import annotations

import ipaddress
import random

from tests.netns.lab import Lab, solicited_node, wait_for
from tests.netns.scenes import NET, UPSTREAM, Scene, advertise, config, guest, octets, solicit, vps

WIDE = "neighbors: 100000, per_port: 100000, per_host: 100000, pending: 100000"
FAST = "resolutions: 1000000, per_source: 1000000, route_changes: 1000000"


def limits(**values: int) -> str:
    """Everything wide open but these."""
    wide = {key.strip(): int(number) for entry in f"{WIDE}, {FAST}".split(", ")
            for key, number in [entry.split(":")]}  # fmt: skip
    text = ", ".join(f"{key}: {value}" for key, value in (wide | values).items())
    return f"limits: {{{text}}}\ntimers: {{retransmit: 1s, negative: 60s}}"


def flood_of_targets(scene: Scene, count: int, *, sources: int = 1) -> None:
    """Ask from upstream for so many addresses that nobody has; from so many link-layer addresses."""
    template = bytearray(bytes(solicit(scene.u, f"{NET}1:0")))
    for number in range(count):
        target = f"{NET}1:{number:x}"
        frame = solicit(scene.u, target, mac=f"02:00:00:01:00:{number % sources:02x}") if number < 2 else None
        if frame is None:
            frame = patched(template, target, number % sources)
        scene.u.inject("eth0", frame)


def patched(template: bytearray, target: str, source: int) -> bytes:
    """A copy of a solicitation for another target from another link-layer address, with its checksum."""
    raw = bytearray(template)
    group = ipaddress.IPv6Address(solicited_node(target)).packed
    raw[0:6] = b"\x33\x33" + group[12:]
    raw[38:54] = group
    raw[62:78] = ipaddress.IPv6Address(target).packed
    raw[6:12] = raw[80:86] = bytes([2, 0, 0, 1, 0, source])
    raw[56:58] = b"\0\0"
    words = raw[22:54] + bytes([0, 0, 0, 32, 0, 0, 0, 58]) + raw[54:86]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    raw[56:58] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(raw)


def seen(scene: Scene, count: int, *, group: str | None = None) -> dict[str, int]:
    """Wait until so many frames were judged; returns the verdicts."""
    wait_for(lambda: sum(scene.portier.counters(group).values()) >= count, 20, f"{count} frames judged")
    return scene.portier.counters(group)


def test_pending_is_bounded(lab: Lab) -> None:
    """No more targets are asked for at a time than `pending`; the others are dropped by name."""
    scene = vps(lab)
    scene.start(config(extra=limits(pending=20)))
    behind = scene.guests[1].capture("eth0")
    flood_of_targets(scene, 300)
    counters = seen(scene, 300)
    assert scene.portier.group()["pending"] <= 20
    assert counters["pending-full"] >= 200
    asked = {frame.nd_target for frame in behind.solicitations(outgoing=False)}
    assert len(asked) <= 80, "20 at a time, for a flood that is shorter than they last"
    wait_for(lambda: scene.portier.group()["pending"] == 0, 10, "given up")
    assert scene.u.ping(guest(1)), "life goes on"


def test_resolutions_are_bounded(lab: Lab) -> None:
    """A port starts no more resolutions a second than `resolutions`."""
    scene = vps(lab)
    scene.start(config(extra=limits(resolutions=10)))
    behind = scene.guests[1].capture("eth0")
    flood_of_targets(scene, 300, sources=200)
    counters = seen(scene, 300)
    assert counters["port-limit"] >= 200
    asked = {frame.nd_target for frame in behind.solicitations(outgoing=False)}
    assert len(asked) <= 90


def test_one_source_does_not_use_up_the_ports_share(lab: Lab) -> None:
    """A single asker is held to `per_source`; another one on the same port is served meanwhile."""
    scene = vps(lab)
    scene.start(config(extra=limits(per_source=10)))
    flood_of_targets(scene, 300, sources=1)
    ping = scene.u.ping(guest(1), timeout=1)
    assert ping, ping.output
    counters = seen(scene, 300)
    assert counters["source-limit"] >= 200


def claims(scene: Scene, count: int, *, hosts: int, number: int = 1) -> None:
    """Let a guest claim so many addresses, as so many hosts."""
    host = scene.guests[number]
    for index in range(count):
        mac = f"02:00:00:02:0{number}:{index % hosts:02x}"
        host.inject("eth0", advertise(host, f"{NET}{number}:{index:x}", mac=mac))


def on_port(scene: Scene, port: str) -> list[str]:
    """The known hosts of a port."""
    return [address for address, entry in scene.portier.neighbors().items() if entry["port"] == port]


def behind_only(extra: str) -> str:
    """A prefix that is not on-link upstream, so that a claim is learned without asking there."""
    return config(f'["{NET}1:0/112", "{NET}2:0/112", "{NET}/120"]', upstream="", extra=extra)


def start_without_upstream(scene: Scene, extra: str) -> None:
    """Segments only: whatever a guest says is learned."""
    scene.daemon = scene.lab.portier(behind_only(extra), on=scene.p)
    scene.daemon.wait_ports(*(f"tap{number}" for number in scene.guests))


def test_neighbors_are_bounded_and_proven_hosts_stay(lab: Lab) -> None:
    """The table never exceeds `neighbors`; who never answered us goes first, who did stays."""
    scene = vps(lab)
    start_without_upstream(scene, limits(neighbors=50))
    assert scene.guests[1].ping(guest(2))
    claims(scene, 300, hosts=100)
    seen(scene, 300)
    assert scene.portier.group()["neighbors"] <= 50
    assert len(scene.p.host_routes()) <= 50
    assert guest(2) in scene.portier.neighbors()
    assert scene.guests[1].ping(guest(2))


def test_a_full_port_evicts_only_its_own(lab: Lab) -> None:
    """A port's share is full: the hosts of other ports are not touched."""
    scene = vps(lab)
    start_without_upstream(scene, limits(per_port=20))
    claims(scene, 5, hosts=5, number=2)
    wait_for(lambda: len(on_port(scene, "tap2")) >= 5, 5, "learned on tap2")
    kept = set(on_port(scene, "tap2"))
    claims(scene, 200, hosts=100, number=1)
    seen(scene, 200)
    assert len(on_port(scene, "tap1")) <= 20
    assert kept <= set(on_port(scene, "tap2"))


def test_a_greedy_host_evicts_only_its_own(lab: Lab) -> None:
    """One link-layer address has no more addresses than `per_host`; its neighbors on the port keep theirs."""
    scene = vps(lab)
    start_without_upstream(scene, limits(per_host=10))
    host = scene.guests[1]
    for index in range(5):
        host.inject("eth0", advertise(host, f"{NET}2:{index:x}", mac=f"02:00:00:03:00:{index:02x}"))
    wait_for(lambda: len(on_port(scene, "tap1")) >= 5, 5, "learned")
    kept = {address for address in on_port(scene, "tap1") if address.startswith(f"{NET}2:")}
    claims(scene, 200, hosts=1)
    seen(scene, 200)
    greedy = [a for a, e in scene.portier.neighbors().items() if e["mac"] == "02:00:00:02:01:00"]
    assert len(greedy) <= 10
    assert kept <= set(on_port(scene, "tap1"))


def test_route_changes_are_bounded(lab: Lab) -> None:
    """Routes change no more often than `route_changes`; who gets no route gets no answer in its favour."""
    scene = vps(lab)
    start_without_upstream(scene, limits(route_changes=10))
    claims(scene, 200, hosts=100)
    seen(scene, 200)
    assert len(scene.p.host_routes()) <= 40
    for address in on_port(scene, "tap1"):
        scene.guests[2].inject("eth0", solicit(scene.guests[2], address))
    wait_for(lambda: scene.portier.count("route-limit") > 0, 5, "some got no route")
    wait_for(lambda: scene.guests[1].ping(guest(2), timeout=1), 10, "life goes on")


def test_known_hosts_are_answered_through_a_flood(lab: Lab) -> None:
    """While unknown targets are dropped, a known host is answered, always."""
    scene = vps(lab)
    scene.start(config(extra="limits: {pending: 10, resolutions: 10, per_source: 10}"))
    assert scene.u.ping(guest(1))
    front = scene.u.capture("eth0")
    for _ in range(20):
        flood_of_targets(scene, 20)
        scene.u.inject("eth0", solicit(scene.u, guest(1)))
    wait_for(lambda: len(front.advertisements(guest(1), outgoing=False)) >= 20, 5, "all answered")


def test_garbage_has_a_verdict(lab: Lab) -> None:
    """Random bytes, whole and as mutations of good frames: every one is judged, and the daemon lives on."""
    scene = vps(lab)
    portier = scene.start(config(extra=limits()))
    assert scene.u.ping(guest(1))
    source = random.Random(20)
    good = bytes(solicit(scene.u, guest(1)))
    ether = octets(scene.p.mac("eth0")) + octets(scene.u.mac("eth0"))
    for _ in range(1500):
        raw = bytearray(good)
        kind = source.randrange(4)
        if kind == 0:
            raw = bytearray(ether + b"\x86\xdd" + source.randbytes(source.randrange(1, 200)))
        elif kind == 1:
            del raw[source.randrange(15, len(raw)) :]
        else:
            for _ in range(source.randrange(1, 6)):
                raw[source.randrange(14, len(raw))] = source.randrange(256)
        scene.u.inject("eth0", bytes(raw))
    assert scene.u.ping(guest(1))
    assert scene.guests[1].ping(UPSTREAM)
    assert portier.status()["healthy"]
    assert portier.group()["worker"]["restarts"] == 0
