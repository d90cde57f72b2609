"""Which multicast groups are wanted where."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network
from time import thread_time

from portier.core import ndp
from portier.core.groups import MOST, Groups
from portier.core.model import Answer, Live, Multicast, Rule
from portier.core.outcome import DrawAll, Join, Leave
from tests.core.playbook import LAN, D, E, Playbook, U, ip, port


def node(address: str) -> bytes:
    """The solicited-node group of an address."""
    return ndp.solicited_node(ip(address))


def single(address: str, **how: object) -> Rule:
    """A rule for one address."""
    return Rule(prefix=IPv6Network(ip(address)), **how)  # type: ignore[arg-type]


def test_the_group_of_a_learned_host_is_wanted_on_the_other_ports() -> None:
    """Where it lives nobody asks us; when it has gone nobody is asked for."""
    play = Playbook()
    play.learn(D, "::5", 5)
    assert sorted(play.joined) == [(U, node("::5")), (E, node("::5"))]
    play.ns(E, "::5", "::1", 5)
    assert sorted(play.joined) == [(U, node("::5")), (D, node("::5"))]
    play.pass_time(700)

    assert play.where("::5") is None
    assert play.joined == []


def test_a_group_is_shared_and_left_with_the_last_target() -> None:
    """Targets with the same last 24 bits, also on different ports."""
    play = Playbook(isolate=True)
    play.learn(D, "2001:db8:7:0:1::77", 5)
    play.learn(E, "2001:db8:7:0:2::77", 6)
    assert play.joined == [(U, node("::77"))]
    play.ports = (port(U), port(E))
    play.configure()
    assert play.joined == [(U, node("::77"))]
    play.ports = (port(U),)
    play.configure()

    assert play.joined == []


def test_a_served_single_address_has_its_group_from_the_start() -> None:
    """Wherever it may be asked for: not where the rule alone has it live, not where it is denied, and not
    where the kernel answers, which joins for itself."""
    play = Playbook(
        rules=(
            single("::1"),
            single("::2", downstream=("down0",)),
            single("::3", allow=False),
            single("::4", answer=Answer.KERNEL),
            Rule(prefix=LAN),
        )
    )

    assert sorted(play.joined) == sorted(
        [(U, node("::1")), (D, node("::1")), (E, node("::1")), (U, node("::2")), (E, node("::2"))]
    )


def test_own_addresses_are_asked_for_on_the_other_ports() -> None:
    """Where they live, the kernel has joined."""
    play = Playbook(ports=(port(U, addresses=(ip("::2"),)), port(D), port(E)))

    assert sorted(play.joined) == [(D, node("::2")), (E, node("::2"))]


def test_a_port_that_comes_joins_and_one_that_goes_leaves() -> None:
    """On configure, for the hosts that are known already."""
    play = Playbook(ports=(port(U), port(D)))
    play.learn(D, "::5", 5)
    play.ports = (port(U), port(D), port(E))
    play.configure()
    assert sorted(play.joined) == [(U, node("::5")), (E, node("::5"))]
    play.ports = (port(D), port(E))
    play.configure()

    assert play.joined == [(E, node("::5"))]


def test_a_rule_that_goes_leaves_its_groups() -> None:
    """And a mode that needs none leaves all."""
    play = Playbook(rules=(Rule(prefix=Live.UPSTREAM), single("::1", answer=Answer.ALWAYS)))
    play.learn(D, "::5", 5)
    play.configure(live=())
    assert {group for _, group in play.joined} == {node("::1")}
    play.group = replace(play.group, multicast=Multicast.ROUTER)
    play.configure()

    assert play.joined == []


def test_a_port_without_link_layer_address_joins_nothing() -> None:
    """Nobody asks there."""
    play = Playbook(ports=(port(U), port(D, mac=None)), rules=(single("::1"),))

    assert play.joined == [(U, node("::1"))]


def test_a_group_that_goes_over_to_another_target_is_not_left() -> None:
    """Joins come before leaves, and what is still wanted is neither."""
    groups = Groups()
    assert set(groups.want(b"a", [(1, b"g"), (2, b"g")])) == {Join(1, b"g"), Join(2, b"g")}
    assert groups.want(b"b", [(1, b"g")]) == []
    assert groups.want(b"a", [(3, b"g")]) == [Join(3, b"g"), Leave(2, b"g")]
    assert groups.keep([(3, b"g")]) == []
    assert groups.want(b"a", []) == []
    assert groups.keep([]) == [Leave(3, b"g")]


def name(number: int) -> bytes:
    """A group by number."""
    return number.to_bytes(16, "big")


def test_so_many_are_joined_on_a_port_and_then_all_multicast_is_drawn() -> None:
    """Said once; another port is not concerned."""
    groups = Groups()
    for number in range(MOST):
        assert groups.want(name(number), [(1, name(number))]) == [Join(1, name(number))]
    assert groups.want(b"over", [(1, b"over"), (2, b"over")]) in (
        [DrawAll(1, wanted=True), Join(2, b"over")],
        [Join(2, b"over"), DrawAll(1, wanted=True)],
    )
    assert groups.want(b"more", [(1, b"more")]) == []
    assert groups.want(b"more", []) == [], "never joined, never left"


def test_who_waits_longest_takes_the_place_of_a_group_that_is_left() -> None:
    """And all multicast is drawn until there is room to spare, so that nothing flutters at the bound."""
    groups = Groups()
    for number in range(MOST + 2):
        groups.want(name(number), [(1, name(number))])
    assert groups.want(name(0), []) == [Leave(1, name(0)), Join(1, name(MOST))]
    assert groups.want(name(1), []) == [Leave(1, name(1)), Join(1, name(MOST + 1))]
    for number in range(2, 101):
        assert groups.want(name(number), []) == [Leave(1, name(number))]
    assert groups.want(name(101), []) == [Leave(1, name(101)), DrawAll(1, wanted=False)]


def test_a_port_that_goes_leaves_what_it_joined_and_is_drawn_no_more() -> None:
    """And begins anew when it comes back."""
    groups = Groups()
    everything = {(1, name(number)) for number in range(MOST + 50)}
    first = groups.keep(everything)
    assert sum(isinstance(change, Join) for change in first) == MOST
    joined = {change.group for change in first if isinstance(change, Join)}
    for change in groups.keep(()):
        if isinstance(change, Join):
            joined.add(change.group)
        elif isinstance(change, Leave):
            joined.remove(change.group)
        else:
            assert change == DrawAll(1, wanted=False)
    assert not joined
    assert groups.want(b"a", [(1, b"g")]) == [Join(1, b"g")]


def test_many_that_leave_one_after_the_other_cost_no_more_than_they_did_in_coming() -> None:
    """As when a port with all its hosts goes: frames of the others wait meanwhile."""
    groups = Groups()
    many = [number.to_bytes(16, "big") for number in range(60_000)]
    begin = thread_time()
    for group in many:
        groups.want(group, [(1, group)])
    there = thread_time()
    for group in many:
        groups.want(group, [])
    assert thread_time() - there < 5 * (there - begin)
