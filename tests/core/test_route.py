"""The engine for mode route, frame by frame."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Ether

from portier.core import ndp
from portier.core.engine import KnownHost
from portier.core.model import (
    Advertisement,
    Announce,
    Answer,
    EventKind,
    Limits,
    Live,
    Routes,
    Rule,
    Source,
    Switch,
    Timers,
)
from portier.core.outcome import RouteResult, Verdict
from tests.core.playbook import LAN, D, E, Playbook, Stage, U, fix_checksum, ip, mac, port

ROUTER = "fe80::1:1"


def nd_only(test: Callable[..., None]) -> Callable[..., None]:
    """A scene about something that ARP does not have: flags, nonces, messages without a link-layer address,
    ports that speak without an address of their own."""
    test.__dict__["families"] = (6,)
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play every scene in both families."""
    families = metafunc.function.__dict__.get("families", (6, 4))
    metafunc.parametrize("family", families, indirect=True, scope="module", ids="ipv{}".format)


@pytest.fixture(autouse=True, scope="module")
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family in which the scene is played."""
    Stage.family = request.param
    yield request.param
    Stage.family = 6


ANSWERED, RESOLVING = Verdict.ANSWERED, Verdict.RESOLVING


def spoken(ifindex: int) -> bytes | None:
    """The address from which a port asks."""
    return port(ifindex).source if Stage.family == 6 else port(ifindex).source4


def on_link_upstream(**group: object) -> Playbook:
    """The common VPS: the LAN is on-link on the upstream, the hosts are behind."""
    ports = (port(U, prefixes=(LAN,), on_link=(LAN,)), port(D), port(E))
    return Playbook(ports=ports, **group)


# -- resolve ---------------------------------------------------------------------------------------


def test_an_unknown_target_is_asked_for_and_answered_when_it_answers() -> None:
    """Multicast on the other ports, the route before the answer, the answer as RFC 4861 has it."""
    play = Playbook()

    assert play.ns(U, ROUTER, "::5", 1) is RESOLVING
    asked = play.of("NS")
    assert [sent.port for sent in asked] == [D, E]
    if Stage.family == 6:
        assert asked[0].message.destination == ndp.solicited_node(ip("::5"))
    assert asked[0].message.source == spoken(D)
    assert asked[0].message.link_layer == play.mac_of(D)

    assert play.na(D, "::5", 5) is Verdict.HEARD
    (answer,) = play.of("NA")
    assert answer.port == U
    assert answer.message.destination == ip(ROUTER)
    assert answer.message.ether_destination == mac(1)
    assert answer.message.source == (spoken(U) if Stage.family == 6 else ip("::5"))
    assert answer.message.link_layer == play.mac_of(U)
    assert answer.message.flags == ndp.S_FLAG
    assert play.route("::5") == D


def test_what_there_is_to_count_is_counted() -> None:
    """How long a host took to be found, the answers that waited for it, those that were not found, states and
    routes."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.ns(U, "fe80::2:2", "::5", 2)
    play.pass_time(0.2)
    play.na(D, "::5", 5)
    tally = play.engine.tally(play.now)
    assert tally.found.total == pytest.approx(0.2)
    assert sum(tally.found.counts) == 1
    assert tally.late == {"up0": 2, "down0": 0, "down1": 0}
    assert (tally.states, tally.routes, tally.failed) == ({"reachable": 1}, 1, 0)
    play.ns(U, ROUTER, "::6", 1)
    play.pass_time(10)
    play.configure(isolate=True)
    tally = play.engine.tally(play.now)
    assert (tally.failed, tally.late["up0"]) == (1, 2), "a port that stays keeps its counts"
    play.pass_time(25)
    assert play.engine.tally(play.now).states == {"stale": 1}


def test_a_known_host_is_answered_at_once() -> None:
    """No second question within `reachable`."""
    play = Playbook()
    play.learn(D, "::5", 5)

    for _ in range(3):
        assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
        assert [sent.kind for sent in play.sent] == ["NA"]


def test_resolution_is_retransmitted_then_given_up_and_not_repeated_within_negative() -> None:
    """Three solicitations a second apart, silence to the asker, then quiet for `negative`."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.pass_time(3.0)
    assert len(play.of("NS", D)) == 2  # after the first
    assert not play.of("NA")
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NOBODY
    assert not play.sent

    play.pass_time(3.0)
    assert play.ns(U, ROUTER, "::5", 1) is RESOLVING


def test_anything_heard_from_a_host_clears_the_negative_memory() -> None:
    """A host that comes up late is not punished."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.pass_time(3.1)
    play.ns(D, "::5", "::1", 5)

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED


def test_all_who_wait_are_answered_and_asked_for_once() -> None:
    """Askers queue up; an asker on another downstream as well."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    assert play.ns(U, "fe80::2:2", "::5", 2) is RESOLVING
    assert not play.of("NS")
    assert play.ns(E, "fe80::3:3", "::5", 3) is RESOLVING
    assert [sent.port for sent in play.of("NS")] == [U]
    play.na(D, "::5", 5)

    assert sorted((sent.port, sent.message.destination) for sent in play.of("NA")) == [
        (U, ip(ROUTER)),
        (U, ip("fe80::2:2")),
        (E, ip("fe80::3:3")),
    ]


def test_an_asker_on_the_same_port_as_the_host_gets_no_answer_from_us() -> None:
    """The host answers for itself there."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.ns(D, "fe80::3:3", "::5", 3) is Verdict.SAME_PORT
    assert not play.sent


def test_downstream_to_upstream_is_proxied_too() -> None:
    """A guest looks for the router's global address."""
    play = Playbook()
    assert play.ns(D, "fe80::5", "::1", 5) is RESOLVING
    assert {sent.port for sent in play.of("NS")} == {U, E}
    play.na(U, "::1", 1, flags="RSO")
    (answer,) = play.of("NA", D)

    if Stage.family == 6:
        assert answer.message.flags == ndp.S_FLAG | ndp.R_FLAG  # as its owner showed it
    assert play.route("::1") is None  # lives upstream


def test_isolate_keeps_downstreams_apart() -> None:
    """Not asked, not answered between downstreams; the upstream still reaches both."""
    play = Playbook(isolate=True)
    assert play.ns(D, "fe80::5", "::6", 5) is RESOLVING
    assert [sent.port for sent in play.of("NS")] == [U]
    play.learn(E, "::6", 6)

    assert play.ns(D, "fe80::5", "::6", 5) is Verdict.ISOLATED
    assert play.ns(U, ROUTER, "::6", 1) is ANSWERED


def test_a_target_that_no_rule_allows_gets_nothing() -> None:
    """Nor does a denied one, nor a link-local one."""
    play = Playbook(rules=(Rule(prefix=LAN), Rule(prefix=LAN.__class__("2001:db8:7::66/128"), allow=False)))

    assert play.ns(U, ROUTER, "2001:db8:8::1", 1) is Verdict.NO_RULE
    assert play.ns(U, ROUTER, "::66", 1) is Verdict.DENIED
    assert play.ns(U, ROUTER, "fe80::5", 1) is Verdict.LINK_LOCAL
    assert play.dad(U, "2001:db8:8::1", 1) is Verdict.NO_RULE
    assert play.dad(U, "::66", 1) is Verdict.DENIED
    assert play.na(D, "2001:db8:8::1", 5) is Verdict.NO_RULE
    assert not play.sent


def test_askers_limit_whose_solicitations_are_answered() -> None:
    """In the shortcut of the hot path too."""
    play = Playbook(rules=(Rule(prefix=LAN, askers=(LAN.__class__("fe80::/10"),)),))
    play.learn(D, "::5", 5)

    for _ in range(2):
        assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
        assert play.ns(U, "2001:db8:9::1", "::5", 1) is Verdict.ASKER_REFUSED


def test_a_rule_tied_to_a_port_asks_learns_and_routes_there_only() -> None:
    """Also when the host speaks up elsewhere."""
    play = Playbook(rules=(Rule(prefix=LAN, downstream=("down0",)),))
    play.ns(U, ROUTER, "::5", 1)
    assert [sent.port for sent in play.of("NS")] == [D]
    assert play.na(E, "::5", 5) is Verdict.WRONG_PORT
    assert play.where("::5") is None
    play.na(D, "::5", 5)

    assert play.where("::5") == D


@nd_only
def test_nowhere_to_ask() -> None:
    """A group without another usable port."""
    play = Playbook(ports=(port(U), port(D, source=None)))

    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NOWHERE


@nd_only
def test_a_port_without_address_answers_nothing_but_relays_probes() -> None:
    """It has nothing to speak from."""
    play = Playbook(ports=(port(U, source=None), port(D), port(E)))
    play.learn(D, "::5", 5)

    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NO_SOURCE
    assert play.dad(D, "::7", 7) is Verdict.RELAYED
    assert {sent.port for sent in play.of("DAD")} == {U, E}


@nd_only
def test_a_solicitation_without_option_is_answered_to_where_it_came_from() -> None:
    """RFC 4861 section 7.2.4; nothing is learned from it (ND-119)."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.ns(U, "::1", "::5", 1, option=False) is ANSWERED
    assert play.of("NA")[0].message.ether_destination == mac(1)
    assert play.where("::1") is None


def test_a_probe_by_unicast_is_answered() -> None:
    """Neighbor Unreachability Detection from link-local and global sources."""
    play = Playbook()
    play.learn(D, "::5", 5)

    for source in (ROUTER, "::1"):
        assert play.ns(U, source, "::5", 1, unicast=True) is ANSWERED
        assert play.of("NA")[0].message.destination == ip(source)


# -- advertisement ------------------------------------------------------------------------------------


@nd_only
@pytest.mark.parametrize(
    ("advertisement", "flags"),
    [
        (Advertisement(), 0x40),
        (Advertisement(router=Switch.ON), 0xC0),
        (Advertisement(override=Switch.ON), 0x60),
        (Advertisement(router=Switch.ON, override=Switch.ON), 0xE0),
    ],
)
def test_flags_are_as_configured(advertisement: Advertisement, flags: int) -> None:
    """On the long way and in the shortcut."""
    play = Playbook(advertisement=advertisement)
    play.learn(D, "::5", 5)

    for _ in range(2):
        play.ns(U, ROUTER, "::5", 1)
        assert play.of("NA")[0].message.flags == flags


@nd_only
def test_router_off_hides_a_router() -> None:
    """Forced off beats what the owner showed."""
    play = Playbook(advertisement=Advertisement(router=Switch.OFF))
    play.ns(D, "fe80::5", "::1", 5)
    play.na(U, "::1", 1, flags="RSO")

    assert play.of("NA")[0].message.flags == ndp.S_FLAG


@nd_only
def test_source_and_link_layer_address_are_as_configured() -> None:
    """Source `target` and another box's MAC."""
    play = Playbook(advertisement=Advertisement(source=Source.TARGET, link_layer=mac(77)))
    play.learn(D, "::5", 5)

    for _ in range(2):
        play.ns(U, ROUTER, "::5", 1)
        message = play.of("NA")[0].message
        assert (message.source, message.link_layer) == (ip("::5"), mac(77))
        assert message.ether_source == play.mac_of(U)


@nd_only
def test_override_governs_solicited_answers_only() -> None:
    """News stay O=0, corrections O=1."""
    play = Playbook(advertisement=Advertisement(override=Switch.ON, router=Switch.ON))
    play.ns(D, "::5", "::1", 5)
    play.pass_time(1)
    assert play.of("NEWS", U)[0].message.flags == ndp.R_FLAG
    play.ns(E, "::5", "::1", 5)
    play.pass_time(0)
    assert play.told(D)[0].message.flags == ndp.R_FLAG | ndp.O_FLAG
    play.group = replace(play.group, advertisement=Advertisement(override=Switch.OFF), routes=Routes())
    play.configure()
    play.pass_time(1)
    assert play.told(D)[0].message.flags == ndp.O_FLAG


# -- always, routed ---------------------------------------------------------------------------------------

ALWAYS = (Rule(prefix=LAN, answer=Answer.ALWAYS),)
ROUTED = (Rule(prefix=LAN, answer=Answer.ROUTED),)


def behind(**group: object) -> Playbook:
    """The LAN is routed to a downstream."""
    return Playbook(ports=(port(U), port(D, prefixes=(LAN,), on_link=(LAN,)), port(E)), **group)


def test_always_answers_the_upstream_without_asking() -> None:
    """Whether the host is there or not, in the shortcut too."""
    play = behind(rules=ALWAYS)
    for number in (5, 6, 5, 6):
        assert play.ns(U, ROUTER, f"::{number}", 1) is ANSWERED
        assert [sent.kind for sent in play.sent] == ["NA"]


def test_always_resolves_behind_where_an_answer_alone_makes_a_black_hole() -> None:
    """The single /64: asked for, so that the route is there before the answer; answered in any case, within
    milliseconds; not asked for again within `negative`."""
    play = on_link_upstream(rules=ALWAYS)
    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert not play.of("NA")
    assert {sent.port for sent in play.of("NS")} == {U, D, E}
    play.na(D, "::5", 5)
    play.pass_time(0.01)
    assert play.route("::5") == D
    assert [sent.port for sent in play.of("NA")] == [U]

    play.ns(U, ROUTER, "::6", 1)
    play.pass_time(0.01)
    assert [sent.port for sent in play.of("NA")] == [U]
    play.pass_time(3.1)
    assert not play.of("NA")
    assert play.ns(U, ROUTER, "::6", 1) is ANSWERED
    assert not play.of("NS")


def test_always_leaves_hosts_known_upstream_alone() -> None:
    """They answer for themselves."""
    play = behind(rules=ALWAYS)
    play.ns(U, "::9", "::5", 9)

    assert play.ns(U, ROUTER, "::9", 1) is Verdict.SAME_PORT


def test_always_leaves_a_router_of_the_link_alone() -> None:
    """What the host's own routes lead to upstream lives there, whether it was heard of or not."""
    play = Playbook(rules=(Rule(prefix=LAN, answer=Answer.ALWAYS),))
    play.next_hops = frozenset({(ip("::1"), U), (ip("::2"), D)})
    play.configure()
    for _ in range(2):
        assert play.ns(U, "fe80::9", "::1", 9) is Verdict.SAME_PORT
        assert not play.of("NA")
        assert play.ns(U, "fe80::9", "::2", 9) is Verdict.ANSWERED
        assert play.ns(U, "fe80::9", "::3", 9) is Verdict.ANSWERED


def test_always_lets_a_new_host_have_its_address() -> None:
    """A probe from a downstream or the upstream is relayed, not defended, when nobody is known."""
    play = behind(rules=ALWAYS)
    assert play.dad(D, "::5", 5) is Verdict.RELAYED
    assert play.dad(U, "::6", 6) is Verdict.RELAYED
    assert not play.of("NA")
    assert play.ns(D, "fe80::5", "::7", 5) is RESOLVING


def test_routed_follows_the_kernel() -> None:
    """By another port of the group: answered; else not."""
    play = Playbook(rules=ROUTED)
    play.kernel.routes = {ip("::5"): D, ip("::6"): U, ip("::7"): 99}

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert play.ns(U, ROUTER, "::6", 1) is Verdict.SAME_PORT
    assert play.ns(U, ROUTER, "::7", 1) is Verdict.NO_ROUTE
    assert play.ns(U, ROUTER, "::8", 1) is Verdict.NO_ROUTE
    assert play.dad(U, "::5", 1) is Verdict.DEFENDED
    assert play.dad(U, "::8", 1) is Verdict.RELAYED


def test_routed_reaches_ports_that_have_no_link_layer_address() -> None:
    """A tunnel cannot be asked, but answered for."""
    play = Playbook(ports=(port(U), port(D, mac=None)), rules=ROUTED)
    play.kernel.routes = {ip("::5"): D}

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED


def test_a_host_that_a_routing_daemon_leads_to_is_answered_for() -> None:
    """By a host route to a gateway, which says where the host is: nobody is asked, nobody is learned."""
    play = Playbook()
    play.kernel.gateways = {ip("::5"): U}

    assert play.ns(D, "fe80::6", "::5", 6) is ANSWERED
    assert not play.of("NS")
    assert ip("::5") not in {host.address for host in play.engine.neighbors(0)}
    play.kernel.gateways.clear()
    assert play.ns(D, "fe80::6", "::5", 6) is RESOLVING


def test_a_routing_daemons_route_counts_at_once() -> None:
    """Also within the time in which an address that nobody had is not asked for again."""
    play = Playbook()
    play.ns(D, "fe80::6", "::5", 6)
    play.pass_time(3.1)
    assert play.ns(D, "fe80::6", "::5", 6) is Verdict.NOBODY
    play.kernel.gateways = {ip("::5"): U}

    assert play.ns(D, "fe80::6", "::5", 6) is ANSWERED


def test_a_flood_does_not_make_the_kernel_be_asked_for_each_frame() -> None:
    """As long as it has no host route to a gateway, and on the port that is flooded."""
    play = Playbook(limits=Limits(resolutions=5))
    for number in range(50):
        play.ns(D, "fe80::6", f"::1:{number:x}", 6)
    assert play.kernel.lookups == 5
    play.kernel.gateways = {ip("::5"): U}
    assert play.ns(E, "fe80::7", "::5", 7) is ANSWERED

    assert play.ns(D, "fe80::6", "::5", 6) is ANSWERED, "now that there are some"
    play.kernel.lookups = 0
    for number in range(50):
        play.ns(D, "fe80::6", f"::1:{number:x}", 6)
    assert play.kernel.lookups == 50


def test_a_route_that_leads_back_or_out_of_the_group_answers_nothing() -> None:
    """Then the host is looked for as ever."""
    play = Playbook()
    play.kernel.gateways = {ip("::5"): U, ip("::6"): 99}

    assert play.ns(U, ROUTER, "::5", 1) is RESOLVING
    assert play.ns(U, ROUTER, "::6", 1) is RESOLVING


def test_a_host_that_comes_is_believed_before_the_routing_daemon() -> None:
    """It moved here from another proxy, whose route is still there: it gets its address, and a route."""
    play = Playbook()
    play.kernel.gateways = {ip("::5"): U}

    assert play.dad(D, "::5", 5) is Verdict.RELAYED
    play.pass_time(1.1)

    assert not play.of("NA", D)
    assert [(route.address, route.ifindex) for route in play.kernel.host_routes] == [(ip("::5"), D)]


# -- life ------------------------------------------------------------------------------------------------


def test_after_reachable_a_host_is_answered_and_probed() -> None:
    """At the same time; the answer to the probe makes it reachable again."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert [sent.kind for sent in play.sent] == ["PROBE", "NA"]
    assert play.of("PROBE")[0].message.ether_destination == mac(5)
    play.na(D, "::5", 5)
    play.ns(U, ROUTER, "::5", 1)
    assert not play.of("PROBE")


def test_a_host_that_is_gone_is_probed_and_forgotten_with_its_route() -> None:
    """Three probes a second apart."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)
    play.ns(U, ROUTER, "::5", 1)
    play.pass_time(3.1)

    assert len(play.of("PROBE")) == 2
    assert play.kinds() == {EventKind.LOST}
    assert play.where("::5") is None
    assert play.route("::5") is None


def test_a_silent_host_is_probed_after_forget_and_kept_if_it_answers() -> None:
    """Idle is not gone."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(600)
    assert play.of("PROBE")
    play.na(D, "::5", 5)
    play.pass_time(500)
    assert play.where("::5") == D
    play.pass_time(200)

    assert play.where("::5") is None


def test_the_heap_of_timers_stays_small() -> None:
    """Probing again and again leaves no heap of stale timers."""
    play = Playbook()
    play.learn(D, "::5", 5)
    for _ in range(200):
        play.pass_time(31)
        play.ns(U, ROUTER, "::5", 1)
        play.na(D, "::5", 5)

    assert len(play.engine._timers) < 10


def test_time_without_anything_due_is_never_waited_for() -> None:
    """Idle costs nothing."""
    play = Playbook()

    assert play.engine.deadline == math.inf


# -- moves, conflicts, claims ----------------------------------------------------------------------------


def test_the_same_host_on_another_port_is_a_move_at_once() -> None:
    """The route follows; neighbors on the old port are told with O=1."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.ns(E, "::5", "::1", 5)

    assert play.where("::5") == E
    assert play.route("::5") == E
    assert EventKind.MOVED in play.kinds()
    play.pass_time(0)
    (told,) = play.told(D)
    if Stage.family == 6:
        assert told.message.destination == ndp.ALL_NODES
        assert told.message.flags == ndp.O_FLAG
    assert told.message.link_layer == play.mac_of(D)


def test_a_move_upstream_takes_the_route_away() -> None:
    """It is on-link there."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.ns(U, "::5", "::1", 5)

    assert play.where("::5") == U
    assert play.route("::5") is None


def test_another_link_layer_address_is_a_conflict_while_the_first_answers() -> None:
    """The first keeps the address, and the event names the other."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.na(E, "::5", 66, flags="O") is Verdict.CONFLICT
    assert [(sent.kind, sent.port) for sent in play.sent] == [("PROBE", D)]
    play.na(D, "::5", 5)
    assert EventKind.CONFLICT in play.kinds()
    assert "02:00:00:00:00:42" in play.events[0][1]
    play.pass_time(2)

    assert (play.where("::5"), play.route("::5")) == (D, D)


def test_silence_of_the_first_makes_it_a_move() -> None:
    """Three probes, 250 ms apart."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.na(E, "::5", 66, flags="O")
    play.pass_time(0.74)
    assert play.where("::5") == D
    assert len(play.of("PROBE", D)) == 2
    play.pass_time(0.02)

    assert (play.where("::5"), play.route("::5")) == (E, E)


def test_a_guest_that_claims_the_proxys_address_gets_nothing() -> None:
    """By advertisement, as source, and as target of its DAD."""
    play = Playbook(ports=(port(U, addresses=(ip("::2"),)), port(D), port(E)))

    assert play.na(D, "::2", 66, flags="O") is Verdict.CLAIM
    assert play.kinds() == {EventKind.CLAIM}
    assert play.ns(D, "::2", "::1", 66) is Verdict.CLAIM
    assert play.dad(D, "::2", 66) is Verdict.DEFENDED
    assert play.where("::2") is None


def test_a_guest_that_claims_a_next_hop_gets_nothing() -> None:
    """By advertisement, as source, by DAD, and by its own move."""
    play = Playbook()
    play.next_hops = frozenset({(ip("::1"), U)})
    play.configure()

    assert play.na(D, "::1", 66, flags="O") is Verdict.CLAIM
    assert play.ns(D, "::1", "::9", 66) is Verdict.CLAIM
    play.dad(D, "::1", 66)
    assert EventKind.CLAIM in play.kinds()
    play.pass_time(2)
    assert play.where("::1") is None
    play.ns(U, "::1", "::9", 1)
    assert play.where("::1") == U
    assert play.na(D, "::1", 1, flags="O") is Verdict.CLAIM

    assert (play.where("::1"), play.route("::1")) == (U, None)


def test_a_claim_in_the_upstreams_prefix_is_asked_for_upstream_and_an_owner_there_wins() -> None:
    """No route and no answer in the guest's favour; the event names it."""
    play = on_link_upstream()
    play.na(D, "::53", 66, flags="O")
    assert [(sent.kind, sent.port) for sent in play.sent] == [("NS", U), ("PROBE", D)]
    play.na(D, "::53", 66)
    assert play.route("::53") is None
    play.na(U, "::53", 53)

    assert EventKind.CLAIM in play.kinds()
    assert "02:00:00:00:00:42" in play.events[0][1]
    assert (play.where("::53"), play.route("::53")) == (U, None)


def test_a_claim_without_owner_upstream_is_learned_after_retransmit() -> None:
    """Nobody waits for it, so the upstream has its second; the silent are not believed."""
    play = on_link_upstream()
    play.ns(D, "::5", "::1", 5)
    play.na(D, "::5", 5)
    assert play.where("::5") is None
    play.pass_time(1.0)
    assert (play.where("::5"), play.route("::5")) == (D, D)

    play.na(D, "::6", 66, flags="O")
    play.pass_time(4.0)
    again = [sent.port for sent in play.sent if sent.message.target == ip("::6")]
    assert (again.count(U), len(play.of("PROBE", D))) == (2, 2)
    assert play.where("::6") is None
    assert play.ns(U, ROUTER, "::6", 1) is RESOLVING


def test_a_guest_that_answers_for_a_server_upstream_gets_nothing() -> None:
    """The upstream is asked at the same time as the downstreams, and its owner wins when it is slower too."""
    for delay in (0.0, 0.001):
        play = on_link_upstream()
        play.ns(U, ROUTER, "::53", 1)
        assert {sent.port for sent in play.of("NS")} == {U, D, E}
        play.na(D, "::53", 66)
        assert not play.of("NA")
        assert play.route("::53") is None
        play.pass_time(delay)
        play.na(U, "::53", 53)
        assert EventKind.CLAIM in play.kinds()
        assert not play.of("NA")

        assert (play.where("::53"), play.route("::53")) == (U, None)


def test_an_owner_upstream_that_is_late_still_wins() -> None:
    """What was learned meanwhile is put right."""
    play = on_link_upstream()
    play.ns(U, ROUTER, "::53", 1)
    play.na(D, "::53", 66)
    play.pass_time(0.1)
    assert play.route("::53") == D
    play.na(U, "::53", 53)

    assert (play.where("::53"), play.route("::53")) == (U, None)
    assert EventKind.CLAIM in play.kinds()


def test_a_host_behind_is_answered_for_as_soon_as_the_upstream_had_its_chance() -> None:
    """Milliseconds, not a second."""
    play = on_link_upstream()
    play.ns(U, ROUTER, "::5", 1)
    play.na(D, "::5", 5)
    play.pass_time(0.005)

    assert [sent.port for sent in play.of("NA")] == [U]
    assert play.route("::5") == D


@nd_only
def test_another_proxys_answer_upstream_does_not_beat_the_host() -> None:
    """O=0 upstream against the host's own O=1: two proxies side by side."""
    play = on_link_upstream()
    play.ns(U, ROUTER, "::5", 1)
    play.na(D, "::5", 5)
    play.na(U, "::5", 88, flags="S")
    play.pass_time(0.005)
    assert play.where("::5") == D

    play = on_link_upstream()
    play.ns(D, "fe80::9", "::5", 9)
    play.na(U, "::5", 88, flags="S")
    assert play.where("::5") == U
    play.na(E, "::5", 5)
    assert play.where("::5") == E


def test_an_address_that_the_kernel_holds_elsewhere_is_not_believed_at_once() -> None:
    """The place where the kernel has it is asked; its owner wins, its silence is a move."""
    play = Playbook()
    play.kernel.neighbors[ip("::53")] = U
    play.na(D, "::53", 66, flags="O")
    assert U in {sent.port for sent in play.of("NS")}
    play.na(U, "::53", 53)
    assert play.where("::53") == U

    play = Playbook()
    play.kernel.neighbors[ip("::5")] = U
    play.ns(E, "fe80::9", "::5", 9)
    play.na(D, "::5", 5)
    assert play.where("::5") is None
    play.pass_time(0.76)
    assert play.where("::5") == D


# -- DAD ---------------------------------------------------------------------------------------------------


@nd_only
def test_a_probe_goes_to_the_other_ports_unchanged() -> None:
    """ND-160, ND-161, ND-170: no link-layer option, the nonce kept, never back where it came from."""
    play = Playbook()

    assert play.dad(D, "::5", 5, b"nonce!") is Verdict.RELAYED
    assert {sent.port for sent in play.of("DAD")} == {U, E}
    assert all(sent.message.nonce == b"nonce!" for sent in play.of("DAD"))
    assert all(sent.message.link_layer == b"" for sent in play.of("DAD"))


@nd_only
def test_a_relayed_probe_that_comes_back_is_a_loop() -> None:
    """Within RetransTimer; another nonce is another probe."""
    play = Playbook()
    play.dad(D, "::5", 5, b"nonce!")

    assert play.dad(U, "::5", 88, b"nonce!") is Verdict.LOOP
    assert play.kinds() == {EventKind.LOOP}
    assert not play.sent
    assert play.dad(U, "::5", 88, b"other!") is Verdict.RELAYED
    play.pass_time(1.1)
    assert play.dad(U, "::5", 88, b"nonce!") is not Verdict.LOOP


def test_a_host_is_learned_from_its_probe_when_nobody_objects() -> None:
    """Only after RetransTimer (ND-164)."""
    play = Playbook()
    play.dad(D, "::5", 5)
    assert play.ns(U, ROUTER, "::6", 1) is RESOLVING
    play.pass_time(0.9)
    assert play.where("::5") is None
    play.pass_time(0.2)

    assert (play.where("::5"), play.route("::5")) == (D, D)


@nd_only
def test_an_objection_is_passed_on_and_the_newcomer_is_not_learned() -> None:
    """The defence: to all nodes, S=0, O=0 (ND-128, ND-162)."""
    play = Playbook()
    play.dad(D, "::5", 55)
    play.na(U, "::5", 5, flags="O")
    (defence,) = play.of("NA")
    assert defence.port == D
    assert defence.message.destination == ndp.ALL_NODES
    assert defence.message.ether_destination == ndp.ALL_NODES_MAC
    assert defence.message.flags == 0
    play.pass_time(2)

    assert play.where("::5") == U


@nd_only
def test_a_proxys_answer_upstream_is_worth_less_than_the_hosts_own_question() -> None:
    """Of two proxies side by side, the other may answer for the guest that has just asked."""
    play = on_link_upstream()
    play.ns(D, "::5", "::9", 5)
    play.na(U, "::5", 77, flags="S")
    assert play.where("::5") is None
    play.na(D, "::5", 5)
    play.pass_time(2)

    assert play.where("::5") == D


@nd_only
def test_what_another_proxy_tells_routers_is_no_objection() -> None:
    """It has learned the host that probes a moment before us, and says so where we hear it."""
    play = Playbook()
    play.dad(U, "::5", 5)
    news = ndp.advertisement(
        ndp.ALL_ROUTERS_MAC, mac(77), ip("fe80::77"), ndp.ALL_ROUTERS, ip("::5"), 0, mac(77)
    )
    play.receive(D, news)
    assert not play.of("NA")
    play.pass_time(2)

    assert play.where("::5") == U


@nd_only
def test_nd_163_two_hosts_that_probe_at_once_both_see_the_others_probe() -> None:
    """And neither is learned."""
    play = Playbook()
    play.dad(D, "::5", 5, b"nonce1")
    play.dad(E, "::5", 6, b"nonce2")
    assert {sent.port for sent in play.of("DAD")} == {U, D}
    play.pass_time(2)

    assert play.where("::5") is None


def test_a_probe_for_an_address_in_use_is_defended_at_once() -> None:
    """Where the owner answered within `reachable`."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.dad(U, "::5", 66) is Verdict.DEFENDED
    assert [sent.port for sent in play.of("NA")] == [U]
    assert play.of("PROBE", D)
    play.na(D, "::5", 5)
    play.pass_time(2)
    assert play.where("::5") == D


def test_a_probe_for_a_stale_host_is_defended_as_soon_as_it_answers() -> None:
    """Probed by unicast, and relayed; its answer is passed on within the second."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)

    assert play.dad(U, "::5", 66) is Verdict.RELAYED
    assert play.of("PROBE", D)
    assert play.of("DAD", E)
    assert not play.of("NA")
    play.pass_time(0.3)
    play.na(D, "::5", 5)
    assert [(sent.port, sent.message.destination) for sent in play.of("NA")] == [(U, ndp.ALL_NODES)]
    play.pass_time(2)
    assert play.where("::5") == D


def test_a_probe_for_a_host_that_is_gone_makes_the_newcomer_its_owner() -> None:
    """After RetransTimer, not before."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)
    play.dad(E, "::5", 66)
    play.pass_time(0.9)
    assert play.where("::5") == D
    play.pass_time(0.2)

    assert (play.where("::5"), play.route("::5")) == (E, E)


def test_a_host_that_moved_and_probes_again_keeps_its_address() -> None:
    """Its own probe is a move and never answered (ND-010); on the same port it is nothing."""
    play = Playbook()
    play.learn(D, "::5", 5)

    assert play.dad(D, "::5", 5) is Verdict.OWN_PROBE
    assert not play.sent
    assert play.dad(E, "::5", 5) is Verdict.OWN_PROBE
    assert not play.of("NA", E)
    assert (play.where("::5"), play.route("::5")) == (E, E)


# -- own addresses, own traffic --------------------------------------------------------------------------


def test_own_addresses_are_answered_on_the_other_ports_with_r() -> None:
    """By the kernel where they live."""
    play = Playbook(ports=(port(U, addresses=(ip("::2"),)), port(D), port(E)), rules=())

    assert play.ns(U, ROUTER, "::2", 1) is Verdict.OWN_ADDRESS
    assert play.ns(D, "fe80::5", "::2", 5) is ANSWERED
    if Stage.family == 6:
        assert play.of("NA")[0].message.flags == ndp.S_FLAG | ndp.R_FLAG


def test_the_hosts_own_solicitation_is_served() -> None:
    """Seen on its way out: the target is asked for behind, its route appears, nobody is told."""
    play = Playbook()
    assert play.host_asks(U, "::5") is RESOLVING
    assert {sent.port for sent in play.of("NS")} == {D, E}
    play.na(D, "::5", 5)
    assert not play.of("NA")
    assert play.route("::5") == D


def test_the_hosts_own_solicitation_for_a_known_host_restores_its_route() -> None:
    """It would not have been sent with the route in place."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.kernel.host_routes.clear()
    play.kernel.result = RouteResult.ADDED

    assert play.host_asks(U, "::5") is Verdict.HEARD
    assert play.route("::5") == D


def test_a_frame_from_outside_with_our_own_address_is_named() -> None:
    """The filter cuts it down to its header."""
    play = Playbook()

    assert play.receive(U, ndp.NO_OFFLOAD + bytes(14)) is Verdict.OWN_FRAME


def test_two_ports_on_one_link_do_not_talk_to_each_other() -> None:
    """What one port sent and another hears is not a host."""
    play = Playbook()

    assert play.host_asks(D, "::5", heard_on=E) is Verdict.OWN_FRAME
    assert not play.sent


# -- routes ------------------------------------------------------------------------------------------------


def test_without_the_route_there_is_no_answer() -> None:
    """The kernel refused: nothing is sent, and the next solicitation tries again."""
    play = Playbook()
    play.kernel.result = RouteResult.FAILED
    play.ns(U, ROUTER, "::5", 1)
    play.na(D, "::5", 5)
    assert not play.of("NA")
    assert EventKind.ROUTE in play.kinds()
    play.ns(U, ROUTER, "::5", 1)
    assert not play.of("NA")
    play.kernel.result = RouteResult.ADDED
    play.ns(U, ROUTER, "::5", 1)

    assert play.of("NA")
    assert play.route("::5") == D


def test_a_foreign_route_is_left_alone_and_shown() -> None:
    """The host is answered for; the route is neither wanted nor removed."""
    play = Playbook()
    play.kernel.result = RouteResult.FOREIGN
    play.learn(D, "::5", 5)

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert [info.route for info in play.engine.neighbors(play.now)] == ["foreign"]
    assert play.engine.wanted_routes() == frozenset()


def test_routes_can_be_off_or_elsewhere() -> None:
    """`routes: false`, and a table of the user's choice."""
    play = Playbook(routes=None)
    play.learn(D, "::5", 5)
    assert not play.kernel.host_routes
    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED

    play = Playbook(routes=Routes(table=100, metric=7, protocol=200))
    play.learn(D, "::5", 5)
    assert play.kernel.host_routes[0][2:] == (100, 7, 200)


# -- limits --------------------------------------------------------------------------------------------------


def test_pending_resolutions_are_bounded() -> None:
    """The 257th has to wait."""
    play = Playbook(limits=Limits(pending=4))
    verdicts = [play.ns(U, ROUTER, f"::{n:x}", 1) for n in range(1, 7)]

    assert verdicts == [RESOLVING] * 4 + [Verdict.PENDING_FULL] * 2
    assert play.engine.pending_size() == 4


def test_a_source_and_a_port_have_so_many_resolutions_a_second() -> None:
    """Token buckets; known hosts are answered all the same."""
    play = Playbook(limits=Limits(per_source=3, resolutions=5, pending=10_000))
    play.learn(D, "::f00", 15)
    play.pass_time(5)
    one = [play.ns(U, ROUTER, f"::{n:x}", 1) for n in range(1, 6)]
    other = [play.ns(U, "fe80::2:2", f"::1{n:x}", 2) for n in range(1, 4)]

    assert one == [RESOLVING] * 3 + [Verdict.SOURCE_LIMIT] * 2
    assert other == [RESOLVING] * 2 + [Verdict.PORT_LIMIT]
    assert play.ns(U, ROUTER, "::f00", 1) is ANSWERED
    play.pass_time(1)
    assert play.ns(U, ROUTER, "::2:1", 1) is RESOLVING


def test_a_link_layer_address_evicts_only_its_own() -> None:
    """`per_host`."""
    play = Playbook(limits=Limits(per_host=3))
    play.learn(D, "::5", 5)
    for n in range(1, 10):
        play.ns(D, f"::66:{n:x}", "::1", 66)

    assert play.engine.table_size() == 4
    assert play.where("::5") == D
    assert EventKind.LIMIT in play.kinds()


def test_a_port_evicts_only_its_own_and_the_unproven_first() -> None:
    """`per_port`: a flood of claims never pushes out one who answered us."""
    play = Playbook(limits=Limits(per_port=4, per_source=10_000, resolutions=10_000))
    play.learn(D, "::5", 5)
    play.learn(E, "::6", 6)
    for n in range(100, 200):
        play.ns(D, f"::66:{n:x}", "fe80::1", n)

    assert play.engine.table_size() == 5
    assert (play.where("::5"), play.where("::6")) == (D, E)


def test_the_whole_table_is_bounded() -> None:
    """`neighbors`: the largest share pays."""
    play = Playbook(limits=Limits(neighbors=6, per_source=10_000, resolutions=10_000))
    play.learn(E, "::6", 6)
    for n in range(100, 150):
        play.ns(D, f"::66:{n:x}", "fe80::1", n)

    assert play.engine.table_size() == 6
    assert play.where("::6") == E
    assert len(play.kernel.host_routes) == 6


def test_route_changes_are_bounded() -> None:
    """`route_changes`: no route, no answer, until there are tokens again."""
    play = Playbook(limits=Limits(route_changes=2))
    for n in (1, 2, 3):
        play.ns(U, ROUTER, f"::{n}", 1)
    answered = []
    for n in (1, 2, 3):
        play.na(D, f"::{n}", n)
        answered.append(len(play.of("NA")))
    assert answered == [1, 1, 0]
    assert play.ns(U, ROUTER, "::3", 1) is Verdict.ROUTE_LIMIT
    play.pass_time(1)

    assert play.ns(U, ROUTER, "::3", 1) is ANSWERED


# -- reconfiguration ---------------------------------------------------------------------------------------


def test_what_did_not_change_is_kept() -> None:
    """A port more, a rule more: known hosts stay known."""
    play = Playbook(ports=(port(U), port(D)))
    play.learn(D, "::5", 5)
    play.ports = (port(U), port(D), port(E))
    play.configure()

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert [sent.kind for sent in play.sent] == ["NA"]


def test_a_port_that_goes_takes_its_hosts_and_routes() -> None:
    """Those of the other ports stay."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.learn(E, "::6", 6)
    play.ns(U, ROUTER, "::7", 1)
    play.ports = (port(U), port(E))
    play.configure()

    assert (play.where("::5"), play.where("::6")) == (None, E)
    assert [route.ifindex for route in play.kernel.host_routes] == [E]
    play.pass_time(10)


def test_a_rule_that_goes_takes_its_hosts() -> None:
    """`upstream` without its prefix allows nobody."""
    play = Playbook(rules=(Rule(prefix=Live.UPSTREAM),))
    play.learn(D, "::5", 5)
    play.configure(live=())

    assert play.where("::5") is None
    assert not play.kernel.host_routes


def test_another_link_layer_address_of_a_port_shows_in_the_next_answer() -> None:
    """Nothing prepared outlives the change."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.ns(U, ROUTER, "::5", 1)
    play.ports = (port(U, mac=mac(99)), port(D), port(E))
    play.configure()
    play.ns(U, ROUTER, "::5", 1)

    assert play.of("NA")[0].message.link_layer == mac(99)


def test_another_table_moves_the_routes() -> None:
    """The old ones go."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.group = play.group.__class__(name="guests", rules=play.group.rules, routes=Routes(table=100))
    play.configure()
    play.ns(U, ROUTER, "::5", 1)

    assert [route.table for route in play.kernel.host_routes] == [100]


# -- explain -------------------------------------------------------------------------------------------------


def test_explain_agrees_with_the_wire() -> None:
    """The same verdict, and the last steps say why."""
    play = Playbook(rules=(Rule(prefix=LAN), Rule(prefix=LAN.__class__("2001:db8:7::66/128"), allow=False)))
    play.learn(D, "::5", 5)
    play.ns(U, ROUTER, "::9", 1)
    play.pass_time(3.1)
    for target in ("::5", "::66", "::9", "2001:db8:8::1", "::7"):
        explained = play.engine.explain(ip(target), None, play.now)

        assert explained.verdict is play.ns(U, ROUTER, target, 1)
        assert explained.steps[-1] == f"verdict: {explained.verdict.label}"


@nd_only
def test_explain_knows_who_is_refused() -> None:
    """Routers solicit from their link-local addresses; a rule that answers others only says so."""
    play = Playbook(rules=(Rule(prefix=LAN, askers=(LAN.__class__("2001:db8:7::99/128"),)),))
    play.learn(D, "::5", 5)
    explained = play.engine.explain(ip("::5"), U, play.now)

    assert explained.verdict is Verdict.ASKER_REFUSED
    assert explained.steps[-2] == "only 2001:db8:7::99/128 is answered for it, and not fe80::1"


def test_asking_for_explain_finds_a_host_without_answering_anybody() -> None:
    """`ask` resolves as a solicitation would."""
    play = Playbook()
    play._carry_out(play.engine.ask(ip("::5"), play.now))
    assert play.of("NS")
    play.na(D, "::5", 5)

    assert not play.of("NA")
    assert play.engine.explain(ip("::5"), U, play.now).verdict is ANSWERED


def test_asking_where_nobody_can_be_asked_leaves_nothing_behind() -> None:
    """No target waits for answers to questions that were never put."""
    play = Playbook(ports=(port(U, source=None), port(D, source=None)))
    assert play.engine.ask(ip("::5"), play.now).verdict is Verdict.NOWHERE
    assert play.engine.pending_size() == 0


def test_counters_name_every_verdict() -> None:
    """By port and label."""
    play = Playbook()
    play.ns(U, ROUTER, "2001:db8:8::1", 1)
    play.receive(U, b"")

    assert play.engine.counters()["up0"] == {"no-rule": 1, "truncated": 1}


# -- attacks and corners that were found by trying to break it -----------------------------------------------


def test_ports_may_vanish_in_the_middle_of_anything() -> None:
    """A container that probes and leaves within the second, a claim and a question on a port that goes."""
    play = on_link_upstream()
    play.learn(D, "::8", 8)
    play.dad(D, "::5", 5)
    play.na(D, "::6", 6, flags="O")
    play.na(E, "::8", 66, flags="O")
    play.ns(D, "fe80::9", "::7", 9)
    play.ports = (play.ports[0], port(E))
    play.configure()
    play.ports = (play.ports[0],)
    play.configure()
    play.pass_time(700)

    assert play.engine.table_size() == play.engine.pending_size() == 0


@nd_only
def test_an_asker_whose_port_has_lost_its_address_is_passed_over() -> None:
    """Before it asks, and while it waits."""
    play = Playbook(ports=(port(U, source=None), port(D), port(E)))
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.NO_SOURCE

    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.ports = (port(U, source=None), port(D), port(E))
    play.configure()
    assert play.na(D, "::5", 5) is Verdict.HEARD
    assert not play.of("NA")


def test_memories_stay_small_under_repetition() -> None:
    """Relayed probes, and the timers of evicted hosts."""
    play = Playbook(limits=Limits(per_source=10_000, resolutions=10_000, per_port=8))
    for n in range(3000):
        play.dad(D, "::5", 5 + n % 2, b"same!!")
        play.dad(D, "::6", 66, n.to_bytes(6, "big"))
        play.ns(E, f"::66:{n:x}", "fe80::1", n % 250)
        play.pass_time(0.02)

    assert len(play.engine._relayed) < 200
    assert len(play.engine._timers) < 3000


def test_the_option_alone_makes_no_move() -> None:
    """A guest that names the victim's link-layer address in a frame of its own gets nothing at once."""
    play = Playbook()
    play.learn(E, "::5", 5)

    assert play.na(D, "::5", 66, says=5) is Verdict.CONFLICT
    assert not play.of("NA")
    play.na(E, "::5", 5)
    assert (play.where("::5"), play.route("::5")) == (E, E)


def test_a_servers_address_is_not_moved_off_its_link_by_its_link_layer_address() -> None:
    """From the upstream's own prefix to a downstream the server is asked first, DAD included."""
    play = on_link_upstream()
    play.learn(U, "::53", 53)
    play.na(D, "::53", 53, flags="O")
    assert play.of("PROBE", U)
    assert play.where("::53") == U
    play.na(U, "::53", 53)
    play.dad(D, "::53", 53)
    assert play.where("::53") == U
    assert not play.of("NA", D)
    play.pass_time(1.1)

    assert play.where("::53") == D  # silent upstream: it did move


def test_solicited_means_that_we_asked() -> None:
    """S=1 in an advertisement that nobody asked for proves nothing and evicts nobody."""
    play = Playbook(limits=Limits(per_port=4))
    play.learn(D, "::5", 5)
    for n in range(10, 20):
        play.na(D, f"::66:{n:x}", n)

    assert play.where("::5") == D


@nd_only
def test_a_proxys_knowledge_gives_way_only_to_a_host_that_was_asked() -> None:
    """O=0 first; O=1 from elsewhere is asked before it is believed."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.na(D, "::5", 88, flags="S")
    play.pass_time(5)
    assert play.na(E, "::5", 5) is Verdict.CONFLICT
    assert play.of("PROBE", E)
    play.na(E, "::5", 5)

    assert (play.where("::5"), play.route("::5")) == (E, E)


def test_a_rebooting_next_hop_cannot_be_taken_by_probing() -> None:
    """Nor can a host be drawn to a port that its rule does not name."""
    play = Playbook()
    play.next_hops = frozenset({(ip("::1"), U)})
    play.configure()
    play.learn(U, "::1", 1)
    play.pass_time(31)
    play.dad(D, "::1", 66)
    play.pass_time(2)
    assert play.where("::1") != D
    assert play.route("::1") is None

    play = Playbook(rules=(Rule(prefix=LAN, downstream=("down0",)),))
    play.learn(D, "::5", 5)
    play.pass_time(31)
    play.dad(E, "::5", 66)
    play.pass_time(2)
    assert play.where("::5") != E


def test_what_becomes_a_next_hop_or_our_own_is_let_go() -> None:
    """Routes and addresses that appear later count as well."""
    play = Playbook()
    play.learn(D, "::1", 66)
    play.learn(E, "::2", 67)
    play.dad(D, "::3", 68)
    play.ns(U, ROUTER, "::4", 1)
    play.next_hops = frozenset({(ip("::1"), U)})
    play.ports = (port(U, addresses=(ip("::2"), ip("::3"), ip("::4"))), port(D), port(E))
    play.configure()
    play.na(D, "::4", 69)
    play.pass_time(2)

    assert [play.where(address) for address in ("::1", "::2", "::3", "::4")] == [None] * 4
    assert not play.kernel.host_routes


def test_a_router_behind_is_learned_on_the_port_its_route_leaves_by() -> None:
    """A next hop is another's everywhere else."""
    play = Playbook()
    play.next_hops = frozenset({(ip("::9"), D)})
    play.configure()
    play.learn(D, "::9", 9)

    assert play.na(E, "::9", 66, flags="O") is Verdict.CLAIM
    assert play.route("::9") == D


def test_a_probe_for_an_address_that_the_kernel_holds_elsewhere_is_no_proof() -> None:
    """Nobody objected, but the one who has it may not have heard."""
    play = Playbook()
    play.kernel.neighbors[ip("::53")] = U
    play.dad(D, "::53", 66)
    play.pass_time(1.05)
    assert play.where("::53") is None
    play.na(U, "::53", 53)
    assert play.where("::53") == U


def test_shares_of_link_layer_addresses_are_per_port() -> None:
    """An attacker elsewhere who names the victim's evicts nothing of the victim's."""
    play = Playbook(limits=Limits(per_host=3))
    play.learn(D, "::5", 5)
    for n in range(1, 8):
        play.na(E, f"::66:{n}", 66, says=5, flags="O")

    assert play.where("::5") == D


def test_nobody_there_holds_for_the_ports_that_were_asked() -> None:
    """A neighbor's question does not make the router's vain."""
    play = Playbook()
    play.ns(D, "fe80::6", "::7", 6)
    play.pass_time(3.1)

    assert play.ns(D, "fe80::6", "::7", 6) is Verdict.NOBODY
    assert play.ns(U, ROUTER, "::7", 1) is RESOLVING
    assert {sent.port for sent in play.of("NS")} == {D, E}


def test_a_host_that_was_said_to_be_on_the_asking_port_is_probed_there() -> None:
    """One forged frame is no black hole; a host that moved in silence is found."""
    play = Playbook()
    play.ns(U, "::5", "::1", 66)
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.SAME_PORT
    assert play.of("PROBE", U)
    play.pass_time(3.1)
    play.ns(U, ROUTER, "::5", 1)

    assert play.of("NS", D)


def test_routed_is_the_kernels_word_alone() -> None:
    """Nobody is learned, so nobody can draw a routed address to himself."""
    play = Playbook(rules=ROUTED)
    play.kernel.routes = {ip("::5"): D}
    play.ns(U, "::5", "::1", 66)
    play.na(E, "::5", 66, flags="O")
    play.dad(E, "::7", 66)
    play.pass_time(2)

    assert play.ns(U, ROUTER, "::5", 1) is ANSWERED
    assert play.engine.table_size() == 0
    assert not play.kernel.host_routes


def test_a_source_is_where_frames_come_from() -> None:
    """Naming the router's link-layer address in options costs the router nothing."""
    play = Playbook(limits=Limits(per_source=5))
    for n in range(1, 20):
        play.na(D, f"::66:{n:x}", 66, says=1, flags="O")

    assert play.ns(U, ROUTER, "::7", 1) is RESOLVING


def test_the_port_that_waits_for_most_gives_way() -> None:
    """`pending` is shared: a flood on one port leaves room for the others."""
    play = Playbook(limits=Limits(pending=6, per_source=10_000, resolutions=10_000))
    for n in range(1, 20):
        play.ns(D, "fe80::66", f"::66:{n:x}", 66)
    assert play.engine.pending_size() == 6

    assert play.ns(U, ROUTER, "::7", 1) is RESOLVING
    assert play.engine.pending_size() == 6


def test_a_link_layer_address_in_two_places_moves_a_few_times_then_once_a_second() -> None:
    """A flapping guest makes no storm of announcements and route changes; there and back is no flapping."""
    play = Playbook(limits=Limits(per_source=10_000, resolutions=10_000))
    play.learn(D, "::5", 5)
    told = 0
    for n in range(200):
        play.na((E, D)[n % 2], "::5", 5, flags="O")
        play.pass_time(0.001)
        told += len(play.told())

    assert 0 < told <= 4


def test_objections_reach_all_who_probe() -> None:
    """Two probers, a prober whose port the rule does not name, a prober while another claim is open."""
    play = Playbook()
    play.dad(D, "::5", 5, b"nonce1")
    play.dad(E, "::5", 6, b"nonce2")
    play.na(U, "::5", 7, flags="O")
    assert {sent.port for sent in play.of("NA")} == ({D, E} if Stage.family == 6 else {D})

    play = Playbook(rules=(Rule(prefix=LAN, downstream=("down0",)),))
    play.dad(U, "::5", 66)
    assert [sent.port for sent in play.of("DAD")] == [D]
    play.na(D, "::5", 5, flags="O")
    assert [sent.port for sent in play.of("NA")] == [U]

    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)
    play.na(E, "::5", 66, flags="O")
    play.dad(U, "::5", 67)
    play.na(D, "::5", 5)
    assert [sent.port for sent in play.of("NA")] == [U]


def test_a_probe_that_cannot_be_remembered_is_not_relayed() -> None:
    """Or the objection would get lost."""
    play = Playbook(limits=Limits(pending=1))
    play.ns(U, ROUTER, "::9", 1)

    assert play.dad(U, "::5", 5) is Verdict.PENDING_FULL
    assert not play.sent


def test_known_hosts_are_defended_from_an_empty_bucket_too() -> None:
    """A flood on the prober's port is no way to a duplicate."""
    play = Playbook(limits=Limits(per_source=1, resolutions=1))
    play.learn(D, "::5", 5)
    for _ in range(5):
        assert play.dad(U, "::5", 66) is Verdict.DEFENDED


def test_two_proxies_do_not_hand_a_probe_round() -> None:
    """What another made of a probe is dropped on every port that has had it, where it came from included."""
    play = Playbook(ports=(port(U), port(D)))
    play.dad(D, "::5", 5, b"nonce!")

    assert play.dad(D, "::5", 88, b"nonce!") is Verdict.LOOP
    assert play.dad(U, "::5", 88, b"nonce!") is Verdict.LOOP
    assert play.dad(D, "::5", 5, b"nonce!") is Verdict.RELAYED  # the host repeats itself


def test_a_reload_of_the_table_keeps_hosts_reachable() -> None:
    """The new routes are there before the old ones go; somebody else's stays."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.group = replace(play.group, routes=Routes(table=100))
    play.configure()
    assert [route.table for route in play.kernel.host_routes] == [100]
    assert play.engine.wanted_routes() == frozenset(play.kernel.host_routes)


def test_a_foreign_route_that_goes_is_replaced_by_ours() -> None:
    """When the kernel itself asks, and when the host is probed."""
    play = Playbook()
    play.kernel.result = RouteResult.FOREIGN
    play.learn(D, "::5", 5)
    play.kernel.result = RouteResult.ADDED
    play.pass_time(31)
    play.ns(U, ROUTER, "::5", 1)

    assert play.route("::5") == D


def test_a_port_without_address_never_spins() -> None:
    """What cannot be probed is kept, and looked at again after `forget`."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.ports = (port(U), port(D, source=None), port(E))
    play.configure()
    play.na(E, "::5", 66, flags="O")
    play.pass_time(60)

    assert play.engine.deadline > play.now + 60
    assert [info.state for info in play.engine.neighbors(play.now)] == ["stale"]


def test_an_owner_that_speaks_keeps_its_address() -> None:
    """Asking something, or probing again, is as good as an answer."""
    speaks: tuple[Callable[[Playbook], Verdict], ...] = (
        lambda play: play.ns(D, "::5", "::1", 5),
        lambda play: play.dad(D, "::5", 5),
    )
    for speak in speaks:
        play = Playbook()
        play.learn(D, "::5", 5)
        play.na(E, "::5", 66, flags="O")
        play.pass_time(0.6)
        speak(play)
        assert EventKind.CONFLICT in play.kinds()
        play.pass_time(1)
        assert play.where("::5") == D


def test_a_host_that_answers_a_probe_is_no_proxy() -> None:
    """Its answer to a unicast solicitation has no O flag; it keeps its address all the same."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(31)
    play.ns(U, ROUTER, "::5", 1)
    assert play.of("PROBE", D)
    play.confirms(D, "::5", 5)

    play.ns(E, "::5", "::1", 66)
    play.na(E, "::5", 66)
    play.confirms(D, "::5", 5)
    play.na(E, "::5", 66)
    play.confirms(D, "::5", 5)
    play.pass_time(2)
    assert play.where("::5") == D


@nd_only
def test_a_host_proves_itself_against_a_proxy_by_answering_a_probe() -> None:
    """It came from where another proxy still answers for it, and Linux answers a unicast solicitation without
    the O flag."""
    play = Playbook()
    play.ns(D, "fe80::6", "::5", 6)
    play.na(U, "::5", 88, flags="S")
    assert play.where("::5") == U

    play.ns(D, "::5", "::1", 5)
    play.na(U, "::5", 88, flags="S")
    play.confirms(D, "::5", 5)
    assert (play.where("::5"), play.route("::5")) == (D, D)


@nd_only
def test_an_advertisement_without_override_contests_nothing() -> None:
    """RFC 4861 section 7.2.5: another proxy's O=0 against the host's own O=1."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.pass_time(3)  # the last announcement

    assert play.na(E, "::5", 88, flags="S") is Verdict.HEARD
    assert not play.events
    assert [(sent.kind, sent.port) for sent in play.sent] == [("PROBE", D)]
    assert play.na(D, "::5", 5) is Verdict.HEARD
    play.pass_time(10)
    assert not play.sent
    assert play.where("::5") == D


@nd_only
def test_a_host_that_another_proxy_has_now_is_let_go() -> None:
    """It left without a word; what the other says makes it stale, and then it does not answer."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.na(U, "::5", 88, flags="")
    play.pass_time(4)
    assert play.where("::5") is None
    assert play.route("::5") is None


def test_isolate_is_not_for_the_hosts_own_traffic() -> None:
    """The host reaches everybody."""
    play = Playbook(isolate=True)
    play.host_asks(D, "::6")

    assert {sent.port for sent in play.of("NS")} == {U, E}


def test_an_answer_beats_an_unproven_claim() -> None:
    """One forged advertisement does not shut out the host that answers."""
    play = on_link_upstream()
    play.na(D, "::5", 66, flags="O")
    play.ns(U, ROUTER, "::5", 1)
    assert play.na(E, "::5", 5) is Verdict.HEARD
    play.pass_time(0.01)

    assert (play.where("::5"), play.route("::5")) == (E, E)


def test_one_refused_route_holds_back_nobody_elses_frames() -> None:
    """Ticks end where a route is asked for."""
    play = on_link_upstream()
    play.learn(E, "::8", 8)
    play.na(D, "::5", 5, flags="O")
    play.na(U, "::8", 88, flags="O")
    play.kernel.result = RouteResult.FAILED
    play.pass_time(1.0)

    assert len(play.of("PROBE", E)) == 2


def test_a_refused_route_has_its_own_verdict() -> None:
    """On the wire and in `explain` alike."""
    play = Playbook()
    play.kernel.result = RouteResult.FAILED
    play.learn(D, "::5", 5)

    assert play.engine.explain(ip("::5"), U, play.now).verdict is Verdict.ROUTE_FAILED
    assert play.ns(U, ROUTER, "::5", 1) is Verdict.ROUTE_FAILED
    assert not play.of("NA")


@nd_only
def test_who_sends_router_advertisements_is_a_router() -> None:
    """R=1 for its addresses, though it never advertised them itself."""
    play = Playbook()
    play.ns(U, "::1", "::9", 1)
    advertisement = bytes(
        Ether(src=mac(1).hex(":"), dst="33:33:00:00:00:01")
        / IPv6(src=ROUTER, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA()
    )
    assert play.receive(U, ndp.NO_OFFLOAD + advertisement) is Verdict.NOT_HANDLED
    play.ns(D, "fe80::5", "::1", 5)

    assert play.of("NA", D)[0].message.flags == ndp.S_FLAG | ndp.R_FLAG


def test_smaller_limits_shrink_the_table() -> None:
    """At the reload."""
    play = Playbook(limits=Limits(per_source=10_000, resolutions=10_000))
    for n in range(1, 30):
        play.ns(D, f"::{n:x}", "fe80::1", n)
    play.group = replace(play.group, limits=Limits(neighbors=5))
    play.configure()

    assert play.engine.table_size() == len(play.kernel.host_routes) == 5


# -- anything ------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_no_sequence_of_frames_breaks_an_invariant(seed: int) -> None:
    """Random talk of honest and evil hosts, while ports and routers come and go: no exception, bounds hold,
    the kernel has the wanted routes, nothing is left to do in the end."""
    chance = random.Random(seed)
    limits = Limits(neighbors=12, per_port=6, per_host=4, pending=chance.choice((1, 5)), route_changes=200)
    play = on_link_upstream(
        limits=limits,
        isolate=chance.random() < 0.3,
        timers=Timers(forget=20, reachable=5),
        announce=chance.choice(list(Announce)),
    )
    ports = play.ports
    for _ in range(300):
        where = chance.choice((U, D, E))
        target, source = (f"::{chance.randrange(1, 12):x}" for _ in range(2))
        host = chance.randrange(1, 9)
        if where not in {this.ifindex for this in play.ports}:
            where = U
        match chance.randrange(8):
            case 0:
                play.ns(
                    where, chance.choice((source, "fe80::1")), target, host, unicast=chance.random() < 0.5
                )
            case 1:
                play.na(where, target, host, flags=chance.choice(("S", "SO", "RSO")))
            case 2:
                play.na(where, target, host, flags=chance.choice(("", "O")))
            case 3:
                play.dad(where, target, host, chance.choice((b"", b"nonce1", b"nonce2")))
            case 4:
                play.receive(
                    where, fix_checksum(ndp.dad_probe(mac(host), ip(target), b"")[: chance.randrange(70, 89)])
                )
            case 5 if chance.random() < 0.2:
                down = [port(at, source=None) if chance.random() < 0.3 else port(at) for at in (D, E)]
                play.ports = (ports[0], *(this for this in down if chance.random() < 0.8))
                play.next_hops = frozenset({(ip(target), where)} if chance.random() < 0.5 else ())
                play.configure()
            case 6 if chance.random() < 0.2:
                known = [
                    KnownHost(ip(f"::{n:x}"), mac(n), chance.choice((U, D, E)), b"", "", "")
                    for n in range(1, 6)
                ]
                play.engine.recall(known, play.now)
                play.engine.ask(ip(target), play.now)
            case _:
                play.pass_time(chance.choice((0.002, 0.3, 1.0, 7.0)))
        assert play.engine.table_size() <= limits.neighbors
        assert play.engine.pending_size() <= limits.pending
        assert len(play.engine._announcer) <= play.engine.table_size() * len(play.ports)
        assert frozenset(play.kernel.host_routes) == play.engine.wanted_routes()
        assert len(play.kernel.host_routes) == len(set(play.kernel.host_routes))
    play.ports = tuple(port(this.ifindex) for this in play.ports)
    play.configure()  # a port without address keeps its hosts, for it can ask none
    play.pass_time(100)
    assert play.engine.table_size() == play.engine.pending_size() == 0
    assert play.engine.deadline == math.inf
    assert not play.kernel.host_routes
