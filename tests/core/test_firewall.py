"""A ruleset is judged by what is known of a packet: dropped, passed, or not to be told."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from portier.core.firewall import (
    Chain,
    Packet,
    Rule,
    Ruleset,
    alike,
    fate,
    foreign_tables,
    from_nft,
    from_save,
    is_reverse_path,
)

NET = ip_network("2001:db8:7::/64")
PING = Packet("ip6", "eth0", "tap1", 58, 128, None, NET, 64, state="new")
ANY = Packet("ip6", "eth0", "tap1", None, None, None, NET, state="new")
ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def field(protocol: str, name: str, right: Any, op: str = "==") -> dict[str, Any]:
    left = {"payload": {"protocol": protocol, "field": name}}
    return {"match": {"op": op, "left": left, "right": right}}


def ruleset(*rules: tuple[dict[str, Any], ...], policy: str = "accept", **chains: Any) -> Ruleset:
    """A chain on forward with these rules, and others to jump to."""
    base = Chain(
        family="inet", table="f", name="c", hook="forward", policy=policy,
        rules=tuple(Rule(rule, str(number)) for number, rule in enumerate(rules)),
    )  # fmt: skip
    others = [
        Chain(family="inet", table="f", name=name, rules=tuple(Rule(rule, name) for rule in of))
        for name, of in chains.items()
    ]
    sets = {("inet", "f", "s"): ["tap1"], ("inet", "f", "moving"): None}
    return Ruleset((base, *others), sets)


@pytest.mark.parametrize(
    ("rules", "packet", "dropped"),
    [
        (ruleset(), PING, False),
        (ruleset(policy="drop"), PING, True),
        (ruleset((ACCEPT,), policy="drop"), PING, False),
        (ruleset((meta("iifname", "eth*"), DROP)), PING, True),
        (ruleset((meta("iifname", "wlan*"), DROP)), PING, False),
        (ruleset((meta("oifname", {"set": ["tap2", "tap1"]}), {"reject": None})), PING, True),
        (ruleset((meta("oifname", "tap1", "!="), DROP)), PING, False),
        (ruleset((meta("oifname", "@s"), DROP)), PING, True),
        (ruleset((meta("oifname", "@moving"), DROP)), PING, None),
        (ruleset((meta("oifname", "@nosuch"), DROP)), PING, None),
        (ruleset((meta("mark", 7), DROP)), PING, None),
        (ruleset((meta("mark", 7), ACCEPT), policy="drop"), PING, None),
        (ruleset((meta("mark", 7), ACCEPT)), PING, False),
        (ruleset((meta("l4proto", "tcp"), DROP)), PING, False),
        (ruleset((meta("l4proto", "tcp"), DROP)), ANY, None),
        (ruleset((field("tcp", "dport", 22), DROP)), PING, False),
        (ruleset((field("tcp", "dport", 22, "!="), DROP)), PING, False),
        (ruleset((field("ip", "saddr", "192.0.2.1", "!="), DROP)), PING, False),
        (ruleset((field("icmpv6", "type", {"set": ["echo-request", 136]}), DROP)), PING, True),
        (ruleset((field("icmpv6", "type", {"range": [133, 137]}), DROP)), PING, False),
        (ruleset((field("ip6", "daddr", {"prefix": {"addr": "2001:db8::", "len": 32}}), DROP)), PING, True),
        (ruleset((field("ip6", "daddr", "2001:db8:7::5"), DROP)), PING, None),
        (ruleset((field("ip6", "daddr", "2001:db8:8::5"), DROP)), PING, False),
        (ruleset((field("ip6", "saddr", "2001:db8:8::5"), DROP)), PING, None),
        (ruleset((field("ip6", "daddr", {"range": ["2001:db8::", "2001:db8:9::"]}), DROP)), PING, True),
        (ruleset(({"limit": {"rate": 3, "per": "second"}}, ACCEPT), policy="drop"), PING, False),
        (ruleset(({"limit": {"rate": 3, "per": "second", "inv": True}}, DROP)), PING, False),
        (ruleset(({"limit": "named"}, DROP)), PING, None),
        (ruleset(({"xt": None}, DROP)), PING, None),
        (ruleset(({"jump": {"target": "sub"}},), sub=[(DROP,)]), PING, True),
        (ruleset(({"jump": {"target": "sub"}},), (DROP,), sub=[({"return": None},), (ACCEPT,)]), PING, True),
        (ruleset(({"goto": {"target": "sub"}},), (DROP,), sub=[]), PING, False),
        (ruleset(({"jump": {"target": "gone"}},)), PING, None),
        (ruleset(({"jump": {"target": "sub"}},), sub=[({"jump": {"target": "sub"}},)]), PING, None),
        (ruleset((meta("mark", 1), {"return": None}), (ACCEPT,), policy="drop"), PING, None),
        (ruleset(({"queue": None},)), PING, None),
    ],
)
def test_fate(rules: Ruleset, packet: Packet, dropped: bool | None) -> None:
    """What a packet's fate is."""
    found = fate(rules, ["prerouting", "forward"], packet)
    assert found.dropped is dropped
    assert (found.place is None) == (dropped is False)


@pytest.mark.parametrize(
    ("data", "dropped"),
    [
        ({"set": [["eth0", DROP], ["tap1", ACCEPT]]}, True),
        ({"set": [["eth1", DROP]]}, False),
        ({"set": [["eth0", {"jump": {"target": "sub"}}]]}, True),
        ("@map", None),
    ],
)
def test_verdict_maps(data: Any, dropped: bool | None) -> None:
    """An anonymous one is read; a named one may change."""
    rules = ruleset(({"vmap": {"key": {"meta": {"key": "iifname"}}, "data": data}},), sub=[(DROP,)])
    assert fate(rules, ["forward"], PING).dropped is dropped


def test_what_is_established_is_told_from_what_is_new() -> None:
    """By connection tracking's state."""
    state = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    rules = ruleset((state, ACCEPT), policy="drop")
    assert fate(rules, ["forward"], PING).dropped
    assert fate(rules, ["forward"], PING._replace(state="established")).dropped is False


def test_reverse_path() -> None:
    """Such a rule drops what strays, and nothing else."""
    fib = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}
    rules = ruleset(({"match": {"op": "==", "left": fib, "right": False}}, DROP))
    assert fate(rules, ["forward"], PING).dropped is False
    found = fate(rules, ["forward"], PING._replace(strays=True))
    assert found.dropped
    assert found.place is not None
    assert found.place.rule is not None
    assert is_reverse_path(found.place.rule)


def test_a_loose_reverse_path_drops_nobody() -> None:
    """Where any interface will do, there is a route to every host that there is."""
    fib = {"fib": {"result": "oif", "flags": ["saddr", "mark"]}}
    rules = ruleset(({"match": {"op": "==", "left": fib, "right": False}}, DROP))
    assert fate(rules, ["forward"], PING._replace(strays=True)).dropped is False
    saved = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter --loose --invert -j DROP\nCOMMIT\n"
    rules = Ruleset(from_save("ip6", "ip6tables", saved))
    assert fate(rules, ["prerouting"], PING._replace(strays=True)).dropped is False


@pytest.mark.parametrize(
    "match",
    [
        {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"},
        {"op": "==", "left": {"ct": {"key": "status"}}, "right": {"set": ["snat", "dnat"]}},
        {"op": "==", "left": {"exthdr": {"name": "rt", "field": "type"}}, "right": 0},
        {"op": "==", "left": {"exthdr": {"name": "hbh"}}, "right": True},
    ],
)
def test_what_usual_packets_are_not(match: dict[str, Any]) -> None:
    """Their addresses are nobody's translation, and they have no extension headers."""
    rules = ruleset(({"match": match}, ACCEPT), policy="drop")
    assert fate(rules, ["forward"], PING).dropped


def test_ingress_is_by_device() -> None:
    """A chain on ingress or egress sees its own devices only; the words and devices are from the listing."""
    listing = """table netdev f { # handle 1
	chain i { # handle 2
		type filter hook ingress devices = { "eth0", "eth1" } priority filter; policy accept;
		icmpv6 type echo-request drop # handle 3
	}
}"""
    rule = {"family": "netdev", "table": "f", "chain": "i", "handle": 3}
    objects: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "netdev", "name": "f", "handle": 1}},
        {"chain": {"family": "netdev", "table": "f", "name": "i", "type": "filter", "hook": "ingress",
                   "prio": 0, "policy": "accept"}},
        {"rule": rule | {"expr": [field("icmpv6", "type", "echo-request"), DROP]}},
    ]  # fmt: skip
    rules = from_nft(objects, listing)
    found = fate(rules, ["ingress"], PING)
    assert found.dropped
    assert "icmpv6 type echo-request drop # handle 3" in str(found.place)
    assert fate(rules, ["ingress"], PING._replace(iif="tap1")).dropped is False
    assert not foreign_tables(objects)
    objects.append({"rule": rule | {"expr": [{"xt": {"type": "match", "name": "conntrack"}}]}})
    assert foreign_tables(objects) == {("netdev", "f")}


SAVED = """# Generated by ip6tables-save
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:guests - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o tap+ -m comment --comment "to the guests" -j guests
-A FORWARD ! -i eth0 -m owner --uid-owner 7 -j DROP
-A guests -p ipv6-icmp -m icmp6 --icmpv6-type 128/0 -m limit --limit 5/sec -j ACCEPT
-A guests -d 2001:db8:7::/64 -p tcp -m tcp --dport 22 -j LOG --log-prefix "ssh: "
-A guests -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
"""


@pytest.mark.parametrize(
    ("packet", "dropped"),
    [
        (PING, False),
        (PING._replace(kind=129), True),
        (PING._replace(kind=129, state="established"), False),
        (PING._replace(oif="wlan0"), True),
        (PING._replace(iif="wlan0", oif="wlan1"), True),
        (ANY, None),
    ],
)
def test_what_iptables_saves(packet: Packet, dropped: bool | None) -> None:
    """The same terms, from the words of iptables."""
    rules = Ruleset(from_save("ip6", "ip6tables", SAVED))
    found = fate(rules, ["prerouting", "forward"], packet)
    assert found.dropped is dropped
    if dropped:
        assert "ip6tables table filter, chain" in str(found.place)


def test_interfaces_that_no_rule_tells_apart() -> None:
    """Of many containers one has to be looked at, where rules name none of them."""
    rules = ruleset((meta("iifname", {"set": ["eth0", "tap*"]}), DROP), (meta("oifname", "tap7"), DROP))
    assert alike(rules, ["eth0", "tap3", "tap4", "lxc1", "lxc2", "tap7"]) == [
        ["eth0"],
        ["tap3", "tap4"],
        ["lxc1", "lxc2"],
        ["tap7"],
    ]
