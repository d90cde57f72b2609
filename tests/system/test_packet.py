import json
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from portier.core import arp, ndp
from portier.system import packet
from portier.system.packet import MARK, PacketPort
from tests.cables import Plug, cable, ip, own_namespace

HOST = bytes.fromhex("020000000005")
STRANGER = bytes.fromhex("0200000000ff")
SOURCE = IPv6Address("fe80::5").packed
TARGET = IPv6Address("2001:db8:7::7").packed
SOURCE4, TARGET4 = bytes((192, 0, 2, 5)), bytes((192, 0, 2, 7))
HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS, ICMPV6, UDP, TCP = 0, 43, 44, 60, 58, 17, 6

ETHERNET = 14
PADDING = bytes.fromhex("0104 00000000")  # PadN, which fills an options header


def plain(frame: bytes) -> bytes:
    """A frame without the virtio-net header that the builders of core put in front."""
    return frame[ndp.VNET_HEADER :]


def ns(source_mac: bytes = HOST) -> bytes:
    return plain(ndp.solicitation(source_mac, SOURCE, TARGET))


def who_has(source_mac: bytes = HOST, to_mac: bytes = arp.BROADCAST_MAC) -> bytes:
    return plain(arp.request(source_mac, SOURCE4, TARGET4, to_mac))


def of_type(number: int) -> bytes:
    """A message of that ICMPv6 type, valid or not."""
    frame = ns()
    return frame[:54] + bytes([number]) + frame[55:]


def behind(*headers: tuple[int, bytes], last: int = ICMPV6, frame: bytes = b"") -> bytes:
    """A message with extension headers (type, and what follows the next-header field) in front."""
    frame = frame or ns()
    chain = b""
    types = [kind for kind, _ in headers] + [last]
    for (_, body), following in zip(headers, types[1:], strict=True):
        chain += bytes([following]) + body
    length = len(chain) + len(frame) - 54
    return frame[:18] + length.to_bytes(2, "big") + bytes([types[0]]) + frame[21:54] + chain + frame[54:]


def options(kind: int, units: int = 0) -> tuple[int, bytes]:
    """An extension header of ``8 + 8 * units`` octets."""
    return kind, bytes([units]) + PADDING + bytes(8 * units)


def fragment(offset: int, *, more: bool, reserved: int = 0) -> tuple[int, bytes]:
    return FRAGMENT, bytes([reserved]) + (offset << 3 | more).to_bytes(2, "big") + bytes(4)


def tagged(identifier: int, priority: int = 0) -> bytes:
    """A solicitation with a VLAN tag."""
    frame = ns()
    tag = (priority << 13 | identifier).to_bytes(2, "big")
    return frame[:12] + b"\x81\0" + tag + frame[12:]


@dataclass
class Bench:
    """A port on a cable, the other end, and sockets beside the port that send as this host does."""

    port: PacketPort
    near: Plug
    far: Plug

    def heard(self) -> list[bytes]:
        """What the port has got: the frames, from the Ethernet header on, before a sentinel."""
        sentinel = plain(ndp.solicitation(HOST, SOURCE, IPv6Address("2001:db8::e0f").packed))
        self.far.send(sentinel)
        frames: list[bytes] = []
        while sentinel not in frames:
            frame = self.port.recv()  # a veth delivers before send returns
            assert frame[: ndp.VNET_HEADER] == bytes(ndp.VNET_HEADER)
            frames.append(plain(frame))
        return frames[:-1]


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    """A bench for all the tests that leave it as it was."""
    yield from make_bench()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench that may be broken."""
    yield from make_bench()


@pytest.fixture(scope="module")
def data() -> Iterator[Bench]:
    """A bench whose port is one of mode relay."""
    yield from make_bench(data=True)


def make_bench(*, data: bool = False) -> Iterator[Bench]:
    with own_namespace():
        near, far = cable("near", "far")
        port = PacketPort(near.index, near.mac, data=data)
        yield Bench(port, near, far)
        port.close()
        near.close()
        far.close()


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "router solicitation": lambda: of_type(133),
    "router advertisement": lambda: of_type(134),
    "solicitation": ns,
    "advertisement": lambda: of_type(136),
    "redirect": lambda: of_type(137),
    "priority tag": lambda: tagged(0, priority=5),
    "hop-by-hop": lambda: behind(options(HOP_BY_HOP)),
    "destination options": lambda: behind(options(OPTIONS, 3)),
    "routing": lambda: behind(options(ROUTING, 2)),
    "four headers": lambda: behind(
        options(HOP_BY_HOP), options(OPTIONS, 1), options(ROUTING), options(OPTIONS)
    ),
    "longest header": lambda: behind(options(OPTIONS, 100)),
    "first fragment": lambda: behind(fragment(0, more=True)),
    "atomic fragment": lambda: behind(fragment(0, more=False, reserved=255)),
    "fragment behind options": lambda: behind(options(HOP_BY_HOP), fragment(0, more=True)),
    "options in a fragment": lambda: behind(fragment(0, more=True), options(OPTIONS)),
    "hop limit 64": lambda: ns()[:21] + b"\x40" + ns()[22:],
    "code 1": lambda: ns()[:55] + b"\1" + ns()[56:],
    "wrong checksum": lambda: ns()[:56] + b"\0\0" + ns()[58:],
    "truncated": lambda: ns()[:55],
    "ARP request": who_has,
    "ARP probe": lambda: plain(arp.probe(HOST, TARGET4)),
    "ARP reply": lambda: plain(arp.reply(arp.BROADCAST_MAC, HOST, HOST, SOURCE4, TARGET4)),
    "ARP of another hardware type": lambda: who_has()[:15] + b"\6" + who_has()[16:],
    "ARP of another operation": lambda: who_has()[:21] + b"\x09" + who_has()[22:],
    "short ARP": lambda: who_has()[:30],
    "ARP with a priority tag": lambda: who_has()[:12] + b"\x81\0\xa0\0" + who_has()[12:],
}


@pytest.mark.parametrize("frame", ACCEPTED.values(), ids=ACCEPTED)
def test_nd_comes_in(shared: Bench, frame: Callable[[], bytes]) -> None:
    """Every ND message and ARP packet is for the engine to judge, however it is wrapped."""
    sent = frame()
    shared.far.send(sent)

    untagged = sent[:12] + sent[16:] if sent[12:14] == b"\x81\0" else sent
    assert shared.heard() == [untagged]


REFUSED: dict[str, Callable[[], bytes]] = {
    "echo request": lambda: of_type(128),
    "MLD report": lambda: of_type(143),
    "type 132": lambda: of_type(132),
    "type 138": lambda: of_type(138),
    "UDP": lambda: behind(last=UDP),
    "TCP": lambda: behind(last=TCP),
    "UDP behind options": lambda: behind(options(HOP_BY_HOP), last=UDP),
    "echo behind options": lambda: behind(options(HOP_BY_HOP), frame=of_type(128)),
    "later fragment": lambda: behind(fragment(1, more=True)),
    "last fragment": lambda: behind(fragment(185, more=False)),
    "first fragment of UDP": lambda: behind(fragment(0, more=True), last=UDP),
    "five headers": lambda: behind(*[options(OPTIONS)] * 5),
    "header beyond the frame": lambda: behind((OPTIONS, b"\xff" + PADDING)),
    "no type": lambda: ns()[:54],
    "VLAN 7": lambda: tagged(7),
    "VLAN 4095": lambda: tagged(4095),
    "VLAN 7 in a priority tag": lambda: tagged(0)[:16] + b"\x81\0\0\7" + tagged(0)[16:],
    "IPv4": lambda: ns()[:12] + b"\x08\0" + ns()[14:],
    "RARP": lambda: ns()[:12] + b"\x80\x35" + ns()[14:],
    "ARP in VLAN 7": lambda: who_has()[:12] + b"\x81\0\0\7" + who_has()[12:],
    "ARP for another host": lambda: who_has(to_mac=STRANGER),
    "for another host": lambda: plain(ndp.solicitation(HOST, SOURCE, TARGET, STRANGER)),
}


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED)
def test_everything_else_stays_out(shared: Bench, frame: Callable[[], bytes]) -> None:
    """Data, other hosts' frames and other VLANs never wake the daemon."""
    shared.far.send(frame())

    assert shared.heard() == []


DATA = {
    name: frame
    for name, frame in (ACCEPTED | REFUSED).items()
    if not name.startswith(("VLAN", "IPv4", "for another")) and "ARP" not in name
}
DATA |= {
    "multicast": lambda: bytes.fromhex("3333000000fb") + behind(last=UDP)[6:],
    "fewer octets than an IPv6 header": lambda: ns()[:40],
    "no IPv6 in it": lambda: ns()[:14] + b"\x45" + bytes(60),
}


@pytest.mark.parametrize("frame", DATA.values(), ids=DATA)
def test_everything_ipv6_comes_in_as_data(data: Bench, frame: Callable[[], bytes]) -> None:
    """In mode relay what comes over the link is for the engine to judge, well formed or not."""
    sent = frame()
    data.far.send(sent)

    untagged = sent[:12] + sent[16:] if sent[12:14] == b"\x81\0" else sent
    assert data.heard() == [untagged]


@pytest.mark.parametrize("name", [name for name in ACCEPTED | REFUSED if name not in DATA])
def test_what_is_not_of_the_link_stays_out_as_data(data: Bench, name: str) -> None:
    """Other protocols, other hosts' frames and other VLANs are no more welcome in mode relay."""
    data.far.send((ACCEPTED | REFUSED)[name]())

    assert data.heard() == []


def test_garbage_never_comes_in_as_data(data: Bench) -> None:
    """Whatever the octets are: what comes in has the Ethertype of IPv6 and is whole."""
    generator = random.Random(4389)
    sent = []
    for number in range(500):
        frame = data.near.mac + HOST + generator.randbytes(generator.randrange(2, 200))
        if number % 2:
            frame = frame[:12] + b"\x86\xdd" + frame[14:]
        data.far.send(frame)
        if frame[12:14] == b"\x86\xdd":
            sent.append(frame)

    assert data.heard() == sent


def test_own_address_from_outside_is_cut_as_data(data: Bench) -> None:
    """A frame that bears our address but is not ours comes in as its header alone, to be counted."""
    udp = behind(last=UDP)
    data.far.send(udp[:6] + data.near.mac + udp[12:])

    assert data.heard() == [ns(data.near.mac)[:ETHERNET]]


def test_of_own_data_only_the_kernels_solicitations_are_overheard(data: Bench) -> None:
    """What this host sends, by its own stack or by Portier, is not relayed."""
    ours = ns(data.near.mac)
    beside = Plug("near", mark=MARK)
    for frame in (ours, behind(last=UDP, frame=ours)):
        data.port.send(ndp.NO_OFFLOAD + frame)
        beside.send(frame)
    beside.close()
    data.near.send(behind(last=UDP, frame=ours))
    data.near.send(behind(options(OPTIONS), frame=ours))
    data.near.send(of_type(136)[:6] + data.near.mac + of_type(136)[12:])
    data.near.send(ns(STRANGER))
    data.near.send(ours)

    assert data.heard() == [ours]


def test_unicast_to_us_comes_in(shared: Bench) -> None:
    """Neighbor unreachability detection asks by unicast."""
    probe = plain(ndp.solicitation(HOST, SOURCE, TARGET, shared.near.mac))
    shared.far.send(probe)

    assert shared.heard() == [probe]


def test_own_address_from_outside_is_cut(shared: Bench) -> None:
    """A frame that bears our address but is not ours comes in as its header alone, to be counted."""
    shared.far.send(ns(shared.near.mac))
    shared.far.send(of_type(128)[:6] + shared.near.mac + of_type(128)[12:])

    assert shared.heard() == [ns(shared.near.mac)[:ETHERNET]]


def test_own_frames_do_not_come_back(bench: Bench) -> None:
    """What the port itself sends, or another of Portier's sockets on the same link, is not heard."""
    ours = ndp.solicitation(bench.near.mac, SOURCE, TARGET)
    bench.port.send(ours)
    beside = Plug("near", mark=MARK)
    beside.send(plain(ours))
    beside.close()

    assert bench.far.receive() == plain(ours)
    assert bench.far.receive() == plain(ours)
    assert bench.heard() == []


def test_only_solicitations_of_this_host_are_overheard(shared: Bench) -> None:
    """What else the host sends is its own business, and a macvlan's solicitations are a neighbor's."""
    ours = ns(shared.near.mac)
    shared.near.send(ours[:54] + b"\x88" + ours[55:])
    shared.near.send(ns(STRANGER))
    shared.near.send(ours)

    assert shared.heard() == [ours]


def test_only_arp_requests_of_this_host_are_overheard(shared: Bench) -> None:
    """Its replies and a macvlan's requests are not for us to serve."""
    ours = who_has(shared.near.mac)
    shared.near.send(plain(arp.reply(HOST, shared.near.mac, shared.near.mac, TARGET4, SOURCE4)))
    shared.near.send(who_has(STRANGER))
    shared.near.send(ours)
    shared.port.send(ndp.NO_OFFLOAD + ours)

    assert shared.heard() == [ours]


def test_the_kernels_own_solicitation_is_overheard() -> None:
    """The host's own traffic asks through the proxy, because the kernel's solicitations are seen."""
    with own_namespace(ipv6=True):
        near, far = cable("near", "far")
        ip("addr add 2001:db8:7::1/64 dev near nodad")
        port = PacketPort(near.index, near.mac)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as app:
            app.sendto(b"hello", ("2001:db8:7::7", 9))
        frames = []
        while True:
            try:
                frames.append(port.recv())
            except BlockingIOError:
                break
        port.close()
        near.close()
        far.close()

    messages = [ndp.parse(frame) for frame in frames]
    assert TARGET in [message.target for message in messages if isinstance(message, ndp.Message)]


def test_sent_frames_arrive(bench: Bench) -> None:
    """The virtio-net header stays behind, the frame goes out as it is."""
    answer = ndp.advertisement(
        HOST, bench.near.mac, SOURCE, SOURCE, TARGET, ndp.S_FLAG | ndp.R_FLAG, bench.near.mac
    )
    assert bench.port.send(answer) == len(answer)

    assert bench.far.receive() == plain(answer)


def segment(payload: int, size: int, kind: int = 4) -> bytes:
    """A TCP segment as a local peer hands it over: to be cut into pieces of `size` octets, its checksum
    unfinished.  `kind` is that of its segmentation (linux/virtio_net.h)."""
    tcp = struct.pack("!HHIIBBHHH", 5000, 80, 1, 1, 5 << 4, 0x18, 8192, 0, 0)
    header = struct.pack("=BBHHHH", 1, kind, 74, size, 54, 16)
    ip6 = struct.pack("!IHBB", 6 << 28, len(tcp) + payload, TCP, 64) + SOURCE + TARGET
    return header + ns()[:14] + ip6 + tcp + bytes(range(256)) * (payload // 256) + bytes(payload % 256)


def with_headers(plug: Plug) -> socket.socket:
    """A socket at a plug whose frames have virtio-net headers."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(packet._SOL_PACKET, packet._PACKET_VNET_HDR, 1)
    sock.bind((plug.name, packet.ETH_P_IPV6))
    sock.settimeout(20)
    return sock


def test_a_large_segment_travels_with_its_header(data: Bench) -> None:
    """Into the buffer in one piece, with what is still to be done to it, and out again as it came."""
    buffer = bytearray(1 << 17)
    take = data.port.into(buffer)
    sent = segment(60_000, 1400)
    with with_headers(data.far) as far:
        far.send(sent)
        length = take()
        assert bytes(buffer[:length]) == sent

        buffer[10:22] = STRANGER + data.near.mac
        assert data.port.send(memoryview(buffer)[:length]) == len(sent)
        assert far.recv(1 << 17) == sent[:10] + STRANGER + data.near.mac + sent[22:]


def test_a_frame_that_is_cut_shows_its_length(data: Bench) -> None:
    """Half a frame cannot be taken for a whole one."""
    buffer = bytearray(1000)
    take = data.port.into(buffer)
    data.far.send(ns() + bytes(1200))

    assert take() == ndp.VNET_HEADER + len(ns()) + 1200
    assert buffer[ndp.VNET_HEADER :] == (ns() + bytes(1200))[: 1000 - ndp.VNET_HEADER]
    with pytest.raises(BlockingIOError):
        take()


def test_what_a_link_does_not_take_is_an_error(data: Bench) -> None:
    """A frame larger than the link, and one whose virtio-net header speaks of more than there is."""
    with pytest.raises(OSError, match="Message too long"):
        data.port.send(ndp.NO_OFFLOAD + ns() + bytes(1500))
    with pytest.raises(OSError, match="Invalid argument"):
        data.port.send(segment(3000, 1400)[:60])


def test_nothing_to_receive(shared: Bench) -> None:
    """A port never blocks."""
    with pytest.raises(BlockingIOError):
        shared.port.recv()


def test_all_multicast_ends_with_the_port(bench: Bench) -> None:
    """The kernel is as it was once the port is closed."""

    def all_multicast() -> int:
        shown = subprocess.run(
            ["ip", "-details", "-json", "link", "show", "near"], check=True, capture_output=True, timeout=20
        )
        count: int | None = json.loads(shown.stdout)[0].get("allmulti")
        if count is None:
            pytest.skip("this ip(8) does not show it")
        return count

    assert all_multicast() == 1
    bench.port.close()
    assert all_multicast() == 0


def test_drops_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the socket loses for want of a reader has a counter, which survives the socket."""
    monkeypatch.setattr(packet, "RECEIVE_BUFFER", 4096)
    port = PacketPort(bench.near.index, bench.near.mac)
    assert port.drops() == 0
    for _ in range(100):
        bench.far.send(ns())
    lost = port.drops()
    assert 0 < lost < 100
    assert port.drops() == lost  # the kernel has forgotten them, the port has not

    port.close()
    assert port.drops() == lost
    port.close()


def test_link_down_is_said_once(bench: Bench) -> None:
    """A link that goes down shows as an error, not as silence."""
    ip("link set near down")

    with pytest.raises(OSError, match="Network is down"):
        bench.port.recv()
    with pytest.raises(OSError, match="Network is down"):
        bench.port.send(ndp.solicitation(bench.near.mac, SOURCE, TARGET))


def test_gone_link(bench: Bench) -> None:
    """A link that is deleted shows as an error, and an index that is gone cannot be opened."""
    ip("link del near")

    with pytest.raises(OSError, match="Network is down"):
        bench.port.recv()
    with pytest.raises(OSError, match="No such device"):
        bench.port.send(ndp.solicitation(bench.near.mac, SOURCE, TARGET))
    with pytest.raises(OSError, match="No such device"):
        PacketPort(bench.near.index, bench.near.mac)


def test_without_root() -> None:
    """In an unprivileged user namespace a port opens all the same, with what buffer it may have."""
    program = f"""
from portier.system.packet import PacketPort
port = PacketPort(1, bytes(6))
print(port._socket.getsockopt({socket.SOL_SOCKET}, {socket.SO_RCVBUF}))
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.stderr.startswith("unshare:"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_assembler_refuses_what_cannot_be() -> None:
    """A jump that classic BPF has no room for is an error, not a filter that does something else."""
    far: list[packet.Instruction] = [("jeq", 1, "end", ""), *[("add x", 0)] * 256, "end", ("ret #k", 0)]
    with pytest.raises(ValueError, match="out of reach"):
        packet.assemble(far)
    with pytest.raises(ValueError, match="out of reach"):
        packet.assemble(["start", ("add x", 0), ("jeq", 1, "start", "")])
    with pytest.raises(KeyError):
        packet.assemble([("jeq", 1, "nowhere", "")])


def test_assembled_code() -> None:
    """Labels become distances, and an empty one means what follows."""
    code = packet.assemble([("jeq", 1, "", "out"), ("ret #k", 5), "out", ("ret #k", 0)])

    assert list(struct.iter_unpack("=HBBI", code)) == [(0x15, 0, 1, 1), (0x06, 0, 0, 5), (0x06, 0, 0, 0)]
