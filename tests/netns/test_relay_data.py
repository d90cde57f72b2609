"""Mode relay carries data between real kernels as one link does."""

import functools
import hashlib
import random
import socket
import subprocess
import sys
import time

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.netns.lab import Capture, Frame, Host, Lab, wait_for
from tests.netns.scenes import PROXY, UPSTREAM, Scene, guest, vps

CONFIG = """version: 1
groups:
  lan: {mode: relay, upstream: eth0, downstream: "tap*", loop_protection: "off"}
"""
TOO_BIG = 2
ETHERNET = 14

# A server that says of each connection how much came and what its SHA-256 is; port 7000.
TAKE = """
import hashlib, socket
server = socket.create_server(("::", 7000), family=socket.AF_INET6)
print("ready", flush=True)
while True:
    client, _ = server.accept()
    seen, octets, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
    while got := client.recv_into(buffer):
        seen.update(memoryview(buffer)[:got])
        octets += got
    client.sendall(f"{octets} {seen.hexdigest()}".encode())
    client.close()
"""
# Sends argv[2] octets to argv[1], no two blocks alike, argv[3] seconds apart; says whether all came.
GIVE = """
import hashlib, random, socket, sys, time
address, octets, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
server = socket.create_connection((address, 7000), 20)
server.settimeout(60)
block, sent, left = bytearray(random.Random(4389).randbytes(1 << 20)), hashlib.sha256(), octets
while left:
    block[:8] = left.to_bytes(8, "big")
    part = memoryview(block)[: min(left, len(block) if not pause else 50_000)]
    server.sendall(part)
    sent.update(part)
    left -= len(part)
    time.sleep(pause)
server.shutdown(socket.SHUT_WR)
said = b"".join(iter(lambda: server.recv(200), b"")).decode()
print("intact" if said == f"{octets} {sent.hexdigest()}" else f"sent {octets}, came {said}")
"""
# Takes UDP on port 7000 until argv[1] packets are there or nothing came for 3 s; says how many of which size.
COUNT = """
import collections, hashlib, socket, sys
taker = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
taker.bind(("::", 7000))
taker.settimeout(3)
if len(sys.argv) > 2:
    index = socket.if_nametoindex("eth0").to_bytes(4, sys.byteorder)
    group = socket.inet_pton(socket.AF_INET6, sys.argv[2])
    taker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)
print("ready", flush=True)
sizes, seen = collections.Counter(), hashlib.sha256()
try:
    while sizes.total() < int(sys.argv[1]):
        data = taker.recv(65536)
        sizes[len(data)] += 1
        seen.update(data)
except TimeoutError:
    pass
print(f"{dict(sizes)} {seen.hexdigest()}")
"""
# Switches offloads of eth0: argv has pairs of an ETHTOOL_S* command (linux/ethtool.h) and its value.
SWITCH = """
import array, fcntl, socket, struct, sys
name, *pairs = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    for command, value in zip(pairs[::2], pairs[1::2]):
        wish = array.array("B", struct.pack("II", int(command), int(value)))
        fcntl.ioctl(any, 0x8946, struct.pack("16sP", name.encode(), wish.buffer_info()[0]))
"""
TX_CHECKSUM, SCATTER_GATHER, TSO, GSO, GRO = 0x17, 0x19, 0x1F, 0x24, 0x2C


def switch(host: Host, interface: str, value: int, *commands: int) -> None:
    """Switch offloads of an interface on or off."""
    pairs = [word for command in commands for word in (str(command), str(value))]
    host.run([sys.executable, "-c", SWITCH, interface, *pairs])


def serve(host: Host, program: str, *args: str) -> subprocess.Popen[str]:
    """Start one of the servers above."""
    server = host.popen([sys.executable, "-c", program, *args], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def give(host: Host, address: str, octets: int, *, pause: float = 0.0) -> subprocess.Popen[str]:
    """Begin to send octets over TCP."""
    return host.popen(
        [sys.executable, "-c", GIVE, address, str(octets), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def said(process: subprocess.Popen[str], seconds: float = 60) -> str:
    """What a program says at its end."""
    return process.communicate(timeout=seconds)[0].strip()


def packets(capture: Capture, source: str, *, outgoing: bool) -> list[bytes]:
    """What was captured of one source, from the IPv6 header on, ND excepted."""
    return [
        frame.raw[ETHERNET:]
        for frame in capture.frames()
        if frame.raw[12:14] == b"\x86\xdd"
        and frame.nd_type is None
        and frame.source == source
        and frame.outgoing == outgoing
    ]


def errors(capture: Capture) -> list[Frame]:
    """The Packet Too Big messages that came in."""
    return [
        frame
        for frame in capture.frames()
        if not frame.outgoing and frame.raw[20] == socket.IPPROTO_ICMPV6 and frame.raw[54] == TOO_BIG
    ]


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """One upstream host, two hosts behind, the proxy between the three; everybody knows everybody."""
    scene = vps(lab)
    scene.start(CONFIG)
    meet(scene)
    return scene


def meet(scene: Scene) -> None:
    """Have the hosts find each other."""
    one, _ = scene.guests.values()
    for host, address in ((scene.u, guest(1)), (scene.u, guest(2)), (one, guest(2))):
        reach(host, address)


def reach(host: Host, address: str) -> None:
    """Wait until there is a way to an address."""
    wait_for(lambda: host.ping(address, timeout=1), 20, f"a way from {host.name} to {address}")


# -- packets are left alone


def test_nd_030_packets_are_identical_from_the_ipv6_header_on(scene: Scene) -> None:
    """Hop limit, traffic class, checksum and all, in both directions and between downstreams."""
    one, other = scene.u.capture("eth0"), scene.guests[1].capture("eth0")
    assert scene.u.ping(guest(1), count=5)
    scene.guests[1].ping(guest(2))

    there = packets(one, UPSTREAM, outgoing=True)
    back = packets(other, guest(1), outgoing=True)
    assert len(there) == 5
    assert packets(other, UPSTREAM, outgoing=False) == there
    assert len(back) == 6
    assert packets(one, guest(1), outgoing=False) == back[:5]
    assert {packet[7] for packet in there} == {64}


def test_hop_limit_one_passes(scene: Scene) -> None:
    """The two sides are one link."""
    scene.u.run(["ping", "-6", "-n", "-c", "1", "-W", "2", "-t", "1", guest(1)])


def test_link_local_addresses_reach_across(scene: Scene) -> None:
    """What is never routed is relayed all the same."""
    for host in scene.guests.values():
        assert host.ping(f"{scene.u.link_local('eth0')}%eth0")
    assert scene.guests[1].ping(f"{scene.guests[2].link_local('eth0')}%eth0")


def test_multicast_reaches_all_other_ports(scene: Scene) -> None:
    """Once each, and not the port it came from."""
    captures = {name: host.capture("eth0") for name, host in (("u", scene.u), ("h2", scene.guests[2]))}
    mine = scene.guests[1].capture("eth0")
    scene.guests[1].run(["ping", "-6", "-n", "-c", "1", "-W", "1", "ff02::1%eth0"], check=False)

    source = scene.guests[1].link_local("eth0")

    def pings(capture: Capture, *, outgoing: bool) -> list[bytes]:
        """Those to all nodes: the sender's kernel reports its groups when it likes."""
        found = packets(capture, source, outgoing=outgoing)
        return [packet for packet in found if packet[24:40] == socket.inet_pton(socket.AF_INET6, "ff02::1")]

    [sent] = pings(mine, outgoing=True)
    for name, capture in captures.items():  # the sender's own kernel answered ping first
        wait_for(functools.partial(pings, capture, outgoing=False), 5, f"the packet at {name}")
    scene.guests[1].ping(guest(2), count=2)  # what was to come twice, or back, would have by now
    for capture in captures.values():
        assert pings(capture, outgoing=False) == [sent]
    assert pings(mine, outgoing=False) == []


def extended() -> dict[str, IPv6]:
    """Packets with extension headers in front of their data."""
    base = IPv6(src=UPSTREAM, dst=guest(1), hlim=3, tc=0x28, fl=0x12345)
    data = UDP(sport=9, dport=9) / Raw(bytes(range(200)))
    return {
        "hop-by-hop": base / IPv6ExtHdrHopByHop() / data,
        "destination options": base / IPv6ExtHdrDestOpt() / data,
        "routing": base / IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=0) / data,
        "first fragment": base / IPv6ExtHdrFragment(id=7, m=1) / data,
        "later fragment": base / IPv6ExtHdrFragment(id=7, offset=26, m=0) / Raw(bytes(range(100))),
        "an unknown protocol": base.__class__(bytes(base / Raw(b"?" * 60)).replace(b"\x3b", b"\xfd", 1)),
        "nothing behind": base,
    }


@pytest.mark.parametrize("name", extended())
def test_extension_headers_pass_untouched(scene: Scene, name: str) -> None:
    """A relay looks at addresses only."""
    packet = bytes(extended()[name])
    far = scene.guests[1].capture("eth0")
    header = Ether(dst=scene.p.mac("eth0"), src=scene.u.mac("eth0"), type=0x86DD)
    scene.u.inject("eth0", header / Raw(packet))

    far.wait(lambda: [frame for frame in far.frames() if frame.raw[ETHERNET:] == packet], 5, name)


def test_fragments_pass_untouched(scene: Scene) -> None:
    """A datagram of five fragments arrives whole."""
    taker = serve(scene.guests[1], COUNT, "3")
    one, other = scene.u.capture("eth0"), scene.guests[1].capture("eth0")
    data = random.Random(44).randbytes(7000)
    scene.u.run([sys.executable, "-c", f"""
import random, socket
giver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
data = random.Random(44).randbytes(7000)
for _ in range(3):
    giver.sendto(data, ({guest(1)!r}, 7000))
"""])  # fmt: skip

    assert said(taker) == f"{ {7000: 3} } {hashlib.sha256(data * 3).hexdigest()}"
    sent = packets(one, UPSTREAM, outgoing=True)
    assert len(sent) == 15
    assert packets(other, UPSTREAM, outgoing=False) == sent


# -- TCP and the offloads


ALL = (TSO, GSO, TX_CHECKSUM, SCATTER_GATHER, GRO)
OFFLOADS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "on": ("u", "eth0", ()),
    "segmentation off at the sender": ("u", "eth0", (TSO, GSO)),
    "all off at the sender": ("u", "eth0", ALL),
    "all off at the receiver": ("h1", "eth0", ALL),
    "all off at the proxy": ("p", "tap1", ALL),
}


@pytest.mark.parametrize("offloads", OFFLOADS)
@pytest.mark.parametrize(
    "octets", [50_000_000, pytest.param(1_000_000_000, marks=pytest.mark.slow)], ids=["50MB", "1GB"]
)
def test_tcp_arrives_intact(scene: Scene, offloads: str, octets: int) -> None:
    """Whatever kernels and cards do to segments on the way."""
    name, interface, commands = OFFLOADS[offloads]
    switch(scene.lab.hosts[name], interface, 0, *commands)
    serve(scene.guests[1], TAKE)
    assert said(give(scene.u, guest(1), octets)) == "intact"
    serve(scene.u, TAKE)
    assert said(give(scene.guests[1], UPSTREAM, octets // 10)) == "intact"


def test_segments_that_are_merged_on_the_way_arrive_intact(scene: Scene) -> None:
    """Receive offload at the proxy's port makes large segments of small ones, which leave as they came."""
    switch(scene.u, "eth0", 0, TSO, GSO, TX_CHECKSUM, SCATTER_GATHER)
    switch(scene.p, "eth0", 1, GRO)
    serve(scene.guests[1], TAKE)
    far = scene.guests[1].capture("eth0")
    assert said(give(scene.u, guest(1), 2_000_000)) == "intact"

    assert max(map(len, packets(far, UPSTREAM, outgoing=False))) > 1500
    assert scene.portier.count("too-big") == 0


def test_large_segments_travel_whole(scene: Scene) -> None:
    """They are cut up where they have to be, and not before."""
    serve(scene.guests[1], TAKE)
    one, other = scene.u.capture("eth0"), scene.guests[1].capture("eth0")
    assert said(give(scene.u, guest(1), 2_000_000)) == "intact"

    sent = packets(one, UPSTREAM, outgoing=True)
    assert packets(other, UPSTREAM, outgoing=False) == sent
    assert max(map(len, sent)) > 30_000


def test_udp_segments_travel_whole(scene: Scene) -> None:
    """So does what a program hands to the kernel to be cut up into datagrams (UDP_SEGMENT)."""
    taker = serve(scene.guests[1], COUNT, "220")
    scene.u.run([sys.executable, "-c", f"""
import socket, time
giver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
giver.setsockopt(socket.IPPROTO_UDP, 103, 1200)
for _ in range(20):
    giver.sendto(bytes(12_007), ({guest(1)!r}, 7000))
    time.sleep(0.01)
"""])  # fmt: skip

    assert said(taker).startswith(str({1200: 200, 7: 20}))


# -- packets that do not fit


def path_mtu(host: Host, to: str) -> int:
    """What a host has learned of the way to an address."""
    [route] = host.ip_json(f"-6 route get {to}")
    return int(next((metric["mtu"] for metric in route.get("metrics", []) if "mtu" in metric), 0))


def test_nd_042_the_path_mtu_is_learned(scene: Scene) -> None:
    """A full-size packet for a smaller link is answered with Packet Too Big, by the proxy's own address."""
    scene.p.ip("link set tap1 mtu 1400")
    scene.portier.wait_ports("eth0", "tap1", "tap2")
    capture, far = scene.u.capture("eth0"), scene.guests[1].capture("eth0")

    def learned() -> bool:
        ping = ["ping", "-6", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1452", guest(1)]
        scene.u.run(ping, check=False)
        return path_mtu(scene.u, guest(1)) == 1400

    wait_for(learned, 10, "the MTU of the path")
    frame = capture.wait(lambda: errors(capture), 5, "Packet Too Big")
    assert frame.raw[58:62] == (1400).to_bytes(4, "big")
    assert frame.source == PROXY
    assert all(len(packet) <= 1400 for packet in packets(far, UPSTREAM, outgoing=False))
    assert scene.u.ping(guest(2))


def test_tcp_finds_the_path_mtu(scene: Scene) -> None:
    """Segments whose pieces would be too large are refused, and then they are small enough."""
    scene.p.ip("link set tap1 mtu 1400")
    reach(scene.u, guest(1))
    serve(scene.guests[1], TAKE)

    assert said(give(scene.u, guest(1), 20_000_000)) == "intact"
    assert scene.portier.count("too-big") > 0


def test_nd_029_multicast_that_is_too_big(scene: Scene) -> None:
    """Those links that it fits get it, and its sender hears of the others."""
    scene.p.ip("link set tap1 mtu 1400")
    reach(scene.u, guest(1))
    group = "ff02::4389"
    takers = {number: serve(host, COUNT, "1", group) for number, host in scene.guests.items()}
    capture = scene.u.capture("eth0")
    send = f"""
import socket
giver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
giver.sendto(bytes(1452), ({group!r}, 7000, 0, socket.if_nametoindex("eth0")))
"""

    def told() -> list[Frame]:
        scene.u.run([sys.executable, "-c", send])
        return errors(capture)

    frame = wait_for(told, 10, "Packet Too Big", interval=0.2)[0]
    assert frame.raw[58:62] == (1400).to_bytes(4, "big")
    assert said(takers[2]).startswith(str({1452: 1}))
    assert said(takers[1]).startswith("{}")


# -- under load, and after


# Sends argv[3] times a packet to a new address of 2001:db8:7::/64, from argv[1] to argv[2] (link-layer).
STORM = """
import socket, sys, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0x86DD))
source, destination = (bytes.fromhex(mac.replace(":", "")) for mac in sys.argv[1:3])
header = destination + source + b"\\x86\\xdd\\x60\\0\\0\\0\\0\\x08\\x11\\x40"
me = socket.inet_pton(socket.AF_INET6, sys.argv[4])
net = socket.inet_pton(socket.AF_INET6, "2001:db8:7:0:dead::")[:10]
begun = time.monotonic()
for number in range(int(sys.argv[3])):
    link.send(header + me + net + number.to_bytes(6, "big") + bytes(8))
print(time.monotonic() - begun)
"""


def test_a_storm_for_nobody_leaves_the_others_alone(scene: Scene) -> None:
    """200,000 packets for as many addresses that do not exist, on one port: what is asked for stays within
    the limits, the other ports keep their latency, and all is as before when it ends."""
    storming = scene.guests[1]
    quiet = scene.guests[2].capture("eth0")
    args = [storming.mac("eth0"), scene.p.mac("tap1"), "200000", guest(1)]
    storm = storming.popen([sys.executable, "-c", STORM, *args], stdout=subprocess.PIPE)
    ping = scene.guests[2].ping(UPSTREAM, count=20, interval=0.05, timeout=2)
    seconds = float(said(storm))
    ended = time.monotonic()

    assert ping, ping.output
    assert sorted(ping.replies.values())[-3] < 0.05, ping.output
    assert len(quiet.solicitations(outgoing=False)) < 1500 * (seconds + 2)
    wait_for(lambda: storming.ping(UPSTREAM, timeout=1), 10, "the storming host's own traffic")
    assert time.monotonic() - ended < 5
    wait_for(lambda: scene.portier.group()["pending"] == 0, 15, "nothing is asked for any more")


def test_connections_survive_a_restart(scene: Scene) -> None:
    """Five seconds without the daemon cost a running connection five seconds, and some for its timers."""
    serve(scene.u, TAKE)
    serve(scene.guests[2], TAKE)
    sending = [
        give(scene.guests[1], UPSTREAM, 20_000_000, pause=0.01),
        give(scene.guests[1], guest(2), 20_000_000, pause=0.01),
    ]
    time.sleep(1.5)
    assert scene.portier.stop() == 0
    time.sleep(5)
    assert all(process.poll() is None for process in sending), "it ended before the outage"
    scene.portier.start()

    assert [said(process) for process in sending] == ["intact"] * 2
