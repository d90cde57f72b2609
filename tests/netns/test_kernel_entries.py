"""`answer: kernel`: proxy entries that the kernel answers from, kept in place, never over another's."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.netns.lab import Frame, Host, Lab, wait_for
from tests.netns.scenes import NET, UPSTREAM, Scene, config, guest, vps
from tests.netns.test_ownership import assert_same, kernel_state

NET4 = "192.0.2."
UPSTREAM4, PROXY4 = f"{NET4}10", f"{NET4}2"
HUNDRED = [*(f"{NET}{number:x}" for number in range(0x100, 0x164)), *(f"{NET4}{n}" for n in range(100, 200))]


def guest4(number: int) -> str:
    """The IPv4 address of the host behind ``tap<number>``."""
    return f"{NET4}5{number}"


def both(lab: Lab, guests: int = 1) -> Scene:
    """The common topology, with an IPv4 subnet on the same wires."""
    scene = vps(lab, guests)
    scene.u.add("eth0", f"{UPSTREAM4}/24")
    scene.p.add("eth0", f"{PROXY4}/24")
    for number, host in scene.guests.items():
        host.add("eth0", f"{guest4(number)}/24")
    return scene


def kernel(*addresses: str, downstream: str = "tap1") -> str:
    """A configuration whose rules leave these addresses to the kernel; the upstream host's are asked for."""
    rules = [f'{{allow: "{address}", answer: kernel, downstream: {downstream}}}' for address in addresses]
    return config(f"[{', '.join([UPSTREAM, UPSTREAM4, *rules])}]")


def entries(host: Host) -> set[tuple[str, str, str]]:
    """The proxy entries of a host: address, device, protocol."""
    found = host.ip_json("-6 neigh show proxy") + host.ip_json("-4 neigh show proxy")
    return {(entry["dst"], entry["dev"], str(entry.get("protocol", ""))) for entry in found}


def wanted(*addresses: str, dev: str = "eth0") -> set[tuple[str, str, str]]:
    """Those that should be there for these addresses."""
    return {(str(ip_address(address)), dev, "135") for address in addresses}


def confirmed(host: Host, address: str) -> bool:
    """Whether a neighbor has answered."""
    return "REACHABLE" in str(host.ip_json(f"neigh show {address} dev eth0"))


def test_the_kernel_answers(lab: Lab) -> None:
    """Both families, in both directions, by multicast, broadcast and unicast: no frame is Portier's."""
    scene = both(lab)
    portier = scene.start(kernel(guest(1), guest4(1)))
    wait_for(lambda: entries(scene.p) == wanted(guest(1), guest4(1)), 5, "the entries")
    assert scene.p.host_routes()[guest(1)] == "tap1"
    capture = scene.u.capture("eth0")
    for address in (guest(1), guest4(1)):
        ping = scene.u.ping(address)
        assert ping, ping.output
    assert len(capture.advertisements(guest(1))) == 1
    # A neighbor asks by unicast before it gives up on an entry, IPv6's from its link-local address.
    port = scene.p.mac("eth0")
    for address in (guest(1), guest4(1)):
        scene.u.ip(f"neigh replace {address} lladdr {port} dev eth0 nud probe")
        wait_for(partial(confirmed, scene.u, address), 5, f"{address} confirmed by unicast")
    assert portier.count("kernel-answers") > 0
    assert not {guest(1), guest4(1)} & portier.neighbors().keys(), "nothing is learned of them"
    explained = portier.explain(guest4(1))
    assert "the kernel answers, from a proxy entry" in explained.stdout
    assert explained.returncode == 0


def test_probes_are_defended(lab: Lab) -> None:
    """The kernel defends IPv6 addresses; ARP probes, which it never answers, Portier does."""
    scene = both(lab)
    scene.start(kernel(guest(1), guest4(1)))
    wait_for(lambda: entries(scene.p) == wanted(guest(1), guest4(1)), 5, "the entries")
    scene.u.use_dad("eth0")
    scene.u.ip(f"-6 address add {guest(1)}/64 dev eth0")
    wait_for(lambda: scene.u.address_state("eth0", guest(1)) == "dadfailed", 10, "the duplicate refused")
    mac = scene.u.mac("eth0")
    capture = scene.u.capture("eth0")
    probe = ARP(op=1, hwsrc=mac, psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=guest4(1))  # noqa: S104
    scene.u.inject("eth0", Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / probe)

    def replies() -> list[Frame]:
        """What answers it."""
        frames = [frame for frame in capture.frames() if ARP in frame.packet]
        return [f for f in frames if (f.packet[ARP].op, f.packet[ARP].psrc) == (2, guest4(1))]

    assert capture.wait(replies, 5, "the defence").packet[ARP].hwsrc == scene.p.mac("eth0")
    assert len(replies()) == 1


def test_a_hundred_of_each_family_come_back(lab: Lab) -> None:
    """After admin down and up, with the device made anew, and flushed: the last before status is told."""
    scene = both(lab)
    portier = scene.start(kernel(*HUNDRED))
    every = wanted(*HUNDRED)
    wait_for(lambda: entries(scene.p) == every, 10, "200 entries")
    scene.p.ip("link set eth0 down")
    wait_for(lambda: not entries(scene.p), 5, "none while down")
    scene.p.ip("link set eth0 up")
    wait_for(lambda: entries(scene.p) == every, 10, "back after down and up")
    scene.p.ip("link delete eth0")
    lab.link(scene.u, "eth0", scene.p, "eth0")
    scene.p.add("eth0", f"{NET}2/64")
    wait_for(lambda: entries(scene.p) == every, 10, "back on the new device")
    scene.p.ip("neigh flush proxy")
    assert not entries(scene.p)
    portier.status()
    assert entries(scene.p) == every


def test_entries_of_others_are_left_alone(lab: Lab) -> None:
    """One for the same address is reported and stays, to the end; one that is armed too is reported."""
    scene = both(lab)
    scene.p.ip(f"neigh add proxy {guest(1)} dev eth0", f"neigh add proxy {NET}77 dev eth0")
    before = kernel_state(scene.p)
    portier = scene.start(kernel(guest(1), guest4(1), f"{NET}55"))
    theirs = {(guest(1), "eth0", ""), (f"{NET}77", "eth0", "")}
    wait_for(lambda: entries(scene.p) == theirs | wanted(guest4(1), f"{NET}55"), 5, "the entries")
    told = portier.status()["config"]["warnings"]
    assert f"proxy {guest(1)} dev eth0 is somebody else's: left alone" in told
    assert any(f"{NET}77" in line and "all.proxy_ndp" in line for line in told), told
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def test_everything_is_given_back(lab: Lab) -> None:
    """Entries, routes, rules and sysctls, when the rules go and when the daemon stops."""
    scene = both(lab)
    before = kernel_state(scene.p)
    portier = scene.start(kernel(guest(1), guest4(1)))
    wait_for(lambda: entries(scene.p) == wanted(guest(1), guest4(1)), 5, "the entries")
    assert kernel_state(scene.p)["sysctls"] != before["sysctls"]
    portier.write("version: 1\ngroups: {}\n")
    wait_for(lambda: kernel_state(scene.p) == before, 5, "everything as before")
    portier.write(kernel(guest(1), guest4(1)))
    wait_for(lambda: entries(scene.p) == wanted(guest(1), guest4(1)), 5, "the entries again")
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


@pytest.mark.parametrize("kept", [True, False], ids=["same", "empty"])
def test_next_start_after_kill(lab: Lab, *, kept: bool) -> None:
    """What a kill leaves is adopted or removed by the next start, and its end leaves nothing."""
    scene = both(lab)
    before = kernel_state(scene.p)
    portier = scene.start(kernel(guest(1), guest4(1)))
    ours = wanted(guest(1), guest4(1))
    wait_for(lambda: entries(scene.p) == ours, 5, "the entries")
    portier.kill9()
    assert entries(scene.p) == ours, "a kill leaves things behind"
    if not kept:
        portier.write("version: 1\ngroups: {}\n")
    portier.start()
    wait_for(lambda: entries(scene.p) == (ours if kept else set()), 5, "adopted or removed")
    assert not any("somebody else" in line for line in portier.status()["config"]["warnings"])
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))
