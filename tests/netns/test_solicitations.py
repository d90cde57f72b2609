"""Every kind of solicitation, frame by frame: what is answered and how, and what never is.

The rows are those in which the proxies of today fail: unicast probes, DAD, and whatever RFC 4861
section 7.1 says to discard.  All tests share one lab; each uses targets of its own where it must not
know what another did.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.netns.lab import Capture, Lab, multicast_mac, solicited_node, wait_for
from tests.netns.scenes import (
    NET,
    UPSTREAM,
    Scene,
    assert_answer,
    assert_defence,
    assert_question,
    config,
    fence,
    guest,
    octets,
    solicit,
    vps,
)

# What is announced unasked is left out: it would stand among the answers.
LIMITS = "announce: false\nlimits: {per_source: 1000}\ntimers: {retransmit: 200ms, negative: 2s}"
FRESH = itertools.count(0x1000)


def fresh() -> str:
    """An address that nobody has and nobody was asked for yet."""
    return f"{NET}{next(FRESH):x}"


@dataclass
class Bench:
    """The scene with everything captured: in front of the proxy, and behind each port."""

    scene: Scene
    front: Capture
    behind: dict[int, Capture]

    def clear(self) -> None:
        """Start with empty captures."""
        for capture in (self.front, *self.behind.values()):
            capture.clear()

    def ask(self, frame: Packet | bytes) -> None:
        """Send a frame from the upstream host."""
        self.scene.u.inject("eth0", frame)

    def know(self, number: int) -> None:
        """Make a guest known to the proxy."""
        fence(self.scene, self.front, guest(number))
        self.clear()


@pytest.fixture(scope="module")
def shared(shared_lab: Lab) -> Bench:
    """The scene of this module: guests 1 and 2 are hosts, 3 is a router; the daemon resolves."""
    scene = vps(shared_lab, guests=3)
    scene.guests[3].sysctl("net/ipv6/conf/all/forwarding", 1)
    scene.start(config(extra=LIMITS))
    behind = {number: host.capture("eth0") for number, host in scene.guests.items()}
    return Bench(scene, scene.u.capture("eth0"), behind)


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """The shared scene, nothing captured yet; afterwards the daemon runs still."""
    shared.clear()
    yield shared
    assert shared.scene.portier.running, shared.scene.portier.tail()


# -- what is answered --------------------------------------------------------------------------------


def test_multicast_for_an_unknown_host(bench: Bench) -> None:
    """Cold: asked for on every other port, and answered when the host answers."""
    scene = bench.scene
    address = fresh()
    scene.guests[1].add("eth0", f"{address}/64")
    bench.ask(solicit(scene.u, address))
    answer = bench.front.wait_advertisement(address, outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=address)
    for number in scene.guests:
        question = bench.behind[number].wait_solicitation(address, outgoing=False)
        assert_question(question, port=(scene.p, f"tap{number}"), target=address)


def test_multicast_for_a_known_host(bench: Bench) -> None:
    """Warm: answered at once, and nobody is asked again."""
    scene = bench.scene
    bench.know(1)
    bench.ask(solicit(scene.u, guest(1)))
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))
    assert not bench.behind[2].solicitations(guest(1))


def test_router_flag_is_the_owners(bench: Bench) -> None:
    """The R flag is what the owner shows: a router's is set, a host's is not (RFC 4861 section 7.2.5)."""
    scene = bench.scene
    bench.ask(solicit(scene.u, guest(3)))
    answer = bench.front.wait_advertisement(guest(3), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(3), router=True)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("source", [None, UPSTREAM], ids=["link-local", "global"])
def test_unicast(bench: Bench, source: str | None, known: bool) -> None:
    """The probe of Neighbor Unreachability Detection, sent to the target itself, is answered like any."""
    scene = bench.scene
    target = guest(1)
    if known:
        bench.know(1)
    else:
        target = fresh()
        scene.guests[1].add("eth0", f"{target}/64")
    bench.ask(solicit(scene.u, target, source=source, to_mac=scene.p.mac("eth0")))
    answer = bench.front.wait_advertisement(target, outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=target, to=source)


@pytest.mark.parametrize("unicast", [False, True], ids=["multicast", "unicast"])
def test_without_link_layer_option(bench: Bench, unicast: bool) -> None:
    """The option may be missing (RFC 4861 section 4.3): the answer finds the asker all the same."""
    scene = bench.scene
    bench.know(1)
    to = scene.p.mac("eth0") if unicast else None
    bench.ask(solicit(scene.u, guest(1), option=False, to_mac=to))
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))


def test_from_a_guest_for_an_upstream_host(bench: Bench) -> None:
    """The other direction: a guest asks for a host upstream, and is answered on its port."""
    scene = bench.scene
    bench.scene.guests[2].inject("eth0", solicit(scene.guests[2], UPSTREAM))
    answer = bench.behind[2].wait_advertisement(UPSTREAM, outgoing=False)
    assert_answer(answer, asker=scene.guests[2], port=(scene.p, "tap2"), target=UPSTREAM)


def test_unknown_options_and_reserved_bits_are_ignored(bench: Bench) -> None:
    """Reserved fields and unknown options do not matter, wherever they stand (RFC 4861 section 4.6)."""
    scene = bench.scene
    bench.know(1)
    odd = solicit(scene.u, guest(1), option=False, res=0xFFFFFFFF)
    mac = scene.u.mac("eth0")
    bench.ask(odd / ICMPv6NDOptUnknown(type=250, len=1, data=b"\1" * 6) / ICMPv6NDOptSrcLLAddr(lladdr=mac))
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))


def test_multicast_in_a_unicast_frame(bench: Bench) -> None:
    """An IPv6 multicast in a frame to the proxy itself is taken (RFC 6085 section 3)."""
    scene = bench.scene
    bench.know(1)
    frame = solicit(scene.u, guest(1))
    frame[Ether].dst = scene.p.mac("eth0")
    bench.ask(frame)
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))


def test_dad_for_a_known_address_is_defended(bench: Bench) -> None:
    """A DAD probe for a guest's address is answered to all nodes, not solicited, within the second."""
    scene = bench.scene
    bench.know(1)
    bench.ask(solicit(scene.u, guest(1), source="::", mac="02:00:00:00:99:01"))
    probe = bench.front.wait_solicitation(guest(1), outgoing=True)
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert answer.time - probe.time < 1
    assert_defence(answer, port=(scene.p, "eth0"), target=guest(1))
    assert answer.raw[0:6] in (octets(multicast_mac("ff02::1")), octets("02:00:00:00:99:01"))


def test_dad_for_a_free_address_is_relayed_unchanged(bench: Bench) -> None:
    """A DAD probe nobody objects to crosses to the other ports, all but the Ethernet header as it was,
    never back, and is not answered."""
    scene = bench.scene
    target = fresh()
    probe = solicit(scene.u, target, source="::", mac="02:00:00:00:99:02")
    bench.ask(probe)
    for number, capture in bench.behind.items():
        relayed = capture.wait_solicitation(target, outgoing=False)
        assert relayed.raw[14:] == bytes(probe)[14:]
        assert relayed.raw[:6] == bytes(probe)[:6]
        assert relayed.raw[6:12] == octets(scene.p.mac(f"tap{number}"))
    fence(scene, bench.front, guest(1))
    assert not bench.front.solicitations(target, outgoing=False)
    assert not bench.front.advertisements(target)


# -- what is not -------------------------------------------------------------------------------------


def test_target_that_does_not_exist(bench: Bench) -> None:
    """Asked for as often as the retries say, then silence; and not asked again within `negative`."""
    scene = bench.scene
    target = fresh()
    bench.ask(solicit(scene.u, target))
    wait_for(lambda: len(bench.behind[1].solicitations(target, outgoing=False)) == 3, 5, "three questions")
    questions = bench.behind[1].solicitations(target, outgoing=False)
    assert questions[1].time - questions[0].time == pytest.approx(0.2, abs=0.15)
    wait_for(lambda: scene.portier.group()["pending"] == 0, 5, "given up")
    before = scene.portier.count("nobody-there")
    bench.ask(solicit(scene.u, target))
    fence(scene, bench.front, guest(1))
    assert scene.portier.count("nobody-there") == before + 1
    assert len(bench.behind[1].solicitations(target, outgoing=False)) == 3
    assert not bench.front.advertisements(target)


def with_bad_checksum(frame: Packet) -> bytes:
    """The same frame, its ICMPv6 checksum off by one bit."""
    raw = bytearray(bytes(frame))
    raw[57] ^= 1
    return bytes(raw)


def shortened(frame: Packet, octets_less: int) -> bytes:
    """The same frame cut at its end, the header still promising the whole."""
    return bytes(frame)[:-octets_less]


def with_option(scene: Scene, target: str, kind: int, length: int) -> Packet:
    """A solicitation with an option of eight bytes that says it has another length."""
    return solicit(scene.u, target, option=False) / Raw(bytes([kind, length]) + bytes(6))


def fragmented(scene: Scene, target: str) -> Packet:
    """A solicitation in a single fragment (RFC 6980 section 5)."""
    whole = solicit(scene.u, target)
    return Ether(src=whole.src, dst=whole.dst) / IPv6(
        src=whole[IPv6].src, dst=whole[IPv6].dst, hlim=255
    ) / IPv6ExtHdrFragment(nh=58, id=7) / Raw(bytes(whole[ICMPv6ND_NS]))  # fmt: skip


BAD: dict[str, tuple[str, Callable[[Scene, str], Packet | bytes]]] = {
    "hop limit 64": ("bad-hop-limit", lambda s, t: solicit(s.u, t, hlim=64)),
    "hop limit 254": ("bad-hop-limit", lambda s, t: solicit(s.u, t, hlim=254)),
    "wrong checksum": ("bad-checksum", lambda s, t: with_bad_checksum(solicit(s.u, t))),
    "checksum zero": ("bad-checksum", lambda s, t: solicit(s.u, t, cksum=0)),
    "code 1": ("bad-code", lambda s, t: solicit(s.u, t, code=1)),
    "truncated in the target": ("truncated", lambda s, t: shortened(solicit(s.u, t, option=False), 1)),
    "truncated in the option": ("truncated", lambda s, t: shortened(solicit(s.u, t), 3)),
    "shorter than a solicitation": (
        "truncated",
        lambda s, t: solicit(s.u, t, option=False, plen=23),
    ),
    "option of length zero": ("bad-option", lambda s, t: with_option(s, t, 1, 0)),
    "unknown option of length zero": ("bad-option", lambda s, t: with_option(s, t, 250, 0)),
    "option past the end": ("bad-option", lambda s, t: with_option(s, t, 1, 4)),
    "DAD with link-layer option": (
        "bad-option",
        lambda s, t: solicit(s.u, t, source="::") / ICMPv6NDOptSrcLLAddr(lladdr=s.u.mac("eth0")),
    ),
    "DAD to all nodes": ("bad-destination", lambda s, t: solicit(s.u, t, source="::", dst="ff02::1")),
    "DAD by unicast": (
        "bad-destination",
        lambda s, t: solicit(s.u, t, source="::", to_mac=s.p.mac("eth0")),
    ),
    "multicast source": ("bad-source", lambda s, t: solicit(s.u, t, source="ff02::1")),
    "fragmented": ("fragmented", fragmented),
}


@pytest.mark.parametrize(
    ("name", "known"),
    # The kernel forwards a unicast for an unknown host as any packet, and asks for the host itself.
    [(name, known) for name in BAD for known in (True, False) if known or name != "DAD by unicast"],
)
def test_invalid(bench: Bench, name: str, known: bool) -> None:
    """What RFC 4861 section 7.1.1 and RFC 6980 say to discard has no effect at all, and is counted."""
    scene = bench.scene
    verdict, make = BAD[name]
    if known:
        bench.know(1)
    target = guest(1) if known else fresh()
    before = scene.portier.counters()
    bench.ask(make(scene, target))
    fence(scene, bench.front, guest(2))
    assert not bench.front.advertisements(target, outgoing=False)
    for capture in bench.behind.values():
        assert not capture.solicitations(target)
    after = scene.portier.counters()
    changed = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert changed.get(verdict) == 1, changed


@pytest.mark.parametrize("target", ["ff02::1", "ff02::1:ff00:11", "ff0e::1"])
def test_multicast_target(bench: Bench, target: str) -> None:
    """A target that is multicast is invalid (RFC 4861 section 7.1.1)."""
    scene = bench.scene
    before = scene.portier.count("bad-target")
    bench.ask(solicit(scene.u, target))
    fence(scene, bench.front, guest(2))
    assert scene.portier.count("bad-target") == before + 1
    assert not bench.front.advertisements(target)
    assert not any(capture.solicitations(target) for capture in bench.behind.values())


def test_behind_an_extension_header(bench: Bench) -> None:
    """A whole solicitation behind an extension header is valid; whatever is made of it is sound."""
    scene = bench.scene
    bench.know(1)
    whole = solicit(scene.u, guest(1))
    plain = bytes(whole[ICMPv6ND_NS])
    bench.ask(
        Ether(src=whole.src, dst=whole.dst)
        / IPv6(src=whole[IPv6].src, dst=whole[IPv6].dst, hlim=255)
        / IPv6ExtHdrDestOpt(nh=58)
        / Raw(plain)
    )
    fence(scene, bench.front, guest(2))
    for answer in bench.front.advertisements(guest(1), outgoing=False):
        assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))


def test_frame_for_somebody_else(bench: Bench) -> None:
    """A unicast frame to another host, as a flooding switch delivers it, is none of ours."""
    scene = bench.scene
    bench.know(1)
    bench.ask(solicit(scene.u, guest(1), to_mac="02:00:00:00:99:99"))
    fence(scene, bench.front, guest(2))
    assert not bench.front.advertisements(guest(1), outgoing=False)


@pytest.mark.parametrize(("vlan", "answered"), [(0, True), (7, False)], ids=["priority", "vlan 7"])
def test_tagged(bench: Bench, vlan: int, answered: bool) -> None:
    """Frames of a VLAN belong to the VLAN's interface; a tag with VLAN 0 only carries a priority."""
    scene = bench.scene
    bench.know(1)
    whole = solicit(scene.u, guest(1))
    bench.ask(Ether(src=whole.src, dst=whole.dst) / Dot1Q(vlan=vlan, prio=5) / whole[IPv6])
    fence(scene, bench.front, guest(2))
    assert bool(bench.front.advertisements(guest(1), outgoing=False)) is answered


def test_frame_with_the_proxys_own_address(bench: Bench) -> None:
    """A frame from outside that bears the port's own link-layer address is never acted upon."""
    scene = bench.scene
    bench.know(1)
    before = scene.portier.count("own-frame")
    bench.ask(solicit(scene.u, guest(1), mac=scene.p.mac("eth0")))
    fence(scene, bench.front, guest(2))
    assert not bench.front.advertisements(guest(1), outgoing=False)
    assert scene.portier.count("own-frame") == before + 1


def test_link_local_target(bench: Bench) -> None:
    """Each link keeps its own link-local addresses in mode route."""
    scene = bench.scene
    before = scene.portier.count("link-local-target")
    bench.ask(solicit(scene.u, "fe80::1234"))
    fence(scene, bench.front, guest(2))
    assert scene.portier.count("link-local-target") == before + 1
    assert not any(capture.solicitations("fe80::1234") for capture in bench.behind.values())


def test_own_address_is_the_kernels(bench: Bench) -> None:
    """The proxy's own address where it lives: the kernel answers, Portier does not answer as well."""
    scene = bench.scene
    own = f"{NET}2"
    bench.ask(solicit(scene.u, own))
    bench.front.wait_advertisement(own, outgoing=False)
    fence(scene, bench.front, guest(2))
    assert len(bench.front.advertisements(own, outgoing=False)) == 1


def test_own_address_on_another_port(bench: Bench) -> None:
    """The proxy's upstream address, asked for on a downstream port: answered by Portier, as a router's."""
    scene = bench.scene
    own = f"{NET}2"
    scene.guests[1].inject("eth0", solicit(scene.guests[1], own))
    answer = bench.behind[1].wait_advertisement(own, outgoing=False)
    assert answer.raw[58] & 0x40
    assert answer.source == scene.p.link_local("tap1")


def test_group_of_another_target(bench: Bench) -> None:
    """The destination is not what decides: a target in the group of another is served (ND-108)."""
    scene = bench.scene
    bench.know(1)
    frame = solicit(scene.u, guest(1), dst=solicited_node(guest(2)))
    bench.ask(frame)
    answer = bench.front.wait_advertisement(guest(1), outgoing=False)
    assert_answer(answer, asker=scene.u, port=(scene.p, "eth0"), target=guest(1))


def test_kernel_stays_quiet(bench: Bench) -> None:
    """The proxy's kernel adds nothing to a unicast probe from a link-local address: no redirect, no error,
    no copy with a lower hop limit."""
    scene = bench.scene
    bench.know(1)
    bench.ask(solicit(scene.u, guest(1), to_mac=scene.p.mac("eth0")))
    scene.guests[1].inject("eth0", solicit(scene.guests[1], UPSTREAM, to_mac=scene.p.mac("tap1")))
    bench.behind[1].wait_advertisement(UPSTREAM, outgoing=False)
    fence(scene, bench.front, guest(2))
    for capture in (bench.front, *bench.behind.values()):
        for frame in capture.frames():
            if len(frame.raw) < 62 or frame.raw[12:14] != b"\x86\xdd" or frame.raw[20] != 58:
                continue
            assert frame.raw[54] not in (1, 2, 3, 4, 137), frame.packet.summary()
            if frame.raw[54] in (135, 136):
                assert frame.raw[21] == 255, frame.packet.summary()


def test_nothing_else_was_sent(bench: Bench) -> None:
    """An address no rule allows gets neither answer nor question."""
    scene = bench.scene
    target = "2001:db8:ffff::1"
    before = scene.portier.count("no-rule")
    bench.ask(solicit(scene.u, target))
    fence(scene, bench.front, guest(2))
    assert scene.portier.count("no-rule") == before + 1
    assert not any(capture.nd(target=target) for capture in bench.behind.values())
    assert not bench.front.advertisements(str(ipaddress.ip_address(target)))
