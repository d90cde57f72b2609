"""What ARP has of its own in the engine for mode route; what both families have is in test_route.py."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from portier.core import arp
from portier.core.model import Answer, EventKind, Live, Rule
from portier.core.outcome import Verdict
from tests.core.playbook import LAN, D, E, Playbook, Stage, U, ip, mac, net, port

ROUTER = "fe80::1:1"  # an address that no rule allows; see playbook.translated
SUBNET = IPv4Network("10.0.0.0/8")


@pytest.fixture(autouse=True, scope="module")
def family() -> Iterator[None]:
    """Everything here is IPv4."""
    Stage.family = 4
    yield
    Stage.family = 6


def flat(**group: Any) -> Playbook:
    """One /8 that is on-link upstream."""
    return Playbook(ports=(port(U, prefixes=(LAN,), on_link=(LAN,)), port(D), port(E)), **group)


def sent(play: Playbook, ifindex: int, frame: bytes) -> list[arp.Message]:
    """What goes out because of a frame, as ARP."""
    outcome = play.engine.receive(ifindex, frame, play.now)
    messages = [arp.parse(out) for _, out in outcome.sends]
    assert all(isinstance(message, arp.Message) for message in messages)
    return messages  # type: ignore[return-value]


# -- answers -------------------------------------------------------------------------------------------------


def test_nd_239_and_nd_251_an_answer_goes_to_the_asker_alone_and_names_it() -> None:
    """On the long way and in the shortcut; the sender is who was asked for, never the proxy."""
    play = Playbook()
    play.learn(D, "::5", 5)
    for _ in range(2):
        (answer,) = sent(play, U, arp.request(mac(1), ip(ROUTER), ip("::5")))
        assert answer == arp.Message(
            arp.REPLY, mac(1), play.mac_of(U), play.mac_of(U), ip("::5"), mac(1), ip(ROUTER), proxied=True
        )


def test_nd_238_a_question_has_the_ports_own_link_layer_address() -> None:
    """Asked in the proxy's name, so that the answer comes back to it."""
    play = Playbook()
    asked = sent(play, U, arp.request(mac(1), ip(ROUTER), ip("::5")))

    assert [(message.sender_mac, message.sender) for message in asked] == [
        (play.mac_of(this), IPv4Address(f"10.255.0.{this}").packed) for this in (D, E)
    ]


def test_nd_236_and_nd_237_nobody_is_answered_for_before_it_has_answered() -> None:
    """One that is gone gets nobody an answer; one that answers is learned before that is passed on."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    assert not play.of("NA")
    play.na(D, "::5", 5)
    assert play.route("::5") == D
    assert [answer.port for answer in play.of("NA")] == [U]


def test_nd_243_an_announcement_is_never_answered() -> None:
    """Not by `always`, not in the shortcut, not of one's own address nor of one that is not allowed."""
    rules = (Rule(prefix=LAN, answer=Answer.ALWAYS, downstream=("down0",)),)
    play = Playbook(ports=(port(U), port(D, prefixes=(LAN,), on_link=(LAN,)), port(E)), rules=rules)
    assert play.ns(U, "::7", "::5", 1) is Verdict.ANSWERED
    for _ in range(2):
        play.receive(U, arp.request(mac(1), ip("::7"), ip("::7")))
        assert not play.of("NA")
        play.receive(U, arp.request(mac(1), ip(ROUTER), ip(ROUTER)))
        assert not play.of("NA")


def test_nd_245_no_answer_for_a_host_on_the_askers_own_link() -> None:
    """Known or not."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.ns(D, ROUTER, "::5", 1) is Verdict.SAME_PORT
    play.ns(D, ROUTER, "::6", 1)
    play.na(D, "::6", 6)
    assert not play.of("NA")


def test_nd_246_askers_says_who_is_answered() -> None:
    """A router may ask from outside the subnet, as providers' do; `askers` refuses whoever should not."""
    play = Playbook()
    play.learn(D, "::5", 5)
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.ANSWERED

    play = Playbook(rules=(Rule(prefix=LAN, askers=(SUBNET,)),))
    play.na(D, "::5", 5)
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.ASKER_REFUSED


@pytest.mark.parametrize(
    ("address", "verdict"),
    [
        ("10.0.0.0", Verdict.BROADCAST),
        ("10.255.255.255", Verdict.BROADCAST),
        ("255.255.255.255", Verdict.BAD_TARGET),
        ("224.0.0.1", Verdict.BAD_TARGET),
        ("127.0.0.1", Verdict.BAD_TARGET),
    ],
)
@pytest.mark.parametrize("answer", [Answer.RESOLVE, Answer.ALWAYS, Answer.ROUTED])
def test_nd_247_no_answer_for_addresses_that_are_no_hosts(
    address: str, verdict: Verdict, answer: Answer
) -> None:
    """Nor is anybody learned by them."""
    play = flat(rules=(Rule(prefix=LAN, answer=answer),))
    target = IPv4Address(address).packed
    for _ in range(2):
        assert play.receive(U, arp.request(mac(1), ip("::1"), target)) is verdict
        assert not play.of("NA")
        assert not play.of("NS")
    play.receive(D, arp.request(mac(5), target, ip("::1")))
    play.receive(D, arp.probe(mac(5), target))
    play.pass_time(2)
    assert target not in {info.address for info in play.engine.neighbors(play.now)}


def test_upstream_ipv4_stands_for_the_upstreams_prefixes() -> None:
    """Followed live."""
    play = Playbook(rules=(Rule(prefix=Live.UPSTREAM_IPV4),))
    play.learn(D, "::5", 5)
    play.configure(live=())

    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NO_RULE


# -- what a port asks from -----------------------------------------------------------------------------------


def test_a_port_without_ipv4_address_borrows_the_upstreams() -> None:
    """0.0.0.0 is for probes alone."""
    play = Playbook(ports=(port(U), port(D, source4=None), port(E)))
    asked = sent(play, U, arp.request(mac(1), ip(ROUTER), ip("::5")))

    assert [message.sender for message in asked] == [
        IPv4Address(f"10.255.0.{this}").packed for this in (U, E)
    ]


def test_without_any_ipv4_address_nobody_is_asked_but_probes_go_on() -> None:
    """And what is known without asking is answered."""
    ports = tuple(port(this, source4=None) for this in (U, D, E))
    play = Playbook(ports=ports, rules=(Rule(prefix=LAN, answer=Answer.ROUTED),))
    play.kernel.routes = {ip("::5"): D}
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.ANSWERED

    play = Playbook(ports=ports)
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NOWHERE
    assert play.dad(D, "::7", 7) is Verdict.RELAYED


# -- learning ------------------------------------------------------------------------------------------------


def test_nd_240_requests_and_replies_teach_and_nd_241_probes_do_not() -> None:
    """RFC 826 takes note of the sender whatever he wants; 0.0.0.0 is nobody."""
    play = Playbook()
    play.ns(D, "::5", "::1", 5)
    assert play.where("::5") == D
    play.na(D, "::6", 6)
    assert play.where("::6") == D
    play.dad(D, "::7", 7)
    assert play.where("::7") is None
    assert all(any(info.address) for info in play.engine.neighbors(play.now))


def test_nd_249_an_unknown_address_is_asked_for_once_a_second() -> None:
    """Whoever floods."""
    play = Playbook()
    asked = 0
    for n in range(100):
        play.ns(U, ROUTER, "::5", 1 + n % 5)
        asked += len(play.of("NS", D))
        play.pass_time(0.01)
        asked += len(play.of("NS", D))

    assert 1 <= asked <= 2


def test_a_gratuitous_reply_is_followed_like_an_announcement() -> None:
    """As `arping -A` sends it."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.receive(E, arp.reply(arp.BROADCAST_MAC, mac(5), mac(5), ip("::5"), ip("::5")))

    assert (play.where("::5"), play.route("::5")) == (E, E)


# -- address conflict detection ------------------------------------------------------------------------------


def test_nd_242_a_probe_goes_to_the_other_ports_as_a_probe_and_never_back() -> None:
    """From the port's own link-layer address (ND-238), by broadcast."""
    play = Playbook()
    outcome = play.engine.receive(D, arp.probe(mac(5), ip("::5")), play.now)

    assert {ifindex for ifindex, _ in outcome.sends} == {U, E}
    for ifindex, frame in outcome.sends:
        assert frame == arp.probe(play.mac_of(ifindex), ip("::5"))


def test_an_objection_goes_to_the_one_who_probes_alone() -> None:
    """RFC 5227 section 2.6 is against broadcast replies."""
    play = Playbook()
    play.dad(D, "::5", 55)
    (defence,) = sent(play, U, arp.request(mac(5), ip("::5"), ip("::5")))

    assert defence == arp.Message(
        arp.REPLY, mac(55), play.mac_of(D), play.mac_of(D), ip("::5"), mac(55), bytes(4), proxied=True
    )


def test_nd_255_every_probe_of_a_host_that_is_not_proven_goes_on() -> None:
    """It probes three times, because frames get lost; the objection to the last counts too."""
    play = Playbook()
    for _ in range(3):
        play.dad(D, "::5", 55)
        assert {relayed.port for relayed in play.of("DAD")} == {U, E}
        play.pass_time(1.5)
    play.dad(D, "::5", 55)
    play.na(U, "::5", 5, flags="O")
    assert [defence.port for defence in play.of("NA")] == [D]
    play.pass_time(2)

    assert play.where("::5") == U


def test_nd_250_own_addresses_are_defended_once_in_ten_seconds() -> None:
    """Against one who announces them all the time, on any port."""
    play = Playbook(ports=(port(U, addresses=(ip("::2"),)), port(D), port(E)))
    defences = []
    for _ in range(25):
        assert play.receive(D, arp.request(mac(66), ip("::2"), ip("::2"))) is Verdict.CLAIM
        defences += play.told(D)
        play.pass_time(1)

    assert len(defences) == 3
    assert defences[0].message.link_layer == play.mac_of(D)
    assert defences[0].message.ether_destination == arp.BROADCAST_MAC


def test_who_takes_a_hosts_address_without_asking_is_told() -> None:
    """As soon as the owner has answered, on the port of the newcomer; not where both are on one port."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.na(E, "::5", 66, flags="O")
    assert not play.told()
    play.na(D, "::5", 5)
    assert [told.port for told in play.told()] == [E]
    assert EventKind.CONFLICT in play.kinds()

    play.na(D, "::5", 66, flags="O")
    play.na(D, "::5", 5)
    assert not play.told()


def test_probes_for_what_the_kernel_answers_are_defended_here() -> None:
    """A proxy entry is silent to 0.0.0.0 in IPv4, and speaks in IPv6; never where the host itself is."""
    rule = Rule(prefix=net(LAN.__class__("2001:db8:7::5/128")), answer=Answer.KERNEL, downstream=("down0",))
    play = Playbook(rules=(rule,))

    assert play.ns(U, ROUTER, "::5", 1) is Verdict.KERNEL
    assert play.dad(U, "::5", 66) is Verdict.DEFENDED
    assert play.dad(D, "::5", 5) is Verdict.KERNEL
    assert play.na(D, "::5", 5) is Verdict.NOT_HANDLED
    assert play.engine.table_size() == 0


def test_explain_tells_where_the_kernel_has_an_entry_and_is_silent() -> None:
    """With ARP it answers only for what it routes to another interface than the asker's."""
    rule = Rule(prefix=net(LAN.__class__("2001:db8:7::5/128")), answer=Answer.KERNEL, downstream=("down0",))
    play = Playbook(rules=(rule,))
    for out, verdict in ((D, Verdict.KERNEL), (U, Verdict.NO_ROUTE), (0, Verdict.NO_ROUTE)):
        play.kernel.routes = {ip("::5"): out}
        found = play.engine.explain(ip("::5"), U, play.now)
        assert found.verdict is verdict
        assert found.steps[0].startswith("an ARP request for")
        assert ("so it is silent" in "\n".join(found.steps)) == (verdict is Verdict.NO_ROUTE)


# -- explain -------------------------------------------------------------------------------------------------


def test_explain_lets_the_router_of_the_port_ask() -> None:
    """Its address is held against `askers`."""
    play = Playbook(rules=(Rule(prefix=LAN, askers=(IPv4Network("172.16.0.0/12"),)),))
    play.na(D, "::5", 5)
    router = IPv4Address("172.16.0.1").packed
    assert play.engine.explain(ip("::5"), U, play.now).verdict is Verdict.ASKER_REFUSED
    play.configure(next_hops=frozenset({(router, U)}))

    assert play.engine.explain(ip("::5"), U, play.now).verdict is Verdict.ANSWERED
