"""Loop protection in mode relay: Router Advertisements, port states, packets that come back."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from portier.core import ndp
from portier.core.model import EventKind, LoopProtection, Role, Timers
from portier.core.outcome import Verdict
from tests.core.relaybook import VNET, D, E, RelayBook, U, advertised, datagram, ip, mac, port

STRICT, NESTED = LoopProtection.STRICT, LoopProtection.NESTED
DROP, OFF = LoopProtection.DROP, LoopProtection.OFF
P = 0x04
ACTIVE, WAITING, HELD = "forwarding", "waiting for RAs", "hold-down"


def strict(**group: Any) -> RelayBook:
    """A group that has just started."""
    return RelayBook(**{"loop_protection": STRICT, **group})


def running(**group: Any) -> RelayBook:
    """A group whose ports all take part: two advertisements were relayed."""
    play = strict(**group)
    play.receive(U, advertised())
    play.pass_time(4)
    assert {play.part(index) for index in (U, D, E)} == {ACTIVE}
    return play


def flags(frame: bytes) -> int:
    return frame[ndp.ICMPV6 + 5]


# -- the start -----------------------------------------------------------------------------------------


def test_nd_011_074_at_the_start_nothing_but_a_solicitation_for_routers_is_sent() -> None:
    """On the upstream alone, without link-layer option, three times, 4 s apart."""
    play = strict()
    (out,) = play.sent
    assert (out.port, out.message.type) == (U, ndp.ROUTER_SOLICITATION)
    assert (out.message.source, out.message.destination) == (ndp.UNSPECIFIED, ndp.ALL_ROUTERS)
    assert (out.to, out.by, out.message.link_layer) == (ndp.ALL_ROUTERS_MAC, play.mac_of(U), b"")
    assert len(out.packet) == 48
    play.pass_time(11)
    assert play.where() == [U, U]
    play.pass_time(100)
    assert play.sent == []


def test_nd_072_084_nothing_is_relayed_before_two_p_bit_advertisements_were_sent() -> None:
    """Neither solicitations nor data, in either direction; what waits says so."""
    play = strict()
    assert (play.part(U), play.part(D)) == (ACTIVE, WAITING)
    assert play.ns(D, 0xA, "::1") is Verdict.WAITING
    assert play.ns(U, 1, "::a") is Verdict.NOWHERE
    assert play.udp(D, 0xA, "ff02::fb") is Verdict.WAITING
    assert play.receive(U, advertised()) is Verdict.RELAYED
    play.pass_time(1)
    assert sorted(play.where()) == [D, E]
    assert {flags(out.frame) for out in play.sent} == {P}
    assert play.ns(D, 0xA, "::1") is Verdict.WAITING
    play.pass_time(2)
    assert play.part(D) == WAITING
    play.pass_time(1)
    assert sorted(play.where()) == [D, E]
    assert play.part(D) == ACTIVE
    assert play.ns(D, 0xA, "::1") is Verdict.RELAYED


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_nd_075_the_first_copy_waits_a_random_moment_and_is_repeated_after_3_s(chance: float) -> None:
    """0 to 500 ms; in service in less than 15 s, with one solicitation."""
    play = strict(random=chance)
    play.pass_time(2)
    play.receive(U, advertised())
    assert play.sent == []
    play.pass_time(chance * 0.5)
    assert sorted(play.where()) == [D, E]
    play.pass_time(2.9)
    assert play.sent == []
    play.pass_time(0.1)
    assert sorted(play.where()) == [D, E]
    assert play.part(E) == ACTIVE
    play.pass_time(100)
    assert play.sent == []


def test_a_second_advertisement_counts_before_the_repetition() -> None:
    """It is relayed at once."""
    play = strict()
    play.receive(U, advertised())
    play.pass_time(1)
    play.receive(U, advertised(2))
    assert {out.port for out in play.sent} == {D, E}
    assert play.part(D) == ACTIVE


def test_nd_073_079_an_advertisement_to_one_host_does_not_count_and_is_relayed_as_unicast() -> None:
    """With the P bit, and the port's link-layer address."""
    play = strict()
    to_one = advertised(to="::a", to_mac=play.mac_of(U))
    play.receive(U, to_one)
    play.receive(U, to_one)
    play.pass_time(0.5)
    assert play.part(D) == WAITING
    play.receive(U, advertised())
    play.pass_time(4)
    play.ns(D, 0xA, "::1")
    assert play.receive(U, to_one) is Verdict.RELAYED
    (out,) = play.sent
    assert (out.port, out.to, flags(out.frame)) == (D, mac(0xA), P)
    assert out.message.link_layer == play.mac_of(D)


def test_nd_073_a_port_that_comes_back_starts_again() -> None:
    """Its count is its own."""
    play = running()
    ports = play.ports
    play.configure(ports=ports[:2])
    play.configure(ports=ports)
    assert (play.part(D), play.part(E)) == (ACTIVE, WAITING)
    assert [out.message.type for out in play.sent] == [ndp.ROUTER_SOLICITATION]


def test_nd_009_without_a_router_forwarding_starts_12_s_after_the_first_solicitation() -> None:
    """And no earlier."""
    play = strict()
    play.pass_time(11.9)
    assert play.part(D) == WAITING
    play.pass_time(0.2)
    assert play.part(D) == ACTIVE
    play.learn(D, 0xA, "fe80::a")
    play.learn(E, 0xB, "fe80::b")
    assert play.udp(D, 0xA, "fe80::b", source="fe80::a") is Verdict.RELAYED


def test_a_router_that_comes_later_restarts_the_wait() -> None:
    """Two P-bit advertisements first."""
    play = strict()
    play.pass_time(13)
    play.receive(U, advertised())
    assert play.part(D) == WAITING
    assert play.ns(D, 0xA, "::1") is Verdict.WAITING
    play.pass_time(4)
    assert play.part(D) == ACTIVE


def test_nd_069_a_group_without_upstream_has_no_router_to_wait_for() -> None:
    """Its segments are joined at once."""
    play = strict(upstream=(), ports=(port(D), port(E)))
    assert (play.part(D), play.part(E)) == (ACTIVE, ACTIVE)
    assert play.sent == []


def test_another_upstream_is_another_link() -> None:
    """Whether it leads back to a downstream is yet to be seen."""
    play = running()
    play.configure(ports=(port(U, mac=mac(0x77)), *play.ports[1:]))
    assert (play.part(U), play.part(D)) == (ACTIVE, WAITING)


def test_nd_072_what_was_to_be_sent_of_another_link_does_not_count() -> None:
    """The upstream is replaced between the first advertisement and its repetition."""
    play = strict(random=0.0)
    play.receive(U, advertised())
    play.pass_time(0)
    assert [out.port for out in play.sent] == [D, E]
    play.configure(ports=(port(U, mac=mac(0x77)), *play.ports[1:]))
    play.pass_time(8)
    assert (play.part(D), play.part(E)) == (WAITING, WAITING)


# -- Router Advertisements -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0x00, 0xC8 | 0x03, 0x18])
def test_nd_064_065_078_the_p_bit_is_set_and_no_other(before: int) -> None:
    """The source stays the router's, the option names the port."""
    play = running()
    assert play.receive(U, advertised(flags=before)) is Verdict.RELAYED
    assert [flags(out.frame) for out in play.sent] == [before | P] * 2
    for out in play.sent:
        assert out.message.source == ip("fe80::1:1")
        assert out.message.link_layer == play.mac_of(out.port)


@pytest.mark.parametrize("bits", [0, P])
@pytest.mark.parametrize("lifetime", [0, 1800])
def test_nd_013_067_081_083_097_any_advertisement_downstream_holds_the_port_down(
    bits: int, lifetime: int
) -> None:
    """That port alone; the operator is told whose it was."""
    play = running()
    assert play.receive(D, advertised(7, flags=bits, lifetime=lifetime)) is Verdict.HOLD_DOWN
    assert (play.part(U), play.part(D), play.part(E)) == (ACTIVE, HELD, ACTIVE)
    ((kind, words),) = play.events
    assert kind is EventKind.LOOP
    assert "fe80::1:7 (02:00:00:00:00:07)" in words
    found = next(found for found in play.engine.standings(play.now) if found.ifindex == D)
    assert (found.offender, found.mac, found.left) == (ip("fe80::1:7"), mac(7), 3600)
    assert play.ns(D, 0xA, "::1") is Verdict.HOLD_DOWN
    play.ns(U, 1, "::a")
    assert play.where() == [E]
    assert play.counts(D)["hold-down"] == 2


def test_nd_066_063_a_p_bit_on_the_upstream_stops_everything_through_it() -> None:
    """Solicitations, data and advertisements."""
    play = running()
    play.learn(E, 0xB)
    assert play.receive(U, advertised(flags=P)) is Verdict.HOLD_DOWN
    assert play.part(U) == HELD
    assert play.ns(U, 1, "::a") is Verdict.HOLD_DOWN
    assert play.udp(U, 1, "::b") is Verdict.HOLD_DOWN
    assert play.receive(U, advertised()) is Verdict.HOLD_DOWN
    play.ns(D, 0xA, "::1")
    assert play.where() == [E]


def test_nd_071_a_proxy_behind_a_proxy_disables_itself_and_says_why() -> None:
    """No chaining, but in `nested`."""
    play = strict()
    play.receive(U, advertised(flags=P))
    assert "another proxy" in play.events[0][1]
    chained = strict(loop_protection=NESTED)
    assert chained.receive(U, advertised(flags=P)) is Verdict.RELAYED
    chained.pass_time(4)
    assert {chained.part(index) for index in (U, D, E)} == {ACTIVE}
    assert chained.receive(D, advertised(7, flags=P)) is Verdict.HOLD_DOWN


@pytest.mark.parametrize("policy", [STRICT, NESTED, DROP])
def test_nd_097_nobody_behind_speaks_for_the_router(policy: LoopProtection) -> None:
    """Who claims its address draws the traffic of nobody, and who redirects in its name nobody's either."""
    router = "fe80::1:1"
    play = running(loop_protection=policy)
    play.learn(E, 0xB)
    body = b"\x89" + bytes(7) + ip("::a") + ip("::a")
    redirect = ndp._frame(play.mac_of(D), mac(0xE), ip(router), ip("::b"), body)
    assert play.ns(D, 0xE, "::1", source=router) is Verdict.CLAIM
    assert EventKind.CLAIM in play.kinds()
    assert play.na(D, 0xE, flags="RO", target=router) is Verdict.CLAIM
    assert play.na(D, 0xE, "::b", target=router, source="::e") is Verdict.CLAIM
    assert play.receive(D, ndp.router_solicitation(mac(0xE), ip(router))) is Verdict.CLAIM
    assert play.receive(D, redirect) is Verdict.CLAIM
    assert play.sent == []
    assert (play.state(U, router), play.state(D, router)) == ("stale", None)
    assert play.dad(D, 0xE, router) is Verdict.RELAYED, "the router itself objects to that"


def test_off_lets_routers_be_anywhere() -> None:
    """And whoever speaks for one."""
    play = strict(loop_protection=OFF)
    play.receive(U, advertised())
    assert play.ns(D, 0xE, "::1", source="fe80::1:1") is Verdict.RELAYED


def test_nd_068_the_hold_down_restarts_with_each_advertisement_and_ends_when_there_are_none() -> None:
    """60 min after the last; then two P-bit advertisements first."""
    play = running()
    play.receive(D, advertised(7))
    play.pass_time(59 * 60)
    play.receive(D, advertised(7))
    play.pass_time(59 * 60)
    assert play.part(D) == HELD
    play.pass_time(2 * 60)
    assert play.part(D) == ACTIVE, "no router advertised itself upstream meanwhile"
    play.receive(D, advertised(7))
    play.pass_time(3600)
    assert play.part(D) == WAITING
    assert play.ns(D, 0xA, "::1") is Verdict.WAITING


def test_nd_076_a_port_that_may_serve_again_asks_for_a_router_there_first() -> None:
    """One that advertises itself rarely."""
    play = running()
    play.receive(D, advertised(7))
    play.pass_time(3600)
    asked = [out.port for out in play.sent if out.message.type == ndp.ROUTER_SOLICITATION]
    assert sorted(asked) == [U, D]
    assert play.receive(D, advertised(7)) is Verdict.HOLD_DOWN


def test_nd_070_an_upstream_that_becomes_a_downstream_stays_out_for_60_minutes() -> None:
    """There is a router on it: no swap of roles."""
    play = running()
    up, down, other = play.ports
    play.configure(ports=(up._replace(role=Role.DOWNSTREAM), down._replace(role=Role.UPSTREAM), other))
    assert play.part(U) == HELD


@pytest.mark.parametrize("change", [{"hop_limit": 64}, {"checksum": 1}])
def test_nd_080_only_valid_advertisements_count(change: dict[str, int]) -> None:
    """Anything else could be sent from far away."""
    play = running()
    frame = advertised(7, hop_limit=change.get("hop_limit", 255))
    if "checksum" in change:
        frame = frame[: ndp.ICMPV6 + 3] + bytes((frame[ndp.ICMPV6 + 3] ^ 1,)) + frame[ndp.ICMPV6 + 4 :]
    assert play.receive(D, frame) in {Verdict.BAD_HOP_LIMIT, Verdict.BAD_CHECKSUM}
    assert play.part(D) == ACTIVE


@pytest.mark.parametrize("held", [D, E])
def test_nd_067_a_known_flow_stops_at_once_when_either_of_its_ports_is_held_down(held: int) -> None:
    """Nothing goes in or out there, by the fast path or the slow one."""
    play = running()
    play.learn(D, 0xA)
    play.learn(E, 0xB)
    packet = datagram("::a", "::b")
    play.put(D, 0xA, packet)
    assert play.forward(D, 0xA, packet) is not None
    play.receive(held, advertised(7))
    assert play.forward(D, 0xA, packet) is None
    assert play.put(D, 0xA, packet) is Verdict.HOLD_DOWN
    assert play.ns(D, 0xA, "::b", unicast=True) is Verdict.HOLD_DOWN
    assert play.sent == []


def test_nd_082_on_a_port_held_down_the_proxys_own_functions_go_on() -> None:
    """What is for the proxy is heard."""
    play = running()
    play.receive(D, advertised(7))
    assert play.udp(D, 0xA, "fe80::2") is Verdict.OWN_ADDRESS
    assert play.na(D, 0xA, "fe80::2") is Verdict.HEARD
    assert play.state(D, "::a") == "reachable"


@pytest.mark.parametrize("now", [1000.0, 3103.9, 30011.7])
def test_nd_068_the_end_of_a_hold_down_comes_to_the_moment(now: float) -> None:
    """However seconds are rounded: a deadline that is due and changes nothing would be a busy loop."""
    play = running()
    play.now = now
    play.receive(D, advertised(7))
    play.now = now + 3600
    play.engine.tick(play.now)
    assert play.part(D) == WAITING


def test_hold_down_survives_a_reload_and_a_port_that_goes_and_comes_back() -> None:
    """It is remembered by interface index and link-layer address."""
    play = running()
    play.receive(D, advertised(7))
    play.pass_time(60)
    play.configure()
    assert play.part(D) == HELD
    ports = play.ports
    play.configure(ports=(ports[0], ports[2]))
    play.configure(ports=ports)
    assert play.part(D) == HELD
    found = next(found for found in play.engine.standings(play.now) if found.ifindex == D)
    assert found.left == 3540
    play.configure(group=replace(play.group, loop_protection=OFF))
    assert play.part(D) == ACTIVE


def test_hold_down_survives_a_crash() -> None:
    """The next engine of the group holds the port down for the rest of the time, for the same reason."""
    play = running()
    play.receive(D, advertised(2))
    (before,) = (told for told in play.engine.standings(play.now) if told.ifindex == D)
    play.now += 100
    play.crash()
    assert (play.part(U), play.part(D), play.part(E)) == (ACTIVE, HELD, WAITING)
    (after,) = (told for told in play.engine.standings(play.now) if told.ifindex == D)
    assert after == before._replace(left=before.left - 100)


def test_lift_ends_a_hold_down() -> None:
    """Then the port waits for two P-bit advertisements, as at the start."""
    play = running()
    play.receive(D, advertised(7))
    outcome = play.engine.lift(D, play.now)
    assert outcome.verdict is Verdict.HEARD
    assert play.part(D) == WAITING
    assert play.engine.lift(D, play.now).verdict is Verdict.NOT_HANDLED
    play.receive(U, advertised())
    play.pass_time(4)
    assert play.part(D) == ACTIVE


def test_drop_drops_and_reports_an_advertisement_from_a_downstream() -> None:
    """The port stays, and the router's own is still relayed."""
    play = running(loop_protection=DROP)
    assert play.receive(D, advertised(7)) is Verdict.ROGUE_ROUTER
    assert play.sent == []
    assert play.kinds() == {EventKind.ROUTER}
    assert play.part(D) == ACTIVE
    play.receive(U, advertised())
    assert play.where() == [D, E]


def test_off_relays_every_advertisement() -> None:
    """From wherever it comes."""
    play = RelayBook()
    assert play.receive(D, advertised()) is Verdict.RELAYED
    assert sorted(play.where()) == [U, E]


def test_another_proxys_advertisement_heard_first_means_hold_down_without_having_sent() -> None:
    """So of two side by side one survives."""
    play = strict(random=1.0)
    play.receive(U, advertised())
    assert play.receive(D, advertised(9, flags=P)) is Verdict.HOLD_DOWN
    play.pass_time(10)
    assert play.on(D) == []
    assert (play.part(D), play.part(E)) == (HELD, ACTIVE)


def test_of_two_that_sent_at_the_same_moment_the_lower_address_goes_on_once() -> None:
    """And is held down like any other if the other does not give way."""
    lower = strict(random=0.0)
    lower.receive(U, advertised())
    lower.pass_time(0)
    from_higher = relabelled(advertised(flags=P), bytes.fromhex("0200000fffff"))
    assert lower.receive(D, from_higher) is Verdict.ROGUE_ROUTER
    lower.pass_time(0.5)
    assert lower.part(D) == WAITING
    assert lower.receive(D, from_higher) is Verdict.HOLD_DOWN
    higher = strict(random=0.0)
    higher.receive(U, advertised())
    higher.pass_time(0)
    assert higher.receive(D, relabelled(advertised(flags=P), mac(2))) is Verdict.HOLD_DOWN


def test_who_sends_a_second_later_was_no_tie() -> None:
    """It has heard the first advertisement, and is no proxy that keeps to the rules."""
    lower = strict(random=0.0)
    lower.receive(U, advertised())
    lower.pass_time(1.5)
    assert lower.receive(D, relabelled(advertised(flags=P), b"\xfe" + bytes(5))) is Verdict.HOLD_DOWN


def relabelled(frame: bytes, source: bytes) -> bytes:
    return frame[:16] + source + frame[22:]


# -- two proxies on one bench ---------------------------------------------------------------------------


class Bench:
    """Two proxies between segments `up` and `down`, one host on each, and a count of the frames.

    A frame that goes out by a port is heard by everybody else on its segment; nothing is lost, and nothing
    takes time.  Each port hears its segment in order, but one port may be behind another: `seed` says how.
    """

    def __init__(
        self, *, roles: tuple[Role, Role] = (Role.UPSTREAM, Role.DOWNSTREAM), seed: int = 0, **group: Any
    ) -> None:
        self.order = random.Random(seed)
        self.proxies = []
        for number, chance in ((1, 0.2), (2, 0.6)):
            ports = tuple(
                port(
                    index,
                    mac=bytes((2, 0, 0, 0, number, index)),
                    source=ip(f"fe80::{number}:{index}"),
                    role=roles[index - 1],
                )
                for index in (U, D)
            )
            proxy = RelayBook(**{"loop_protection": STRICT, "ports": ports, "random": chance, **group})
            self.proxies.append(proxy)
        self.frames = 0
        self.heard: dict[int, list[bytes]] = {U: [], D: []}
        for proxy in self.proxies:
            self.spread([(proxy, out.port, out.frame) for out in proxy.sent])

    def spread(self, frames: list[tuple[RelayBook | None, int, bytes]]) -> None:
        """Deliver frames, and all that comes of them; a storm fails the test."""
        ahead = {
            (number, segment): deque[bytes]() for number in range(len(self.proxies)) for segment in (U, D)
        }
        for _ in range(2000):
            for sender, segment, frame in frames:
                self.frames += 1
                self.heard[segment].append(frame)
                for number, proxy in enumerate(self.proxies):
                    if proxy is not sender and (frame[10] & 1 or frame[10:16] == proxy.mac_of(segment)):
                        ahead[number, segment].append(frame)
            waiting = [place for place, queue in ahead.items() if queue]
            if not waiting:
                return
            number, segment = place = self.order.choice(waiting)
            proxy = self.proxies[number]
            proxy.receive(segment, ahead[place].popleft())
            frames = [(proxy, out.port, out.frame) for out in proxy.sent]
        pytest.fail("a storm")

    def say(self, segment: int, frame: bytes) -> None:
        """A host on a segment sends a frame."""
        self.heard = {U: [], D: []}
        self.spread([(None, segment, frame)])

    def pass_time(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass for both."""
        for _ in range(round(seconds / step)):
            for proxy in self.proxies:
                proxy.pass_time(step)
                self.spread([(proxy, out.port, out.frame) for out in proxy.sent])

    def own_stack_says(self, proxy: RelayBook, segment: int, frame: bytes) -> None:
        """The kernel of a proxy's host sends a frame."""
        self.heard = {U: [], D: []}
        proxy.receive(segment, frame)
        self.spread([(proxy, segment, frame), *((proxy, out.port, out.frame) for out in proxy.sent)])

    def copies(self, packet: bytes) -> list[int]:
        """How often a packet was heard on each segment."""
        return [sum(frame[24:] == packet[24:] for frame in self.heard[index]) for index in (U, D)]

    def working(self) -> list[RelayBook]:
        return [proxy for proxy in self.proxies if proxy.part(D) == proxy.part(U) == ACTIVE]


def multicast(host: int, number: int) -> bytes:
    octets = datagram(f"fe80::{host:x}", "ff02::fb", number)
    return VNET + b"\x33\x33\0\0\0\xfb" + mac(host) + b"\x86\xdd" + octets


def test_nd_008_063_085_of_two_proxies_in_parallel_one_survives() -> None:
    """With a router: whoever comes second is held down without having sent."""
    bench = Bench()
    bench.say(U, advertised())
    bench.pass_time(4)
    assert bench.working() == bench.proxies[:1]
    assert bench.proxies[1].part(D) == HELD
    bench.say(U, multicast(0xA, 1))
    assert len(bench.heard[D]) == 1


def test_nd_008_two_proxies_that_start_at_the_same_moment_are_not_both_held_down() -> None:
    """The link-layer addresses decide between them."""
    bench = Bench()
    for proxy in bench.proxies:
        proxy.chance = 0.5
    first, second = bench.proxies
    for proxy in bench.proxies:
        proxy.receive(U, advertised())
    sent: list[tuple[RelayBook | None, int, bytes]] = []
    for proxy in bench.proxies:
        proxy.pass_time(0.3)
        sent += [(proxy, out.port, out.frame) for out in proxy.sent]
    bench.spread(sent)
    bench.pass_time(4)
    assert bench.working() == [first]
    assert second.part(D) == HELD
    bench.say(U, advertised())
    assert first.part(D) == ACTIVE


@pytest.mark.parametrize("router", [True, False])
def test_nd_008_of_two_that_start_together_one_survives_a_hundred_times(*, router: bool) -> None:
    """Whatever their delays are, and however shortly one after the other they start."""
    chances = random.Random(1)
    for _ in range(100):
        bench = Bench()
        for proxy in bench.proxies:
            proxy.chance = chances.random()
        late = bench.proxies[chances.randrange(2)]
        late.pass_time(chances.random())
        if router:
            bench.say(U, advertised(0x70))
            bench.pass_time(4, step=0.1)
        else:
            bench.pass_time(13, step=0.5)
            for number in range(1, 9):
                bench.say(D, multicast(0xA, number))
                bench.say(U, multicast(0xB, 0x40 + number))
                bench.pass_time(2, step=0.5)
        assert len(bench.working()) == 1
        assert bench.frames < 200


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("segment", [U, D])
def test_nd_008_without_a_router_packets_that_come_back_cut_the_loop(segment: int, seed: int) -> None:
    """No storm before, each packet once on each segment after.  One gives way and never both, whether a proxy
    hears a packet first from its sender or from the other proxy."""
    bench = Bench(seed=seed)
    bench.pass_time(13)
    assert len(bench.working()) == 2
    for number in range(1, 20):
        frame = multicast(0xA, number)
        bench.say(segment, frame)
        assert sum(bench.copies(frame)) <= 3
        bench.pass_time(1, step=0.1)
    assert len(bench.working()) == 1
    frame = multicast(0xA, 99)
    bench.say(segment, frame)
    assert bench.copies(frame) == [1, 1]


@pytest.mark.parametrize("policy", LoopProtection)
def test_nd_008_what_a_proxy_says_itself_is_not_relayed_by_it_when_it_comes_back(
    policy: LoopProtection,
) -> None:
    """Its kernel's solicitations, for link-local addresses too, its own, and what it sends for others."""
    bench = Bench(loop_protection=policy)
    bench.pass_time(13)
    assert len(bench.working()) == 2
    first, _ = bench.proxies
    for segment, source in ((U, "fe80::1:1"), (D, "fe80::1:2"), (U, "::100")):
        bench.own_stack_says(
            first, segment, ndp.solicitation(first.mac_of(segment), ip(source), ip("fe80::b"))
        )
        assert [len(bench.heard[index]) for index in (U, D)] == [1, 1]
        bench.pass_time(2, step=0.1)
    to_nobody = VNET + first.mac_of(U) + mac(0xA) + b"\x86\xdd" + datagram("fe80::a", "fe80::dead")
    bench.say(U, to_nobody)
    assert [len(bench.heard[index]) for index in (U, D)] == [2, 1], "one solicitation, on both segments"


@pytest.mark.parametrize("source", ["fe80::1:1", "::"])
def test_nd_008_what_the_kernel_said_before_anybody_listened_does_not_go_round(source: str) -> None:
    """The other proxy brings it, and both take it for new."""
    bench = Bench(loop_protection=OFF)
    first, _ = bench.proxies
    octets = datagram(source, "ff02::16")
    bench.spread([(first, U, VNET + b"\x33\x33\0\0\0\x16" + first.mac_of(U) + b"\x86\xdd" + octets)])
    assert bench.frames <= 8


def test_nd_008_solicitations_do_not_storm_either() -> None:
    """Although their link-layer options differ each time; in `off` nothing is cut, and nothing storms."""
    bench = Bench(loop_protection=OFF)
    for number in range(10):
        solicitation = ndp.solicitation(mac(0xA), ip("::a"), ip("::b"))
        probe = ndp.dad_probe(mac(0xA), ip("::c"), b"nonce%d" % number)
        for segment, frame in ((U, solicitation), (U, probe), (D, advertised())):
            bench.say(segment, frame)
            assert sum(said[10] & 1 for index in (U, D) for said in bench.heard[index]) <= 3
        bench.pass_time(1, step=0.1)
    assert len(bench.working()) == 2


def test_two_hosts_that_say_the_same_from_nowhere_are_no_loop() -> None:
    """Solicitations for routers from the unspecified address, by hosts that boot together."""
    play = running()
    rs = ndp.router_solicitation(mac(0xA))
    for _ in range(10):
        play.receive(D, rs)
        assert play.receive(E, relabelled(rs, mac(0xB))) is Verdict.LOOP
        play.pass_time(4)
    assert (play.part(D), play.part(E)) == (ACTIVE, ACTIVE)


def test_two_ports_on_one_link_are_found_out() -> None:
    """What goes out by one comes in by the other, with our own link-layer address."""
    play = running()
    for number in range(3):
        frame = multicast(0xA, number)
        play.receive(D, frame)
        echo = play.on(E)[0].frame
        assert play.receive(D, echo) is Verdict.OWN_FRAME
    assert [play.part(index) for index in (D, E)].count(HELD) == 1


def test_hold_down_may_be_switched_off_by_its_length() -> None:
    """`hold_down: 0s` closes nothing."""
    play = running(timers=Timers(hold_down=0.0))
    play.receive(D, advertised(7))
    assert play.part(D) == ACTIVE


# -- words ---------------------------------------------------------------------------------------------------


def test_explain_says_that_a_host_behind_a_port_in_hold_down_is_not_reached() -> None:
    """Neither by solicitations nor by data, and so the verdict is the port's state."""
    play = running()
    play.learn(E, 0xB)
    assert play.engine.explain(ip("::b"), U, play.now).verdict is Verdict.RELAYED
    play.receive(E, advertised(7))
    found = play.engine.explain(ip("::b"), U, play.now)
    assert found.verdict is Verdict.HOLD_DOWN
    words = "\n".join(found.steps)
    assert "down1 does not take part: a Router Advertisement" in words
    assert "packets for it are dropped: down1 does not take part" in words
    assert "leave by" not in words


def test_the_routers_of_the_link_are_known() -> None:
    """Where each is, for how long it is one, and what it tells; those that stop being one are not."""
    play = running()
    (router,) = play.engine.routers(play.now)
    assert (router.address, router.port, router.mac) == (ip("fe80::1:1"), "up0", mac(1))
    assert 0 < router.lifetime <= 1800
    assert play.engine.routers(play.now + 1801) == []
