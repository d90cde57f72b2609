"""Hosts that an earlier process knew: asked by unicast, used only when they answer, paced."""

from __future__ import annotations

import math

from portier.core.engine import KnownHost
from portier.core.model import Answer, Limits, Rule
from portier.core.outcome import Verdict
from tests.core.playbook import LAN, NAMES, D, E, Playbook, U, ip, mac, port

ROUTER = "fe80::1:1"


def known(ifindex: int, address: str, host: int) -> KnownHost:
    return KnownHost(
        ip(address), mac(host), ifindex, bytes((2, 0, 0, 0, 0xFF, ifindex)), NAMES[ifindex], "guests"
    )


def recall(play: Playbook, *hosts: KnownHost) -> None:
    """Recall, and do what is due at once."""
    play.engine.recall(hosts, play.now)
    play.pass_time(0.0)


def test_asked_by_unicast_and_known_when_it_answers() -> None:
    """A probe to where the host was, and nothing else; no route and no entry before the answer, both with it,
    though nobody has asked for the host yet."""
    play = Playbook()
    recall(play, known(D, "::5", 5))
    (probe,) = play.sent
    assert (probe.kind, probe.port, probe.message.ether_destination) == ("PROBE", D, mac(5))
    assert play.where("::5") is None
    assert play.route("::5") is None
    play.na(D, "::5", 5)
    assert play.where("::5") == D
    assert play.route("::5") == D
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.ANSWERED


def test_who_asks_meanwhile_is_answered_with_it() -> None:
    """A solicitation while the host is being asked for is answered as soon as it answers."""
    play = Playbook()
    recall(play, known(D, "::5", 5))
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.RESOLVING
    assert [sent.port for sent in play.of("NS")] == [E], "it is asked for where it was not asked for yet"
    play.na(D, "::5", 5)
    assert [sent.port for sent in play.of("NA")] == [U]


def test_silence_makes_nobody_known() -> None:
    """Three times, then it is nobody's; who turns up elsewhere meanwhile is known there."""
    play = Playbook()
    recall(play, known(D, "::5", 5), known(D, "::6", 6))
    play.na(E, "::6", 6, flags="O")
    play.pass_time(0.9)
    assert not play.of("NS")
    assert not play.of("PROBE")
    play.pass_time(5)
    assert {sent.message.target for sent in play.sent} >= {ip("::5")}
    assert play.where("::5") is None
    assert play.where("::6") == E
    assert play.engine.pending_size() == 0
    assert not [route for route in play.kernel.host_routes if route.address == ip("::5")]


def test_what_is_no_longer_so_is_passed_over() -> None:
    """No port, no rule, a rule that denies, one that asks nobody, a host that is known: nobody is asked."""
    rules = (
        Rule(prefix=LAN),
        Rule(prefix=type(LAN)("2001:db8:7::7/128"), allow=False),
        Rule(prefix=type(LAN)("2001:db8:7::8/128"), answer=Answer.ROUTED),
    )
    play = Playbook(rules=rules)
    play.learn(D, "::5", 5)
    gone = known(D, "::9", 9)._replace(ifindex=77)
    elsewhere = known(D, "2001:db8:99::1", 9)
    recall(play, known(E, "::5", 5), known(D, "::7", 7), known(D, "::8", 8), gone, elsewhere)
    assert not play.sent
    assert play.engine.pending_size() == 0


def test_many_are_asked_one_after_the_other() -> None:
    """4,096 hosts: as many a second as there may be route changes, never more than half of `pending` at once,
    each of them with its route in the end."""
    play = Playbook(limits=Limits(per_port=4096, per_host=4096))
    hosts = [known(D, f"::1:{number:x}", number % 250 + 1) for number in range(4096)]
    play.engine.recall(hosts, play.now)
    seconds = 0
    while play.engine.table_size() < 4096:
        asked = 0
        for _ in range(10):
            play.pass_time(0.1)
            probes = play.of("PROBE")
            asked += len(probes)
            assert play.engine.pending_size() <= play.group.limits.pending // 2
            for probe in probes:
                number = int.from_bytes(probe.message.target[14:], "big")
                play.na(D, f"::1:{number:x}", number % 250 + 1)
        assert asked <= 1.1 * play.group.limits.route_changes, "eleven tenths of a second, both ends counted"
        seconds += 1
        assert seconds < 10
    assert len(play.kernel.host_routes) == 4096


def test_silent_ones_hold_up_nobody_for_long() -> None:
    """Hosts that are gone take their share of what is being asked for, for three seconds, and no more: one
    that is there comes after them, and half of `pending` stays free for who asks."""
    play = Playbook(limits=Limits(per_port=4096))
    hosts = [known(D, f"::1:{number:x}", 9) for number in range(300)]
    play.engine.recall([*hosts, known(D, "::5", 5)], play.now)
    play.pass_time(1)
    assert play.ns(U, ROUTER, "::77", 1) is Verdict.RESOLVING
    for _ in range(100):
        play.pass_time(0.1)
        for probe in play.of("PROBE"):
            if probe.message.target == ip("::5"):
                play.na(D, "::5", 5)
    assert play.where("::5") == D
    assert play.engine.pending_size() == 0


def test_the_smallest_limits_let_everybody_be_asked() -> None:
    """One at a time; and nothing is left to wait for when all were."""
    play = Playbook(limits=Limits(pending=1, resolutions=1, route_changes=1))
    play.engine.recall([known(D, f"::{number:x}", number) for number in range(1, 6)], play.now)
    play.pass_time(60)
    assert {sent.message.target for sent in play.of("PROBE")} == {ip(f"::{n:x}") for n in range(1, 6)}
    assert play.engine.deadline == math.inf


def test_what_the_kernel_has_heard_is_asked_and_known_when_it_answers() -> None:
    """As one that was known before."""
    play = Playbook()
    recall(play, known(D, "::5", 5)._replace(hearsay=True))
    assert [(sent.kind, sent.port) for sent in play.sent] == [("PROBE", D)]
    assert play.where("::5") is None
    play.na(D, "::5", 5)
    assert (play.where("::5"), play.route("::5")) == (D, D)


def test_what_the_kernel_has_heard_is_no_proof_against_an_owner() -> None:
    """In a prefix that is on-link upstream the owner there is asked at the same time, and wins; with nobody
    there the host is known after a moment."""
    play = Playbook(ports=(port(U, prefixes=(LAN,), on_link=(LAN,)), port(D), port(E)))
    hosts = [known(D, f"::{number}", number)._replace(hearsay=True) for number in (5, 6)]
    recall(play, *hosts)
    assert {(sent.kind, sent.port) for sent in play.sent} == {("PROBE", D), ("NS", U)}
    play.na(D, "::5", 5)
    play.na(U, "::5", 77)
    play.na(D, "::6", 6)
    play.pass_time(0.01)
    assert (play.where("::5"), play.route("::5")) == (U, None)
    assert (play.where("::6"), play.route("::6")) == (D, D)


def test_a_port_with_too_much_to_do_keeps_no_other_waiting() -> None:
    """Whoever floods one port does not keep the hosts of the others from being known again."""
    play = Playbook(limits=Limits(resolutions=4, per_source=1000))
    for number in range(4):
        play.ns(D, "fe80::6", f"::1:{number:x}", 6)
    recall(play, known(D, "::5", 5), known(E, "::6", 6))
    assert [(probe.port, probe.message.ether_destination) for probe in play.of("PROBE")] == [(E, mac(6))]
    play.pass_time(2)
    assert mac(5) in {probe.message.ether_destination for probe in play.of("PROBE", D)}


def test_no_more_wait_than_may_be_known() -> None:
    """A port that comes and goes, each time with other neighbors in the kernel's table, fills no memory."""
    play = Playbook(limits=Limits(neighbors=8, pending=1000))
    for round_ in range(10):
        play.engine.recall([known(D, f"::{round_:x}:{number:x}", 5) for number in range(4)], play.now)
    play.pass_time(5)
    assert len({probe.message.target for probe in play.of("PROBE", D)}) == 8
