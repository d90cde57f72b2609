"""Interfaces come, go and change under the daemon: it converges by itself, never exits, spins or leaks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.netns.lab import Lab, Portier, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM, Scene, config, guest, solicit, vps


def reached(scene: Scene, target: str = guest(1), timeout: float = 10.0) -> None:
    """Wait until the upstream host reaches a guest, from a cold cache."""

    def ping() -> bool:
        scene.u.ip("neigh flush all")
        return bool(scene.u.ping(target, timeout=1))

    wait_for(ping, timeout, f"{target} reached; ports: {scene.portier.group()['ports']}")


def assert_calm(portier: Portier, seconds: float = 2.0) -> None:
    """The daemon uses next to no CPU while nothing happens."""
    time.sleep(0.5)
    before = portier.cpu_seconds()
    time.sleep(seconds)
    assert portier.cpu_seconds() - before < 0.05 * seconds, "spinning"


class Held:
    """The descriptors and threads that a daemon holds; made when it works, looked at when it does again."""

    def __init__(self, portier: Portier) -> None:
        self._portier = portier
        self._fds, self._threads = portier.fds(), portier.threads()

    def no_more(self) -> None:
        """Wait until there are no more of them than there were."""
        wait_for(lambda: self._portier.threads() <= self._threads, 5, "no thread leaked")
        # One more may be the status connection.
        wait_for(lambda: self._portier.fds() <= self._fds + 1, 5, "no descriptor leaked")


def test_daemon_before_its_interfaces(lab: Lab) -> None:
    """Started on a box with none of its interfaces, it waits, and serves each as it appears."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    portier = scene.start(config(), wait=False)
    portier.wait_ready()
    assert_calm(portier)
    lab.link(scene.u, "eth0", scene.p, "eth0")
    scene.u.add("eth0", f"{UPSTREAM}/64")
    scene.p.add("eth0", f"{PROXY}/64")
    for number in (1, 2):
        scene.add_guest(number)
    portier.wait_ports("eth0", "tap1", "tap2")
    for number in (1, 2):
        ping = scene.u.ping(guest(number))
        assert ping, ping.output


def test_upstream_created_again(lab: Lab) -> None:
    """The upstream is deleted and comes back with another link-layer address and index."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    index, held = scene.p.index("eth0"), Held(portier)
    for _ in range(3):
        scene.p.ip("link del eth0")
        wait_for(lambda: "eth0" not in active(portier), 5, "upstream gone")
        lab.link(scene.u, "eth0", scene.p, "eth0")
        scene.u.add("eth0", f"{UPSTREAM}/64")
        scene.p.add("eth0", f"{PROXY}/64")
        portier.wait_ports("eth0", "tap1", "tap2")
        reached(scene)
    assert scene.p.index("eth0") != index
    held.no_more()
    assert_calm(portier)


def active(portier: Portier) -> set[str]:
    """The ports that are active now."""
    return {name for name, state in portier.ports().items() if state == "active"}


def shown(portier: Portier, port: str) -> dict[str, Any]:
    """What the status says of a port."""
    found: dict[str, Any] = next(entry for entry in portier.group()["ports"] if entry["name"] == port)
    return found


def test_downstream_renamed(lab: Lab) -> None:
    """A downstream renamed to another matching name goes on; to one that does not match, it leaves."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    held = Held(portier)
    for name, names in (("tap7", {"tap7", "tap2"}), ("other0", {"tap2"}), ("tap1", {"tap1", "tap2"})):
        old = next(link["ifname"] for link in scene.p.ip_json("link show") if link["ifname"] in
                   {"tap1", "tap7", "other0"})  # fmt: skip
        scene.p.ip(f"link set {old} down", f"link set {old} name {name}", f"link set {name} up")
        portier.wait_ports("eth0", *names)
        if name == "other0":
            wait_for(lambda: guest(1) not in scene.p.host_routes(), 5, "its route goes")
            assert not scene.u.ping(guest(1), timeout=0.5)
        else:
            scene.guests[1].ip("-6 route replace default via " + scene.p.link_local(name) + " dev eth0")
            reached(scene)
    held.no_more()
    assert_calm(portier)


@pytest.mark.parametrize("port", ["eth0", "tap1"])
def test_admin_down_and_up(lab: Lab, port: str) -> None:
    """Set down and up again, which costs the kernel its routes and addresses."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    held = Held(portier)
    for _ in range(3):
        scene.p.ip(f"link set {port} down")
        wait_for(lambda: port not in active(portier), 5, f"{port} gone")
        scene.p.ip(f"link set {port} up")
        if port == "eth0":
            wait_for(lambda: (scene.p.address_state("eth0", PROXY) != "valid" and
                     scene.p.run(["ip", "addr", "replace", f"{PROXY}/64", "dev", "eth0", "nodad"]))
                     or scene.p.address_state("eth0", PROXY) == "valid", 5, "address again")  # fmt: skip
        portier.wait_ports("eth0", "tap1", "tap2")
        reached(scene)
    held.no_more()
    assert_calm(portier)


@pytest.mark.parametrize("port", ["eth0", "tap1"])
def test_carrier_lost_and_back(lab: Lab, port: str) -> None:
    """The other end of the cable goes away and comes back; the port says that it has no carrier meanwhile."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    held = Held(portier)
    host, address = (scene.u, UPSTREAM) if port == "eth0" else (scene.guests[1], guest(1))
    for _ in range(3):
        host.ip("link set eth0 down")
        wait_for(lambda: shown(portier, port)["reason"] == "no carrier", 5, "noticed")
        assert port not in active(portier)
        host.ip("link set eth0 up")
        host.run(["ip", "addr", "replace", f"{address}/64", "dev", "eth0", "nodad"])
        portier.wait_ports("eth0", "tap1", "tap2")
        reached(scene)
    held.no_more()
    assert_calm(portier)


def test_mtu_changed(lab: Lab) -> None:
    """A change of the MTU interrupts nothing: the daemon, which shows the MTU nowhere, still answers on both
    ports, for a host that it knew and for one that it did not, and its ports stay active."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    known = set(portier.neighbors())
    for port in ("eth0", "tap1"):
        scene.p.ip(f"link set {port} mtu 1400")
    time.sleep(0.5)
    assert active(portier) == {"eth0", "tap1", "tap2"}
    front = scene.u.capture("eth0")
    for target in (guest(1), guest(2)):
        scene.u.inject("eth0", solicit(scene.u, target))
        front.wait_advertisement(target, outgoing=False)
    reached(scene)
    ping = scene.guests[1].ping(UPSTREAM)
    assert ping, ping.output
    assert known <= set(portier.neighbors())
    assert_calm(portier)


@pytest.mark.parametrize("port", ["eth0", "tap1"])
def test_link_layer_address_changed(lab: Lab, port: str) -> None:
    """A new link-layer address is what the next answer and question bear."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    new = "02:00:5e:00:88:01"
    scene.p.ip(f"link set {port} address {new}")

    def told() -> bool:
        return bool(shown(portier, port)["mac"] == new)

    wait_for(told, 5, "the new address in the status")
    host, target = (scene.u, guest(1)) if port == "eth0" else (scene.guests[1], UPSTREAM)
    host.ip("neigh flush all")
    capture = host.capture("eth0")
    if port == "tap1":
        host.ip(f"-6 route replace default via {scene.p.link_local('tap1')} dev eth0")
    ping = host.ping(target, count=3)
    assert ping.received, ping.output
    answer = capture.wait_advertisement(target, outgoing=False)
    assert answer.packet.src == new
    assert answer.raw[-6:].hex(":") == new
    reached(scene)


def test_address_of_the_port_changes(lab: Lab) -> None:
    """The port loses its link-local address and gets another: that is what it speaks from."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    old = scene.p.link_local("tap1")
    scene.p.ip(f"addr del {old}/64 dev tap1")
    scene.p.add("tap1", "fe80::77/64")

    def source() -> bool:
        entry = shown(portier, "tap1")
        return bool(entry["source"] == "fe80::77" and entry["state"] == "active")

    wait_for(source, 5, "speaks from fe80::77")
    behind = scene.guests[1].capture("eth0")
    scene.guests[1].add("eth0", f"{NET}61/64")
    assert scene.u.ping(f"{NET}61")
    assert behind.wait_solicitation(f"{NET}61", outgoing=False).source == "fe80::77"


def test_enslaved_port_leaves(lab: Lab) -> None:
    """A link that becomes a port of a bridge hears nothing, and is no port of a group then."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    lab.bridge(scene.p, "br0")
    scene.p.ip("link set tap1 master br0")
    portier.wait_ports("eth0", "tap2")
    scene.p.ip("link set tap1 nomaster")
    portier.wait_ports("eth0", "tap1", "tap2")
    reached(scene)


def test_second_upstream_candidate_takes_over(lab: Lab) -> None:
    """With a list of upstreams the first usable one is active; when it loses its carrier, the next is."""
    scene = vps(lab)
    backup = lab.host("u2")
    lab.link(backup, "eth0", scene.p, "eth1")
    backup.add("eth0", f"{NET}b/64")
    scene.p.add("eth1", f"{NET}3/64")
    # Else the kernel goes on to send by the route whose carrier is gone.
    scene.p.sysctl("net/ipv6/conf/eth0/ignore_routes_with_linkdown", 1)
    portier = scene.start(config(upstream="[eth0, eth1]"))
    assert portier.group()["upstream"]["active"] == "eth0"
    reached(scene)
    scene.u.ip("link set eth0 down")
    wait_for(lambda: portier.group()["upstream"]["active"] == "eth1", 5, "the other upstream")
    ping = backup.ping(guest(1))
    assert ping, ping.output


def test_burst_of_a_hundred_interfaces(lab: Lab) -> None:
    """A glob that matches a hundred links created in one go, and deleted in one go, again and again."""
    scene = vps(lab)
    far = lab.host("far")
    portier = scene.start(config())
    reached(scene)
    names = [f"tap{number}" for number in range(100, 200)]

    def create() -> None:
        scene.p.ip(
            *(
                f"link add {name} netns {scene.p.pid} type veth peer name {name} netns {far.pid}"
                for name in names
            )
        )
        far.ip(*(f"link set {name} up" for name in names))
        scene.p.ip(*(f"link set {name} up" for name in names))

    def delete() -> None:
        far.ip(*(f"link del {name}" for name in names))

    create()
    portier.wait_ports("eth0", "tap1", "tap2", *names, timeout=20)
    delete()
    portier.wait_ports("eth0", "tap1", "tap2", timeout=20)
    held = Held(portier)
    before, begin = portier.cpu_seconds(), time.monotonic()
    for _ in range(3):
        create()
        delete()
    create()
    portier.wait_ports("eth0", "tap1", "tap2", *names, timeout=20)
    reached(scene)
    delete()
    portier.wait_ports("eth0", "tap1", "tap2", timeout=20)
    spent, took = portier.cpu_seconds() - before, time.monotonic() - begin
    reached(scene)
    held.no_more()
    assert spent < 10, f"{spent} s of CPU in {took} s for 800 links"
    assert_calm(portier)


def test_idle_costs_nothing(lab: Lab) -> None:
    """With known hosts and nothing going on, the daemon sleeps."""
    scene = vps(lab)
    portier = scene.start(config())
    reached(scene)
    reached(scene, guest(2))
    assert_calm(portier, 5.0)
