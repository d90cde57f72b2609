"""Rules: longest match, patterns, ties, live prefixes, ports."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portier.core.model import Answer, Bound, Group, HostPattern, Live, Rule
from portier.core.rules import Prefixes, RuleTable, matches
from tests.core.playbook import D, E, U, ip, port


def table(
    *rules: Rule, live: tuple[IPv6Network, ...] = (), on_link: dict[int, str] | None = None
) -> RuleTable:
    """Compiled rules for the ports U, D and E."""
    prefixes = {index: (IPv6Network(text),) for index, text in (on_link or {}).items()}
    ports = tuple(port(index, prefixes=prefixes.get(index, ())) for index in (U, D, E))
    return RuleTable.compile(Bound(group=Group(name="g", rules=rules), ports=ports, live=live))


def net(text: str) -> IPv6Network:
    return IPv6Network(text)


def pattern(value: str, mask: str) -> HostPattern:
    return HostPattern(int(IPv6Address(value)), int(IPv6Address(mask)))


def winner(rules: RuleTable, address: str) -> Rule | None:
    found = rules.lookup(ip(address))
    return found.rule if found else None


def test_the_most_specific_prefix_wins_in_any_order() -> None:
    """Order never matters."""
    wide = Rule(prefix=net("2001:db8::/32"))
    narrow = Rule(prefix=net("2001:db8:7::/112"), allow=False)

    for rules in ((wide, narrow), (narrow, wide)):
        assert winner(table(*rules), "2001:db8:7::5") is narrow
        assert winner(table(*rules), "2001:db8:7::1:5") is wide
        assert winner(table(*rules), "2001:db9::1") is None


def test_at_equal_prefix_a_pattern_beats_none_and_more_bits_beat_fewer() -> None:
    """A pattern that does not match falls through."""
    plain = Rule(prefix=net("2001:db8:7::/64"), allow=False)
    vms = Rule(prefix=net("2001:db8:7::/64"), host=pattern("::5054:ff:fe00:0", "::ffff:ffff:ff00:0"))
    one = Rule(prefix=net("2001:db8:7::/64"), host=pattern("::5054:ff:fe00:1", "::ffff:ffff:ffff:ffff"))
    rules = table(plain, vms, one)

    assert winner(rules, "2001:db8:7:0:5054:ff:fe00:1") is one
    assert winner(rules, "2001:db8:7:0:5054:ff:fe12:3456") is vms
    assert winner(rules, "2001:db8:7::1") is plain


def test_a_pattern_that_does_not_match_falls_through_to_a_shorter_prefix() -> None:
    """Not to nothing."""
    shorter = Rule(prefix=net("2001:db8::/32"))
    longer = Rule(prefix=net("2001:db8:7::/64"), host=pattern("::1", "::f"))

    assert winner(table(shorter, longer), "2001:db8:7::2") is shorter


def test_upstream_stands_for_its_live_prefixes_and_gives_way_to_explicit_rules() -> None:
    """At equal prefix the rule that names it wins."""
    live = Rule(prefix=Live.UPSTREAM, answer=Answer.ALWAYS)
    explicit = Rule(prefix=net("2001:db8:7::/64"), allow=False)

    assert winner(table(live, live=(net("2001:db8:7::/64"),)), "::9") is live
    assert winner(table(live, explicit, live=(net("2001:db8:7::/64"),)), "::9") is explicit
    assert winner(table(live), "::9") is None


def test_a_rule_with_downstream_knows_its_ports() -> None:
    """Names, globs and exclusions; never the upstream."""
    found = table(Rule(prefix=net("::/0"), downstream=("*", "!down1"))).lookup(ip("::1"))

    assert found is not None
    assert found.ports == frozenset({D})


def test_askers_are_admitted_by_prefix() -> None:
    """Without a list everybody is."""
    found = table(Rule(prefix=net("::/0"), askers=(net("fe80::/10"),))).lookup(ip("::1"))
    everybody = table(Rule(prefix=net("::/0"))).lookup(ip("::1"))

    assert found is not None
    assert everybody is not None
    assert found.admits(ip("fe80::1"))
    assert not found.admits(ip("2001:db8::1"))
    assert everybody.admits(ip("2001:db8::1"))


@pytest.mark.parametrize(
    ("on_link", "shadowed"),
    [
        ({}, True),
        ({U: "2001:db8:7::/64"}, True),
        ({D: "2001:db8:7::/64"}, False),
        ({U: "2001:db8::/32", D: "2001:db8:7::/64"}, False),
        ({U: "2001:db8:7::/64", D: "2001:db8:7:0:1::/80"}, None),
    ],
)
def test_always_knows_where_the_kernel_would_send(on_link: dict[int, str], shadowed: bool | None) -> None:
    """An answer alone makes a black hole where the best route leaves by the upstream."""
    found = table(Rule(prefix=net("2001:db8:7::/64"), answer=Answer.ALWAYS), on_link=on_link).lookup(
        ip("::1")
    )

    assert found is not None
    assert found.shadowed is shadowed


def test_ipv4_and_ipv6_do_not_mix() -> None:
    """A rule of one family never decides on the other."""
    rules = table(Rule(prefix=IPv4Network("192.0.2.0/24")), Rule(prefix=net("::/0")))
    found = rules.lookup(bytes((192, 0, 2, 1)))

    assert found is not None
    assert found.network == IPv4Network("192.0.2.0/24")
    assert rules.lookup(bytes((198, 51, 100, 1))) is None
    assert rules.count == 2


@given(
    st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(112, 128)), min_size=1, max_size=20),
    st.integers(0, 2**16 - 1),
)
def test_longest_match_equals_the_slow_way(entries: list[tuple[int, int]], host: int) -> None:
    """Against a linear search over all networks."""
    networks = {IPv6Network((low, length), strict=False) for low, length in entries}
    numbered = {network: number for number, network in enumerate(sorted(networks), 1)}
    address = IPv6Address(host)
    holding = [network for network in networks if address in network]
    expected = numbered[max(holding, key=lambda network: network.prefixlen)] if holding else 0

    assert Prefixes(numbered.items()).get(address.packed) == expected


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("virbr0", ["virbr0", "lxc*"], True),
        ("lxc7", ["lxc*", "!lxcbr0"], True),
        ("lxcbr0", ["!lxcbr0", "lxc*"], False),
        ("LXC7", ["lxc*"], False),
        ("lo", ["*"], False),
        ("lo", ["lo"], True),
        ("eth3", ["eth[0-9]*"], True),
        ("eth0", [], False),
    ],
)
def test_names_globs_and_exclusions(name: str, patterns: list[str], expected: bool) -> None:
    """An exclusion wins wherever it stands; globs never match the loopback."""
    assert matches(name, patterns) is expected


def test_a_rule_reads_as_it_was_written() -> None:
    """In `explain`: prefix, pattern and ports in the words of the configuration."""
    vms = Rule(prefix=net("2001:db8:7::/64"), host=pattern("::5054:ff:fe00:0", "::ffff:ffff:ff00:0"))
    tied = Rule(prefix=Live.UPSTREAM, allow=False, downstream=("down*", "!down1"))

    assert str(table(vms).lookup(ip("2001:db8:7:0:5054:ff:fe00:1"))) == (
        "allow 2001:db8:7::/64 with host pattern ::5054:ff:fe00:0/::ffff:ffff:ff00:0"
    )
    assert str(table(tied, live=(net("2001:db8:7::/64"),)).lookup(ip("::1"))) == (
        "deny 2001:db8:7::/64 (upstream) on down*, !down1"
    )
