"""What the other ports are told of hosts that are new, or newly somewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portier.core import ndp
from portier.core.model import Announce, Limits
from portier.core.outcome import RouteResult
from tests.core.playbook import D, E, Playbook, Stage, U, ip, mac, port


@pytest.fixture(autouse=True, params=[6, 4], ids="ipv{}".format)
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family in which the scene is played."""
    Stage.family = request.param
    yield request.param
    Stage.family = 6


def test_a_host_learned_is_told_once_to_the_routers_of_the_other_ports() -> None:
    """RFC 9131 section 6.1.2: O=0, to ff02::2."""
    play = Playbook()
    play.ns(D, "::5", "::1", 5)
    play.pass_time(10)

    assert sorted(sent.port for sent in play.of("NEWS")) == [U, E]
    news = play.of("NEWS", U)[0].message
    assert (news.target, news.link_layer, news.flags) == (ip("::5"), play.mac_of(U), 0)
    if Stage.family == 6:
        assert news.ether_destination == ndp.ALL_ROUTERS_MAC
        assert not play.told()


def test_nd_134_a_host_moved_is_told_three_times_a_second_apart() -> None:
    """O=1 to all nodes of the port that it has left; the others knew our own link-layer address before."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(10)
    play.ns(E, "::5", "::1", 5)
    told = []
    for seconds in (0, 0.9, 0.2, 0.7, 0.3, 10):
        play.pass_time(seconds)
        told.append([sent.port for sent in play.told()])

    assert told == [[D], [], [D], [], [D], []]


def test_an_upstream_that_comes_back_is_told_of_all_hosts_behind() -> None:
    """Its routers may have another link-layer address for them; paced, and not on the ports that stayed."""
    play = Playbook(limits=Limits(per_source=10_000, resolutions=10_000))
    for n in range(1, 101):
        play.ns(D, f"::{n:x}", "fe80::1", n)
    play.pass_time(10)
    ports = play.ports
    play.ports = ports[1:]
    play.configure()
    play.ports = ports
    play.configure()
    play.pass_time(0.1)
    first = len(play.told(U))
    assert 10 <= first <= 30
    play.pass_time(10)

    assert first + len(play.told(U)) == 300
    assert not play.told(E)


def test_another_link_layer_address_of_a_port_is_told() -> None:
    """To those who have the old one."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(10)
    play.ports = (port(U, mac=mac(99)), port(D), port(E))
    play.configure()
    play.pass_time(0)

    assert [(sent.port, sent.message.link_layer) for sent in play.told()] == [(U, mac(99))]


def test_a_host_taken_over_from_where_the_kernel_had_it_is_told_there() -> None:
    """Neighbors on that port still have its own link-layer address."""
    play = Playbook()
    play.kernel.neighbors[ip("::5")] = U
    play.ns(E, "fe80::9", "::5", 9)
    play.na(D, "::5", 5)
    play.pass_time(5)

    assert [sent.port for sent in play.told(U)] == [U, U, U]


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "while asked for"])
def test_a_host_that_tells_of_itself_has_its_word_passed_on(asked: bool) -> None:
    """It overrides what others have (RFC 4861 section 7.2.6), who may have had it beside them."""
    play = Playbook()
    if asked:
        play.ns(U, "fe80::9", "::5", 9)
    play.na(D, "::5", 5, flags="O")
    play.na(D, "::5", 5)
    play.pass_time(5)

    assert [sent.port for sent in play.told(U)] == [U, U, U]


def test_nothing_new_is_not_told() -> None:
    """Hosts that go on talking, and a reload."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(10)
    for _ in range(5):
        play.ns(D, "::5", "::1", 5)
        play.na(D, "::5", 5)
        play.configure()
        play.pass_time(1)
        assert not play.of("NEWS")
        assert not play.told()


def test_what_became_untrue_is_not_told() -> None:
    """A host that came back, and one that left."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(10)
    play.ns(E, "::5", "::1", 5)
    play.pass_time(0.5)
    play.ns(D, "::5", "::1", 5)
    play.pass_time(5)
    assert not play.told(D)

    play.ports = play.ports[:1]
    play.configure()
    play.pass_time(5)
    assert not play.told()


def test_a_port_may_go_before_it_was_told() -> None:
    """With all that it was to be told of; when it is there again, it is told of who is there then."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.learn(D, "::6", 6)
    play.pass_time(10)
    ports = play.ports
    play.ns(E, "::5", "::1", 5)
    play.ports = (ports[0], ports[2])
    play.configure()
    play.pass_time(5)
    play.ports = ports
    play.configure()
    play.pass_time(5)

    assert [sent.message.target for sent in play.told(D)] == [ip("::5")] * 3


def test_hosts_that_come_and_go_keep_nobody_from_being_told() -> None:
    """Whoever invents addresses fills its share of the table, and no more is waiting to be told."""
    limits = Limits(per_source=10_000, resolutions=10_000, route_changes=10_000, per_port=32)
    play = Playbook(limits=limits)
    for n in range(5000):
        play.ns(D, f"::{n // 250 + 1:x}:{n % 250 + 1:x}", "fe80::1", n % 200 + 20)
        play.pass_time(0.001)
    play.ns(E, "::5", "::1", 5)
    play.pass_time(0.5)

    assert ip("::5") in {sent.message.target for sent in play.of("NEWS", U)}
    assert len(play.engine._announcer) == 0


def test_nobody_is_told_of_a_host_that_has_no_route() -> None:
    """Traffic for it would go nowhere."""
    play = Playbook()
    play.kernel.result = RouteResult.FAILED
    play.ns(D, "::5", "::1", 5)
    play.pass_time(1)

    assert not play.of("NEWS")


def test_announce_false_tells_nobody() -> None:
    """Neither of new hosts nor of moves."""
    play = Playbook(announce=Announce.OFF)
    play.learn(D, "::5", 5)
    play.ns(E, "::5", "::1", 5)
    play.pass_time(5)

    assert not play.of("NEWS")
    assert not play.told()


def test_isolated_downstreams_are_not_told_of_each_other() -> None:
    """They are not answered there either."""
    play = Playbook(isolate=True)
    play.ns(D, "::5", "::1", 5)
    play.pass_time(1)

    assert [sent.port for sent in play.of("NEWS")] == [U]


def test_announce_solicit_asks_the_router_for_its_own_address() -> None:
    """From the host's: a router makes an entry of who asks it.  Where no router is known, it is the usual
    announcement."""
    play = Playbook(announce=Announce.SOLICIT)
    play.next_hops = frozenset({(ip("::1"), U), (ip("::2"), E)})
    play.configure(next_hops=frozenset({(ip("::1"), U)}))
    play.ns(D, "::5", "fe80::1", 5)
    play.pass_time(1)
    (asked,) = play.of("NS")

    assert asked.port == U
    assert (asked.message.source, asked.message.target) == (ip("::5"), ip("::1"))
    assert asked.message.link_layer == play.mac_of(U)
    assert [sent.port for sent in play.of("NEWS")] == [E]


def test_a_port_that_leaves_is_told_nothing() -> None:
    """What was still to be told there is forgotten, and harms nobody when its time comes."""
    play = Playbook()
    for number in range(1, 9):
        play.na(D, f"::{number}", number, flags="O")  # told one after the other
    play.ports = tuple(this for this in play.ports if this.ifindex != E)
    play.configure()
    play.pass_time(2.0)
    assert E not in {sent.port for sent in play.sent}
