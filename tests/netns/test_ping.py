"""Traffic across the proxy, from a cold start, and what must not cross it."""

from __future__ import annotations

import pytest

from tests.netns.lab import Host, Lab
from tests.netns.scenes import NET, PROXY, SOLICITED, UPSTREAM, assert_question, config, guest, solicit, vps

ANSWERS = ["resolve", "always"]


def rule(answer: str) -> str:
    """One rule for the whole prefix."""
    return f'[{{allow: "{NET}/64", answer: {answer}}}]'


def assert_reached(source: Host, target: str, answer: str) -> None:
    """Assert that a host is reached within a second of the first packet.

    With `resolve` the first packet itself arrives.  With `always` the answer does not wait for the host,
    so where the /64 is on-link on the upstream the packets before its host route go astray.
    """
    ping = source.ping(target, count=5, interval=0.1, timeout=1)
    assert ping.replies, f"{source} to {target}: {ping.output}"
    if answer == "resolve":
        assert ping, f"{source} to {target}: {ping.output}"
    first = min(ping.replies)
    assert (first - 1) * 0.1 + ping.replies[first] < 1, ping.output


@pytest.mark.parametrize("answer", ANSWERS)
def test_upstream_reaches_guest_from_a_cold_start(lab: Lab, answer: str) -> None:
    """The upstream host pings a host that nobody has heard of, and reaches it within a second."""
    scene = vps(lab)
    scene.start(config(rule(answer)))
    assert_reached(scene.u, guest(1), answer)
    assert scene.p.host_routes() == {guest(1): "tap1"}


@pytest.mark.parametrize("answer", ANSWERS)
def test_guest_reaches_upstream_from_a_cold_start(lab: Lab, answer: str) -> None:
    """A guest pings the upstream host, and reaches it within a second."""
    scene = vps(lab)
    scene.start(config(rule(answer)))
    assert_reached(scene.guests[1], UPSTREAM, answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_guests_on_two_ports(lab: Lab, answer: str) -> None:
    """A second guest on another port is reached as well, and the two reach each other."""
    scene = vps(lab)
    scene.start(config(rule(answer)))
    for source, target in (
        (scene.u, guest(1)),
        (scene.u, guest(2)),
        (scene.guests[1], guest(2)),
        (scene.guests[2], guest(1)),
        (scene.guests[2], UPSTREAM),
    ):
        assert_reached(source, target, answer)
    assert scene.p.host_routes() == {guest(1): "tap1", guest(2): "tap2"}


def test_guest_to_guest_from_a_cold_start(lab: Lab) -> None:
    """Downstream to downstream works before the upstream ever asked for either."""
    scene = vps(lab)
    scene.start(config())
    ping = scene.guests[1].ping(guest(2))
    assert ping, ping.output
    assert ping.replies[1] < 1


def test_proxy_itself_reaches_a_guest_nobody_asked_for(lab: Lab) -> None:
    """The kernel's own solicitation, sent where its route points, counts as asked by the proxy."""
    scene = vps(lab)
    scene.start(config())
    ping = scene.p.ping(guest(2), count=10, interval=0.1, timeout=2)
    assert ping.received > 0, ping.output
    assert ping.first < 2
    assert scene.p.host_routes() == {guest(2): "tap2"}


def test_guest_reaches_the_proxys_upstream_address(lab: Lab) -> None:
    """The proxy's own address on the upstream is answered for on the other ports."""
    scene = vps(lab)
    scene.start(config())
    ping = scene.guests[1].ping(PROXY, count=10, interval=0.1, timeout=1)
    assert ping.received >= 8, ping.output  # the proxy's own first answers look for the guest upstream
    assert scene.p.host_routes().keys() <= {guest(1)}


def test_segments_without_upstream(lab: Lab) -> None:
    """A group of downstreams only joins its segments."""
    scene = vps(lab)
    scene.daemon = lab.portier(config(upstream=""), on=scene.p)
    scene.daemon.wait_ports("tap1", "tap2")
    ping = scene.guests[1].ping(guest(2))
    assert ping, ping.output


def test_isolated_guests_are_not_proxied_to_each_other(lab: Lab) -> None:
    """With ``isolate`` no solicitation crosses between downstreams; the upstream is reached all the same."""
    scene = vps(lab)
    portier = scene.start(config(extra="isolate: true"))
    behind = scene.guests[2].capture("eth0")
    unknown = f"{NET}61"
    scene.guests[2].add("eth0", f"{unknown}/64")
    assert not scene.guests[1].ping(unknown, timeout=0.5)
    assert scene.guests[1].ping(UPSTREAM)
    assert not behind.solicitations(unknown)
    assert scene.guests[2].ping(
        UPSTREAM, source=guest(2)
    )  # known from now on, and still not for the other guest
    assert not scene.guests[1].ping(guest(2), timeout=0.5)
    assert portier.count("isolated") >= 1


def test_nothing_crosses_between_groups(lab: Lab) -> None:
    """Two groups, each with an uplink of its own: a solicitation in one is not heard in the other."""
    scene = vps(lab)
    other = lab.host("u2")
    lab.link(other, "eth0", scene.p, "eth1")
    other.add("eth0", f"{NET}b/64")
    # What the kernel routes is not separated by groups: that takes policy routing.
    scene.p.ip(f"-6 route add {NET}/64 dev eth1 table 100")
    scene.p.ip("-6 rule add iif tap2 lookup 100")
    one = config(name="one", downstream="tap1")
    two = config(name="two", upstream="eth1", downstream="tap2").partition("groups:\n")[2]
    scene.daemon = portier = lab.portier(one + two, on=scene.p)
    portier.wait_ports("eth0", "tap1", group="one")
    portier.wait_ports("eth1", "tap2", group="two")
    captures = [other.capture("eth0"), scene.guests[2].capture("eth0")]
    assert scene.u.ping(guest(1))
    assert scene.guests[1].ping(UPSTREAM)
    for target in (guest(2), f"{NET}99", f"{NET}b"):
        scene.u.inject("eth0", solicit(scene.u, target))
        scene.guests[1].inject("eth0", solicit(scene.guests[1], target))
    assert scene.u.ping(guest(1))  # the solicitations before it have been dealt with
    assert not scene.u.ping(guest(2), timeout=1)
    for capture in captures:
        assert not [f for f in capture.solicitations(outgoing=False) if f.nd_target in (guest(1), guest(2))]
        assert not capture.solicitations(f"{NET}99", outgoing=False)
    assert other.ping(guest(2)), "the other group does its own work"


def test_address_without_rule_gets_no_answer(lab: Lab) -> None:
    """What no rule allows is not proxied, though the host is there; what one denies neither."""
    scene = vps(lab)
    scene.guests[1].add("eth0", f"{NET}1:1/64")
    scene.guests[1].add("eth0", "2001:db8:99::1/64")
    scene.u.ip("-6 route add 2001:db8:99::/64 dev eth0")
    portier = scene.start(config(f'["{NET}/112", {{deny: "{guest(2)}/128"}}]'))
    behind = scene.guests[1].capture("eth0")
    for refused in (f"{NET}1:1", "2001:db8:99::1", guest(2)):
        assert not scene.u.ping(refused, timeout=0.5), refused
        assert not behind.solicitations(refused), refused
    assert scene.u.ping(guest(1))
    assert portier.count("no-rule") >= 2
    assert portier.count("denied") >= 1


def test_resolution_asks_properly_and_routes_before_answering(lab: Lab) -> None:
    """Frame by frame: asked upstream, asked for on the other ports, answered behind, answered upstream.

    The host route is there when the answer is: the first packet after it is not lost.
    """
    scene = vps(lab)
    scene.start(config())
    front, ports = scene.u.capture("eth0"), {n: scene.p.capture(f"tap{n}") for n in (1, 2)}
    assert scene.u.ping(guest(1))
    asked = front.wait_solicitation(guest(1), outgoing=True)
    for number, capture in ports.items():
        question = capture.wait_solicitation(guest(1), outgoing=True)
        assert question.time > asked.time
        assert_question(question, port=(scene.p, f"tap{number}"), target=guest(1))
    told = ports[1].wait_advertisement(guest(1), outgoing=False)
    answered = front.wait_advertisement(guest(1), outgoing=False)
    assert asked.time < told.time < answered.time
    answers = front.advertisements(guest(1), outgoing=False)
    assert len([answer for answer in answers if answer.raw[58] & SOLICITED]) == 1
